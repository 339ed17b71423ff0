#include "agent/observed.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <fnmatch.h>
#include <net/if_arp.h>

namespace novpn {

const std::vector<address>& public_destinations() {
    static const std::vector<address> kDestinations = [] {
        std::vector<address> result;
        // The last eighth, 224.0.0.0/3, is multicast and reserved.
        for (const char* text : {"16.0.0.1", "48.0.0.1", "80.0.0.1", "112.0.0.1", "144.0.0.1", "176.0.0.1", "208.0.0.1",
                                 "2001:500::1", "2600::1", "2a00::1"})
            result.push_back(boost::asio::ip::make_address(text));
        return result;
    }();
    return kDestinations;
}

namespace {

void add_once(std::vector<Neighbour>& gateways, const Neighbour& gateway) {
    if (std::ranges::find(gateways, gateway) == gateways.end()) gateways.push_back(gateway);
}

} // namespace

std::vector<Neighbour> rival_gateways(const std::vector<Route>& routes) {
    std::vector<Neighbour> gateways;
    for (Family family : kFamilies) {
        std::vector<Neighbour> of_family;
        for (const Route& route : routes) {
            if (route.table != kMainTable || !is_default(route) || family_of(route) != family || !route.gateway)
                continue;
            Neighbour gateway{.link = route.link, .host = *route.gateway};
            if (std::ranges::find(of_family, gateway) == of_family.end()) of_family.push_back(gateway);
        }
        if (of_family.size() > 1) gateways.insert(gateways.end(), of_family.begin(), of_family.end());
    }
    return gateways;
}

std::vector<Neighbour> watched_gateways(const std::vector<Route>& routes) {
    std::vector<Neighbour> gateways = rival_gateways(routes);
    for (const Route& route : routes) {
        if (!is_default(route) || family_of(route) != Family::ipv6 || !route.gateway) continue;
        Neighbour gateway{.link = route.link, .host = *route.gateway};
        if (std::ranges::find(gateways, gateway) == gateways.end()) gateways.push_back(gateway);
    }
    return gateways;
}

std::vector<Neighbour> default_gateways(const std::vector<Route>& routes) {
    std::vector<Neighbour> gateways;
    for (const Route& route : routes)
        if (is_default(route) && route.gateway) add_once(gateways, {.link = route.link, .host = *route.gateway});
    return gateways;
}

std::vector<Neighbour> host_route_gateways(const std::vector<Route>& routes) {
    constexpr std::size_t kMost = 8; // a lease may name as many as it likes
    std::vector<Neighbour> gateways;
    for (const Route& route : routes) {
        const unsigned width = family_of(route) == Family::ipv4 ? 32 : 128;
        if (route.table == kMainTable && route.destination.length == width && route.gateway && gateways.size() < kMost)
            add_once(gateways, {.link = route.link, .host = *route.gateway});
    }
    return gateways;
}

std::vector<Neighbour> gateways_to_look_at(const Scope& scope, const std::vector<Route>& routes) {
    std::vector<Neighbour> gateways;
    if (!scope.place_gateways) return gateways;
    for (const auto& some : {default_gateways(routes), host_route_gateways(routes), scope.gateways})
        for (const Neighbour& gateway : some) add_once(gateways, gateway);
    return gateways;
}

std::vector<address> telling_destinations(const Scope& scope) {
    std::vector<address> telling;
    for (Family family : kFamilies) {
        std::vector<address> all;
        for (const address& a : public_destinations())
            if (family_of(a) == family) all.push_back(a);
        auto listed = [&](const address& a) {
            return std::ranges::any_of(scope.destinations, [&](const Prefix& prefix) { return contains(prefix, a); });
        };
        std::vector<address> others = all;
        std::erase_if(others, listed);
        const auto& some = others.empty() ? all : others;
        telling.insert(telling.end(), some.begin(), some.end());
    }
    return telling;
}

bool matches_glob(const std::string& glob, const std::string& name) {
    return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

bool matches(const std::vector<std::string>& globs, const std::string& name) {
    return std::ranges::any_of(globs, [&](const std::string& glob) { return matches_glob(glob, name); });
}

bool may_be_tunnel(const Link& link, const std::vector<std::string>& named) {
    static constexpr const char* kKinds[] = {"tun",    "wireguard", "xfrm", "vti",    "vti6",      "gre",
                                             "gretap", "ip6gre",    "sit",  "ip6tnl", "ip6gretap", "ipip"};
    return std::ranges::find(kKinds, link.kind) != std::end(kKinds) || link.hardware == ARPHRD_PPP ||
           matches(named, link.name);
}

const Link* find_link(const Observed& observed, IfIndex index) {
    auto found = std::ranges::find(observed.links, index, &Link::index);
    return found == observed.links.end() ? nullptr : &*found;
}

} // namespace novpn
