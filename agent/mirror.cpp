#include "agent/mirror.h"

#include "agent/default_route.h"

#include <algorithm>
#include <net/if_arp.h>

namespace novpn {

void Mirror::reflect(const Observed& observed, const Desired& desired, bool undone) {
    doubt();
    // Whether a ppp link is a modem depends on more routes, and IPsec's policies come before a route to what they take.
    const bool has_ppp = std::ranges::find(observed.links, ARPHRD_PPP, &Link::hardware) != observed.links.end();
    reflects_ = !undone && !has_ppp && observed.policies.empty() && desired.policies.empty();
    if (!reflects_) return;
    ways_.clear();
    observed_.links = observed.links;
    observed_.addresses = observed.addresses;
    observed_.wifi = observed.wifi;
    observed_.gateways = observed.gateways;
    observed_.routes.clear();
    for (const Route& route : observed.routes)
        if (route.table == kMainTable && is_default(route)) observed_.routes.push_back(route);
    own_defaults_.clear();
    for (const Route& route : desired.routes)
        if (is_default(route) && route.type == RouteType::unicast) take(route);
    links_.clear();
    for (const ClassMarking& c : desired.nft.classes) links_[c.name] = c.links;
}

bool Mirror::doubtful() {
    doubt();
    return false;
}

bool Mirror::take_again(const RouteChange& change) {
    if (!trusted_ || change.hops.size() != 1) return doubtful();
    const Route& route = change.hops.front();
    std::vector<const Route*> there;
    for (const Route& other : observed_.routes)
        if (key(other) == key(route)) there.push_back(&other);
    const auto is_same_hop = [&](const Route* other) {
        return other->link == route.link && other->gateway == route.gateway;
    };
    const auto is_it = [&](const Route* other) { return *other == route; };
    // Seen already: it has come, and is alone there, or has gone.
    if (change.added ? there.size() == 1 && is_it(there.front()) : std::ranges::none_of(there, is_same_hop))
        return true;
    // What is there instead may be older or younger, beside it or in its place.
    if (change.added ? !there.empty() : std::ranges::none_of(there, is_it)) return doubtful();
    return take(change);
}

bool Mirror::take(const RouteChange& change) {
    if (!trusted_ || change.hops.size() != 1) return doubtful();
    const Route& route = change.hops.front();
    auto& routes = observed_.routes;
    const auto same_place = [&](const Route& other) { return key(other) == key(route); };
    const auto there = std::ranges::count_if(routes, same_place);
    if (!change.added) {
        const auto same_hop = [&](const Route& other) {
            return same_place(other) && other.link == route.link && other.gateway == route.gateway;
        };
        // What siblings share is told of all of them as of one.
        if (there > 1 && family_of(route) == Family::ipv6) return doubtful();
        if (std::ranges::count_if(routes, same_hop) != 1) return doubtful();
        std::erase_if(routes, same_hop);
        return true;
    }
    // IPv4 has one route in a place, unless somebody appends; IPv6 makes siblings of what is added there.
    if (there > 1 || (there == 1 && !change.replaces)) return doubtful();
    std::erase_if(routes, same_place);
    routes.push_back(route);
    return true;
}

void Mirror::prepare(const Config& config, const Memory& memory) {
    ways_.clear();
    if (!reflects_ || !memory.dead_gateways.empty()) return;
    const auto has_failed = [](const Neighbour& gateway) { return gateway.state == NeighbourState::failed; };
    if (std::ranges::any_of(observed_.gateways, has_failed)) return;
    const auto is_plain = [](const ClassConfig& c) { return c.enabled && c.via.empty() && c.uplink.empty(); };
    if (!std::ranges::all_of(config.classes, is_plain)) return;
    for (const Family family : kFamilies) {
        const auto link = only_uplink(family, observed_, config);
        if (!link) continue;
        Way way{.uplink = {.family = family, .link = *link, .link_name = find_link(observed_, *link)->name}};
        for (const Address& a : observed_.addresses)
            if (a.link == *link && !a.tentative && family_of(a.local) == family)
                way.networks.push_back(prefix_of(a.peer.value_or(a.local), a.prefix_length));
        for (const ClassConfig& c : config.classes) way.tables.push_back(c.table);
        ways_[family] = std::move(way);
    }
}

Uplink Mirror::uplink_of(const Way& way, const Route& route) {
    Uplink uplink = way.uplink;
    uplink.gateway = route.gateway;
    uplink.source = route.source;
    return uplink;
}

std::optional<std::vector<Route>> Mirror::reply_to(const Route& route) const {
    const auto way = ways_.find(family_of(route));
    if (!trusted_ || way == ways_.end()) return std::nullopt;
    const Uplink uplink = uplink_of(way->second, route);
    if (route.link != uplink.link || !route.gateway || route.onlink || route.type != RouteType::unicast ||
        family_of(*route.gateway) != uplink.family)
        return std::nullopt;
    const auto has_gateway = [&](const Prefix& network) { return contains(network, *route.gateway); };
    if (std::ranges::none_of(way->second.networks, has_gateway)) return std::nullopt;
    const auto is_in_its_way = [&](const Route& other) {
        const bool is_itself = &other == &observed_.routes.back();
        return !is_itself && other.link == route.link && family_of(other) == uplink.family &&
               other.metric <= route.metric;
    };
    if (std::ranges::any_of(observed_.routes, is_in_its_way)) return std::nullopt;
    std::vector<Route> replies;
    for (const TableId table : way->second.tables) {
        const Route* there = default_of(table, uplink.family);
        if (!there || there->link != route.link) return std::nullopt;
        Route wanted = default_route(uplink, table);
        if (*there != wanted) replies.push_back(std::move(wanted));
    }
    return replies;
}

void Mirror::remember_reply_to(const Route& route, Memory& memory) const {
    const Family family = family_of(route);
    memory.uplinks.insert_or_assign({std::string(), family},
                                    remember_of_main(uplink_of(ways_.at(family), route), observed_));
}

void Mirror::take(const Route& own_default) {
    own_defaults_.insert_or_assign({own_default.table, family_of(own_default)}, own_default);
}

const Route* Mirror::default_of(TableId table, Family family) const {
    const auto found = own_defaults_.find({table, family});
    return found == own_defaults_.end() ? nullptr : &found->second;
}

bool Mirror::lets_out(const std::string& class_name, IfIndex link) const {
    const auto found = links_.find(class_name);
    return found != links_.end() && found->second.contains(link);
}

namespace {

/// The way out of all classes that ask for the same links.
std::optional<Uplink> way_out(const std::string& only, const Mirror& mirror, Family family, const Config& config,
                              Memory& memory) {
    const UplinkQuery query{.family = family, .only = only};
    auto known = uplink_in_main(query, mirror.observed(), config, memory);
    if (!known) {
        Selection selection = select_uplink(query, mirror.observed(), config, memory, {});
        if (selection.from != UplinkSource::memory) return std::nullopt;
        known = std::move(selection.remembered);
    }
    // Which other routes reach the gateway is not mirrored.
    if (!known || !gateway_is_on_link(known->uplink, mirror.observed()) || known->uplink.onlink) return std::nullopt;
    std::optional<Uplink> uplink = known->uplink;
    memory.uplinks.insert_or_assign({only, family}, std::move(*known));
    return uplink;
}

} // namespace

IdleLinks idle_links(const Observed& observed, const Config& config) {
    IdleLinks idle;
    if (!config.sites.empty()) return idle;
    for (const Link& link : observed.links)
        if (!link.loopback && link.hardware != ARPHRD_PPP && !may_be_tunnel(link, config.tunnels.links))
            idle.emplace(link.index, link);
    const auto leads_nowhere = [](const address& a) { return a.is_v6() && a.to_v6().is_link_local(); };
    for (const Address& a : observed.addresses)
        if (!leads_nowhere(a.local)) idle.erase(a.link);
    for (const Route& route : observed.routes)
        if (is_default(route) || !leads_nowhere(route.destination.network)) idle.erase(route.link);
    return idle;
}

bool agrees(const Mirror& mirror, const Observed& observed) {
    const auto& defaults = mirror.observed().routes;
    const auto is_default_of_main = [](const Lookup& lookup) {
        return lookup.answer && lookup.answer->table == kMainTable && is_default(*lookup.answer);
    };
    const auto is_mirrored = [&](const Lookup& lookup) {
        return std::ranges::any_of(defaults, [&](const Route& route) {
            return key(route) == key(*lookup.answer) && route.link == lookup.answer->link &&
                   route.gateway == lookup.answer->gateway;
        });
    };
    for (const auto* lookups : {&observed.lookups, &observed.defaults})
        for (const Lookup& lookup : *lookups)
            if (is_default_of_main(lookup) && !is_mirrored(lookup)) return false;
    // A longer prefix answers in the place of a default; nothing answers where there is none.
    return std::ranges::all_of(observed.defaults, [](const Lookup& lookup) { return lookup.answer.has_value(); });
}

std::optional<std::vector<Route>> defaults_to_replace(const Mirror& mirror, Family family, const Config& config,
                                                      Memory& memory) {
    if (!mirror.is_trusted()) return std::nullopt;
    std::vector<Route> to_replace;
    std::map<std::string, Uplink> ways_out;
    const auto find = [&](const std::string& only) -> const Uplink* {
        auto known = ways_out.find(only);
        if (known == ways_out.end()) {
            auto uplink = way_out(only, mirror, family, config, memory);
            if (!uplink) return nullptr;
            known = ways_out.emplace(only, std::move(*uplink)).first;
        }
        return &known->second;
    };
    if (!find("")) return std::nullopt; // that of `status`, which decisions remember too
    for (const ClassConfig& c : config.classes) {
        if (!c.via.empty()) continue; // main's defaults are none of its
        const Uplink* uplink = find(c.uplink);
        if (!uplink) return std::nullopt;
        const Route* there = mirror.default_of(c.table, family);
        // One that is off may have none.
        if (!there && !c.enabled) continue;
        Route wanted = default_route(*uplink, c.table);
        if (there && *there == wanted) continue;
        if (!mirror.lets_out(c.name, uplink->link)) return std::nullopt;
        to_replace.push_back(std::move(wanted));
    }
    return to_replace;
}

} // namespace novpn
