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

bool Mirror::take(const RouteChange& change) {
    const auto doubtful = [&] {
        doubt();
        return false;
    };
    if (!trusted_ || change.hops.size() != 1) return doubtful();
    const Route& route = change.hops.front();
    auto& routes = observed_.routes;
    const auto same_place = [&](const Route& other) { return key(other) == key(route); };
    const auto there = std::ranges::count_if(routes, same_place);
    if (!change.added) {
        const auto same_hop = [&](const Route& other) {
            return same_place(other) && other.link == route.link && other.gateway == route.gateway;
        };
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
    Selection selection = select_uplink({.family = family, .only = only}, mirror.observed(), config, memory, {});
    if (!selection.uplink || !selection.remembered) return std::nullopt;
    const bool is_known = selection.from == UplinkSource::main || selection.from == UplinkSource::memory;
    // Which other routes reach the gateway is not mirrored.
    if (!is_known || !gateway_is_on_link(*selection.uplink, mirror.observed()) || selection.uplink->onlink)
        return std::nullopt;
    memory.uplinks.insert_or_assign({only, family}, std::move(*selection.remembered));
    return selection.uplink;
}

} // namespace

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
