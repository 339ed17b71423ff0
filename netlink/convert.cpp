#include "netlink/attributes.h"
#include "netlink/route_monitor.h"
#include "netlink/rtnetlink.h"

#include <cstring>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

// linux/if.h cannot be included beside net/if.h; the value is the kernel's (include/uapi/linux/if.h).
#ifndef IFF_LOWER_UP
#define IFF_LOWER_UP 0x10000
#endif

namespace novpn {

namespace {

RouteType to_route_type(unsigned char type) {
    switch (type) {
    case RTN_UNICAST: return RouteType::unicast;
    case RTN_UNREACHABLE: return RouteType::unreachable;
    case RTN_BLACKHOLE: return RouteType::blackhole;
    case RTN_PROHIBIT: return RouteType::prohibit;
    case RTN_THROW: return RouteType::throw_;
    case RTN_LOCAL: return RouteType::local;
    default: return RouteType::other;
    }
}

NeighbourState to_neighbour_state(unsigned state) {
    switch (state) {
    case NUD_INCOMPLETE: return NeighbourState::incomplete;
    case NUD_REACHABLE: return NeighbourState::reachable;
    case NUD_STALE: return NeighbourState::stale;
    case NUD_DELAY: return NeighbourState::delay;
    case NUD_PROBE: return NeighbourState::probe;
    case NUD_FAILED: return NeighbourState::failed;
    case NUD_NOARP: return NeighbourState::noarp;
    case NUD_PERMANENT: return NeighbourState::permanent;
    default: return NeighbourState::none;
    }
}

/// The others only refuse, or send the lookup on to the next rule. IPv6 names the loopback link with them.
bool has_link(RouteType type) {
    return type == RouteType::unicast || type == RouteType::local || type == RouteType::other;
}

/// RTA_VIA: a gateway of the other family (RFC 5549), struct rtvia {family, address}.
std::optional<address> to_via(const nlattr* attribute) {
    if (!attribute || nla_len(attribute) < static_cast<int>(sizeof(std::uint16_t))) return std::nullopt;
    auto* data = static_cast<const unsigned char*>(nla_data(attribute));
    std::uint16_t family = 0;
    std::memcpy(&family, data, sizeof family);
    return Attributes<RTA_MAX>::to_ip(data + sizeof family, nla_len(attribute) - static_cast<int>(sizeof family),
                                      family);
}

void take_next_hop_flags(Route& route, unsigned flags) {
    route.onlink = flags & RTNH_F_ONLINK;
    route.link_down = flags & RTNH_F_LINKDOWN;
}

/// `route` by each of its next hops; none where one is malformed.
std::vector<Route> by_each_hop(const Route& route, const nlattr* multipath, int family) {
    std::vector<Route> routes;
    int left = nla_len(multipath);
    auto* hop = static_cast<rtnexthop*>(nla_data(multipath));
    while (left >= static_cast<int>(sizeof *hop) && hop->rtnh_len >= sizeof *hop && hop->rtnh_len <= left) {
        auto attributes =
            Attributes<RTA_MAX>::parse_bytes(RTNH_DATA(hop), hop->rtnh_len - static_cast<int>(sizeof *hop));
        if (!attributes) return {};
        Route& by_hop = routes.emplace_back(route);
        by_hop.link = IfIndex{static_cast<std::uint32_t>(hop->rtnh_ifindex)};
        by_hop.gateway = attributes->ip(RTA_GATEWAY, family);
        if (!by_hop.gateway) by_hop.gateway = to_via(attributes->raw(RTA_VIA));
        take_next_hop_flags(by_hop, hop->rtnh_flags);
        const int step = RTNH_ALIGN(hop->rtnh_len);
        left -= step;
        if (left <= 0) break;
        hop = reinterpret_cast<rtnexthop*>(reinterpret_cast<char*>(hop) + step);
    }
    for (Route& by_hop : routes) by_hop.next_hops = static_cast<unsigned>(routes.size());
    return routes;
}

/// IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF: the settings as an array, in the order of linux/ip.h } }
Ipv4Settings to_ipv4_settings(const nlattr* af_spec) {
    auto families = af_spec ? Attributes<AF_INET>::parse_nested(af_spec) : std::nullopt;
    auto inet = families && families->raw(AF_INET) ? Attributes<IFLA_INET_MAX>::parse_nested(families->raw(AF_INET))
                                                   : std::nullopt;
    const nlattr* conf = inet ? inet->raw(IFLA_INET_CONF) : nullptr;
    auto value = [conf](unsigned setting) {
        std::uint32_t number = 0;
        const std::size_t at = (setting - 1) * sizeof number;
        if (conf && static_cast<std::size_t>(nla_len(conf)) >= at + sizeof number)
            std::memcpy(&number, static_cast<const std::byte*>(nla_data(conf)) + at, sizeof number);
        return number;
    };
    return {.rp_filter = value(IPV4_DEVCONF_RP_FILTER),
            .src_valid_mark = value(IPV4_DEVCONF_SRC_VMARK),
            .tag = value(IPV4_DEVCONF_TAG)};
}

} // namespace

std::optional<Link> to_link(std::span<const std::byte> message) {
    auto* info = header_of<ifinfomsg>(message, {RTM_NEWLINK, RTM_DELLINK});
    // Messages of AF_INET6 and AF_BRIDGE describe the same link without its LINKINFO: they are no description of it.
    if (!info || info->ifi_family != AF_UNSPEC || info->ifi_index <= 0) return std::nullopt;
    auto attributes = Attributes<IFLA_MAX>::parse(message, sizeof *info);
    if (!attributes) return std::nullopt;
    Link link;
    link.index = IfIndex{static_cast<std::uint32_t>(info->ifi_index)};
    link.name = attributes->text(IFLA_IFNAME);
    link.hardware = info->ifi_type;
    link.up = info->ifi_flags & IFF_UP;
    link.carrier = info->ifi_flags & IFF_LOWER_UP;
    link.loopback = info->ifi_flags & IFF_LOOPBACK;
    link.point_to_point = info->ifi_flags & IFF_POINTOPOINT;
    if (auto master = attributes->template value<std::uint32_t>(IFLA_MASTER)) link.master = IfIndex{*master};
    if (auto* nested = attributes->raw(IFLA_LINKINFO)) {
        if (auto kind = Attributes<IFLA_INFO_MAX>::parse_nested(nested)) link.kind = kind->text(IFLA_INFO_KIND);
    }
    link.ipv4 = to_ipv4_settings(attributes->raw(IFLA_AF_SPEC));
    return link;
}

std::optional<Address> to_address(std::span<const std::byte> message) {
    auto* info = header_of<ifaddrmsg>(message, {RTM_NEWADDR, RTM_DELADDR});
    if (!info || !to_family(info->ifa_family)) return std::nullopt;
    auto attributes = Attributes<IFA_MAX>::parse(message, sizeof *info);
    if (!attributes) return std::nullopt;
    auto local = attributes->ip(IFA_LOCAL, info->ifa_family);
    auto peer = attributes->ip(IFA_ADDRESS, info->ifa_family);
    if (!local) local = peer; // IPv6 without a peer has IFA_ADDRESS only.
    if (!local) return std::nullopt;
    unsigned width = info->ifa_family == AF_INET ? 32 : 128;
    if (info->ifa_prefixlen > width) return std::nullopt;
    Address result{.link = IfIndex{info->ifa_index}, .local = *local, .prefix_length = info->ifa_prefixlen};
    if (peer && *peer != *local) result.peer = peer;
    result.scope = info->ifa_scope;
    auto flags = attributes->template value<std::uint32_t>(IFA_FLAGS).value_or(info->ifa_flags);
    // An optimistic address (RFC 4429) may be used while it is still tentative.
    result.tentative = (flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)) && !(flags & IFA_F_OPTIMISTIC);
    return result;
}

std::vector<Route> to_routes(std::span<const std::byte> message) {
    auto* info = header_of<rtmsg>(message, {RTM_NEWROUTE, RTM_DELROUTE});
    if (!info) return {};
    auto family = to_family(info->rtm_family);
    if (!family || (info->rtm_flags & RTM_F_CLONED)) return {};
    auto attributes = Attributes<RTA_MAX>::parse(message, sizeof *info);
    if (!attributes) return {};
    if (info->rtm_dst_len > (*family == Family::ipv4 ? 32 : 128)) return {};

    std::vector<Route> routes(1);
    Route& route = routes.front();
    route.table = TableId{attributes->template value<std::uint32_t>(RTA_TABLE).value_or(info->rtm_table)};
    route.type = to_route_type(info->rtm_type);
    route.destination = any_prefix(*family);
    if (auto destination = attributes->ip(RTA_DST, info->rtm_family))
        route.destination = prefix_of(*destination, info->rtm_dst_len);
    else if (info->rtm_dst_len != 0)
        return {};
    route.metric = attributes->template value<std::uint32_t>(RTA_PRIORITY).value_or(0);
    route.source = attributes->ip(RTA_PREFSRC, info->rtm_family);
    route.scope = *family == Family::ipv4 ? info->rtm_scope : 0;
    route.protocol = Protocol{info->rtm_protocol};
    if (!has_link(route.type)) return routes;

    if (auto* multipath = attributes->raw(RTA_MULTIPATH)) return by_each_hop(route, multipath, info->rtm_family);
    route.gateway = attributes->ip(RTA_GATEWAY, info->rtm_family);
    if (!route.gateway) route.gateway = to_via(attributes->raw(RTA_VIA));
    route.link = IfIndex{attributes->template value<std::uint32_t>(RTA_OIF).value_or(0)};
    take_next_hop_flags(route, info->rtm_flags);
    return routes;
}

std::optional<RouteChange> to_route_change(std::span<const std::byte> message) {
    RouteChange change{.hops = to_routes(message)};
    if (change.hops.empty()) return std::nullopt;
    const auto& header = *reinterpret_cast<const nlmsghdr*>(message.data());
    change.added = header.nlmsg_type == RTM_NEWROUTE;
    change.replaces = header.nlmsg_flags & NLM_F_REPLACE;
    return change;
}

std::optional<Rule> to_rule(std::span<const std::byte> message) {
    auto* info = header_of<fib_rule_hdr>(message, {RTM_NEWRULE, RTM_DELRULE});
    if (!info) return std::nullopt;
    auto family = to_family(info->family); // the multicast routing families have rules too
    if (!family) return std::nullopt;
    const unsigned width = *family == Family::ipv4 ? 32 : 128;
    if (info->src_len > width || info->dst_len > width) return std::nullopt;
    auto attributes = Attributes<FRA_MAX>::parse(message, sizeof *info);
    if (!attributes) return std::nullopt;

    Rule rule;
    rule.family = *family;
    rule.preference = Preference{attributes->template value<std::uint32_t>(FRA_PRIORITY).value_or(0)};
    rule.invert = info->flags & FIB_RULE_INVERT;
    switch (info->action) {
    case FR_ACT_TO_TBL:
        rule.action = RuleAction::to_table;
        rule.table = TableId{attributes->template value<std::uint32_t>(FRA_TABLE).value_or(info->table)};
        break;
    case FR_ACT_GOTO:
        rule.action = RuleAction::goto_;
        rule.target = Preference{attributes->template value<std::uint32_t>(FRA_GOTO).value_or(0)};
        break;
    case FR_ACT_NOP: rule.action = RuleAction::nop; break;
    case FR_ACT_BLACKHOLE: rule.action = RuleAction::blackhole; break;
    case FR_ACT_UNREACHABLE: rule.action = RuleAction::unreachable; break;
    case FR_ACT_PROHIBIT: rule.action = RuleAction::prohibit; break;
    default: rule.action = RuleAction::other; break;
    }
    auto mark = attributes->template value<std::uint32_t>(FRA_FWMARK);
    auto mask = attributes->template value<std::uint32_t>(FRA_FWMASK);
    if (mark || mask) rule.mark = Mark{mark.value_or(0), mask.value_or(0xffffffff)};
    // The kernel keeps the bits behind the length that a rule was added with, and does not look at them.
    if (auto from = attributes->ip(FRA_SRC, info->family)) rule.from = prefix_of(*from, info->src_len);
    if (auto to = attributes->ip(FRA_DST, info->family)) rule.to = prefix_of(*to, info->dst_len);
    rule.iif = attributes->text(FRA_IIFNAME);
    rule.oif = attributes->text(FRA_OIFNAME);
    rule.ip_protocol = attributes->template value<std::uint8_t>(FRA_IP_PROTO);
    auto range = [&](int type) -> std::optional<PortRange> {
        auto ports = attributes->template value<fib_rule_port_range>(type);
        return ports ? std::optional(PortRange{ports->start, ports->end}) : std::nullopt;
    };
    rule.source_port = range(FRA_SPORT_RANGE);
    rule.destination_port = range(FRA_DPORT_RANGE);
    if (auto uids = attributes->template value<fib_rule_uid_range>(FRA_UID_RANGE))
        rule.uids = UidRange{uids->start, uids->end};
    auto suppress = attributes->template value<std::uint32_t>(FRA_SUPPRESS_PREFIXLEN);
    if (suppress && *suppress != 0xffffffff) rule.suppress_prefix_length = suppress;
    rule.l3mdev = attributes->template value<std::uint8_t>(FRA_L3MDEV).value_or(0) != 0;
    rule.protocol = Protocol{attributes->template value<std::uint8_t>(FRA_PROTOCOL).value_or(0)};
    return rule;
}

std::optional<Neighbour> to_neighbour(std::span<const std::byte> message) {
    auto* info = header_of<ndmsg>(message, {RTM_NEWNEIGH, RTM_DELNEIGH});
    // AF_BRIDGE describes forwarding entries; a proxy entry is an address this machine answers for.
    if (!info || !to_family(info->ndm_family) || (info->ndm_flags & NTF_PROXY) || info->ndm_ifindex <= 0)
        return std::nullopt;
    auto attributes = Attributes<NDA_MAX>::parse(message, sizeof *info);
    if (!attributes) return std::nullopt;
    auto host = attributes->ip(NDA_DST, info->ndm_family);
    if (!host) return std::nullopt;
    Neighbour neighbour{.link = IfIndex{static_cast<std::uint32_t>(info->ndm_ifindex)},
                        .host = *host,
                        .state = to_neighbour_state(info->ndm_state),
                        .router = (info->ndm_flags & NTF_ROUTER) != 0};
    // Other links than Ethernet have addresses of other lengths, or none.
    const nlattr* mac = attributes->raw(NDA_LLADDR);
    if (mac && nla_len(mac) == static_cast<int>(sizeof(MacAddress)))
        neighbour.mac = attributes->template value<MacAddress>(NDA_LLADDR);
    return neighbour;
}

} // namespace novpn
