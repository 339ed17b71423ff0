// Which link is the physical way out, per family, and which links are tunnels. Pure functions.
#pragma once

#include "agent/observed.h"
#include "config/config.h"

#include <map>
#include <set>

namespace novpn {

/// The physical way out of one family.
struct Uplink {
    Family family = Family::ipv4;
    IfIndex link;
    std::string link_name;
    std::optional<address> gateway; ///< none: a point-to-point link
    std::optional<address> source;  ///< as the default route asked for
    bool onlink = false;
    bool operator==(const Uplink&) const = default;
};

/// What the agent remembers about the uplink it used last, to recognise whether it is still the same network.
struct RememberedUplink {
    Uplink uplink;
    std::optional<Prefix> on_link; ///< of the link's address that reached the gateway
    bool by_router_advertisement = false;
    UplinkSource from = UplinkSource::main; ///< how it came to be known; a cold start's guess stays one
    std::string reason;
    bool operator==(const RememberedUplink&) const = default;
};

/// Which uplink is asked for.
struct UplinkQuery {
    Family family = Family::ipv4;
    std::string only; ///< glob of the links that may be it (`uplink` of a class); empty: any
};

/// Passed into a decision and out of it again; a fresh agent has none.
struct Memory {
    /// By UplinkQuery::only and family.
    std::map<std::pair<std::string, Family>, RememberedUplink> uplinks;
    /// Gateways of several that did not answer, until one of them does.
    std::set<std::pair<IfIndex, address>> dead_gateways;
    /// ppp links that were tunnels: they are no modems while the uplink under them is away.
    std::set<IfIndex> ppp_tunnels;
    /// What resolv.conf(5) named while no tunnel was up, of the one link that was the uplink then.
    std::optional<LinkResolvers> resolvers;
    /// What it named while one was: a VPN that ends may leave that behind.
    std::vector<address> name_servers_of_tunnel;
    bool operator==(const Memory&) const = default;
};

/// Gateways of the remembered uplinks.
std::vector<Neighbour> remembered_gateways(const Memory& memory);

struct Selection {
    std::optional<Uplink> uplink;
    UplinkSource from = UplinkSource::main; ///< meaningless without an uplink
    std::string reason;                     ///< one phrase a person understands, also for "none"
    std::optional<RememberedUplink> remembered;
    bool operator==(const Selection&) const = default;
};

/// Whether `link` carries a VPN: by kind, unless the config says otherwise. ppp is a modem when it is the only way out
/// and a tunnel while another uplink lives; of several ppp links without another uplink the first one is the modem.
bool is_tunnel(const Link& link, const Observed& observed, const Config& config);

/// With the ppp links that were tunnels said to be some, whatever is_tunnel would make of them now.
Config with_known_tunnels(Config config, const Memory& memory, const Observed& observed);

/// The kernel would accept the gateway: it is on-link there, or there is none.
bool gateway_is_on_link(const Uplink& uplink, const Observed& observed);

/// Link up, with carrier and an address of the family that is no link-local one (IPv4: any).
bool can_carry(const Link& link, Family family, const Observed& observed);

/// Gateways that do not answer: FAILED as the kernel has it now, or as it had it while nobody has tried again.
std::set<std::pair<IfIndex, address>> dead_gateways(const Observed& observed, const Memory& memory);

/// Chooses among main's defaults on links that are no tunnels: a gateway that answers before one that does not,
/// uplinks.prefer, metric, the one in use, lowest ifindex.
/// Without one: the remembered uplink while it is plausible, then, under a takeover (`displaced_by` names its link),
/// the class's own table, host routes to a VPN server, and what the sources say.
Selection select_uplink(const UplinkQuery& query, const Observed& observed, const Config& config, const Memory& memory,
                        const std::optional<std::string>& displaced_by);

/// What is remembered of an uplink that is one of main's defaults.
RememberedUplink remember_of_main(const Uplink& uplink, const Observed& observed);

/// What select_uplink() would remember where it chooses one of main's defaults, without the words for it; nothing where
/// it chooses none of these.
std::optional<RememberedUplink> uplink_in_main(const UplinkQuery& query, const Observed& observed, const Config& config,
                                               const Memory& memory);

/// The one link that could be the uplink of a class that asks for none in particular; nothing where several could.
std::optional<IfIndex> only_uplink(Family family, const Observed& observed, const Config& config);

/// The way out of a class with `via`: the first tunnel, by ifindex, whose name matches and that can carry the family.
/// Its gateway is that of a route of any table looked at; most tunnels have none.
Selection select_tunnel(Family family, const std::string& via, const Observed& observed, const Config& config);

} // namespace novpn
