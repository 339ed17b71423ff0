#include "config/parse.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <charconv>
#include <climits>
#include <cstdint>
#include <filesystem>
#include <fmt/format.h>
#include <initializer_list>
#include <limits>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <optional>
#include <pwd.h>
#include <system_error>

namespace novpn {
namespace {

/// One rule of a class stands before and one after its preference. 0 is the local table's rule, and rules at 0 and 1
/// would reverse wg-quick's pair (KERNEL-FACTS 10); 32766 and 32767 are the rules of main and default.
constexpr std::uint64_t kLowestPreference = 3;
constexpr std::uint64_t kHighestPreference = 32764;

constexpr std::size_t kGlobMax = IFNAMSIZ - 1;
constexpr std::size_t kAccountMax = 32; ///< useradd(8)
constexpr std::size_t kMaxDestinations = 4096;
constexpr std::size_t kNameMax = NAME_MAX;
constexpr std::size_t kPathMax = PATH_MAX - 1;

/// (uid_t)-1 and (gid_t)-1 stand for "no change" in chown(2) and setresuid(2): nobody has them.
constexpr std::uint64_t kHighestAccount = 0xfffffffe;

tl::unexpected<Problem> wrong(const YamlNode& node, std::string what) {
    return tl::unexpected(Problem{.at = node.at, .what = std::move(what)});
}

/// Decimal or 0x. A leading 0 is refused: octal to YAML 1.1, decimal to YAML 1.2. Too large a number is the largest.
std::optional<std::uint64_t> to_number(std::string_view text) {
    const bool hexadecimal = text.starts_with("0x");
    if (hexadecimal) text.remove_prefix(2);
    if (!hexadecimal && text.size() > 1 && text.front() == '0') return std::nullopt;
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, hexadecimal ? 16 : 10);
    if (error == std::errc::invalid_argument || end != text.data() + text.size()) return std::nullopt;
    return error == std::errc::result_out_of_range ? std::numeric_limits<std::uint64_t>::max() : number;
}

Parsed<std::uint64_t> parse_number(const YamlNode& node, std::uint64_t lowest, std::uint64_t highest) {
    const bool plain = node.kind == YamlNode::Kind::scalar && !node.quoted;
    const auto number = plain ? to_number(node.text) : std::nullopt;
    if (!number) return unexpected_value(node, "a number");
    if (*number < lowest || *number > highest) return wrong(node, quote(node.text) + " is out of range");
    return *number;
}

bool is_32_bit(std::uint64_t number) { return number <= std::numeric_limits<std::uint32_t>::max(); }

/// A link's name has no '/', ':' or space (dev_valid_name in net/core/dev.c); ':' may stand in a glob's [[:digit:]].
bool is_impossible_in_link_name(char c) { return c == '/' || c == ' ' || is_control(c); }

Parsed<std::string> parse_link_glob(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "the name of a link or a glob");
    if (node.text.empty()) return wrong(node, "an empty name matches no link");
    if (node.text.size() > kGlobMax) {
        return wrong(node, fmt::format("{} is longer than the name of a link can be", quote(node.text)));
    }
    if (std::any_of(node.text.begin(), node.text.end(), is_impossible_in_link_name)) {
        return wrong(node, fmt::format("{} has a character that no link's name can have", quote(node.text)));
    }
    return node.text;
}

bool is_account_name(std::string_view text) {
    const auto is_first = [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; };
    const auto is_inner = [&](char c) { return is_first(c) || (c >= '0' && c <= '9') || c == '-'; };
    return !text.empty() && is_first(text.front()) && std::all_of(text.begin(), text.end(), is_inner);
}

Parsed<std::string> parse_account(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a name or a number");
    if (is_account_name(node.text)) {
        if (node.text.size() <= kAccountMax) return node.text;
        return wrong(node, fmt::format("{} is longer than a name can be", quote(node.text)));
    }
    const auto number = node.text.starts_with("0x") ? std::nullopt : to_number(node.text);
    if (!number) return wrong(node, quote(node.text) + " is neither a name nor a number");
    if (*number > kHighestAccount) return wrong(node, quote(node.text) + " is out of range");
    return node.text;
}

Parsed<std::uint32_t> uid_of(const YamlNode& node, const std::string& account) {
    if (const auto number = is_account_name(account) ? std::nullopt : to_number(account))
        return static_cast<std::uint32_t>(*number);
    std::vector<char> buffer(std::size_t{1} << 16);
    passwd entry{};
    passwd* found = nullptr;
    const int error = getpwnam_r(account.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (found != nullptr) return found->pw_uid;
    // What getpwnam(3) lists for "not found".
    const bool absent = error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM;
    if (absent) return wrong(node, fmt::format("there is no user {} on this machine", quote(account)));
    return wrong(
        node, fmt::format("user {} cannot be looked up: {}", quote(account), std::generic_category().message(error)));
}

Parsed<UserSelector> parse_user(const YamlNode& node) {
    auto account = parse_account(node);
    if (!account) return tl::unexpected(account.error());
    const auto uid = uid_of(node, *account);
    if (!uid) return tl::unexpected(uid.error());
    // Packets that no process sends, such as answers to a ping, count as root's; so do most VPN clients'.
    if (*uid == 0) return wrong(node, quote(node.text) + " is root, whose packets are the kernel's and the VPN's too");
    return UserSelector{.name = std::move(*account), .uid = *uid};
}

/// A name that can be a directory's, at most as long as one (NAME_MAX). `what` it should be.
Parsed<std::string> parse_name(const YamlNode& node, std::string_view what) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, what);
    const std::string& text = node.text;
    if (text.empty()) return wrong(node, "an empty name is nobody's");
    if (text.size() > kNameMax) return wrong(node, fmt::format("{} is longer than {} can be", quote(text), what));
    // A space can be in an id: Wine's menus have them.
    if (std::any_of(text.begin(), text.end(), [](char c) { return c == '/' || is_control(c); }))
        return wrong(node, fmt::format("{} has a character that {} cannot have", quote(text), what));
    return text;
}

Parsed<std::string> parse_app(const YamlNode& node) {
    auto app = parse_name(node, "the id of an application");
    constexpr std::string_view kSuffix = ".desktop";
    if (app && app->ends_with(kSuffix))
        return wrong(node, fmt::format("{} is the name of a file; the id is {}", quote(*app),
                                       quote(app->substr(0, app->size() - kSuffix.size()))));
    return app;
}

/// The text without one of the suffixes is not empty.
bool has_suffix(std::string_view text, std::initializer_list<std::string_view> suffixes) {
    return std::any_of(suffixes.begin(), suffixes.end(),
                       [&](std::string_view suffix) { return text.size() > suffix.size() && text.ends_with(suffix); });
}

bool has_glob(std::string_view text) { return text.find_first_of("*?[") != std::string_view::npos; }

Parsed<std::string> parse_unit_name(const YamlNode& node, std::initializer_list<std::string_view> suffixes,
                                    std::string_view what) {
    auto name = parse_name(node, what);
    if (!name) return name;
    if (has_glob(*name)) return wrong(node, fmt::format("{} is a glob; only apps takes globs", quote(*name)));
    if (!has_suffix(*name, suffixes)) return wrong(node, fmt::format("{} is not {}", quote(*name), what));
    return name;
}

Parsed<std::string> parse_unit(const YamlNode& node) {
    return parse_unit_name(node, {".service", ".scope"}, "the name of a system service (NAME.service)");
}

Parsed<std::string> parse_slice(const YamlNode& node) {
    return parse_unit_name(node, {".slice"}, "the name of a system slice (NAME.slice)");
}

Parsed<std::string> parse_cgroup(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "the path of a cgroup");
    std::string_view rest = node.text;
    if (rest.size() > kPathMax || std::any_of(rest.begin(), rest.end(), is_control))
        return wrong(node, quote(rest) + " is no path");
    if (rest.starts_with('/')) rest.remove_prefix(1);
    std::string path(rest);
    for (;;) {
        const auto slash = rest.find('/');
        const std::string_view name = rest.substr(0, slash);
        if (name.empty() || name == "." || name == "..")
            return wrong(node, fmt::format("{} is not the path of a cgroup", quote(node.text)));
        if (slash == std::string_view::npos) return path;
        if (!has_suffix(name, {".slice"}))
            return wrong(node, fmt::format("{} lies in {}, which is no slice: names in there are not the system's",
                                           quote(node.text), quote(name)));
        rest.remove_prefix(slash + 1);
    }
}

/// 32 bytes, each of which may be written as \x1b.
constexpr std::size_t kSsidGlobMax = 128;

Parsed<std::string> parse_ssid(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "the name of a Wi-Fi network or a glob");
    if (node.text.empty()) return wrong(node, "an empty name is that of no network");
    if (node.text.size() > kSsidGlobMax)
        return wrong(node, quote(node.text) + " is too long for the name of a network");
    // A name with others in it is shown, and matched, with these written out.
    if (printable(node.text) != node.text)
        return wrong(node, quote(node.text) + " has characters that have to be written as 'novpn status' shows them");
    return node.text;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string lower(std::string text) {
    std::ranges::transform(text, text.begin(), [](char c) { return lower(c); });
    return text;
}

bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

Parsed<std::string> parse_mac(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a MAC address or a glob");
    std::string text = lower(node.text);
    const bool is_glob = text.find_first_of("*?") != std::string::npos;
    const auto fits = [&](char c) { return is_hex(c) || c == ':' || (is_glob && (c == '*' || c == '?')); };
    bool is_address = !text.empty() && text.size() <= 17 && std::ranges::all_of(text, fits);
    if (!is_glob) {
        is_address = is_address && text.size() == 17;
        for (std::size_t i = 0; is_address && i < text.size(); ++i) is_address = (text[i] == ':') == (i % 3 == 2);
    }
    if (!is_address)
        return wrong(node, quote(node.text) + " is no MAC address, such as c0:ff:ee:00:11:22, and no glob of one");
    return text;
}

Parsed<std::string> parse_domain(const YamlNode& node) {
    constexpr std::size_t kDomainMax = 253; // RFC 1035, 3.1, without the lengths
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a domain or a glob");
    std::string text = lower(node.text);
    if (text.ends_with('.')) text.pop_back();
    const auto fits = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
               std::string_view("-_.*?").find(c) != std::string_view::npos;
    };
    if (text.empty() || text.size() > kDomainMax || !std::ranges::all_of(text, fits))
        return wrong(node, quote(node.text) + " is no DNS domain and no glob of one");
    return text;
}

/// Decimal, at most 3 digits.
std::optional<unsigned> to_prefix_length(std::string_view text) {
    if (text.size() > 3 || text.starts_with("0x")) return std::nullopt;
    const auto number = to_number(text);
    return number ? std::optional(static_cast<unsigned>(*number)) : std::nullopt;
}

/// Why no packet to it could leave by an uplink; empty where one could.
std::string_view unusable(const Prefix& prefix) {
    const address& network = prefix.network;
    if (prefix.length == 0) return "is every destination; to do without the VPN, end it";
    if (network.is_v6() && network.to_v6().is_v4_mapped()) return "is an IPv4 address; write it as one";
    if (network.is_loopback() || (network.is_v4() && prefix.length >= 8 && network.to_v4().to_bytes()[0] == 127))
        return "is this machine itself";
    if (network.is_v6() && network.to_v6().is_link_local() && prefix.length >= 10)
        return "is link-local, and takes the link that it is on";
    return {};
}

Parsed<Prefix> parse_destination(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a prefix");
    const std::string_view text = node.text;
    const auto slash = text.find('/');
    boost::system::error_code error;
    const auto host = boost::asio::ip::make_address(std::string(text.substr(0, slash)), error);
    const bool zoned = text.find('%') != std::string_view::npos;
    if (error || zoned) return wrong(node, quote(text) + " is no address and no prefix");
    const unsigned width = host.is_v4() ? 32 : 128;
    const auto length =
        slash == std::string_view::npos ? std::optional(width) : to_prefix_length(text.substr(slash + 1));
    if (!length || *length > width) {
        return wrong(node, fmt::format("{} has no length that an {} prefix can have (1 to {})", quote(text),
                                       host.is_v4() ? "IPv4" : "IPv6", width));
    }
    Prefix prefix = prefix_of(host, *length);
    if (const auto why = unusable(prefix); !why.empty()) return wrong(node, fmt::format("{} {}", quote(text), why));
    if (prefix.network != host) {
        return wrong(node, fmt::format("{} has bits beyond its length; write {}/{} for the network or {} for the host",
                                       quote(text), prefix.network.to_string(), *length, host.to_string()));
    }
    return prefix;
}

template<auto kParse>
auto parse_list(const YamlNode& node) -> Parsed<std::vector<typename decltype(kParse(node))::value_type>> {
    if (node.kind != YamlNode::Kind::list) return unexpected_value(node, "a list");
    std::vector<typename decltype(kParse(node))::value_type> values;
    for (const YamlNode& item : node.children) {
        auto value = kParse(item);
        if (!value) return tl::unexpected(value.error());
        values.push_back(std::move(*value));
    }
    return values;
}

std::string describe(const YamlNode& node) {
    switch (node.kind) {
    case YamlNode::Kind::null: return "nothing";
    case YamlNode::Kind::list: return "a list";
    case YamlNode::Kind::map: return "a map";
    case YamlNode::Kind::scalar: break;
    }
    return (node.quoted ? "the quoted text " : "") + quote(node.text);
}

} // namespace

tl::unexpected<Problem> unexpected_value(const YamlNode& node, std::string_view expected) {
    return wrong(node, fmt::format("expected {}, found {}", expected, describe(node)));
}

tl::unexpected<Problem> unknown_word(const YamlNode& node, const std::vector<std::string_view>& words) {
    const std::string_view meant = nearest(node.text, words);
    std::string what = quote(node.text) + " is unknown";
    if (!meant.empty()) what += fmt::format(", did you mean '{}'", meant);
    return wrong(node, std::move(what));
}

Parsed<TableId> parse_table(const YamlNode& node) {
    const auto number = parse_number(node, 1, std::numeric_limits<std::uint32_t>::max());
    if (!number) return tl::unexpected(number.error());
    switch (*number) {
    case RT_TABLE_DEFAULT: return wrong(node, "253 is the kernel's table 'default'");
    case RT_TABLE_MAIN: return wrong(node, "254 is the kernel's table 'main'");
    case RT_TABLE_LOCAL: return wrong(node, "255 is the kernel's table 'local'");
    default: return TableId{static_cast<std::uint32_t>(*number)};
    }
}

Parsed<Mark> parse_mark(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a mark");
    const std::string_view text = node.text;
    const auto slash = text.find('/');
    const auto value = to_number(text.substr(0, slash));
    const auto mask =
        slash == std::string_view::npos ? std::optional<std::uint64_t>(0xffffffff) : to_number(text.substr(slash + 1));
    if (!value || !mask) return unexpected_value(node, "a mark");
    if (!is_32_bit(*value) || !is_32_bit(*mask)) return wrong(node, quote(text) + " has more than 32 bits");
    if (*value == 0) return wrong(node, "the value is 0, which every unmarked packet has");
    if ((*value & ~*mask) != 0)
        return wrong(node, fmt::format("the value of {} has bits outside its mask", quote(text)));
    return Mark{.value = static_cast<std::uint32_t>(*value), .mask = static_cast<std::uint32_t>(*mask)};
}

Parsed<std::optional<std::uint32_t>> parse_classid(const YamlNode& node) {
    if (node.kind == YamlNode::Kind::null) return std::nullopt;
    // 0 is the class id of all that nobody gave one.
    const auto number = parse_number(node, 1, std::numeric_limits<std::uint32_t>::max());
    if (!number) return tl::unexpected(number.error());
    return static_cast<std::uint32_t>(*number);
}

Parsed<std::string> parse_mount(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "the path of a directory");
    const std::filesystem::path path(node.text);
    const bool is_whole = path.is_absolute() && path.lexically_normal() == path && path.has_filename();
    if (!is_whole || node.text.size() > kPathMax || std::any_of(node.text.begin(), node.text.end(), is_control))
        return wrong(node, quote(node.text) + " is not the absolute path of a directory");
    // What is mounted there is systemd's.
    if ((node.text + "/").starts_with("/sys/fs/cgroup/"))
        return wrong(node, quote(node.text) + " is below /sys/fs/cgroup, where nothing is mounted");
    return node.text;
}

Parsed<Preference> parse_preference(const YamlNode& node) {
    const auto number = parse_number(node, kLowestPreference, kHighestPreference);
    if (!number) return tl::unexpected(number.error());
    return Preference{static_cast<std::uint32_t>(*number)};
}

Parsed<bool> parse_bool(const YamlNode& node) {
    const bool plain = node.kind == YamlNode::Kind::scalar && !node.quoted;
    if (plain && node.text == "true") return true;
    if (plain && node.text == "false") return false;
    return unexpected_value(node, "true or false");
}

Parsed<std::string> parse_optional_link_glob(const YamlNode& node) {
    return node.kind == YamlNode::Kind::null ? Parsed<std::string>("") : parse_link_glob(node);
}

Parsed<std::vector<std::string>> parse_link_globs(const YamlNode& node) { return parse_list<parse_link_glob>(node); }
Parsed<std::vector<std::string>> parse_accounts(const YamlNode& node) { return parse_list<parse_account>(node); }
Parsed<std::vector<std::string>> parse_apps(const YamlNode& node) { return parse_list<parse_app>(node); }
Parsed<std::vector<std::string>> parse_units(const YamlNode& node) { return parse_list<parse_unit>(node); }
Parsed<std::vector<std::string>> parse_slices(const YamlNode& node) { return parse_list<parse_slice>(node); }
Parsed<std::vector<std::string>> parse_cgroups(const YamlNode& node) { return parse_list<parse_cgroup>(node); }
Parsed<std::vector<UserSelector>> parse_users(const YamlNode& node) { return parse_list<parse_user>(node); }

Parsed<std::vector<std::string>> parse_ssids(const YamlNode& node) { return parse_list<parse_ssid>(node); }
Parsed<std::vector<std::string>> parse_macs(const YamlNode& node) { return parse_list<parse_mac>(node); }
Parsed<std::vector<std::string>> parse_domains(const YamlNode& node) { return parse_list<parse_domain>(node); }

Parsed<std::string> parse_unit_to_start(const YamlNode& node) {
    if (node.kind == YamlNode::Kind::null) return std::string();
    // What systemd makes itself, or by its path alone, cannot be started by name.
    static constexpr std::string_view kKinds[] = {".service", ".target", ".timer", ".path", ".socket"};
    const auto fits = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::string_view(":-_.\\@").find(c) != std::string_view::npos; // VALID_CHARS of systemd
    };
    const std::string& text = node.text;
    const bool is_kind = std::ranges::any_of(kKinds, [&](auto kind) { return text.ends_with(kind) && text != kind; });
    const bool is_template = text.find("@.") != std::string::npos;
    if (node.kind != YamlNode::Kind::scalar || !is_kind || is_template || text.size() > kNameMax ||
        !std::ranges::all_of(text, fits))
        return wrong(node, fmt::format("{} is not the name of a unit that can be started, such as backup.service; "
                                       "commands belong into the unit",
                                       quote(text)));
    return text;
}

Parsed<std::vector<Prefix>> parse_destinations(const YamlNode& node) {
    auto destinations = parse_list<parse_destination>(node);
    if (destinations && destinations->size() > kMaxDestinations)
        return wrong(node, fmt::format("{} are too many prefixes", destinations->size()));
    return destinations;
}

} // namespace novpn
