#include "config/sites.h"

#include "config/parse.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

namespace novpn {
namespace {

constexpr std::size_t kMaxSites = 64;
constexpr std::size_t kMaxSiteName = 63;
constexpr Word<Dns> kDns[] = {{"vpn", Dns::vpn}, {"uplink", Dns::uplink}};
constexpr Word<WhenNoUplink> kWhenNoUplink[] = {{"block", WhenNoUplink::block}, {"tunnel", WhenNoUplink::tunnel}};
const std::vector<std::string_view> kSiteKeys{"classes", "match", "name", "on_enter", "on_leave", "uplinks"};
const std::vector<std::string_view> kMatchKeys{"bssid", "domain", "gateway_mac", "link", "network", "ssid", "tunnel"};
const std::vector<std::string_view> kUplinkKeys{"ignore", "prefer"};
const std::vector<std::string_view> kSelectorKeys{"apps", "cgroups", "destinations", "slices", "units", "users"};
const std::vector<std::string_view> kClassKeys{"add",     "apps",   "cgroups", "destinations", "dns",
                                               "enabled", "slices", "units",   "users",        "when_no_uplink"};

using Refused = std::optional<Problem>;

Problem at(Position where, std::string what) { return {.at = where, .what = std::move(what)}; }

/// Calls `take` with each entry of a map that has these keys only.
template<typename Take>
Refused each(const YamlNode& node, const std::string& path, const std::vector<std::string_view>& keys, Take take) {
    if (node.kind == YamlNode::Kind::null) return std::nullopt;
    if (node.kind != YamlNode::Kind::map) return at(node.at, path + ": expected a map");
    for (const YamlNode& entry : node.children) {
        if (!keys.empty() && std::ranges::find(keys, entry.key) == keys.end()) {
            return at(entry.key_at, fmt::format("{}: {} is an unknown key, beside {}", path, quote(entry.key),
                                                fmt::join(keys, ", ")));
        }
        if (Refused refused = take(entry)) return refused;
    }
    return std::nullopt;
}

template<typename T, typename Target>
Refused put(Parsed<T> parsed, Target& target, const std::string& path) {
    if (!parsed) return at(parsed.error().at, path + ": " + parsed.error().what);
    target = std::move(*parsed);
    return std::nullopt;
}

/// One value stands for a list of it: a match is mostly by one.
YamlNode as_list(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return node;
    return {.kind = YamlNode::Kind::list, .at = node.at, .children = {node}, .key = node.key, .key_at = node.key_at};
}

Refused parse_match(const YamlNode& node, const std::string& path, SiteMatch& match) {
    return each(node, path, kMatchKeys, [&](const YamlNode& entry) -> Refused {
        const YamlNode list = as_list(entry);
        const std::string inner = path + "." + entry.key;
        if (entry.key == "network") return put(parse_destinations(list), match.networks, inner);
        if (entry.key == "ssid") return put(parse_ssids(list), match.ssids, inner);
        if (entry.key == "domain") return put(parse_domains(list), match.domains, inner);
        if (entry.key == "bssid") return put(parse_macs(list), match.bssids, inner);
        if (entry.key == "gateway_mac") return put(parse_macs(list), match.gateway_macs, inner);
        return put(parse_link_globs(list), entry.key == "link" ? match.links : match.tunnels, inner);
    });
}

/// The key is one of kSelectorKeys.
Refused parse_selector(const YamlNode& entry, const std::string& path, SiteSelectors& selectors) {
    const std::string inner = path + "." + entry.key;
    if (entry.key == "apps") return put(parse_apps(entry), selectors.apps, inner);
    if (entry.key == "units") return put(parse_units(entry), selectors.units, inner);
    if (entry.key == "slices") return put(parse_slices(entry), selectors.slices, inner);
    if (entry.key == "cgroups") return put(parse_cgroups(entry), selectors.cgroups, inner);
    if (entry.key == "users") return put(parse_users(entry), selectors.users, inner);
    return put(parse_destinations(entry), selectors.destinations, inner);
}

/// `on` and `off` stand for `{enabled: true}` and `{enabled: false}`.
Refused parse_class(const YamlNode& node, const std::string& path, SiteClass& changes) {
    const bool plain = node.kind == YamlNode::Kind::scalar && !node.quoted;
    if (plain && (node.text == "on" || node.text == "off")) {
        changes.enabled = node.text == "on";
        return std::nullopt;
    }
    if (node.kind != YamlNode::Kind::map) return at(node.at, path + ": expected on, off or a map");
    return each(node, path, kClassKeys, [&](const YamlNode& entry) -> Refused {
        const std::string inner = path + "." + entry.key;
        if (entry.key == "enabled") return put(parse_bool(entry), changes.enabled, inner);
        if (entry.key == "dns") return put(parse_word<kDns>(entry), changes.dns, inner);
        if (entry.key == "when_no_uplink") return put(parse_word<kWhenNoUplink>(entry), changes.when_no_uplink, inner);
        if (entry.key != "add") return parse_selector(entry, path, changes.replace);
        return each(entry, inner, kSelectorKeys,
                    [&](const YamlNode& list) { return parse_selector(list, inner, changes.add); });
    });
}

Refused parse_site(const YamlNode& node, SiteConfig& site) {
    return each(node, site.name, kSiteKeys, [&](const YamlNode& entry) -> Refused {
        const std::string path = site.name + "." + entry.key;
        if (entry.key == "match") return parse_match(entry, path, site.match);
        if (entry.key == "classes")
            return each(entry, path, {}, [&](const YamlNode& of_class) {
                return parse_class(of_class, path + "." + printable(of_class.key), site.classes[of_class.key]);
            });
        if (entry.key == "uplinks")
            return each(entry, path, kUplinkKeys, [&](const YamlNode& list) {
                return put(parse_link_globs(list), list.key == "prefer" ? site.prefer : site.ignore,
                           path + "." + list.key);
            });
        if (entry.key == "on_enter") return put(parse_unit_to_start(entry), site.on_enter, path);
        if (entry.key == "on_leave") return put(parse_unit_to_start(entry), site.on_leave, path);
        return std::nullopt;
    });
}

bool is_site_name(const std::string& name) {
    return !name.empty() && name.size() <= kMaxSiteName && printable(name) == name;
}

/// Whether the one matches all that the other does, as far as that is plain to see.
bool covers(const std::string& glob, const std::string& other) {
    const bool is_literal = other.find_first_of("*?[") == std::string::npos;
    return glob == other || glob == "*" || (is_literal && fnmatch(glob.c_str(), other.c_str(), FNM_NOESCAPE) == 0);
}
bool covers(const Prefix& prefix, const Prefix& other) { return contains(prefix, other); }

/// Whether a key of the earlier site holds wherever the same key of the later one does.
template<typename T>
bool covers(const std::vector<T>& earlier, const std::vector<T>& later) {
    if (earlier.empty()) return true;
    return !later.empty() && std::ranges::all_of(later, [&](const T& value) {
        return std::ranges::any_of(earlier, [&](const T& other) { return covers(other, value); });
    });
}

/// Whether a list has what the other has not.
template<typename T>
bool has_more(const std::vector<T>& list, const std::vector<T>& other) {
    return std::ranges::any_of(list, [&](const T& value) { return std::ranges::find(other, value) == other.end(); });
}

/// What is let out at the site only, of a class that is on there.
std::string opened(const ClassConfig& there, const ClassConfig& elsewhere) {
    const bool is_forced = !there.via.empty(); // into a tunnel: there is nothing to let out
    if (is_forced)
        return there.enabled || !elsewhere.enabled ? "" : fmt::format("lets class {} go by any way", there.name);
    if (!there.enabled) return {};
    if (!elsewhere.enabled) return fmt::format("turns class {} on", there.name);
    std::string more;
    for_each_selector([&](auto of_class, auto) {
        if (has_more(there.*of_class, elsewhere.*of_class)) more = fmt::format("selects more for class {}", there.name);
    });
    if (!more.empty()) return more;
    if (there.when_no_uplink != elsewhere.when_no_uplink && there.when_no_uplink == WhenNoUplink::tunnel)
        return fmt::format("lets class {} into the VPN when there is no uplink", there.name);
    if (there.dns != elsewhere.dns && there.dns == Dns::uplink)
        return fmt::format("has the names of class {} resolved outside the VPN", there.name);
    return {};
}

} // namespace

std::string site_name(const YamlNode& site) {
    const auto found = std::ranges::find(site.children, "name", &YamlNode::key);
    return found == site.children.end() ? "" : found->text;
}

std::optional<Problem> parse_sites(const YamlNode& node, std::vector<SiteConfig>& sites) {
    if (node.kind == YamlNode::Kind::null) return std::nullopt;
    if (node.kind != YamlNode::Kind::list) return at(node.at, "expected a list");
    for (const YamlNode& entry : node.children) {
        const std::string name = site_name(entry);
        if (!is_site_name(name)) return at(entry.at, "a site needs a name of 1 to 63 printable characters");
        auto found = std::ranges::find(sites, name, &SiteConfig::name);
        if (found == sites.end()) {
            if (sites.size() == kMaxSites) return at(entry.at, fmt::format("more than {} sites", kMaxSites));
            found = sites.insert(found, SiteConfig{.name = name});
        }
        if (auto refused = parse_site(entry, *found)) return refused;
    }
    return std::nullopt;
}

ClassConfig class_at(const SiteConfig& site, ClassConfig of_class) {
    const auto found = site.classes.find(of_class.name);
    if (found == site.classes.end()) return of_class;
    const SiteClass& changes = found->second;
    of_class.enabled = changes.enabled.value_or(of_class.enabled);
    of_class.when_no_uplink = changes.when_no_uplink.value_or(of_class.when_no_uplink);
    of_class.dns = changes.dns.value_or(of_class.dns);
    for_each_selector([&](auto list, auto named) {
        if (const auto& others = changes.replace.*named) of_class.*list = *others;
        if (const auto& more = changes.add.*named)
            for (const auto& value : *more)
                if (std::ranges::find(of_class.*list, value) == (of_class.*list).end())
                    (of_class.*list).push_back(value);
    });
    return of_class;
}

std::string opens(const SiteConfig& site, const Config& config) {
    for (const ClassConfig& of_class : config.classes)
        if (auto what = opened(class_at(site, of_class), of_class); !what.empty()) return what;
    return {};
}

bool is_spoofable(const SiteMatch& match) { return match.links.empty() && match.tunnels.empty(); }

bool always_matches_before(const SiteConfig& earlier, const SiteConfig& later) {
    return covers(earlier.match.ssids, later.match.ssids) && covers(earlier.match.bssids, later.match.bssids) &&
           covers(earlier.match.gateway_macs, later.match.gateway_macs) &&
           covers(earlier.match.domains, later.match.domains) && covers(earlier.match.networks, later.match.networks) &&
           covers(earlier.match.links, later.match.links) && covers(earlier.match.tunnels, later.match.tunnels);
}

} // namespace novpn
