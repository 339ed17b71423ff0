#include "config/sites.h"

#include "config/parse.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace novpn {
namespace {

constexpr std::size_t kMaxSites = 64;
constexpr std::size_t kMaxSiteName = 63;
constexpr Word<WhenNoUplink> kWhenNoUplink[] = {{"block", WhenNoUplink::block}, {"tunnel", WhenNoUplink::tunnel}};
const std::vector<std::string_view> kSiteKeys{"classes", "match", "name", "uplinks"};
const std::vector<std::string_view> kMatchKeys{"link", "network", "tunnel"};
const std::vector<std::string_view> kUplinkKeys{"ignore", "prefer"};
const std::vector<std::string_view> kClassKeys{"enabled", "when_no_uplink"};
const std::vector<std::string_view> kNotBuilt{"bssid", "dns", "domain", "gateway_mac", "on_enter", "on_leave", "ssid"};

using Refused = std::optional<Problem>;

Problem at(Position where, std::string what) { return {.at = where, .what = std::move(what)}; }

/// Calls `take` with each entry of a map that has these keys only.
template<typename Take>
Refused each(const YamlNode& node, const std::string& path, const std::vector<std::string_view>& keys, Take take) {
    if (node.kind == YamlNode::Kind::null) return std::nullopt;
    if (node.kind != YamlNode::Kind::map) return at(node.at, path + ": expected a map");
    for (const YamlNode& entry : node.children) {
        if (!keys.empty() && std::ranges::find(keys, entry.key) == keys.end()) {
            const bool known = std::ranges::find(kNotBuilt, entry.key) != kNotBuilt.end();
            return at(entry.key_at,
                      fmt::format("{}: {} {}, beside {}", path, quote(entry.key),
                                  known ? "is not supported yet" : "is an unknown key", fmt::join(keys, ", ")));
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
        return put(parse_link_globs(list), entry.key == "link" ? match.links : match.tunnels, inner);
    });
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
        return put(parse_word<kWhenNoUplink>(entry), changes.when_no_uplink, inner);
    });
}

Refused parse_site(const YamlNode& node, SiteConfig& site) {
    return each(node, site.name, kSiteKeys, [&](const YamlNode& entry) -> Refused {
        const std::string path = site.name + "." + entry.key;
        if (entry.key == "match") return parse_match(entry, path, site.match);
        if (entry.key == "classes")
            return each(entry, path, {}, [&](const YamlNode& of_class) {
                return parse_class(of_class, path + "." + of_class.key, site.classes[of_class.key]);
            });
        if (entry.key == "uplinks")
            return each(entry, path, kUplinkKeys, [&](const YamlNode& list) {
                return put(parse_link_globs(list), list.key == "prefer" ? site.prefer : site.ignore,
                           path + "." + list.key);
            });
        return std::nullopt;
    });
}

bool is_site_name(const std::string& name) {
    return !name.empty() && name.size() <= kMaxSiteName && printable(name) == name;
}

/// Whether a key of the earlier site holds wherever the same key of the later one does.
template<typename T>
bool covers(const std::vector<T>& earlier, const std::vector<T>& later) {
    if (earlier.empty()) return true;
    return !later.empty() && std::ranges::all_of(later, [&](const T& value) {
        return std::ranges::any_of(earlier, [&](const T& other) {
            if constexpr (std::is_same_v<T, Prefix>)
                return contains(other, value);
            else
                return other == value || other == "*";
        });
    });
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

bool always_matches_before(const SiteConfig& earlier, const SiteConfig& later) {
    return covers(earlier.match.networks, later.match.networks) && covers(earlier.match.links, later.match.links) &&
           covers(earlier.match.tunnels, later.match.tunnels);
}

} // namespace novpn
