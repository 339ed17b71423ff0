#include "agent/site.h"

#include "config/sites.h"
#include "config/text.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

namespace novpn {

namespace {

bool is_link_local(const address& a) { return a.is_v6() && a.to_v6().is_link_local(); }

const Link* physical(const Observed& observed, const Config& config, IfIndex index) {
    const Link* link = find_link(observed, index);
    const bool lives = link && !link->loopback && link->up && link->carrier;
    return lives && !is_tunnel(*link, observed, config) ? link : nullptr;
}

std::vector<Prefix> networks_of(IfIndex link, const Observed& observed) {
    std::vector<Prefix> networks;
    for (const Address& a : observed.addresses)
        if (a.link == link && !is_link_local(a.local)) networks.push_back(prefix_of(a.local, a.prefix_length));
    return networks;
}

void add_links(Place& place, const Observed& observed, const Config& config) {
    for (const Link& link : observed.links) {
        if (link.loopback || !link.up || !link.carrier) continue;
        const bool tunnel = is_tunnel(link, observed, config);
        (tunnel ? place.tunnels : place.links).push_back(link.name);
        if (tunnel) continue;
        for (const Prefix& network : networks_of(link.index, observed)) place.networks.push_back(network);
    }
    place.arriving = !place.links.empty() && place.networks.empty();
    for (const WifiLink& wifi : observed.wifi) {
        if (!physical(observed, config, wifi.link)) continue;
        place.wifi.push_back(wifi);
        place.arriving = place.arriving || networks_of(wifi.link, observed).empty();
    }
}

/// Main's and our own defaults; the one that was in use before a VPN replaced it; else by what a VPN's server is
/// reached.
std::vector<Neighbour> ways_out(const Observed& observed, const Config& config, const Memory& memory) {
    auto found = default_gateways(observed.routes);
    for (const Neighbour& gateway : remembered_gateways(memory)) {
        const auto networks = networks_of(gateway.link, observed);
        const auto reaches = [&](const Prefix& network) { return contains(network, gateway.host); };
        const bool is_on_link = is_link_local(gateway.host) || std::ranges::any_of(networks, reaches);
        if (is_on_link && std::ranges::find(found, gateway) == found.end()) found.push_back(gateway);
    }
    const auto is_elsewhere = [&](const Neighbour& gateway) { return !physical(observed, config, gateway.link); };
    std::erase_if(found, is_elsewhere);
    if (!found.empty()) return found;
    found = host_route_gateways(observed.routes);
    std::erase_if(found, is_elsewhere);
    return found;
}

bool is_known(const Neighbour& gateway) {
    return gateway.mac && gateway.state != NeighbourState::failed && gateway.state != NeighbourState::incomplete;
}

void add_gateways(Place& place, const Observed& observed) {
    for (Neighbour& gateway : place.gateways)
        for (const Neighbour& seen : observed.place_gateways)
            if (seen.link == gateway.link && seen.host == gateway.host) gateway = seen;
    // Of two on a link, as there are for two families, one is enough: the other may never answer.
    const auto link_is_known = [&](const Neighbour& gateway) {
        return std::ranges::any_of(place.gateways, [&](const Neighbour& other) {
            return other.link == gateway.link && (is_known(other) || other.state == NeighbourState::noarp);
        });
    };
    for (const Neighbour& gateway : place.gateways) {
        if (link_is_known(gateway)) continue;
        place.gateways_missing = true;
        if (gateway.state != NeighbourState::incomplete) place.unasked.push_back(gateway);
    }
}

bool still_holds(const LinkResolvers& said, const Observed& observed) {
    return std::ranges::any_of(networks_of(said.link, observed),
                               [&](const Prefix& network) { return said.networks.contains(network); });
}

/// How often the sources have answered while the link was in a network that it is in.
unsigned answers_of(IfIndex link, const Observed& observed) {
    unsigned most = 0;
    for (const Prefix& network : networks_of(link, observed))
        if (const auto heard = observed.heard.find({link, network}); heard != observed.heard.end())
            most = std::max(most, heard->second);
    return most;
}

/// A lease may be written a moment after its address: where nobody has said anything of a link, and of what
/// resolv.conf says, not the first answer of the sources counts but the second, which a change of the files or a second
/// brings.
constexpr unsigned kLateEnough = 2;

bool is_heard(IfIndex link, const Observed& observed) {
    const bool is_named = std::ranges::any_of(observed.name_servers.of_links, [&](const LinkResolvers& said) {
        return said.link == link && still_holds(said, observed);
    });
    return answers_of(link, observed) >= (is_named ? 1 : kLateEnough);
}

void add_domains(Place& place, const Observed& observed, const Config& config, const Memory& memory) {
    const auto take = [&](const LinkResolvers& said) {
        if (!physical(observed, config, said.link) || !still_holds(said, observed)) return;
        for (const std::string& domain : said.domains)
            if (std::ranges::find(place.domains, domain) == place.domains.end()) place.domains.push_back(domain);
    };
    std::ranges::for_each(observed.name_servers.of_links, take);
    if (memory.resolvers && answers_of(memory.resolvers->link, observed) >= kLateEnough) take(*memory.resolvers);
    place.domains_missing = std::ranges::any_of(
        place.gateways, [&](const Neighbour& gateway) { return !is_heard(gateway.link, observed); });
}

bool fits(const std::vector<std::string>& globs, const std::string& text) {
    return std::ranges::any_of(
        globs, [&](const std::string& glob) { return fnmatch(glob.c_str(), text.c_str(), FNM_NOESCAPE) == 0; });
}

/// `no` only where all is known that the key may hold by.
Certainty judge(bool holds, bool is_open) {
    if (holds) return Certainty::yes;
    return is_open ? Certainty::unknown : Certainty::no;
}

Certainty by_ssid(const std::vector<std::string>& globs, const Place& place) {
    const auto is_one = [&](const WifiLink& wifi) { return !wifi.ssid.empty() && fits(globs, ssid_text(wifi.ssid)); };
    const auto is_open = [](const WifiLink& wifi) { return wifi.ssid.empty(); };
    return judge(std::ranges::any_of(place.wifi, is_one), std::ranges::any_of(place.wifi, is_open));
}

Certainty by_bssid(const std::vector<std::string>& globs, const Place& place) {
    const auto is_one = [&](const WifiLink& wifi) { return wifi.bssid && fits(globs, to_string(*wifi.bssid)); };
    const auto is_open = [](const WifiLink& wifi) { return !wifi.bssid; };
    return judge(std::ranges::any_of(place.wifi, is_one), std::ranges::any_of(place.wifi, is_open));
}

Certainty by_gateway(const std::vector<std::string>& globs, const Place& place) {
    const auto is_one = [&](const Neighbour& gateway) {
        return is_known(gateway) && fits(globs, to_string(*gateway.mac));
    };
    const bool has_none = !place.links.empty() && place.gateways.empty();
    return judge(std::ranges::any_of(place.gateways, is_one), place.arriving || place.gateways_missing || has_none);
}

Certainty by_network(const std::vector<Prefix>& wanted, const Place& place) {
    const auto is_in = [&](const Prefix& network) {
        return std::ranges::any_of(wanted, [&](const Prefix& prefix) { return contains(prefix, network); });
    };
    return judge(std::ranges::any_of(place.networks, is_in), place.arriving);
}

Certainty by_domain(const std::vector<std::string>& globs, const Place& place) {
    const auto is_one = [&](const std::string& domain) { return fits(globs, domain); };
    const bool has_none = !place.links.empty() && place.gateways.empty();
    return judge(std::ranges::any_of(place.domains, is_one), place.arriving || place.domains_missing || has_none);
}

Certainty by_name(const std::vector<std::string>& globs, const std::vector<std::string>& names) {
    return judge(std::ranges::any_of(names, [&](const std::string& name) { return fits(globs, name); }), false);
}

SiteVerdict judge(const SiteConfig& site, const Place& place) {
    SiteVerdict verdict{.name = site.name, .matches = Certainty::yes};
    const auto ask = [&](const char* key, const auto& wanted, auto by, const auto& known) {
        if (wanted.empty()) return;
        const Certainty certainty = by(wanted, known);
        if (certainty != Certainty::yes) verdict.failed.emplace_back(key);
        verdict.matches = std::min(verdict.matches, certainty);
    };
    ask("ssid", site.match.ssids, by_ssid, place);
    ask("bssid", site.match.bssids, by_bssid, place);
    ask("gateway_mac", site.match.gateway_macs, by_gateway, place);
    ask("network", site.match.networks, by_network, place);
    ask("domain", site.match.domains, by_domain, place);
    ask("link", site.match.links, by_name, place.links);
    ask("tunnel", site.match.tunnels, by_name, place.tunnels);
    return verdict;
}

Config with(const SiteConfig& site, Config config) {
    for (ClassConfig& c : config.classes) c = class_at(site, c);
    if (site.prefer) config.uplinks.prefer = *site.prefer;
    if (site.ignore) config.uplinks.ignore = *site.ignore;
    return config;
}

template<typename T>
void add_missing(std::vector<T>& list, const std::vector<T>& others) {
    for (const T& value : others)
        if (std::ranges::find(list, value) == list.end()) list.push_back(value);
}

template<typename T>
void keep_common(std::vector<T>& list, const std::vector<T>& others) {
    std::erase_if(list, [&](const T& value) { return std::ranges::find(others, value) == others.end(); });
}

/// A class lets out; one that is forced into a tunnel keeps in.
void make_stricter(ClassConfig& c, const ClassConfig& other) {
    const bool is_forced = !c.via.empty();
    c.enabled = is_forced ? c.enabled || other.enabled : c.enabled && other.enabled;
    if (other.when_no_uplink == WhenNoUplink::block) c.when_no_uplink = WhenNoUplink::block;
    if (other.dns == Dns::vpn) c.dns = Dns::vpn;
    for_each_selector([&](auto list, auto) {
        if (is_forced)
            add_missing(c.*list, other.*list);
        else
            keep_common(c.*list, other.*list);
    });
}

template<typename T>
void add_kept(std::vector<T>& list, const std::vector<T>& before, const std::vector<T>& possible) {
    for (const T& value : before)
        if (std::ranges::find(possible, value) != possible.end() && std::ranges::find(list, value) == list.end())
            list.push_back(value);
}

/// What was let out before and may go on.
void keep(ClassConfig& c, const ClassConfig& before, const std::vector<const ClassConfig*>& possible) {
    if (!c.via.empty() || !before.via.empty() || before.mark != c.mark || !before.enabled) return;
    for (const ClassConfig* one : possible) {
        if (!one->enabled) continue;
        c.enabled = true;
        if (before.when_no_uplink == one->when_no_uplink) c.when_no_uplink = before.when_no_uplink;
        if (before.dns == one->dns) c.dns = before.dns;
        for_each_selector([&](auto list, auto) { add_kept(c.*list, before.*list, one->*list); });
    }
}

bool any_site(const Config& config, auto uses) {
    return std::ranges::any_of(config.sites, [&](const SiteConfig& site) { return uses(site.match); });
}

} // namespace

Place look_around(const Observed& observed, const Config& asked, const Memory& memory) {
    Place place;
    if (asked.sites.empty()) return place;
    const Config config = with_known_tunnels(asked, memory, observed);
    add_links(place, observed, config);
    if (tells_by_gateway(config) || tells_by_domain(config)) place.gateways = ways_out(observed, config, memory);
    if (tells_by_gateway(config)) add_gateways(place, observed);
    if (tells_by_domain(config)) add_domains(place, observed, config, memory);
    return place;
}

SiteDecision find_site(const Place& place, const Config& config) {
    SiteDecision decision;
    bool found = false;
    for (const SiteConfig& site : config.sites) {
        decision.verdicts.push_back(judge(site, place));
        const SiteVerdict& verdict = decision.verdicts.back();
        if (found) continue;
        if (verdict.matches == Certainty::unknown) decision.known = false;
        found = verdict.matches == Certainty::yes;
        if (found) decision.name = verdict.name;
    }
    if (!decision.known) decision.name.reset();
    return decision;
}

bool same_surroundings(const Place& a, const Place& b) {
    return a.wifi == b.wifi && a.networks == b.networks && a.links == b.links && a.tunnels == b.tunnels;
}

Config config_at(const SiteDecision& site, const Config& config, const std::vector<ClassConfig>& before) {
    std::vector<Config> candidates;
    bool certain = false;
    for (const SiteVerdict& verdict : site.verdicts) {
        // After a reload the verdicts may be of sites that are no more, until the next pass.
        const auto named = std::ranges::find(config.sites, verdict.name, &SiteConfig::name);
        if (certain || verdict.matches == Certainty::no || named == config.sites.end()) continue;
        candidates.push_back(with(*named, config));
        certain = verdict.matches == Certainty::yes;
    }
    if (!certain) candidates.push_back(config);
    Config strictest = candidates.back();
    for (const Config& candidate : candidates) {
        for (std::size_t i = 0; i < strictest.classes.size(); ++i)
            make_stricter(strictest.classes[i], candidate.classes[i]);
        add_missing(strictest.uplinks.ignore, candidate.uplinks.ignore);
    }
    if (site.known) return strictest;
    for (const ClassConfig& former : before)
        for (std::size_t i = 0; i < strictest.classes.size(); ++i) {
            if (strictest.classes[i].name != former.name) continue;
            std::vector<const ClassConfig*> possible;
            for (const Config& candidate : candidates) possible.push_back(&candidate.classes[i]);
            keep(strictest.classes[i], former, possible);
        }
    return strictest;
}

Config at_all_sites(const Config& config) {
    Config all = config;
    for (ClassConfig& c : all.classes) {
        const ClassConfig elsewhere = c;
        for (const SiteConfig& site : config.sites) {
            const ClassConfig there = class_at(site, elsewhere);
            for_each_selector([&](auto list, auto) { add_missing(c.*list, there.*list); });
        }
    }
    return all;
}

bool tells_by_wifi(const Config& config) {
    return any_site(config, [](const SiteMatch& match) { return !match.ssids.empty() || !match.bssids.empty(); });
}
bool tells_by_bssid(const Config& config) {
    return any_site(config, [](const SiteMatch& match) { return !match.bssids.empty(); });
}
bool tells_by_lease(const Config& config) {
    return tells_by_gateway(config) || tells_by_domain(config) ||
           any_site(config, [](const SiteMatch& match) { return !match.networks.empty(); });
}
bool tells_by_gateway(const Config& config) {
    return any_site(config, [](const SiteMatch& match) { return !match.gateway_macs.empty(); });
}
bool tells_by_domain(const Config& config) {
    return any_site(config, [](const SiteMatch& match) { return !match.domains.empty(); });
}

std::string ssid_text(const std::string& ssid) {
    std::string doubled;
    for (const char c : ssid) doubled += c == '\\' ? "\\\\" : std::string(1, c);
    return printable(doubled);
}

std::string describe(const SiteDecision& site) {
    std::vector<std::string> others;
    for (const SiteVerdict& verdict : site.verdicts)
        if (!verdict.failed.empty())
            others.push_back(fmt::format("{}: {} {}", verdict.name, fmt::join(verdict.failed, ", "),
                                         verdict.matches == Certainty::unknown ? "not known yet"
                                         : verdict.failed.size() > 1           ? "do not match"
                                                                               : "does not match"));
    std::string text = !site.known ? "not known yet" : site.name.value_or("none");
    return others.empty() ? text : fmt::format("{} ({})", text, fmt::join(others, "; "));
}

} // namespace novpn
