#include "agent/uplink.h"

#include <algorithm>
#include <fmt/format.h>
#include <net/if_arp.h>
#include <tuple>

namespace novpn {

namespace {

bool is_link_local(const address& a) {
    return a.is_v6() ? a.to_v6().is_link_local() : (a.to_v4().to_uint() >> 16) == 0xa9fe; // 169.254/16
}

/// A VPN client reaches its server by a host route through the physical gateway. OpenVPN's block-local writes one to
/// the gateway itself.
bool is_host_route_by_gateway(const Route& route) {
    unsigned host_length = family_of(route) == Family::ipv4 ? 32 : 128;
    return route.table == kMainTable && route.type == RouteType::unicast && route.destination.length == host_length &&
           route.gateway && route.destination.network != *route.gateway;
}

/// What makes a link more than a LAN port: a default of main, a way out that the agent already uses, or the way to the
/// server of a VPN that replaced the default.
bool may_be_way_out(IfIndex link, const Observed& observed) {
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        if (route.link != link) return false;
        bool ours = route.table != kMainTable && route.protocol == kNovpnProtocol;
        return is_host_route_by_gateway(route) || (is_default(route) && (route.table == kMainTable || ours));
    });
}

/// The prefix of the link's address that reaches the gateway; of several the most specific.
std::optional<Prefix> prefix_of_gateway(IfIndex link, const address& gateway, const Observed& observed) {
    std::optional<Prefix> best;
    for (const Address& a : observed.addresses) {
        if (a.link != link || a.tentative || family_of(a.local) != family_of(gateway)) continue;
        Prefix prefix = prefix_of(a.peer.value_or(a.local), a.prefix_length);
        if (contains(prefix, gateway) && (!best || prefix.length > best->length)) best = prefix;
    }
    return best;
}

/// The address by which the link is known to be on this network: the one that reaches the gateway or, where the gateway
/// is link-local or there is none, the lowest that is no link-local one.
std::optional<Prefix> on_link_prefix(const Uplink& uplink, const Observed& observed) {
    if (uplink.gateway && !is_link_local(*uplink.gateway)) {
        if (auto found = prefix_of_gateway(uplink.link, *uplink.gateway, observed)) return found;
    }
    std::optional<Prefix> lowest;
    for (const Address& a : observed.addresses) {
        if (a.link != uplink.link || a.tentative || family_of(a.local) != uplink.family || is_link_local(a.local))
            continue;
        Prefix prefix = prefix_of(a.local, a.prefix_length);
        if (!lowest || prefix < *lowest) lowest = prefix;
    }
    return lowest;
}

bool has_address(const Uplink& uplink, const address& local, const Observed& observed) {
    return std::ranges::any_of(observed.addresses,
                               [&](const Address& a) { return a.link == uplink.link && a.local == local; });
}

Uplink to_uplink(const Route& route, const Link& link) {
    return {.family = family_of(route),
            .link = route.link,
            .link_name = link.name,
            .gateway = route.gateway,
            .source = route.source,
            .onlink = route.onlink};
}

/// Neither a tunnel nor ruled out by the config.
bool may_be_uplink(const Link& link, const UplinkQuery& query, const Observed& observed, const Config& config) {
    if (link.loopback || is_tunnel(link, observed, config) || matches(config.uplinks.ignore, link.name)) return false;
    return query.only.empty() || matches_glob(query.only, link.name);
}

/// An uplink known from elsewhere than main, brought up to date; nothing when it cannot be right any more.
std::optional<Uplink> revalidated(Uplink uplink, const UplinkQuery& query, const Observed& observed,
                                  const Config& config) {
    const Link* link = find_link(observed, uplink.link);
    if (!link || !may_be_uplink(*link, query, observed, config)) return std::nullopt;
    if (!can_carry(*link, uplink.family, observed) || !gateway_is_on_link(uplink, observed)) return std::nullopt;
    uplink.link_name = link->name; // it may have been renamed
    if (uplink.source && !has_address(uplink, *uplink.source, observed)) uplink.source.reset();
    return uplink;
}

/// Routes for which `condition` holds, in an order of their own: a dump has none.
template<typename Condition>
std::vector<const Route*> in_order(const Observed& observed, Condition condition) {
    std::vector<const Route*> routes;
    for (const Route& route : observed.routes)
        if (condition(route)) routes.push_back(&route);
    std::ranges::sort(routes, {}, [](const Route* route) {
        return std::tuple(route->metric, route->link, route->gateway, route->destination, route->source, route->table);
    });
    return routes;
}

/// One of main's defaults.
struct Choice {
    const Route* route = nullptr;
    const Link* link = nullptr;
    bool preferred = false; ///< by the config
};

std::optional<Choice> choose_in_main(const UplinkQuery& query, const Observed& observed, const Config& config,
                                     const Memory& memory, const std::set<std::pair<IfIndex, address>>& dead) {
    auto used = memory.uplinks.find({query.only, query.family});
    using Rank = std::tuple<bool, std::size_t, std::uint32_t, bool, IfIndex, std::optional<address>>;
    Choice best;
    Rank best_rank;
    for (const Route& route : observed.routes) {
        if (route.table != kMainTable || !is_default(route) || family_of(route) != query.family) continue;
        if (route.type != RouteType::unicast) continue;
        const Link* link = find_link(observed, route.link);
        if (!link || !may_be_uplink(*link, query, observed, config)) continue;
        if (!can_carry(*link, query.family, observed)) continue;
        auto preferred = std::ranges::find_if(config.uplinks.prefer,
                                              [&](const std::string& glob) { return matches_glob(glob, link->name); });
        bool in_use = used != memory.uplinks.end() && used->second.uplink.link == route.link &&
                      used->second.uplink.gateway == route.gateway;
        bool answers = !route.gateway || !dead.contains({route.link, *route.gateway});
        Rank rank{!answers,     preferred - config.uplinks.prefer.begin(), route.metric, !in_use, route.link,
                  route.gateway};
        if (best.route && best_rank <= rank) continue;
        best = {.route = &route, .link = link, .preferred = std::get<1>(rank) < config.uplinks.prefer.size()};
        best_rank = rank;
    }
    return best.route ? std::optional(best) : std::nullopt;
}

Uplink to_uplink(const Choice& choice, const Observed& observed) {
    Uplink uplink = to_uplink(*choice.route, *choice.link);
    // The kernel goes on with a gateway whose prefix left its link together with an address, and refuses it anew.
    if (!gateway_is_on_link(uplink, observed)) uplink.onlink = true;
    return uplink;
}

std::optional<Selection> from_main(const UplinkQuery& query, const Observed& observed, const Config& config,
                                   const Memory& memory) {
    const auto dead = dead_gateways(observed, memory);
    const auto choice = choose_in_main(query, observed, config, memory, dead);
    if (!choice) return std::nullopt;
    const Route* best = choice->route;
    Selection selection{.uplink = to_uplink(*choice, observed), .from = UplinkSource::main};
    selection.reason = fmt::format("default route of main, metric {}", best->metric);
    if (choice->preferred) selection.reason += ", preferred by the config";
    if (best->gateway && !dead.empty() && !dead.contains({best->link, *best->gateway}))
        selection.reason += fmt::format("; gateway {} does not answer", dead.begin()->second.to_string());
    return selection;
}

std::optional<Selection> from_memory(const UplinkQuery& query, const Observed& observed, const Config& config,
                                     const Memory& memory, const std::optional<std::string>& displaced_by) {
    auto found = memory.uplinks.find({query.only, query.family});
    if (found == memory.uplinks.end()) return std::nullopt;
    const RememberedUplink& remembered = found->second;
    // A router that withdraws its advertisement is gone on purpose; a tunnel that displaces a default is another
    // matter.
    if (remembered.by_router_advertisement && !displaced_by) return std::nullopt;
    auto uplink = revalidated(remembered.uplink, query, observed, config);
    if (!uplink) return std::nullopt;
    // The same link with an address of another subnet is another network.
    if (on_link_prefix(*uplink, observed) != remembered.on_link) return std::nullopt;
    if (remembered.from != UplinkSource::main)
        return Selection{.uplink = uplink, .from = remembered.from, .reason = remembered.reason};
    return Selection{.uplink = uplink,
                     .from = UplinkSource::memory,
                     .reason = displaced_by ? fmt::format("its default in main was displaced by {}", *displaced_by)
                                            : "its default in main is gone, its link and address are not"};
}

/// A link-local gateway, or none, fits every network. The prefixes beside it in the table say of which it was.
bool is_of_this_network(const Route& own_default, const Observed& observed) {
    if (own_default.gateway && !is_link_local(*own_default.gateway)) return true;
    bool knows_prefix = false;
    for (const Route& route : observed.routes) {
        if (route.table != own_default.table || route.link != own_default.link || is_default(route)) continue;
        if (route.gateway || family_of(route) != family_of(own_default) || is_link_local(route.destination.network))
            continue;
        knows_prefix = true;
        bool has_address_there = std::ranges::any_of(observed.addresses, [&](const Address& a) {
            return a.link == route.link &&
                   (contains(route.destination, a.local) || (a.peer && contains(route.destination, *a.peer)));
        });
        if (has_address_there) return true;
    }
    return !knows_prefix;
}

std::optional<Selection> from_own_table(const UplinkQuery& query, const Observed& observed, const Config& config) {
    // Of whichever class: those that ask for the same share the answer, as they share its memory.
    auto candidates = in_order(observed, [&](const Route& route) {
        bool ours = route.table != kMainTable && route.protocol == kNovpnProtocol;
        return ours && family_of(route) == query.family && is_default(route) && route.type == RouteType::unicast &&
               is_of_this_network(route, observed);
    });
    for (const Route* route : candidates) {
        const Link* link = find_link(observed, route->link);
        if (!link) continue;
        if (auto uplink = revalidated(to_uplink(*route, *link), query, observed, config))
            return Selection{.uplink = uplink,
                             .from = UplinkSource::table,
                             .reason = fmt::format("still valid in table {}", route->table.value)};
    }
    return std::nullopt;
}

std::optional<Selection> from_host_route(const UplinkQuery& query, const Observed& observed, const Config& config) {
    auto candidates = in_order(observed, [&](const Route& route) {
        return family_of(route) == query.family && is_host_route_by_gateway(route);
    });
    for (const Route* route : candidates) {
        const Link* link = find_link(observed, route->link);
        if (!link) continue;
        if (auto uplink = revalidated(to_uplink(*route, *link), query, observed, config))
            return Selection{.uplink = uplink,
                             .from = UplinkSource::host_route,
                             .reason = fmt::format("gateway of the host route to {}", to_string(route->destination))};
    }
    return std::nullopt;
}

std::string reason_of(const Hint& hint) {
    switch (hint.from) {
    case UplinkSource::networkd: return fmt::format("systemd-networkd's lease of {}", hint.local->to_string());
    case UplinkSource::networkmanager: return "gateway that NetworkManager has for the link";
    case UplinkSource::lease: return fmt::format("DHCP lease of {}", hint.local->to_string());
    default: return "the only router that advertises itself on the link";
    }
}

/// Wrong guesses are worse than none: of what a hint says nothing may be refuted by what is.
std::optional<Uplink> confirmed(const Hint& hint, const UplinkQuery& query, const Observed& observed,
                                const Config& config) {
    Uplink uplink{.family = query.family, .link = hint.link, .gateway = hint.gateway};
    if (hint.local && !has_address(uplink, *hint.local, observed)) return std::nullopt; // of another network
    bool failed = std::ranges::any_of(observed.hints.neighbours, [&](const Neighbour& n) {
        return n.link == hint.link && n.host == hint.gateway && n.state == NeighbourState::failed;
    });
    return failed ? std::nullopt : revalidated(uplink, query, observed, config);
}

std::optional<Selection> from_hints(const UplinkQuery& query, const Observed& observed, const Config& config) {
    using Rank = std::tuple<UplinkSource, std::size_t, IfIndex, address>;
    std::optional<Rank> best_rank;
    std::optional<Selection> best;
    for (const Hint& hint : observed.hints.given) {
        if (family_of(hint.gateway) != query.family) continue;
        auto uplink = confirmed(hint, query, observed, config);
        if (!uplink) continue;
        auto preferred = std::ranges::find_if(
            config.uplinks.prefer, [&](const std::string& glob) { return matches_glob(glob, uplink->link_name); });
        Rank rank{hint.from, preferred - config.uplinks.prefer.begin(), hint.link, hint.gateway};
        if (best_rank && *best_rank <= rank) continue;
        best_rank = rank;
        best = Selection{.uplink = uplink, .from = hint.from, .reason = reason_of(hint)};
    }
    return best;
}

bool learnt_by_router_advertisement(const Uplink& uplink, const Observed& observed) {
    constexpr Protocol kRouterAdvertisement{9}; // RTPROT_RA
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        return route.table == kMainTable && is_default(route) && route.link == uplink.link &&
               route.gateway == uplink.gateway && route.protocol == kRouterAdvertisement;
    });
}

/// A router says its link-local address in its advertisements. A route of our table does not say where it came from.
bool has_router_gateway(const Uplink& uplink) {
    return uplink.family == Family::ipv6 && uplink.gateway && is_link_local(*uplink.gateway);
}

/// The name, and no glob that others match.
std::string exactly(const std::string& name) {
    std::string glob;
    for (char c : name) {
        if (std::string_view("*?[]\\").find(c) != std::string_view::npos) glob += '\\';
        glob += c;
    }
    return glob;
}

} // namespace

std::string to_string(UplinkSource source) {
    switch (source) {
    case UplinkSource::main: return "main";
    case UplinkSource::table: return "table";
    case UplinkSource::host_route: return "host_route";
    case UplinkSource::networkd: return "networkd";
    case UplinkSource::networkmanager: return "networkmanager";
    case UplinkSource::lease: return "lease";
    case UplinkSource::ra: return "ra";
    case UplinkSource::memory: return "memory";
    }
    return {};
}

std::string to_string(ResolverSource source) {
    switch (source) {
    case ResolverSource::resolved: return "resolved";
    case ResolverSource::networkd: return "networkd";
    case ResolverSource::networkmanager: return "networkmanager";
    case ResolverSource::lease: return "lease";
    case ResolverSource::resolv_conf: return "resolv_conf";
    }
    return {};
}

// Wrong guesses are worse than none.
bool gateway_is_on_link(const Uplink& uplink, const Observed& observed) {
    if (!uplink.gateway || uplink.onlink) return true;
    if (uplink.gateway->is_v6() && is_link_local(*uplink.gateway)) return true;
    if (prefix_of_gateway(uplink.link, *uplink.gateway, observed)) return true;
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        return route.table == kMainTable && route.link == uplink.link && !route.gateway && !is_default(route) &&
               contains(route.destination, *uplink.gateway);
    });
}

bool is_tunnel(const Link& link, const Observed& observed, const Config& config) {
    if (matches(config.tunnels.links, link.name)) return true;
    if (matches(config.uplinks.links, link.name)) return false;
    if (!may_be_tunnel(link, {})) return false;
    if (link.hardware != ARPHRD_PPP) return true;
    return std::ranges::any_of(observed.links, [&](const Link& other) {
        // A VPN over a modem comes up after the modem.
        bool comes_first = other.hardware == ARPHRD_PPP && other.index < link.index;
        if (other.hardware == ARPHRD_PPP ? !comes_first : other.loopback || is_tunnel(other, observed, config))
            return false;
        bool carries = can_carry(other, Family::ipv4, observed) || can_carry(other, Family::ipv6, observed);
        return carries && may_be_way_out(other.index, observed);
    });
}

Config with_known_tunnels(Config config, const Memory& memory, const Observed& observed) {
    for (IfIndex index : memory.ppp_tunnels)
        if (const Link* link = find_link(observed, index)) config.tunnels.links.push_back(exactly(link->name));
    return config;
}

bool can_carry(const Link& link, Family family, const Observed& observed) {
    if (!link.up || !link.carrier) return false;
    return std::ranges::any_of(observed.addresses, [&](const Address& a) {
        if (a.link != link.index || family_of(a.local) != family || a.tentative) return false;
        return family == Family::ipv4 || !is_link_local(a.local);
    });
}

std::vector<Neighbour> remembered_gateways(const Memory& memory) {
    std::vector<Neighbour> gateways;
    for (const auto& [_, remembered] : memory.uplinks)
        if (remembered.uplink.gateway)
            gateways.push_back({.link = remembered.uplink.link, .host = *remembered.uplink.gateway});
    return gateways;
}

std::set<std::pair<IfIndex, address>> dead_gateways(const Observed& observed, const Memory& memory) {
    std::set<std::pair<IfIndex, address>> dead;
    for (const Neighbour& gateway : rival_gateways(observed.routes)) {
        auto known = std::ranges::find_if(
            observed.gateways, [&](const Neighbour& n) { return n.link == gateway.link && n.host == gateway.host; });
        auto state = known == observed.gateways.end() ? NeighbourState::none : known->state;
        // A new try begins as INCOMPLETE, and an entry that nobody asks for is forgotten: neither says that it answers.
        bool unknown = state == NeighbourState::none || state == NeighbourState::incomplete;
        bool was_dead = memory.dead_gateways.contains({gateway.link, gateway.host});
        if (state == NeighbourState::failed || (unknown && was_dead)) dead.insert({gateway.link, gateway.host});
    }
    return dead;
}

Selection select_uplink(const UplinkQuery& query, const Observed& observed, const Config& config, const Memory& memory,
                        const std::optional<std::string>& displaced_by) {
    auto selection = from_main(query, observed, config, memory);
    if (!selection) selection = from_memory(query, observed, config, memory, displaced_by);
    // What a running agent has in its table is what it remembers, and that is checked more closely.
    bool remembers = memory.uplinks.contains({query.only, query.family});
    if (!selection && displaced_by && !remembers) selection = from_own_table(query, observed, config);
    if (!selection && displaced_by) selection = from_host_route(query, observed, config);
    if (!selection && displaced_by) selection = from_hints(query, observed, config);
    if (!selection) {
        return {.reason = query.only.empty()
                              ? "no default route on a link with carrier and address"
                              : fmt::format("no default route on a link {} with carrier and address", query.only)};
    }

    RememberedUplink remembered{.uplink = *selection->uplink, .on_link = on_link_prefix(*selection->uplink, observed)};
    if (selection->from != UplinkSource::main && selection->from != UplinkSource::memory) {
        remembered.from = selection->from;
        remembered.reason = selection->reason;
    }
    if (selection->from == UplinkSource::main)
        remembered.by_router_advertisement = learnt_by_router_advertisement(remembered.uplink, observed);
    else if (selection->from == UplinkSource::ra ||
             (selection->from == UplinkSource::table && has_router_gateway(*selection->uplink)))
        remembered.by_router_advertisement = true;
    else if (auto known = memory.uplinks.find({query.only, query.family}); known != memory.uplinks.end())
        remembered.by_router_advertisement = known->second.by_router_advertisement;
    selection->remembered = std::move(remembered);
    return std::move(*selection);
}

std::optional<RememberedUplink> uplink_in_main(const UplinkQuery& query, const Observed& observed, const Config& config,
                                               const Memory& memory) {
    const auto choice = choose_in_main(query, observed, config, memory, dead_gateways(observed, memory));
    if (!choice) return std::nullopt;
    return remember_of_main(to_uplink(*choice, observed), observed);
}

RememberedUplink remember_of_main(const Uplink& uplink, const Observed& observed) {
    return {.uplink = uplink,
            .on_link = on_link_prefix(uplink, observed),
            .by_router_advertisement = learnt_by_router_advertisement(uplink, observed)};
}

std::optional<IfIndex> only_uplink(Family family, const Observed& observed, const Config& config) {
    std::optional<IfIndex> only;
    for (const Link& link : observed.links) {
        if (!may_be_uplink(link, {.family = family}, observed, config) || !can_carry(link, family, observed)) continue;
        if (only) return std::nullopt;
        only = link.index;
    }
    return only;
}

Selection select_tunnel(Family family, const std::string& via, const Observed& observed, const Config& config) {
    const Link* tunnel = nullptr;
    for (const Link& link : observed.links) {
        if (!matches_glob(via, link.name) || !is_tunnel(link, observed, config)) continue;
        // A tunnel that nobody reads from is up without carrier: its packets would be lost.
        if (can_carry(link, family, observed) && (!tunnel || link.index < tunnel->index)) tunnel = &link;
    }
    if (!tunnel) return {.reason = fmt::format("no tunnel {} with carrier and address", via)};
    Uplink way{.family = family, .link = tunnel->index, .link_name = tunnel->name};
    // The gateway of the least specific route; the lowest address where there are several, whatever the dump's order.
    std::optional<std::pair<unsigned, address>> best;
    for (const Route& route : observed.routes) {
        if (route.link != tunnel->index || family_of(route) != family || !route.gateway) continue;
        if (route.protocol == kNovpnProtocol) continue;
        std::pair candidate{route.destination.length, *route.gateway};
        if (!best || candidate < *best) best = candidate;
    }
    if (best) {
        way.gateway = best->second;
        way.onlink = !gateway_is_on_link(way, observed);
    }
    return {.uplink = way, .reason = fmt::format("the tunnel that the config names: {}", via)};
}

} // namespace novpn
