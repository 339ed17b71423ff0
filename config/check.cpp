#include "config/check.h"

#include "config/numbers.h"
#include "config/sites.h"
#include "config/text.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace novpn {
namespace {

std::string path_of(std::string_view class_name, std::string_view key) {
    return fmt::format("classes.{}.{}", class_name, key);
}

ConfigError error_at(const Origin& origin, std::string message) {
    return {.file = origin.file, .line = origin.at.line, .column = origin.at.column, .message = std::move(message)};
}

std::string place(const Origin* origin) {
    return origin == nullptr ? "the default" : location(origin->file, origin->at.line, origin->at.column);
}

/// The default numbers are those of one class only.
std::optional<ConfigError> find_missing_number(const ClassConfig& of_class, const Origins& origins) {
    if (of_class.name == kDefaultClass) return std::nullopt;
    std::vector<std::string_view> missing;
    for (const std::string_view key : {"table", "mark", "preference"}) {
        if (origins.find(path_of(of_class.name, key)) == nullptr) missing.push_back(key);
    }
    if (missing.empty()) return std::nullopt;
    return error_at(
        *origins.find("classes." + of_class.name),
        fmt::format("classes.{}: missing: {}; every class but {} needs table, mark and preference of its own",
                    of_class.name, fmt::join(missing, ", "), kDefaultClass));
}

std::optional<ConfigError> find_uplink_beside_via(const ClassConfig& of_class, const Origins& origins) {
    if (of_class.uplink.empty() || of_class.via.empty()) return std::nullopt;
    const std::string uplink_path = path_of(of_class.name, "uplink");
    const std::string via_path = path_of(of_class.name, "via");
    const Origin& uplink = *origins.find(uplink_path);
    const Origin& via = *origins.find(via_path);
    const bool via_is_later = uplink.order < via.order;
    return error_at(
        via_is_later ? via : uplink,
        fmt::format("{}: the class has '{}' already ({}); uplink pins it to a physical way out, via sends it "
                    "by a tunnel always; allowed: one of them",
                    via_is_later ? via_path : uplink_path, via_is_later ? "uplink" : "via",
                    place(via_is_later ? &uplink : &via)));
}

/// Only BPF redirects, by the mark that BPF gave.
std::optional<ConfigError> find_site_dns_without_bpf(const Config& config, const Origins& origins) {
    if (config.marking != Marking::nft) return std::nullopt;
    for (const SiteConfig& site : config.sites)
        for (const auto& [name, changes] : site.classes)
            if (changes.dns == Dns::uplink)
                return error_at(*origins.find("sites." + site.name),
                                fmt::format("sites.{}.classes.{}.dns: uplink needs BPF, and marking is nft ({}); "
                                            "allowed: vpn, or marking: auto or bpf",
                                            site.name, name, place(origins.find("marking"))));
    return std::nullopt;
}

std::optional<ConfigError> find_dns_without_bpf(const Config& config, const ClassConfig& of_class,
                                                const Origins& origins) {
    if (of_class.dns != Dns::uplink || marks_by_bpf(config.marking)) return std::nullopt;
    const std::string path = path_of(of_class.name, "dns");
    return error_at(*origins.find(path),
                    fmt::format("{}: uplink needs BPF, and marking is {} ({}); allowed: vpn, or marking: auto or bpf",
                                path, config.marking == Marking::nft ? "nft" : "net_cls",
                                place(origins.find("marking"))));
}

/// Its class id, which it has with net_cls only. The default one is the built-in class's.
std::optional<ConfigError> find_bad_classid(const Config& config, const ClassConfig& of_class, const Origins& origins) {
    const std::string path = path_of(of_class.name, "classid");
    if (config.marking != Marking::net_cls) {
        if (!of_class.classid) return std::nullopt;
        return error_at(*origins.find(path), path + ": has no effect but with marking: net_cls");
    }
    if (!of_class.classid)
        return error_at(*origins.find("classes." + of_class.name),
                        fmt::format("classes.{}: missing: classid; with marking: net_cls ({}) every class but {} needs "
                                    "one of its own",
                                    of_class.name, place(origins.find("marking")), kDefaultClass));
    return std::nullopt;
}

std::optional<ConfigError> find_number_clash(const Config& config, const Origins& origins) {
    const auto clash = find_clash(config.classes);
    if (!clash) return std::nullopt;
    const ClassConfig* later = &config.classes[clash->second];
    const ClassConfig* earlier = &config.classes[clash->first];
    const Origin* later_at = origins.find(path_of(later->name, clash->key));
    const Origin* earlier_at = origins.find(path_of(earlier->name, clash->key));
    // Only the default class has a number that no file sets: the other's was set after it.
    const bool swapped = later_at == nullptr || (earlier_at != nullptr && later_at->order < earlier_at->order);
    if (swapped) {
        std::swap(later, earlier);
        std::swap(later_at, earlier_at);
    }
    return error_at(*later_at, fmt::format("{}: {} ({}); allowed: {}", path_of(later->name, clash->key),
                                           describe_clash(clash->key, *later, *earlier), place(earlier_at),
                                           allowed_beside(clash->key)));
}

/// A selector that two classes have would put a packet in one of them only.
template<typename Value>
std::optional<ConfigError> find_shared(const Config& config, const Origins& origins, std::string_view key,
                                       std::vector<Value> ClassConfig::*list, auto identity, auto name) {
    for (auto second = config.classes.begin(); second != config.classes.end(); ++second) {
        for (auto first = config.classes.begin(); first != second; ++first) {
            for (const Value& value : (*second).*list) {
                const auto& others = (*first).*list;
                if (std::ranges::find(others, identity(value), identity) == others.end()) continue;
                const Origin* first_at = origins.find(path_of(first->name, key));
                const Origin* second_at = origins.find(path_of(second->name, key));
                const bool swapped = second_at->order < first_at->order;
                const ClassConfig& later = swapped ? *first : *second;
                const ClassConfig& earlier = swapped ? *second : *first;
                return error_at(swapped ? *first_at : *second_at,
                                fmt::format("{}: {} is in class '{}' already ({}); allowed: one class for each",
                                            path_of(later.name, key), name(value), earlier.name,
                                            place(swapped ? second_at : first_at)));
            }
        }
    }
    return std::nullopt;
}

/// As find_shared(), of the classes as they are at one of the sites.
template<typename Value>
std::optional<ConfigError> find_shared_at_site(const Config& config, const Origins& origins, std::string_view key,
                                               std::vector<Value> ClassConfig::*list, auto identity, auto name) {
    for (const SiteConfig& site : config.sites) {
        std::vector<ClassConfig> before;
        for (const ClassConfig& of_class : config.classes) {
            ClassConfig there = class_at(site, of_class);
            for (const Value& value : there.*list)
                for (const ClassConfig& other : before)
                    if (std::ranges::find(other.*list, identity(value), identity) != (other.*list).end())
                        return error_at(
                            *origins.find("sites." + site.name),
                            fmt::format("sites.{}.classes.{}.{}: {} is in class '{}' there already; allowed: one class "
                                        "for each",
                                        site.name, there.name, key, name(value), other.name));
            before.push_back(std::move(there));
        }
    }
    return std::nullopt;
}

std::optional<ConfigError> find_bad_site(const Config& config, const Origins& origins) {
    for (auto site = config.sites.begin(); site != config.sites.end(); ++site) {
        const std::string path = "sites." + site->name;
        const Origin& origin = *origins.find(path);
        if (site->match == SiteMatch{})
            return error_at(origin, path + ": match has no key; what holds anywhere else needs no site");
        for (const auto& [name, _] : site->classes)
            if (std::ranges::find(config.classes, name, &ClassConfig::name) == config.classes.end())
                return error_at(origin, fmt::format("{}.classes: there is no class {}", path, quote(name)));
        for (auto earlier = config.sites.begin(); earlier != site; ++earlier)
            if (always_matches_before(*earlier, *site))
                return error_at(origin,
                                fmt::format("{}: unreachable, as {} stands before it ({}) and matches wherever "
                                            "it does; allowed: the narrower site first",
                                            path, earlier->name, place(origins.find("sites." + earlier->name))));
    }
    return std::nullopt;
}

} // namespace

tl::expected<Config, ConfigError> checked(Config config, const Origins& origins) {
    const bool named = std::any_of(config.classes.begin(), config.classes.end(),
                                   [](const ClassConfig& known) { return known.name == kDefaultClass; });
    if (!named) config.classes.insert(config.classes.begin(), ClassConfig{});
    for (ClassConfig& of_class : config.classes)
        if (of_class.name == kDefaultClass && config.marking == Marking::net_cls && !of_class.classid)
            of_class.classid = kDefaultClassid;
    for (const ClassConfig& of_class : config.classes) {
        if (auto error = find_missing_number(of_class, origins)) return tl::unexpected(std::move(*error));
        if (auto error = find_uplink_beside_via(of_class, origins)) return tl::unexpected(std::move(*error));
        if (auto error = find_dns_without_bpf(config, of_class, origins)) return tl::unexpected(std::move(*error));
        if (auto error = find_bad_classid(config, of_class, origins)) return tl::unexpected(std::move(*error));
    }
    if (auto error = find_number_clash(config, origins)) return tl::unexpected(std::move(*error));
    const auto uid = [](const UserSelector& user) { return user.uid; };
    const auto user_name = [](const UserSelector& user) { return fmt::format("user '{}'", user.name); };
    if (auto error = find_shared(config, origins, "users", &ClassConfig::users, uid, user_name))
        return tl::unexpected(std::move(*error));
    const auto itself = [](const Prefix& prefix) { return prefix; };
    const auto prefix_name = [](const Prefix& prefix) { return to_string(prefix); };
    if (auto error = find_shared(config, origins, "destinations", &ClassConfig::destinations, itself, prefix_name))
        return tl::unexpected(std::move(*error));
    if (auto error = find_bad_site(config, origins)) return tl::unexpected(std::move(*error));
    if (auto error = find_site_dns_without_bpf(config, origins)) return tl::unexpected(std::move(*error));
    if (auto error = find_shared_at_site(config, origins, "users", &ClassConfig::users, uid, user_name))
        return tl::unexpected(std::move(*error));
    if (auto error =
            find_shared_at_site(config, origins, "destinations", &ClassConfig::destinations, itself, prefix_name))
        return tl::unexpected(std::move(*error));
    return config;
}

std::vector<ConfigError> doubts(const Config& config, const Origins& origins) {
    std::vector<ConfigError> found;
    for (const SiteConfig& site : config.sites) {
        const std::string what = opens(site, config);
        if (what.empty() || !is_spoofable(site.match)) continue;
        found.push_back(
            error_at(*origins.find("sites." + site.name),
                     fmt::format("sites.{}: warning: the site {}, and whoever runs a network can pretend to "
                                 "be it (ssid, bssid, gateway_mac, network, domain); a tunnel or a link beside "
                                 "these cannot be pretended",
                                 site.name, what)));
    }
    return found;
}

} // namespace novpn
