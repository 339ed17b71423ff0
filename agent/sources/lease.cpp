#include "agent/sources/lease.h"

#include "agent/sources/name_servers.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>
#include <map>
#include <string>
#include <vector>

namespace novpn {

namespace {

using boost::asio::ip::address_v4;

/// RFC 2131, 3.3: the lease that does not end.
constexpr std::uint32_t kInfinite = 0xffffffff;

template<typename Number>
std::optional<Number> to_number(std::string_view text) {
    Number number{};
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return number;
}

std::optional<address> to_v4(std::string_view text) {
    boost::system::error_code error;
    auto parsed = boost::asio::ip::make_address_v4(std::string(text), error);
    if (error || parsed.is_unspecified()) return std::nullopt;
    return parsed;
}

/// What stands before `separator`, which is taken off `rest` together with it.
std::string_view take_until(std::string_view& rest, std::string_view separators) {
    auto end = rest.find_first_of(separators);
    auto taken = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return taken;
}

std::vector<std::string_view> words_of(std::string_view text) {
    std::vector<std::string_view> words;
    while (!text.empty()) words.push_back(take_until(text, " "));
    return words;
}

/// "192.168.10.1 192.168.10.2", with commas or without; what is no address is left out.
std::vector<address> to_resolvers(std::string_view text) {
    std::vector<address> resolvers;
    while (!text.empty())
        if (auto resolver = to_v4(take_until(text, " ,"))) resolvers.push_back(*resolver);
    return resolvers;
}

WallClock::time_point expiry(WallClock::time_point written, std::uint32_t lifetime) {
    return lifetime == kInfinite ? WallClock::time_point::max() : written + std::chrono::seconds(lifetime);
}

/// Routers as option 3 and option 121 have them. RFC 3442: a client that has classless routes ignores the routers.
struct Routers {
    std::optional<address> router;
    bool has_classless = false;
    std::optional<address> classless_default;

    std::optional<address> gateway() const { return has_classless ? classless_default : router; }
};

/// RFC 3442: a length, as many bytes of the destination as it needs, a router; again and again.
void take_classless(Routers& routers, std::span<const std::uint8_t> bytes) {
    routers.has_classless = true;
    while (!bytes.empty()) {
        std::size_t significant = (bytes[0] + 7u) / 8u;
        if (bytes[0] > 32 || bytes.size() < 1 + significant + 4) return;
        auto router = bytes.subspan(1 + significant, 4);
        address_v4 gateway({router[0], router[1], router[2], router[3]});
        if (bytes[0] == 0 && !gateway.is_unspecified() && !routers.classless_default)
            routers.classless_default = gateway;
        bytes = bytes.subspan(1 + significant + 4);
    }
}

/// "10.99.0.0/16,192.168.10.9 0.0.0.0/0,192.168.10.1" of networkd; of NetworkManager with a blank for the comma.
void take_classless_text(Routers& routers, std::string_view text) {
    routers.has_classless = true;
    while (!text.empty()) {
        auto destination = take_until(text, " ,");
        auto router = take_until(text, " ");
        if (destination == "0.0.0.0/0") routers.classless_default = to_v4(router);
    }
}

// ---- dhclient

/// The tokens of dhclient.leases(5): words, strings in quotes, and `{`, `}`, `;`, `,` alone. Empty at the end.
class Tokens {
  public:
    explicit Tokens(std::string_view text)
        : rest_(text) {}

    std::string_view next() {
        skip_blanks();
        if (rest_.empty()) return {};
        if (rest_.front() == '"') return quoted();
        std::size_t length = kAlone.find(rest_.front()) != std::string_view::npos
                                 ? 1
                                 : std::min(rest_.find_first_of(" \t\r\n{};,\"#"), rest_.size());
        auto token = rest_.substr(0, length);
        rest_.remove_prefix(length);
        return token;
    }

  private:
    static constexpr std::string_view kAlone = "{};,";

    void skip_blanks() {
        for (;;) {
            rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size()));
            if (!rest_.starts_with('#')) return;
            rest_.remove_prefix(std::min(rest_.find('\n'), rest_.size()));
        }
    }
    /// With its quotes, so that a ";" in a string is none. A string without an end takes all that is left.
    std::string_view quoted() {
        std::size_t end = 1;
        while (end < rest_.size() && rest_[end] != '"') end += rest_[end] == '\\' ? 2 : 1;
        auto token = rest_.substr(0, end + 1);
        rest_.remove_prefix(token.size());
        return token;
    }

    std::string_view rest_;
};

/// The clock counts nanoseconds in 64 bits: what is too far away for it does not end.
WallClock::time_point to_time(std::uint64_t seconds) {
    constexpr std::uint64_t kLast = 9'000'000'000; // in the year 2255
    if (seconds > kLast) return WallClock::time_point::max();
    return WallClock::from_time_t(static_cast<std::time_t>(seconds));
}

using Statement = std::vector<std::string_view>;

/// "1 2026/11/23 23:18:50" in UTC (the first is the day of the week), "epoch 1795562330", "never".
std::optional<WallClock::time_point> to_time(std::span<const std::string_view> words) {
    if (words.size() == 1 && words[0] == "never") return WallClock::time_point::max();
    if (words.size() == 2 && words[0] == "epoch") {
        auto seconds = to_number<std::uint64_t>(words[1]);
        return seconds ? std::optional(to_time(*seconds)) : std::nullopt;
    }
    if (words.size() != 3) return std::nullopt;
    std::array<int, 6> numbers{};
    std::string_view date = words[1], time = words[2];
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        auto number = to_number<int>(i < 3 ? take_until(date, "/") : take_until(time, ":"));
        if (!number || *number < 0 || *number > 9999) return std::nullopt;
        numbers[i] = *number;
    }
    std::tm calendar{};
    calendar.tm_year = numbers[0] - 1900;
    calendar.tm_mon = numbers[1] - 1;
    calendar.tm_mday = numbers[2];
    calendar.tm_hour = numbers[3];
    calendar.tm_min = numbers[4];
    calendar.tm_sec = numbers[5];
    std::time_t seconds = timegm(&calendar);
    return seconds < 0 ? std::nullopt : std::optional(to_time(static_cast<std::uint64_t>(seconds)));
}

/// option rfc3442-classless-static-routes 16,10,99,192,168,10,9
void take_classless(Routers& routers, std::span<const std::string_view> words) {
    std::vector<std::uint8_t> bytes;
    for (std::string_view word : words) {
        if (word == ",") continue;
        auto byte = to_number<std::uint8_t>(word);
        if (!byte) return;
        bytes.push_back(*byte);
    }
    take_classless(routers, std::span<const std::uint8_t>(bytes));
}

std::string unquoted(std::string_view text) {
    if (text.size() < 2 || text.front() != '"' || text.back() != '"') return {};
    return std::string(text.substr(1, text.size() - 2));
}

std::optional<LinkLease> to_lease(const std::vector<Statement>& statements) {
    std::string link;
    std::optional<address> local;
    std::optional<WallClock::time_point> expires;
    Routers routers;
    std::vector<address> resolvers;
    std::string domains;
    for (const Statement& s : statements) {
        if (s.size() < 2) continue;
        if (s[0] == "interface") link = unquoted(s[1]);
        if (s[0] == "fixed-address") local = to_v4(s[1]);
        if (s[0] == "expire") expires = to_time(std::span(s).subspan(1));
        if (s[0] != "option" || s.size() < 3) continue;
        if (s[1] == "routers") routers.router = to_v4(s[2]);
        if (s[1] == "rfc3442-classless-static-routes") take_classless(routers, std::span(s).subspan(2));
        if (s[1] == "domain-name" || s[1] == "domain-search")
            for (std::string_view word : std::span(s).subspan(2)) domains += unquoted(word) + " ";
        if (s[1] != "domain-name-servers") continue;
        for (std::string_view word : std::span(s).subspan(2))
            if (auto resolver = to_v4(word)) resolvers.push_back(*resolver);
    }
    auto gateway = routers.gateway();
    if (link.empty() || !local || !gateway || !expires) return std::nullopt;
    return LinkLease{link,
                     {.local = *local,
                      .gateway = *gateway,
                      .expires = *expires,
                      .resolvers = std::move(resolvers),
                      .domains = parse_domains(domains)}};
}

/// What stands in the braces; nothing when the file ends before they do. A block within is left out.
std::optional<std::vector<Statement>> take_block(Tokens& tokens) {
    std::vector<Statement> statements(1);
    for (int depth = 1;;) {
        auto token = tokens.next();
        if (token.empty()) return std::nullopt;
        if (token == "{") ++depth;
        if (token == "}" && --depth == 0) return statements;
        if (token == ";" || token == "{" || token == "}")
            statements.emplace_back();
        else if (depth == 1)
            statements.back().push_back(token);
    }
}

// ---- DHCP messages

enum Option : std::uint8_t {
    kPad = 0,
    kRouter = 3,
    kDomainServer = 6,
    kDomainName = 15,
    kLeaseTime = 51,
    kMessageType = 53,
    kDomainSearch = 119,
    kClassless = 121,
    kEnd = 255
};

/// RFC 2131, 2: the fixed part with its magic cookie; then options, each a code, a length and its data. An option may
/// come in parts (RFC 3396). Nothing when it is cut short.
std::optional<std::map<std::uint8_t, std::vector<std::uint8_t>>> options_of(std::span<const std::uint8_t> message) {
    constexpr std::size_t kFixed = 236;
    constexpr std::array<std::uint8_t, 4> kCookie{0x63, 0x82, 0x53, 0x63};
    if (message.size() < kFixed + kCookie.size()) return std::nullopt;
    if (!std::ranges::equal(message.subspan(kFixed, kCookie.size()), kCookie)) return std::nullopt;
    std::map<std::uint8_t, std::vector<std::uint8_t>> options;
    for (auto rest = message.subspan(kFixed + kCookie.size()); !rest.empty();) {
        std::uint8_t code = rest[0];
        if (code == kEnd) return options;
        if (code == kPad) {
            rest = rest.subspan(1);
            continue;
        }
        if (rest.size() < 2 || rest.size() < 2u + rest[1]) return std::nullopt;
        auto data = rest.subspan(2, rest[1]);
        options[code].insert(options[code].end(), data.begin(), data.end());
        rest = rest.subspan(2u + rest[1]);
    }
    return std::nullopt;
}

/// RFC 3397: names as in DNS messages (RFC 1035, 4.1.4), which may point back into the option.
std::string search_list(std::span<const std::uint8_t> option) {
    constexpr int kMostLabels = 512; // of a list that leads round in circles
    std::string names;
    int labels = 0;
    for (std::size_t begin = 0; begin < option.size();) {
        std::size_t next = 0; // where the name after this one begins, once it is known
        for (std::size_t at = begin; at < option.size() && ++labels < kMostLabels;) {
            const std::size_t length = option[at];
            if (length == 0) {
                if (!next) next = at + 1;
                names += " ";
                break;
            }
            if (length >= 0xc0) {
                if (at + 1 >= option.size()) return names;
                if (!next) next = at + 2;
                at = (length & 0x3f) << 8 | option[at + 1];
                continue;
            }
            if (at + 1 + length > option.size()) return names;
            names.append(reinterpret_cast<const char*>(option.data() + at + 1), length);
            names += ".";
            at += 1 + length;
        }
        if (!next) return names; // cut short
        begin = next;
    }
    return names;
}

} // namespace

std::optional<Lease> parse_networkd_lease(std::string_view text, WallClock::time_point written) {
    std::optional<address> local;
    std::optional<std::uint32_t> lifetime;
    Routers routers;
    std::vector<address> resolvers;
    std::string domains;
    if (!text.ends_with('\n')) return std::nullopt; // cut short
    while (!text.empty()) {
        auto value = take_until(text, "\n");
        auto key = take_until(value, "=");
        if (key == "ADDRESS") local = to_v4(value);
        if (key == "LIFETIME") lifetime = to_number<std::uint32_t>(value);
        if (key == "DNS") resolvers = to_resolvers(value);
        if (key == "DOMAINNAME" || key == "DOMAIN_SEARCH_LIST") domains.append(value).append(" ");
        if (key == "ROUTER") routers.router = to_v4(take_until(value, " "));
        if (key != "CLASSLESS_ROUTES") continue;
        take_classless_text(routers, value);
    }
    auto gateway = routers.gateway();
    if (!local || !gateway || !lifetime) return std::nullopt;
    return Lease{.local = *local,
                 .gateway = *gateway,
                 .expires = expiry(written, *lifetime),
                 .resolvers = std::move(resolvers),
                 .domains = parse_domains(domains)};
}

std::vector<LinkLease> parse_dhclient_leases(std::string_view text) {
    std::map<std::string, Lease> last;
    Tokens tokens(text);
    std::string_view before;
    for (auto token = tokens.next(); !token.empty(); before = token, token = tokens.next()) {
        if (token != "{") continue;
        auto block = take_block(tokens);
        if (!block) break;
        // lease6 {…} and others have no router of this family.
        if (before != "lease") continue;
        if (auto found = to_lease(*block)) last[found->link] = found->lease;
    }
    std::vector<LinkLease> leases;
    for (const auto& [link, lease] : last) leases.push_back({link, lease});
    return leases;
}

std::optional<Lease> parse_dhcpcd_lease(std::span<const std::byte> message, WallClock::time_point written) {
    std::span bytes(reinterpret_cast<const std::uint8_t*>(message.data()), message.size());
    auto options = options_of(bytes);
    constexpr std::uint8_t kReply = 2, kAck = 5;
    if (!options || bytes[0] != kReply) return std::nullopt;
    if ((*options)[kMessageType] != std::vector{kAck}) return std::nullopt;
    auto to_address = [](std::span<const std::uint8_t> at) { return address_v4({at[0], at[1], at[2], at[3]}); };
    address_v4 local = to_address(bytes.subspan(16, 4)); // yiaddr
    Routers routers;
    if (const auto& router = (*options)[kRouter]; router.size() >= 4 && !to_address(router).is_unspecified())
        routers.router = to_address(router);
    if (auto found = options->find(kClassless); found != options->end())
        take_classless(routers, std::span<const std::uint8_t>(found->second));
    const auto& time = (*options)[kLeaseTime];
    auto gateway = routers.gateway();
    if (local.is_unspecified() || !gateway || time.size() != 4) return std::nullopt;
    Lease lease{.local = local, .gateway = *gateway, .expires = expiry(written, to_address(time).to_uint())};
    for (std::span<const std::uint8_t> rest = (*options)[kDomainServer]; rest.size() >= 4; rest = rest.subspan(4))
        if (!to_address(rest).is_unspecified()) lease.resolvers.emplace_back(to_address(rest));
    const auto& name = (*options)[kDomainName];
    lease.domains = parse_domains(std::string(name.begin(), name.end()) + " " + search_list((*options)[kDomainSearch]));
    return lease;
}

std::optional<Lease> parse_networkmanager_lease(const std::map<std::string, std::string>& options) {
    auto option = [&](const char* name) {
        auto found = options.find(name);
        return found == options.end() ? std::string_view() : std::string_view(found->second);
    };
    Routers routers;
    auto text = option("routers");
    routers.router = to_v4(take_until(text, " "));
    // RFC 3442, and Microsoft's option 249 where there is no 121.
    for (const char* name : {"rfc3442_classless_static_routes", "ms_classless_static_routes"}) {
        auto routes = option(name);
        if (routes.empty() || routers.has_classless) continue;
        if (routes.find('/') != std::string_view::npos)
            take_classless_text(routers, routes);
        else
            take_classless(routers, words_of(routes));
    }
    auto local = to_v4(option("ip_address"));
    auto gateway = routers.gateway();
    if (!local || !gateway) return std::nullopt;
    const std::string domains = std::string(option("domain_name")) + " " + std::string(option("domain_search"));
    return Lease{.local = *local,
                 .gateway = *gateway,
                 .resolvers = to_resolvers(option("domain_name_servers")),
                 .domains = parse_domains(domains)};
}

} // namespace novpn
