// What is: everything a decision needs to know about the kernel, as one value.
#pragma once

#include "agent/hint.h"
#include "netlink/values.h"
#include "netlink/xfrm.h"
#include "rules/membership.h"
#include "rules/steering.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace novpn {

struct Observed {
    std::vector<Link> links;
    Ipv4Settings ipv4_of_all; ///< net.ipv4.conf.all
    std::vector<Address> addresses;
    std::vector<Route> routes;    ///< of main, where it was to be looked at, and of the classes' tables, both families
    std::vector<Rule> rules;      ///< both families, in the order the kernel consults them
    std::vector<Lookup> lookups;  ///< unmarked, of `public_destinations()`; the first of each family
                                  ///< also by each link that may be a tunnel
    std::vector<Lookup> defaults; ///< of what Scope::defaults_of names, unmarked
    std::vector<Neighbour> gateways;       ///< `watched_gateways`, as far as the kernel has tried them
    std::vector<Neighbour> place_gateways; ///< that sites are told by, as far as the kernel has tried them
    std::vector<WifiLink> wifi;
    std::string cgroup_mount;                     ///< where cgroup2 is mounted, for the text of operations
    std::map<std::string, std::uint64_t> cgroups; ///< those of the classes that exist, by path; the id
    ObservedNft nft;
    std::vector<XfrmPolicy> policies; ///< both families, but for those of single sockets
    ObservedBirthMarks birth_marks;
    ObservedRedirects redirects;
    ObservedNetCls net_cls;   ///< where it was to be looked at
    Hints hints;              ///< of the sources, where they were asked just now
    NameServers name_servers; ///< of the sources, as they answered last
    /// How often the sources have answered while a link was in a network.
    std::map<std::pair<IfIndex, Prefix>, unsigned> heard;
    SeenCgroups others;            ///< cgroups that are not ours, as far as selectors may match them
    std::string others_problem;    ///< why some of those are not known; empty: all are
    std::set<uid_t> allowed_users; ///< of those with a manager, whose apps count
    bool class_slices = false;     ///< the classes' own slices count
    bool flows_gone = false;       ///< no class is on yet, and the kernel knows no flow of one
};

/// What to look at.
struct Scope {
    bool main = true;                                 ///< else no routes of main, which take long where there are many
    std::set<std::pair<Family, IfIndex>> defaults_of; ///< links by which something public is looked up, too
    std::vector<TableId> tables;      ///< the classes' tables; those that our rules name are looked at as well
    std::vector<std::string> cgroups; ///< the classes' cgroups
    std::vector<std::string> tunnels; ///< globs of the config: tunnels whatever their kind says
    std::vector<Prefix> destinations; ///< of the classes: what goes there says nothing about the internet
    bool strays = false;              ///< also what another config or a crash may have left: routes of ours in any
    std::string cgroup_root;          ///< table, and with this every cgroup right below it
    bool others = false;              ///< the classes select cgroups of others
    bool net_cls = false;             ///< the classes have class ids; strays may be there in any case
    std::set<std::string> attached;   ///< cgroups of others that a class's BPF program may be on
    bool wifi = false;                ///< which networks Wi-Fi is in
    bool bssids = false;              ///< and by which access point
    bool trusts_watches = false;      ///< what is in files may be as it was a moment ago, where no news is of it
    bool place_gateways = false;      ///< link-layer addresses of gateways,
    std::vector<Neighbour> gateways;  ///< and of these, which no route may name any more
};

/// Destinations that stand for "the internet": one in the middle of each eighth of the IPv4 unicast space, so that a
/// takeover by finer prefixes than halves is seen, and the registries' large IPv6 blocks. Looked up in the kernel only.
const std::vector<address>& public_destinations();

/// Gateways of main's defaults of a family that has several, each once: one that does not answer loses to the others.
std::vector<Neighbour> rival_gateways(const std::vector<Route>& routes);

/// Those, and every IPv6 gateway: where that of our table has failed, the kernel prefers the backstop to it.
std::vector<Neighbour> watched_gateways(const std::vector<Route>& routes);

/// Gateways of defaults of any table looked at, each once.
std::vector<Neighbour> default_gateways(const std::vector<Route>& routes);
/// Gateways of main's routes to single hosts, such as a VPN's server, each once; a few at most.
std::vector<Neighbour> host_route_gateways(const std::vector<Route>& routes);
/// All that Scope::place_gateways asks for.
std::vector<Neighbour> gateways_to_look_at(const Scope& scope, const std::vector<Route>& routes);

/// Those that no class has among its destinations; where it has all of a family, all of that family.
std::vector<address> telling_destinations(const Scope& scope);

/// Kind and hardware of links that carry VPNs; of ppp more has to be known. `named`: globs of the config.
bool may_be_tunnel(const Link& link, const std::vector<std::string>& named);

bool matches_glob(const std::string& glob, const std::string& name);
/// Globs of the config against the name.
bool matches(const std::vector<std::string>& globs, const std::string& name);

const Link* find_link(const Observed& observed, IfIndex index);

} // namespace novpn
