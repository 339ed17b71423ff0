#include "config/schema.h"

#include "config/parse.h"
#include "config/sites.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <utility>

namespace novpn {
namespace {

constexpr Word<WhenNoUplink> kWhenNoUplink[] = {{"block", WhenNoUplink::block}, {"tunnel", WhenNoUplink::tunnel}};
constexpr Word<Dns> kDns[] = {{"vpn", Dns::vpn}, {"uplink", Dns::uplink}};
constexpr Word<OnLeave> kOnLeave[] = {{"end", OnLeave::end}, {"keep", OnLeave::keep}};
constexpr Word<Marking> kMarking[] = {
    {"auto", Marking::automatic}, {"bpf", Marking::bpf}, {"nft", Marking::nft}, {"net_cls", Marking::net_cls}};
constexpr Word<LogLevel> kLogLevel[] = {
    {"error", LogLevel::error}, {"warning", LogLevel::warning}, {"info", LogLevel::info}, {"debug", LogLevel::debug}};

constexpr auto kLinkGlobs = "a list of link names or globs of at most 15 characters, such as [eth0, \"wl*\"]";
constexpr auto kOneLinkGlob = "a link name or glob of at most 15 characters, such as \"wl*\", or null";
constexpr auto kAccounts =
    "a list of names (a to z or _ first, then a to z, 0 to 9, _ and -; at most 32 characters) or "
    "numbers, such as [alice, 1000]";

/// Puts a value where it belongs; `name` is the class's.
using Parse = std::optional<Problem> (*)(const YamlNode& node, std::string_view name, Config& config);

/// Its class is there: add_class() came before the first of its keys.
ClassConfig& class_named(std::string_view name, Config& config) {
    return *std::find_if(config.classes.begin(), config.classes.end(),
                         [&](const ClassConfig& known) { return known.name == name; });
}

template<typename T>
std::optional<Problem> put(Parsed<T> parsed, T& target) {
    if (!parsed) return std::move(parsed.error());
    target = std::move(*parsed);
    return std::nullopt;
}

template<auto kMember, auto kParse>
std::optional<Problem> of_class(const YamlNode& node, std::string_view name, Config& config) {
    return put(kParse(node), class_named(name, config).*kMember);
}

template<auto kSection, auto kMember, auto kParse>
std::optional<Problem> of(const YamlNode& node, std::string_view, Config& config) {
    return put(kParse(node), config.*kSection.*kMember);
}

template<auto kMember, auto kParse>
std::optional<Problem> of_config(const YamlNode& node, std::string_view, Config& config) {
    return put(kParse(node), config.*kMember);
}

/// One line of the table. `section` is the path of the map that the key stands in.
struct Key {
    enum class Kind { map, value };
    Kind kind;
    std::string_view section;
    std::string_view name;    ///< "*": any name of a class
    std::string_view allowed; ///< of a map: empty where it is the keys below it
    Parse parse = nullptr;
};

constexpr Key map(std::string_view section, std::string_view name, std::string_view allowed = {}) {
    return {.kind = Key::Kind::map, .section = section, .name = name, .allowed = allowed};
}
constexpr Key value(std::string_view section, std::string_view name, Parse parse, std::string_view allowed) {
    return {.kind = Key::Kind::value, .section = section, .name = name, .allowed = allowed, .parse = parse};
}

constexpr Key kKeys[] = {
    map("", "classes", "a map of classes by their name"),
    map("classes", "*", "a map of the class's settings"),
    value("classes.*", "enabled", of_class<&ClassConfig::enabled, parse_bool>, "true, false"),
    value("classes.*", "uplink", of_class<&ClassConfig::uplink, parse_optional_link_glob>, kOneLinkGlob),
    value("classes.*", "via", of_class<&ClassConfig::via, parse_optional_link_glob>, kOneLinkGlob),
    value("classes.*", "when_no_uplink", of_class<&ClassConfig::when_no_uplink, parse_word<kWhenNoUplink>>,
          "block, tunnel"),
    value("classes.*", "dns", of_class<&ClassConfig::dns, parse_word<kDns>>, "vpn, uplink"),
    value("classes.*", "on_leave", of_class<&ClassConfig::on_leave, parse_word<kOnLeave>>, "end, keep"),
    value("classes.*", "table", of_class<&ClassConfig::table, parse_table>, "1 to 4294967295 except 253, 254 and 255"),
    value("classes.*", "mark", of_class<&ClassConfig::mark, parse_mark>,
          "VALUE/MASK of 32 bits, such as 0x4e000000/0xff000000, or a number other than 0"),
    value("classes.*", "preference", of_class<&ClassConfig::preference, parse_preference>, "3 to 32764"),
    value("classes.*", "apps", of_class<&ClassConfig::apps, parse_apps>,
          "a list of desktop, flatpak or snap ids, or globs, such as [spotify, \"firefox*\"]"),
    value("classes.*", "units", of_class<&ClassConfig::units, parse_units>,
          "a list of system services, such as [transmission-daemon.service]"),
    value("classes.*", "slices", of_class<&ClassConfig::slices, parse_slices>,
          "a list of system slices, such as [backup.slice]"),
    value("classes.*", "cgroups", of_class<&ClassConfig::cgroups, parse_cgroups>,
          "a list of cgroups below slices, as paths from the root of cgroup v2, such as [backup.slice/nightly]"),
    value("classes.*", "users", of_class<&ClassConfig::users, parse_users>,
          "a list of names or numbers of users, such as [alice, 1000], root not among them"),
    value("classes.*", "destinations", of_class<&ClassConfig::destinations, parse_destinations>,
          "a list of at most 4096 prefixes, such as [203.0.113.0/24, \"2001:db8::/32\"]"),
    value("classes.*", "classid", of_class<&ClassConfig::classid, parse_classid>,
          "1 to 4294967295, such as 0x100001, with marking: net_cls"),
    map("", "uplinks"),
    value("uplinks", "prefer", of<&Config::uplinks, &UplinkConfig::prefer, parse_link_globs>, kLinkGlobs),
    value("uplinks", "ignore", of<&Config::uplinks, &UplinkConfig::ignore, parse_link_globs>, kLinkGlobs),
    value("uplinks", "links", of<&Config::uplinks, &UplinkConfig::links, parse_link_globs>, kLinkGlobs),
    map("", "tunnels"),
    value("tunnels", "links", of<&Config::tunnels, &TunnelConfig::links, parse_link_globs>, kLinkGlobs),
    value(
        "", "sites",
        [](const YamlNode& node, std::string_view, Config& config) { return parse_sites(node, config.sites); },
        kSitesAllowed),
    map("", "allow"),
    value("allow", "users", of<&Config::allow, &Allow::users, parse_accounts>, kAccounts),
    value("allow", "groups", of<&Config::allow, &Allow::groups, parse_accounts>, kAccounts),
    value("", "marking", of_config<&Config::marking, parse_word<kMarking>>, "auto, bpf, nft, net_cls"),
    map("", "net_cls"),
    value("net_cls", "mount", of_config<&Config::net_cls_mount, parse_mount>,
          "the absolute path of a directory that is not below /sys/fs/cgroup, such as /run/net_cls"),
    map("", "sockets"),
    value("sockets", "destroy_stale", of<&Config::sockets, &SocketsConfig::destroy_stale, parse_bool>, "true, false"),
    map("", "log"),
    value("log", "level", of_config<&Config::log_level, parse_word<kLogLevel>>, "error, warning, info, debug"),
};

std::string join(std::string_view section, std::string_view name) {
    return section.empty() ? std::string(name) : fmt::format("{}.{}", section, name);
}

const Key* find_key(std::string_view section, std::string_view name) {
    const auto* found = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const Key& key) {
        return key.section == section && (key.name == name || key.name == "*");
    });
    return found == std::end(kKeys) ? nullptr : found;
}

/// Sorted.
std::vector<std::string_view> keys_of(std::string_view section) {
    std::vector<std::string_view> names;
    for (const Key& key : kKeys) {
        if (key.section == section) names.push_back(key.name);
    }
    std::sort(names.begin(), names.end());
    return names;
}

std::string allowed_in_map(std::string_view section) {
    const auto names = keys_of(section);
    return fmt::format("a map with the key{} {}", names.size() == 1 ? "" : "s", fmt::join(names, ", "));
}

std::string unknown_key(const YamlNode& entry, std::string_view section, std::string_view path) {
    const auto allowed = keys_of(section);
    std::string text = path.empty() ? "" : fmt::format("{}: ", path);
    text += "unknown key " + quote(entry.key);
    const std::string_view meant = nearest(entry.key, allowed);
    text += meant.empty() ? ";" : fmt::format("; did you mean '{}'?", meant);
    return text + fmt::format(" allowed here: {}", fmt::join(allowed, ", "));
}

bool is_class_name(std::string_view name) {
    const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
    const auto is_inner = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '_'; };
    return !name.empty() && name.size() <= 31 && is_letter(name.front()) &&
           std::all_of(name.begin(), name.end(), is_inner);
}

/// Nothing where the class is there already; what is wrong where it cannot be.
std::optional<std::string> add_class(const std::string& name, Config& config) {
    if (!is_class_name(name)) {
        return fmt::format(
            "{} cannot be the name of a class; allowed: a to z first, then up to 30 of a to z, 0 to 9, _", quote(name));
    }
    auto& classes = config.classes;
    const auto has_name = [](std::string_view wanted) {
        return [wanted](const ClassConfig& known) { return known.name == wanted; };
    };
    if (std::any_of(classes.begin(), classes.end(), has_name(name))) return std::nullopt;
    // The default class has its place, named or not.
    const std::size_t others = classes.size() - static_cast<std::size_t>(std::count_if(classes.begin(), classes.end(),
                                                                                       has_name(kDefaultClass)));
    if (name != kDefaultClass && others == kMaxClasses - 1) {
        return fmt::format("classes.{}: too many classes; allowed: {}, {} among them", name, kMaxClasses,
                           kDefaultClass);
    }
    classes.push_back(ClassConfig{.name = name});
    return std::nullopt;
}

class DocumentReader {
  public:
    DocumentReader(const std::string& file, Config& config, Origins& origins)
        : file_(file)
        , config_(config)
        , origins_(origins) {}

    /// `section` is the table's word for the map, `path` the user's; `name` is the class that it belongs to.
    std::optional<ConfigError> read_map(const YamlNode& node, const std::string& section, const std::string& path,
                                        const std::string& name, std::string_view allowed) {
        if (node.kind == YamlNode::Kind::null) return std::nullopt; // All its entries are commented out.
        if (node.kind != YamlNode::Kind::map) {
            return error(path, unexpected_value(node, "a map").value(),
                         allowed.empty() ? allowed_in_map(section) : std::string(allowed));
        }
        for (const YamlNode& entry : node.children) {
            const Key* key = find_key(section, entry.key);
            if (key == nullptr) return error(entry.key_at, unknown_key(entry, section, path));
            const bool is_class = key->name == "*";
            if (const auto refused = is_class ? add_class(entry.key, config_) : std::nullopt) {
                return error(entry.key_at, *refused);
            }
            if (auto failed = read_entry(entry, *key, join(path, entry.key), is_class ? entry.key : name))
                return failed;
        }
        return std::nullopt;
    }

  private:
    std::optional<ConfigError> read_entry(const YamlNode& entry, const Key& key, const std::string& path,
                                          const std::string& name) {
        if (key.kind == Key::Kind::map) {
            origins_.by_path.try_emplace(path, origin(entry.key_at));
            return read_map(entry, join(key.section, key.name), path, name, key.allowed);
        }
        if (const auto problem = key.parse(entry, name, config_)) return error(path, *problem, key.allowed);
        origins_.by_path.insert_or_assign(path, origin(entry.at));
        if (path == "sites")
            for (const YamlNode& site : entry.children)
                origins_.by_path.insert_or_assign("sites." + site_name(site), origin(site.at));
        return std::nullopt;
    }

    Origin origin(Position at) { return {.file = file_, .at = at, .order = ++origins_.read}; }

    ConfigError error(const std::string& path, const Problem& problem, std::string_view allowed) const {
        const std::string prefix = path.empty() ? "" : path + ": ";
        return error(problem.at, fmt::format("{}{}; allowed: {}", prefix, problem.what, allowed));
    }
    ConfigError error(Position at, std::string message) const {
        return {.file = file_, .line = at.line, .column = at.column, .message = std::move(message)};
    }

    const std::string& file_;
    Config& config_;
    Origins& origins_;
};

} // namespace

std::optional<ConfigError> apply_document(const YamlNode& document, const std::string& file, Config& config,
                                          Origins& origins) {
    return DocumentReader(file, config, origins).read_map(document, "", "", "", {});
}

std::vector<std::string> key_names() {
    std::vector<std::string> names;
    for (const Key& key : kKeys) {
        if (key.kind == Key::Kind::map) continue;
        names.push_back(join(key.section, key.name));
    }
    return names;
}

} // namespace novpn
