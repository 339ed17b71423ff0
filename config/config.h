// The configuration as values, and its defaults. Reading it from YAML is load.h.
#pragma once

#include "netlink/values.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace novpn {

enum class WhenNoUplink { block, tunnel };
enum class Dns { vpn, uplink };
/// What becomes of the open sockets of processes that leave a class.
enum class OnLeave { end, keep };
/// By what sockets and packets of members get their mark: `automatic` is BPF where it can be had, and nft in any case;
/// with `net_cls` it is nft, by the class id that cgroup v1 gives the sockets of who was put in the class.
enum class Marking { automatic, bpf, nft, net_cls };
/// Whether sockets may be marked when they are made.
inline bool marks_by_bpf(Marking marking) { return marking == Marking::automatic || marking == Marking::bpf; }
enum class LogLevel { error, warning, info, debug };

/// A user whose packets are in a class.
struct UserSelector {
    std::string name; ///< as the config has it: a name, or a number as text
    std::uint32_t uid = 0;
    bool operator==(const UserSelector&) const = default;
};

/// A named group of traffic and where it goes.
struct ClassConfig {
    std::string name = "novpn";
    bool enabled = true;
    std::string uplink; ///< glob of the only links that may be its uplink; empty: any
    std::string via;    ///< glob of the tunnel that it always uses; empty: an uplink instead
    OnLeave on_leave = OnLeave::end;
    WhenNoUplink when_no_uplink = WhenNoUplink::block;
    Dns dns = Dns::vpn;
    TableId table{7866};
    Mark mark{.value = 0x4e000000, .mask = 0xff000000};
    Preference preference{64};
    std::vector<std::string> apps;    ///< ids of desktop files, flatpaks and snaps, or globs
    std::vector<std::string> units;   ///< services and scopes of the system
    std::vector<std::string> slices;  ///< of the system
    std::vector<std::string> cgroups; ///< paths from the root of cgroup v2, no leading slash
    std::vector<UserSelector> users;
    std::vector<Prefix> destinations;     ///< for every process of the machine
    std::optional<std::uint32_t> classid; ///< in net_cls; with marking net_cls every class has one, otherwise none
    bool operator==(const ClassConfig&) const = default;
};

/// Link names are shell globs (fnmatch(3)).
struct UplinkConfig {
    std::vector<std::string> prefer; ///< in this order, before any other
    std::vector<std::string> ignore; ///< never an uplink
    std::vector<std::string> links;  ///< an uplink whatever its kind says
    bool operator==(const UplinkConfig&) const = default;
};

struct TunnelConfig {
    std::vector<std::string> links; ///< a tunnel whatever its kind says
    bool operator==(const TunnelConfig&) const = default;
};

/// Who besides root may put own processes in a class: names, or numbers, of users and groups.
struct Allow {
    std::vector<std::string> users;
    std::vector<std::string> groups{"novpn"};
    bool operator==(const Allow&) const = default;
};

/// Keys that are empty hold anywhere. A list holds where one of its values does. Globs are fnmatch(3)'s, without
/// escapes.
struct SiteMatch {
    std::vector<std::string> ssids;        ///< globs of the text that ssid_text() makes of it
    std::vector<std::string> bssids;       ///< globs, lower case
    std::vector<std::string> gateway_macs; ///< globs, lower case; of a gateway of a default route
    std::vector<Prefix> networks;          ///< an on-link prefix is one of these, or in it
    std::vector<std::string> domains; ///< globs, lower case; of the DNS search domains of links that are no tunnels
    std::vector<std::string> links;   ///< globs; up, with carrier, and no tunnel
    std::vector<std::string> tunnels; ///< globs; up
    bool operator==(const SiteMatch&) const = default;
};

/// Lists of selectors by the names of ClassConfig; those that are not named are none of the site's business.
struct SiteSelectors {
    std::optional<std::vector<std::string>> apps;
    std::optional<std::vector<std::string>> units;
    std::optional<std::vector<std::string>> slices;
    std::optional<std::vector<std::string>> cgroups;
    std::optional<std::vector<UserSelector>> users;
    std::optional<std::vector<Prefix>> destinations;
    bool operator==(const SiteSelectors&) const = default;
};

/// What a site changes of a class.
struct SiteClass {
    std::optional<bool> enabled;
    std::optional<WhenNoUplink> when_no_uplink;
    std::optional<Dns> dns;
    SiteSelectors replace; ///< in place of the class's
    SiteSelectors add;     ///< besides those
    bool operator==(const SiteClass&) const = default;
};

/// A place, how to recognise it, and what is otherwise there.
struct SiteConfig {
    std::string name;
    SiteMatch match;
    std::map<std::string, SiteClass> classes;
    std::optional<std::vector<std::string>> prefer; ///< in place of uplinks.prefer
    std::optional<std::vector<std::string>> ignore; ///< in place of uplinks.ignore
    std::string on_enter;                           ///< systemd units to start; empty: none
    std::string on_leave;
    bool operator==(const SiteConfig&) const = default;
};

/// Class id of the class `novpn`: 10:1 to tc(8), the example of the kernel's documentation of net_cls.
inline constexpr std::uint32_t kDefaultClassid = 0x100001;

/// Where net_cls is mounted if nobody mounted it, by the agent of the default runtime directory.
inline constexpr const char* kNetClsMount = "/run/novpn/net_cls";
struct SocketsConfig {
    bool destroy_stale = true; ///< members' TCP sockets whose address is gone
    bool operator==(const SocketsConfig&) const = default;
};

struct Config {
    std::vector<ClassConfig> classes{ClassConfig{}}; ///< never empty: `novpn` exists without being named
    Allow allow;
    Marking marking = Marking::automatic;
    std::string net_cls_mount = kNetClsMount;
    SocketsConfig sockets;
    LogLevel log_level = LogLevel::info;
    UplinkConfig uplinks;
    TunnelConfig tunnels;
    std::vector<SiteConfig> sites; ///< the first that matches holds
    bool operator==(const Config&) const = default;
};

/// Calls `take` with each list of selectors of a class, and with the site's list of the same name.
template<typename Take>
void for_each_selector(Take take) {
    take(&ClassConfig::apps, &SiteSelectors::apps);
    take(&ClassConfig::units, &SiteSelectors::units);
    take(&ClassConfig::slices, &SiteSelectors::slices);
    take(&ClassConfig::cgroups, &SiteSelectors::cgroups);
    take(&ClassConfig::users, &SiteSelectors::users);
    take(&ClassConfig::destinations, &SiteSelectors::destinations);
}

/// The class `novpn`.
inline const ClassConfig& builtin_class(const Config& config) {
    for (const ClassConfig& c : config.classes)
        if (c.name == "novpn") return c;
    return config.classes.front();
}

} // namespace novpn
