#include "netlink/route_monitor.h"

#include "netlink/attributes.h"
#include "netlink/rtnetlink.h"

#include <cerrno>
#include <fmt/format.h>
#include <linux/netconf.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/msg.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <utility>

namespace novpn {

namespace {

// Some 10,000 notifications, what a whole look may miss on a busy machine; SO_RCVBUFFORCE lifts net.core.rmem_max. Room
// that is not used costs nothing.
constexpr int kMonitorReceiveBuffer = 8 << 20;
constexpr unsigned kLinkLocalLength = 10; // fe80::/10, RFC 4291 section 2.4

} // namespace

Expected<RouteMonitor> RouteMonitor::open() {
    auto socket = open_netlink(NETLINK_ROUTE, "rtnetlink");
    if (!socket) return tl::make_unexpected(socket.error());
    const int fd = nl_socket_get_fd(socket->get());
    int size = kMonitorReceiveBuffer;
    // Without CAP_NET_ADMIN in the initial namespace the default size serves too: an overrun is only one more look.
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    // Before the groups: nothing is queued past it.
    if (auto attached = attach(fd, {}); !attached) return tl::make_unexpected(attached.error());
    for (int group : {RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE,
                      RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE, RTNLGRP_NEXTHOP, RTNLGRP_NEIGH, RTNLGRP_IPV4_NETCONF}) {
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
            return system_error(errno, fmt::format("subscribing to rtnetlink group {}", group));
    }
    return RouteMonitor(std::move(*socket));
}

Expected<void> RouteMonitor::follow(const RouteFilter& filter) {
    auto attached = attach(fd(), filter);
    // The one before may leave out what matters by now.
    const int ignored = 0;
    if (!attached) (void)::setsockopt(fd(), SOL_SOCKET, SO_DETACH_FILTER, &ignored, sizeof ignored);
    return attached;
}

RouteMonitor::RouteMonitor(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kNetlinkDatagram) {}

int RouteMonitor::fd() const { return nl_socket_get_fd(socket_.get()); }

namespace {

/// rp_filter alone is told when it is set, of a link or of all; what comes with a link that is made has more than it.
std::string_view cause_of_setting(std::span<const std::byte> message) {
    auto* header = header_of<netconfmsg>(message, {RTM_NEWNETCONF});
    auto attributes = header ? Attributes<NETCONFA_MAX>::parse(message, sizeof *header) : std::nullopt;
    bool is_it = attributes && attributes->raw(NETCONFA_RP_FILTER) && !attributes->raw(NETCONFA_FORWARDING);
    return is_it ? "rp_filter set" : std::string_view{};
}

void add_losses(Losses& losses, const nlmsghdr& message) {
    const std::span bytes(reinterpret_cast<const std::byte*>(&message), message.nlmsg_len);
    if (const auto* link = header_of<ifinfomsg>(bytes, {RTM_NEWLINK, RTM_DELLINK})) {
        if (!(link->ifi_flags & IFF_UP)) losses.links_down.insert({static_cast<std::uint32_t>(link->ifi_index)});
    } else if (message.nlmsg_type == RTM_DELADDR) {
        const auto gone = to_address(bytes);
        if (gone && gone->local.is_v4()) losses.addresses.emplace(gone->link, gone->local);
    }
}

/// Why a notification is a reason to look again; empty when it is none.
std::string_view cause_of(const nlmsghdr& message) {
    switch (message.nlmsg_type) {
    case RTM_NEWNETCONF: return cause_of_setting({reinterpret_cast<const std::byte*>(&message), message.nlmsg_len});
    case RTM_NEWLINK: return "link changed";
    case RTM_DELLINK: return "link deleted";
    case RTM_NEWADDR: return "address added";
    case RTM_DELADDR: return "address deleted";
    case RTM_NEWRULE: return "rule added";
    case RTM_DELRULE: return "rule deleted";
    case RTM_NEWNEXTHOP: return "next hop added";
    case RTM_DELNEXTHOP: return "next hop deleted";
    default: return {};
    }
}

std::string_view cause_of(const rtmsg& route, bool added) {
    if (route.rtm_dst_len == 0) return added ? "default route added" : "default route deleted";
    return added ? "route added" : "route deleted";
}

/// What a narrow filter leaves out: IPv6 routes have no scope.
bool is_by_gateway(const nlmsghdr& message, const rtmsg& route) {
    if (route.rtm_family == AF_INET)
        return route.rtm_scope == RT_SCOPE_UNIVERSE && route.rtm_dst_len > kInternetLength4;
    return route.rtm_dst_len > kInternetLength6 &&
           nlmsg_find_attr(const_cast<nlmsghdr*>(&message), sizeof(rtmsg), RTA_GATEWAY) != nullptr;
}

/// A gateway that is found not to answer, or to answer: the states in between are of no use.
std::string_view cause_of_gateway(const nlmsghdr& message, const std::set<address>& gateways,
                                  const std::set<MacAddress>* macs) {
    auto neighbour = to_neighbour({reinterpret_cast<const std::byte*>(&message), message.nlmsg_len});
    if (!neighbour || !gateways.contains(neighbour->host)) return {};
    if (macs && neighbour->mac && !macs->contains(*neighbour->mac)) return "gateway has another MAC address";
    if (neighbour->state == NeighbourState::failed) return "gateway does not answer";
    return neighbour->state == NeighbourState::reachable ? "gateway answers" : std::string_view{};
}

/// To link-local addresses: it comes and goes with such an address, and the copies of it go too.
bool is_by_idle_link(const nlmsghdr& message, const rtmsg& route, const IdleLinks& idle) {
    if (idle.empty() || route.rtm_family != AF_INET6 || route.rtm_dst_len < kLinkLocalLength) return false;
    const std::span bytes(reinterpret_cast<const std::byte*>(&message), message.nlmsg_len);
    const auto attributes = Attributes<RTA_MAX>::parse(bytes, sizeof route);
    const auto destination = attributes ? attributes->ip(RTA_DST, AF_INET6) : std::nullopt;
    const auto link = attributes ? attributes->template value<std::uint32_t>(RTA_OIF) : std::nullopt;
    return destination && link && destination->to_v6().is_link_local() && idle.contains(IfIndex{*link});
}

/// Still that link, whether or not it is up; or an address of it that leads nowhere.
bool is_of_idle_link(const nlmsghdr& message, const IdleLinks& idle) {
    if (idle.empty()) return false;
    const std::span bytes(reinterpret_cast<const std::byte*>(&message), message.nlmsg_len);
    if (const auto* a = header_of<ifaddrmsg>(bytes, {RTM_NEWADDR, RTM_DELADDR}))
        return a->ifa_family == AF_INET6 && a->ifa_scope == RT_SCOPE_LINK && idle.contains(IfIndex{a->ifa_index});
    const auto* info = header_of<ifinfomsg>(bytes, {RTM_NEWLINK});
    if (!info || (info->ifi_family != AF_UNSPEC && info->ifi_family != AF_BRIDGE)) return false;
    const auto known = idle.find(IfIndex{static_cast<std::uint32_t>(info->ifi_index)});
    if (known == idle.end() || known->second.hardware != info->ifi_type) return false;
    const auto find = [&](int type) { return nlmsg_find_attr(const_cast<nlmsghdr*>(&message), sizeof *info, type); };
    const nlattr* name = find(IFLA_IFNAME);
    const nlattr* master = find(IFLA_MASTER);
    if (!name || nla_strcmp(name, known->second.name.c_str()) != 0) return false;
    return (master ? std::optional(IfIndex{nla_get_u32(master)}) : std::nullopt) == known->second.master;
}

} // namespace

void RouteMonitor::take(Drained& drained, const nlmsghdr& message, const std::set<address>& gateways,
                        const std::set<MacAddress>* macs, const OnDefault& on_default, const IdleLinks& idle) {
    const bool added = message.nlmsg_type == RTM_NEWROUTE;
    if (!added && message.nlmsg_type != RTM_DELROUTE) {
        add_losses(drained.losses, message);
        if (is_of_idle_link(message, idle)) {
            ++drained.idle;
            if (drained.of_idle.empty()) drained.of_idle = cause_of(message);
            return;
        }
        if (!drained.cause.empty()) return;
        drained.cause =
            message.nlmsg_type == RTM_NEWNEIGH ? cause_of_gateway(message, gateways, macs) : cause_of(message);
        return;
    }
    if (message.nlmsg_len < NLMSG_LENGTH(sizeof(rtmsg))) return;
    const auto& route = *static_cast<const rtmsg*>(NLMSG_DATA(&message));
    if (route.rtm_table == RT_TABLE_LOCAL || (route.rtm_flags & RTM_F_CLONED)) return;
    if (is_by_idle_link(message, route, idle)) {
        ++drained.idle;
        if (drained.of_idle.empty()) drained.of_idle = cause_of(route, added);
        return;
    }
    const bool is_default = route.rtm_dst_len == 0;
    bool can_wait = route.rtm_table == RT_TABLE_MAIN;
    // What came before may have changed what on_default thinks it knows.
    const bool sure = drained.cause.empty() && !drained.overrun;
    if (can_wait && is_default && on_default && sure) {
        auto change = to_route_change({reinterpret_cast<const std::byte*>(&message), message.nlmsg_len});
        can_wait = change && on_default(*change);
    } else if (is_default) {
        can_wait = false;
    } else if (can_wait) {
        ++drained.others;
        if (is_by_gateway(message, route)) ++drained.by_gateway;
    }
    std::string_view& kind = can_wait ? drained.later : drained.cause;
    if (kind.empty()) kind = cause_of(route, added);
}

RouteMonitor::Drained RouteMonitor::drain(std::uint32_t own_port, const std::set<address>& gateways,
                                          const std::set<MacAddress>* macs, const OnDefault& on_default,
                                          const IdleLinks& idle) {
    Drained drained;
    for (;;) {
        ssize_t received = receive(socket_.get(), buffer_, MSG_DONTWAIT);
        if (received < 0 && errno == ENOBUFS) {
            drained.overrun = true;
            drained.cause = "notifications lost";
            continue;
        }
        if (received <= 0) return drained;
        for_each_message({buffer_.data(), static_cast<std::size_t>(received)}, [&](const nlmsghdr& message) {
            if (message.nlmsg_pid != own_port) take(drained, message, gateways, macs, on_default, idle);
        });
        drained.flooded = drained.by_gateway >= kFlood;
        if (drained.flooded) return drained;
    }
}

} // namespace novpn
