#include "netlink/values.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <linux/rtnetlink.h>
#include <utility>

namespace novpn {

namespace {

/// Address bytes, so that both families are masked by one piece of code.
struct Bytes {
    std::array<unsigned char, 16> data{};
    unsigned bits = 0;
};

Bytes to_bytes(const address& a) {
    Bytes bytes;
    if (a.is_v4()) {
        auto v4 = a.to_v4().to_bytes();
        std::copy(v4.begin(), v4.end(), bytes.data.begin());
        bytes.bits = 32;
    } else {
        bytes.data = a.to_v6().to_bytes();
        bytes.bits = 128;
    }
    return bytes;
}

address to_address(const Bytes& bytes) {
    const auto& d = bytes.data;
    if (bytes.bits == 32) return boost::asio::ip::address_v4({d[0], d[1], d[2], d[3]});
    return boost::asio::ip::address_v6(d);
}

bool same_leading_bits(const Bytes& a, const Bytes& b, unsigned length) {
    for (unsigned bit = 0; bit < length; bit += 8) {
        unsigned differ = a.data[bit / 8] ^ b.data[bit / 8];
        if (length - bit < 8) differ >>= 8 - (length - bit);
        if (differ) return false;
    }
    return true;
}

const char* type_prefix(RouteType type) {
    switch (type) {
    case RouteType::unicast: return "";
    case RouteType::unreachable: return "unreachable ";
    case RouteType::blackhole: return "blackhole ";
    case RouteType::prohibit: return "prohibit ";
    case RouteType::throw_: return "throw ";
    case RouteType::local: return "local ";
    case RouteType::other: return "";
    }
    return "";
}

} // namespace

Prefix any_prefix(Family family) {
    if (family == Family::ipv4) return {boost::asio::ip::address_v4::any(), 0};
    return {boost::asio::ip::address_v6::any(), 0};
}

Prefix prefix_of(const address& host, unsigned length) {
    Bytes bytes = to_bytes(host);
    for (unsigned bit = length; bit < bytes.bits; ++bit)
        bytes.data[bit / 8] = static_cast<unsigned char>(bytes.data[bit / 8] & ~(0x80 >> (bit % 8)));
    return {to_address(bytes), length};
}

bool contains(const Prefix& prefix, const address& host) {
    if (prefix.network.is_v4() != host.is_v4()) return false;
    if (prefix.length == 0) return true;
    if (host.is_v4()) return (prefix.network.to_v4().to_uint() ^ host.to_v4().to_uint()) >> (32 - prefix.length) == 0;
    return same_leading_bits(to_bytes(prefix.network), to_bytes(host), prefix.length);
}

bool contains(const Prefix& prefix, const Prefix& inner) {
    return prefix.length <= inner.length && contains(prefix, inner.network);
}

std::optional<address> first_behind(const Prefix& prefix) {
    Bytes bytes = to_bytes(prefix.network);
    for (unsigned bit = prefix.length; bit > 0; --bit) { // add one at the last bit of the network, and carry
        auto& byte = bytes.data[(bit - 1) / 8];
        const unsigned at = 0x80u >> ((bit - 1) % 8);
        byte = static_cast<unsigned char>(byte ^ at);
        if (byte & at) return to_address(bytes);
    }
    return std::nullopt;
}

Family family_of(const address& a) { return a.is_v4() ? Family::ipv4 : Family::ipv6; }
Family family_of(const Route& route) { return family_of(route.destination.network); }
bool is_default(const Route& route) { return route.destination.length == 0; }

RouteKey key(const Route& route) {
    RouteKey key{.table = route.table, .destination = route.destination, .metric = route.metric};
    if (family_of(route) == Family::ipv6 && !is_default(route)) {
        key.link = route.link;
        key.gateway = route.gateway;
    }
    return key;
}

bool leaves_this_machine(const Lookup& lookup) { return lookup.answer && lookup.answer->type != RouteType::local; }

std::string to_string(Family family) { return family == Family::ipv4 ? "ipv4" : "ipv6"; }

std::string to_string(const Prefix& prefix) {
    if (prefix.length == 0) return "default";
    bool host = prefix.length == (prefix.network.is_v4() ? 32u : 128u);
    return host ? prefix.network.to_string() : fmt::format("{}/{}", prefix.network.to_string(), prefix.length);
}

std::string to_string(const MacAddress& mac) {
    const auto& b = mac.bytes;
    return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4], b[5]);
}

std::string to_string(Mark mark) { return fmt::format("0x{:x}/0x{:x}", mark.value, mark.mask); }

std::string to_string(Protocol protocol) {
    // linux/rtnetlink.h and iproute2's rt_protos.
    static constexpr std::pair<int, const char*> kNames[] = {
        {RTPROT_REDIRECT, "redirect"}, {RTPROT_KERNEL, "kernel"}, {RTPROT_BOOT, "boot"},
        {RTPROT_STATIC, "static"},     {RTPROT_RA, "ra"},         {RTPROT_ZEBRA, "zebra"},
        {RTPROT_BIRD, "bird"},         {RTPROT_DHCP, "dhcp"},     {RTPROT_KEEPALIVED, "keepalived"},
        {RTPROT_BABEL, "babel"},       {RTPROT_BGP, "bgp"},       {RTPROT_OSPF, "ospf"},
    };
    if (protocol == kNovpnProtocol) return "novpn";
    for (auto [number, name] : kNames)
        if (number == protocol.value) return name;
    return std::to_string(protocol.value);
}

std::string LinkNames::operator()(IfIndex index) const {
    if (links) {
        auto found = std::ranges::find(*links, index, &Link::index);
        if (found != links->end()) return found->name;
    }
    return fmt::format("if{}", index.value);
}

std::string to_string(const Route& route, const LinkNames& name) {
    std::string text = type_prefix(route.type) + to_string(route.destination);
    if (route.gateway) {
        bool other_family = family_of(*route.gateway) != family_of(route);
        text += fmt::format(" via {}{}", other_family ? "inet6 " : "", route.gateway->to_string());
    }
    if (route.link.value) text += " dev " + name(route.link);
    if (route.table != kMainTable) text += fmt::format(" table {}", route.table.value);
    text += fmt::format(" proto {}", route.protocol.value == kNovpnProtocol.value ? std::to_string(kNovpnProtocol.value)
                                                                                  : to_string(route.protocol));
    if (family_of(route) == Family::ipv4 && route.scope == RT_SCOPE_LINK) text += " scope link";
    if (route.source) text += " src " + route.source->to_string();
    if (route.metric) text += fmt::format(" metric {}", route.metric);
    if (route.onlink) text += " onlink";
    return text;
}

namespace {

std::string to_string(const PortRange& range) {
    return range.first == range.last ? std::to_string(range.first) : fmt::format("{}-{}", range.first, range.last);
}

std::string protocol_name(std::uint8_t ip_protocol) {
    if (ip_protocol == 6) return "tcp";
    if (ip_protocol == 17) return "udp";
    return std::to_string(ip_protocol);
}

} // namespace

std::string to_string(const Rule& rule) {
    std::string text = fmt::format("preference {}", rule.preference.value);
    if (rule.invert) text += " not";
    if (rule.from) text += " from " + to_string(*rule.from);
    if (rule.to) text += " to " + to_string(*rule.to);
    if (rule.mark) text += " fwmark " + to_string(*rule.mark);
    if (!rule.iif.empty()) text += " iif " + rule.iif;
    if (!rule.oif.empty()) text += " oif " + rule.oif;
    if (rule.l3mdev) text += " l3mdev";
    if (rule.uids) text += fmt::format(" uidrange {}-{}", rule.uids->first, rule.uids->last);
    if (rule.ip_protocol) text += " ipproto " + protocol_name(*rule.ip_protocol);
    if (rule.source_port) text += " sport " + to_string(*rule.source_port);
    if (rule.destination_port) text += " dport " + to_string(*rule.destination_port);
    switch (rule.action) {
    case RuleAction::to_table: text += fmt::format(" lookup {}", rule.table.value); break;
    case RuleAction::goto_: text += fmt::format(" goto {}", rule.target ? rule.target->value : 0); break;
    case RuleAction::nop: text += " nop"; break;
    case RuleAction::blackhole: text += " blackhole"; break;
    case RuleAction::unreachable: text += " unreachable"; break;
    case RuleAction::prohibit: text += " prohibit"; break;
    case RuleAction::other: text += " (unknown action)"; break;
    }
    if (rule.suppress_prefix_length) text += fmt::format(" suppress_prefixlength {}", *rule.suppress_prefix_length);
    if (rule.protocol.value) text += fmt::format(" protocol {}", rule.protocol.value);
    return text;
}

} // namespace novpn
