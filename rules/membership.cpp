#include "rules/membership.h"

#include <algorithm>
#include <charconv>
#include <fnmatch.h>
#include <string_view>

namespace novpn {
namespace {

using Words = std::vector<std::string_view>;

Words split(std::string_view text, char at) {
    Words words;
    for (;;) {
        const auto end = text.find(at);
        words.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return words;
        text.remove_prefix(end + 1);
    }
}

/// What stands between the two; none where the text is not of that form, or nothing does.
std::optional<std::string_view> between(std::string_view text, std::string_view prefix, std::string_view suffix) {
    if (text.size() <= prefix.size() + suffix.size() || !text.starts_with(prefix) || !text.ends_with(suffix))
        return std::nullopt;
    return text.substr(prefix.size(), text.size() - prefix.size() - suffix.size());
}

bool is_digits(std::string_view text) {
    return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

/// systemd puts a '_' before names that the kernel's own files of the directory could have (cg_escape() in
/// src/basic/cgroup-util.c).
std::string_view unit_of(std::string_view component) {
    if (component.starts_with('_')) component.remove_prefix(1);
    return component;
}

/// Whether systemd would put the slice there: a-b.slice lies in a.slice, and nowhere else. `parent` is empty at a
/// manager's root. A container's own system.slice lies elsewhere.
bool is_slice_in(std::string_view name, std::string_view parent) {
    const auto stem = between(name, "", ".slice");
    if (!stem) return false;
    std::string_view last = *stem;
    if (!parent.empty()) {
        const auto above = between(parent, "", ".slice");
        if (!above || !last.starts_with(*above) || !last.substr(above->size()).starts_with('-')) return false;
        last.remove_prefix(above->size() + 1);
    }
    return !last.empty() && last.find('-') == std::string_view::npos;
}

/// 1000 of "user-1000.slice" and "user@1000.service".
std::optional<uid_t> uid_of_manager(std::string_view slice, std::string_view service) {
    const auto of_slice = between(slice, "user-", ".slice");
    const auto of_service = between(service, "user@", ".service");
    if (!of_slice || !of_service || *of_slice != *of_service || !is_digits(*of_slice)) return std::nullopt;
    uid_t uid = 0;
    const auto [end, error] = std::from_chars(of_slice->data(), of_slice->data() + of_slice->size(), uid);
    if (error != std::errc() || end != of_slice->data() + of_slice->size()) return std::nullopt;
    if (std::to_string(uid) != *of_slice) return std::nullopt; // "user@01000.service" is nobody's manager
    return uid;
}

/// Where a unit's cgroup lies: below slices only, of the system manager or of a user's.
struct Place {
    std::optional<uid_t> manager;
    std::string_view unit;     ///< its name
    std::string_view parent;   ///< the slice that it is directly in; empty: at its manager's root
    std::size_t of_system = 0; ///< how many of the components above it the system manager made
};

/// Whether `name`, at this depth, is a user's manager: user.slice/user-UID.slice/user@UID.service.
std::optional<uid_t> uid_at(const Words& components, std::size_t depth) {
    if (depth != 2 || components[0] != "user.slice") return std::nullopt;
    return uid_of_manager(components[1], components[2]);
}

std::optional<Place> place_of(const Words& components) {
    Place place;
    for (std::size_t depth = 0; depth + 1 < components.size(); ++depth) {
        const std::string_view name = unit_of(components[depth]);
        if (!place.manager) ++place.of_system;
        if (is_slice_in(name, place.parent)) {
            place.parent = name;
            continue;
        }
        const auto uid = place.manager ? std::nullopt : uid_at(components, depth);
        if (!uid) return std::nullopt;
        place.manager = uid;
        place.parent = {};
    }
    place.unit = unit_of(components.back());
    if (place.unit.empty()) return std::nullopt;
    return place;
}

/// Whether all that lies above was made by whom the place says: the system manager's cgroups are root's, and those of a
/// user's manager are root's or that user's.
bool is_made_by_managers(const std::string& path, const Place& place, const SeenCgroups& seen) {
    std::size_t depth = 0;
    for (auto end = path.find('/'); end != std::string::npos; end = path.find('/', end + 1)) {
        const auto above = seen.find(path.substr(0, end));
        if (above == seen.end()) return false;
        ++depth;
        const bool is_manager_itself = place.manager && depth == place.of_system;
        const bool may_be_the_users = is_manager_itself || depth > place.of_system;
        const uid_t owner = above->second.owner;
        if (owner != 0 && !(may_be_the_users && owner == place.manager)) return false;
    }
    return true;
}

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/// What systemd-escape(1) made of an id: \x2d is '-'. None where it cannot be an id.
std::optional<std::string> unescaped(std::string_view text) {
    std::string plain;
    for (std::size_t i = 0; i < text.size(); ++i) {
        char c = text[i];
        if (c == '\\') {
            if (i + 3 >= text.size() || text[i + 1] != 'x') return std::nullopt;
            const int high = hex_digit(text[i + 2]);
            const int low = hex_digit(text[i + 3]);
            if (high < 0 || low < 0) return std::nullopt;
            c = static_cast<char>(high * 16 + low);
            i += 3;
        }
        // A NUL would end it for fnmatch(3) earlier than for a reader.
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '/') return std::nullopt;
        plain += c;
    }
    return plain.empty() ? std::nullopt : std::optional(plain);
}

void add(std::vector<std::string>& ids, std::string_view escaped) {
    if (auto id = unescaped(escaped); id && std::ranges::find(ids, *id) == ids.end()) ids.push_back(std::move(*id));
}

/// app-[launcher-]ID-RANDOM.scope: a '-' of the id itself is \x2d. flatpak has not always escaped it.
std::vector<std::string> ids_of_scope(std::string_view stem) {
    std::vector<std::string> ids;
    if (const auto flatpak = between(stem, "flatpak-", ""); flatpak && flatpak->find('-') != std::string_view::npos) {
        add(ids, flatpak->substr(0, flatpak->find('-')));
        add(ids, flatpak->substr(0, flatpak->rfind('-')));
        return ids;
    }
    const Words words = split(stem, '-');
    const bool is_one = (words.size() == 2 || words.size() == 3) &&
                        std::ranges::none_of(words, [](std::string_view word) { return word.empty(); });
    if (is_one) add(ids, words[words.size() - 2]);
    return ids;
}

/// "spotify" of "spotify-9c43cb0a-0e39-4b2c-8a83-2b2b7a1f6f0e" and of "spotify-1234".
std::string_view without_random(std::string_view text) {
    constexpr std::size_t kUuid = 36;
    constexpr std::size_t kDashes[] = {8, 13, 18, 23};
    if (text.size() > kUuid + 1 && text[text.size() - kUuid - 1] == '-') {
        const std::string_view uuid = text.substr(text.size() - kUuid);
        if (std::ranges::all_of(kDashes, [&](std::size_t at) { return uuid[at] == '-'; }))
            return text.substr(0, text.size() - kUuid - 1);
    }
    const auto dash = text.rfind('-');
    return dash == std::string_view::npos ? std::string_view() : text.substr(0, dash);
}

/// snap.PKG.APP-RANDOM.scope: the snap's name, its app's, and the desktop id that snapd makes of the two.
std::vector<std::string> ids_of_snap(std::string_view stem) {
    const auto dot = stem.find('.');
    if (dot == std::string_view::npos) return {};
    const auto package = unescaped(stem.substr(0, dot));
    const auto app = unescaped(without_random(stem.substr(dot + 1)));
    if (!package || !app) return {};
    return {*package, *package + "." + *app, *package + "_" + *app};
}

/// dbus-:1.2-ID@0.service, of a program that the bus started.
std::vector<std::string> ids_of_bus_name(std::string_view stem) {
    std::vector<std::string> ids;
    const auto dash = stem.find('-');
    const auto at = stem.rfind('@');
    if (dash == std::string_view::npos || at == std::string_view::npos || at < dash) return ids;
    const std::string_view connection = stem.substr(0, dash);
    const bool is_connection = !connection.empty() && std::ranges::all_of(connection, [](char c) {
        return (c >= '0' && c <= '9') || c == '.';
    });
    if (is_connection && is_digits(stem.substr(at + 1))) add(ids, stem.substr(dash + 1, at - dash - 1));
    return ids;
}

/// app-ID@RANDOM.service and app-ID@autostart.service.
std::vector<std::string> ids_of_service(std::string_view stem) {
    std::vector<std::string> ids;
    const auto at = stem.find('@');
    if (at == std::string_view::npos || at + 1 == stem.size()) return ids;
    if (const std::string_view id = stem.substr(0, at); id.find('-') == std::string_view::npos) add(ids, id);
    return ids;
}

bool contains(const std::vector<std::string>& list, std::string_view value) {
    return std::ranges::find(list, value) != list.end();
}

std::optional<std::string> selector_of_system(const CgroupSelectors& by, const std::string& path, const Place& place) {
    if (contains(by.cgroups, path)) return "cgroup " + path;
    const bool is_unit = place.unit.ends_with(".service") || place.unit.ends_with(".scope");
    if (is_unit && contains(by.units, place.unit)) return "unit " + std::string(place.unit);
    if (is_slice_in(place.unit, place.parent) && contains(by.slices, place.unit))
        return "slice " + std::string(place.unit);
    return std::nullopt;
}

std::optional<std::string> selector_of_own_slice(const CgroupSelectors& by, const Place& place) {
    const std::string own = class_slice(by.class_name);
    if (!by.own_slice || place.unit != own || !is_slice_in(place.unit, place.parent)) return std::nullopt;
    return "slice " + own;
}

std::optional<std::string> selector_of_app(const CgroupSelectors& by, const std::vector<std::string>& ids) {
    for (const std::string& app : by.apps)
        for (const std::string& id : ids)
            if (fnmatch(app.c_str(), id.c_str(), 0) == 0) return "app " + app;
    return std::nullopt;
}

std::optional<MatchedCgroup> match(const std::vector<CgroupSelectors>& classes, const std::string& path,
                                   const SeenCgroups& seen, const std::set<uid_t>& allowed) {
    const Words components = split(path, '/');
    const auto place = place_of(components);
    if (!place) return std::nullopt;
    // At its root, a user's manager is no slice.
    const bool may_be_app =
        place->manager && !place->parent.empty() && (*place->manager == 0 || allowed.contains(*place->manager));
    if (place->manager && !may_be_app) return std::nullopt;
    if (!is_made_by_managers(path, *place, seen)) return std::nullopt;
    const auto ids = place->manager ? application_ids(std::string(place->unit)) : std::vector<std::string>();
    for (const CgroupSelectors& by : classes) {
        auto selector = place->manager ? selector_of_app(by, ids) : selector_of_system(by, path, *place);
        if (!selector) selector = selector_of_own_slice(by, *place);
        if (selector) return MatchedCgroup{by.class_name, std::move(*selector), seen.at(path).id};
    }
    return std::nullopt;
}

} // namespace

std::vector<std::string> application_ids(const std::string& unit) {
    if (const auto stem = between(unit, "app-", ".scope")) return ids_of_scope(*stem);
    if (const auto stem = between(unit, "snap.", ".scope")) return ids_of_snap(*stem);
    if (const auto stem = between(unit, "dbus-:", ".service")) return ids_of_bus_name(*stem);
    if (const auto stem = between(unit, "app-", ".service")) return ids_of_service(*stem);
    return {};
}

std::map<std::string, MatchedCgroup> matched_cgroups(const std::vector<CgroupSelectors>& classes,
                                                     const SeenCgroups& seen, const std::set<uid_t>& allowed) {
    std::map<std::string, MatchedCgroup> matched;
    for (const auto& [path, _] : seen)
        if (auto found = match(classes, path, seen, allowed)) matched.emplace(path, std::move(*found));
    return matched;
}

std::string class_slice(const std::string& class_name) { return "novpn-" + class_name + ".slice"; }

std::optional<std::string> class_slice_above(const std::string& path, const std::string& class_name) {
    const std::string inside = "/" + class_slice(class_name) + "/";
    const auto at = path.find(inside);
    if (at == std::string::npos) return std::nullopt;
    return path.substr(0, at + inside.size() - 1);
}

bool is_run_scope(const std::string& path, const std::string& slice) {
    if (!path.starts_with(slice + "/")) return false;
    std::string_view unit = std::string_view(path).substr(slice.size() + 1);
    unit = unit.substr(0, unit.find('/'));
    return between(unit, kRunScopePrefix, ".scope").has_value();
}

bool is_class_name(const std::string& name) {
    constexpr std::size_t kLongest = 31;
    const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
    return !name.empty() && name.size() <= kLongest && is_letter(name.front()) &&
           std::ranges::all_of(name, [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '_'; });
}

bool may_hold_matches(const std::string& path) {
    if (path.empty()) return true;
    const Words components = split(path, '/');
    const auto place = place_of(components);
    if (!place) return false;
    return is_slice_in(place->unit, place->parent) || (!place->manager && uid_at(components, components.size() - 1));
}

std::optional<uid_t> manager_of(const std::string& path) {
    const Words components = split(path, '/');
    return components.size() > 2 ? uid_at(components, 2) : std::nullopt;
}

std::set<uid_t> managers_in(const SeenCgroups& seen) {
    std::set<uid_t> uids;
    for (const auto& [path, _] : seen)
        if (auto uid = manager_of(path)) uids.insert(*uid);
    return uids;
}

} // namespace novpn
