#include "agent/uplink.h"

#include <algorithm>
#include <fmt/format.h>
#include <fnmatch.h>
#include <net/if_arp.h>
#include <tuple>

namespace novpn {

namespace {

bool is_link_local(const address& a) {
    return a.is_v6() ? a.to_v6().is_link_local() : (a.to_v4().to_uint() >> 16) == 0xa9fe; // 169.254/16
}

/// A default of main, or a way out that the agent already uses: what makes another link more than a LAN port.
bool may_be_way_out(IfIndex link, const Observed& observed) {
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        bool ours = route.table != kMainTable && route.protocol == kNovpnProtocol;
        return is_default(route) && route.link == link && (route.table == kMainTable || ours);
    });
}

const Address* address_of_gateway(IfIndex link, const address& gateway, const Observed& observed) {
    for (const Address& a : observed.addresses) {
        if (a.link != link || a.tentative || family_of(a.local) != family_of(gateway)) continue;
        if (contains(prefix_of(a.peer.value_or(a.local), a.prefix_length), gateway)) return &a;
    }
    return nullptr;
}

/// The address by which the link is known to be on this network: the one that reaches the gateway or, where the gateway
/// is link-local or there is none, the first that is no link-local one.
std::optional<Prefix> on_link_prefix(const Uplink& uplink, const Observed& observed) {
    if (uplink.gateway && !is_link_local(*uplink.gateway)) {
        if (const Address* found = address_of_gateway(uplink.link, *uplink.gateway, observed))
            return prefix_of(found->peer.value_or(found->local), found->prefix_length);
    }
    for (const Address& a : observed.addresses) {
        if (a.link == uplink.link && !a.tentative && family_of(a.local) == uplink.family && !is_link_local(a.local))
            return prefix_of(a.local, a.prefix_length);
    }
    return std::nullopt;
}

bool has_address(const Uplink& uplink, const address& local, const Observed& observed) {
    return std::ranges::any_of(observed.addresses,
                               [&](const Address& a) { return a.link == uplink.link && a.local == local; });
}

/// The kernel would accept the gateway: it is on-link there. Wrong guesses are worse than none.
bool gateway_is_on_link(const Uplink& uplink, const Observed& observed) {
    if (!uplink.gateway || uplink.onlink) return true;
    if (uplink.gateway->is_v6() && is_link_local(*uplink.gateway)) return true;
    if (address_of_gateway(uplink.link, *uplink.gateway, observed)) return true;
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        return route.table == kMainTable && route.link == uplink.link && !route.gateway && !is_default(route) &&
               contains(route.destination, *uplink.gateway);
    });
}

Uplink to_uplink(const Route& route, const Link& link) {
    return {.family = family_of(route),
            .link = route.link,
            .link_name = link.name,
            .gateway = route.gateway,
            .source = route.source,
            .onlink = route.onlink};
}

/// An uplink known from elsewhere than main, brought up to date; nothing when it cannot be right any more.
std::optional<Uplink> revalidated(Uplink uplink, const Observed& observed, const Config& config) {
    const Link* link = find_link(observed, uplink.link);
    if (!link || is_tunnel(*link, observed, config) || matches(config.uplinks.ignore, link->name)) return std::nullopt;
    if (!can_carry(*link, uplink.family, observed) || !gateway_is_on_link(uplink, observed)) return std::nullopt;
    uplink.link_name = link->name; // it may have been renamed
    if (uplink.source && !has_address(uplink, *uplink.source, observed)) uplink.source.reset();
    return uplink;
}

std::optional<Selection> from_main(Family family, const Observed& observed, const Config& config,
                                   const Memory& memory) {
    auto used = memory.uplinks.find(family);
    using Rank = std::tuple<std::size_t, std::uint32_t, bool, IfIndex>;
    const Route* best = nullptr;
    const Link* best_link = nullptr;
    Rank best_rank;
    for (const Route& route : observed.routes) {
        if (route.table != kMainTable || !is_default(route) || family_of(route) != family) continue;
        if (route.type != RouteType::unicast) continue;
        const Link* link = find_link(observed, route.link);
        if (!link || link->loopback || is_tunnel(*link, observed, config)) continue;
        if (matches(config.uplinks.ignore, link->name) || !can_carry(*link, family, observed)) continue;
        auto preferred = std::ranges::find_if(config.uplinks.prefer,
                                              [&](const std::string& glob) { return matches({glob}, link->name); });
        bool in_use = used != memory.uplinks.end() && used->second.uplink.link == route.link &&
                      used->second.uplink.gateway == route.gateway;
        Rank rank{preferred - config.uplinks.prefer.begin(), route.metric, !in_use, route.link};
        if (best && best_rank <= rank) continue;
        best = &route;
        best_link = link;
        best_rank = rank;
    }
    if (!best) return std::nullopt;
    Selection selection{.uplink = to_uplink(*best, *best_link), .from = UplinkSource::main};
    selection.reason = fmt::format("default route of main, metric {}", best->metric);
    if (std::get<0>(best_rank) < config.uplinks.prefer.size()) selection.reason += ", preferred by the config";
    return selection;
}

std::optional<Selection> from_memory(Family family, const Observed& observed, const Config& config,
                                     const Memory& memory, const std::optional<std::string>& displaced_by) {
    auto found = memory.uplinks.find(family);
    if (found == memory.uplinks.end()) return std::nullopt;
    const RememberedUplink& remembered = found->second;
    // A router that withdraws its advertisement is gone on purpose; a tunnel that displaces a default is another
    // matter.
    if (remembered.by_router_advertisement && !displaced_by) return std::nullopt;
    auto uplink = revalidated(remembered.uplink, observed, config);
    if (!uplink) return std::nullopt;
    // The same link with an address of another subnet is another network.
    if (on_link_prefix(*uplink, observed) != remembered.on_link) return std::nullopt;
    return Selection{.uplink = uplink,
                     .from = UplinkSource::memory,
                     .reason = displaced_by ? fmt::format("its default in main was displaced by {}", *displaced_by)
                                            : "its default in main is gone, its link and address are not"};
}

std::optional<Selection> from_own_table(Family family, const Observed& observed, const Config& config) {
    for (const Route& route : observed.routes) {
        if (route.table == kMainTable || route.protocol != kNovpnProtocol || family_of(route) != family) continue;
        if (!is_default(route) || route.type != RouteType::unicast) continue;
        const Link* link = find_link(observed, route.link);
        if (!link) continue;
        if (auto uplink = revalidated(to_uplink(route, *link), observed, config))
            return Selection{.uplink = uplink,
                             .from = UplinkSource::table,
                             .reason = fmt::format("still valid in table {}", route.table.value)};
    }
    return std::nullopt;
}

/// A VPN client reaches its server by a host route through the physical gateway.
std::optional<Selection> from_host_route(Family family, const Observed& observed, const Config& config) {
    unsigned host_length = family == Family::ipv4 ? 32 : 128;
    for (const Route& route : observed.routes) {
        if (route.table != kMainTable || family_of(route) != family || route.type != RouteType::unicast) continue;
        if (route.destination.length != host_length || !route.gateway) continue;
        if (route.destination.network == *route.gateway) continue; // OpenVPN's block-local writes the gateway so
        const Link* link = find_link(observed, route.link);
        if (!link) continue;
        if (auto uplink = revalidated(to_uplink(route, *link), observed, config))
            return Selection{.uplink = uplink,
                             .from = UplinkSource::host_route,
                             .reason = fmt::format("gateway of the host route to {}", to_string(route.destination))};
    }
    return std::nullopt;
}

bool learnt_by_router_advertisement(const Selection& selection, const Observed& observed) {
    constexpr Protocol kRouterAdvertisement{9}; // RTPROT_RA
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        return route.table == kMainTable && is_default(route) && route.link == selection.uplink->link &&
               route.gateway == selection.uplink->gateway && route.protocol == kRouterAdvertisement;
    });
}

} // namespace

std::string to_string(UplinkSource source) {
    switch (source) {
    case UplinkSource::main:
        return "main";
    case UplinkSource::table:
        return "table";
    case UplinkSource::host_route:
        return "host_route";
    case UplinkSource::memory:
        return "memory";
    }
    return {};
}

bool matches(const std::vector<std::string>& globs, const std::string& name) {
    return std::ranges::any_of(globs,
                               [&](const std::string& glob) { return fnmatch(glob.c_str(), name.c_str(), 0) == 0; });
}

bool is_tunnel(const Link& link, const Observed& observed, const Config& config) {
    if (matches(config.tunnels.links, link.name)) return true;
    if (matches(config.uplinks.links, link.name)) return false;
    static constexpr const char* kKinds[] = {"tun",    "wireguard", "xfrm", "vti",    "vti6",      "gre",
                                             "gretap", "ip6gre",    "sit",  "ip6tnl", "ip6gretap", "ipip"};
    if (std::ranges::find(kKinds, link.kind) != std::end(kKinds)) return true;
    if (link.hardware != ARPHRD_PPP) return false;
    return std::ranges::any_of(observed.links, [&](const Link& other) {
        if (other.hardware == ARPHRD_PPP || other.loopback || is_tunnel(other, observed, config)) return false;
        bool carries = can_carry(other, Family::ipv4, observed) || can_carry(other, Family::ipv6, observed);
        return carries && may_be_way_out(other.index, observed);
    });
}

bool can_carry(const Link& link, Family family, const Observed& observed) {
    if (!link.up || !link.carrier) return false;
    return std::ranges::any_of(observed.addresses, [&](const Address& a) {
        if (a.link != link.index || family_of(a.local) != family || a.tentative) return false;
        return family == Family::ipv4 || !is_link_local(a.local);
    });
}

Selection select_uplink(Family family, const Observed& observed, const Config& config, const Memory& memory,
                        const std::optional<std::string>& displaced_by) {
    auto selection = from_main(family, observed, config, memory);
    if (!selection) selection = from_memory(family, observed, config, memory, displaced_by);
    if (!selection && displaced_by) selection = from_own_table(family, observed, config);
    if (!selection && displaced_by) selection = from_host_route(family, observed, config);
    if (!selection) return {.reason = "no default route on a link with carrier and address"};

    RememberedUplink remembered{.uplink = *selection->uplink, .on_link = on_link_prefix(*selection->uplink, observed)};
    if (selection->from == UplinkSource::main)
        remembered.by_router_advertisement = learnt_by_router_advertisement(*selection, observed);
    else if (auto known = memory.uplinks.find(family); known != memory.uplinks.end())
        remembered.by_router_advertisement = known->second.by_router_advertisement;
    selection->remembered = remembered;
    return *selection;
}

} // namespace novpn
