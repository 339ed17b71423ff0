#include "netlink/rtnetlink.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <netlink/addr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/route/rule.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <unistd.h>

namespace novpn {

namespace {

struct ObjectDeleter {
    void operator()(nl_msg* message) const { nlmsg_free(message); }
    void operator()(nl_addr* a) const { nl_addr_put(a); }
    void operator()(rtnl_route* route) const { rtnl_route_put(route); }
    void operator()(rtnl_rule* rule) const { rtnl_rule_put(rule); }
};
template<typename T>
using NlPtr = std::unique_ptr<T, ObjectDeleter>;

// The kernel fills at most 32 KiB of a dump into one datagram (net/netlink/af_netlink.c).
constexpr std::size_t kReceiveBuffer = 64 * 1024;
// A burst of a busy laptop; SO_RCVBUFFORCE lifts net.core.rmem_max.
constexpr int kMonitorReceiveBuffer = 1 << 20;
constexpr int kDumpAttempts = 10;

int to_af(Family family) { return family == Family::ipv4 ? AF_INET : AF_INET6; }

NlPtr<nl_addr> to_nl(const address& a, unsigned length) {
    NlPtr<nl_addr> result;
    if (a.is_v4()) {
        auto bytes = a.to_v4().to_bytes();
        result.reset(nl_addr_build(AF_INET, bytes.data(), bytes.size()));
    } else {
        auto bytes = a.to_v6().to_bytes();
        result.reset(nl_addr_build(AF_INET6, bytes.data(), bytes.size()));
    }
    if (!result) throw std::bad_alloc();
    nl_addr_set_prefixlen(result.get(), static_cast<int>(length));
    return result;
}

NlPtr<nl_addr> to_nl(const address& a) { return to_nl(a, a.is_v4() ? 32 : 128); }

std::uint8_t to_rtn(RouteType type) {
    switch (type) {
    case RouteType::unreachable:
        return RTN_UNREACHABLE;
    case RouteType::blackhole:
        return RTN_BLACKHOLE;
    case RouteType::prohibit:
        return RTN_PROHIBIT;
    case RouteType::throw_:
        return RTN_THROW;
    case RouteType::local:
        return RTN_LOCAL;
    case RouteType::unicast:
    case RouteType::other:
        break;
    }
    return RTN_UNICAST;
}

NlPtr<rtnl_route> to_nl(const Route& route) {
    NlPtr<rtnl_route> result(rtnl_route_alloc());
    if (!result) throw std::bad_alloc();
    rtnl_route* r = result.get();
    rtnl_route_set_family(r, static_cast<std::uint8_t>(to_af(family_of(route))));
    rtnl_route_set_table(r, route.table.value);
    rtnl_route_set_type(r, to_rtn(route.type));
    rtnl_route_set_scope(r, route.scope);
    rtnl_route_set_protocol(r, route.protocol.value);
    rtnl_route_set_priority(r, route.metric);
    rtnl_route_set_dst(r, to_nl(route.destination.network, route.destination.length).get());
    if (route.source) rtnl_route_set_pref_src(r, to_nl(*route.source).get());
    if (route.type == RouteType::unicast) {
        rtnl_nexthop* hop = rtnl_route_nh_alloc();
        if (!hop) throw std::bad_alloc();
        rtnl_route_nh_set_ifindex(hop, static_cast<int>(route.link.value));
        if (route.onlink) rtnl_route_nh_set_flags(hop, RTNH_F_ONLINK);
        if (route.gateway && family_of(*route.gateway) == family_of(route))
            rtnl_route_nh_set_gateway(hop, to_nl(*route.gateway).get());
        else if (route.gateway)
            rtnl_route_nh_set_via(hop, to_nl(*route.gateway).get());
        rtnl_route_add_nexthop(r, hop); // takes ownership
    }
    return result;
}

std::uint8_t to_action(RuleAction action) {
    switch (action) {
    case RuleAction::to_table:
        return FR_ACT_TO_TBL;
    case RuleAction::goto_:
        return FR_ACT_GOTO;
    case RuleAction::nop:
        return FR_ACT_NOP;
    case RuleAction::blackhole:
        return FR_ACT_BLACKHOLE;
    case RuleAction::unreachable:
        return FR_ACT_UNREACHABLE;
    case RuleAction::prohibit:
        return FR_ACT_PROHIBIT;
    case RuleAction::other:
        break;
    }
    return FR_ACT_UNSPEC;
}

/// Only what the agent's own rules use; the kernel's other selectors are read, never written.
NlPtr<rtnl_rule> to_nl(const Rule& rule) {
    NlPtr<rtnl_rule> result(rtnl_rule_alloc());
    if (!result) throw std::bad_alloc();
    rtnl_rule* r = result.get();
    rtnl_rule_set_family(r, to_af(rule.family));
    rtnl_rule_set_prio(r, rule.preference.value);
    rtnl_rule_set_action(r, to_action(rule.action));
    if (rule.action == RuleAction::to_table) rtnl_rule_set_table(r, rule.table.value);
    if (rule.target) rtnl_rule_set_goto(r, rule.target->value);
    if (rule.mark) {
        rtnl_rule_set_mark(r, rule.mark->value);
        rtnl_rule_set_mask(r, rule.mark->mask);
    }
    if (rule.to) rtnl_rule_set_dst(r, to_nl(rule.to->network, rule.to->length).get());
    if (rule.ip_protocol) rtnl_rule_set_ipproto(r, *rule.ip_protocol);
    if (rule.destination_port) rtnl_rule_set_dport_range(r, rule.destination_port->first, rule.destination_port->last);
    rtnl_rule_set_protocol(r, rule.protocol.value);
    return result;
}

/// The text of NLMSGERR_ATTR_MSG; the socket asks for capped ACKs, so the attributes follow the fixed part at once.
std::string extended_ack(const nlmsghdr* header) {
    constexpr unsigned kFixed = NLMSG_LENGTH(sizeof(nlmsgerr));
    if (!(header->nlmsg_flags & NLM_F_ACK_TLVS) || header->nlmsg_len <= kFixed) return {};
    auto* head = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(const_cast<nlmsghdr*>(header)) + kFixed);
    auto* text = nla_find(head, static_cast<int>(header->nlmsg_len - kFixed), NLMSGERR_ATTR_MSG);
    if (!text) return {};
    const char* data = static_cast<const char*>(nla_data(text));
    return {data, strnlen(data, static_cast<std::size_t>(nla_len(text)))};
}

Expected<NlSocket> connect(std::initializer_list<int> groups) {
    NlSocket socket(nl_socket_alloc());
    if (!socket) throw std::bad_alloc();
    // nl_connect() opens with SOCK_CLOEXEC. Its own error codes lose errno, which is still set after it.
    if (nl_connect(socket.get(), NETLINK_ROUTE) < 0) return system_error(errno, "opening an rtnetlink socket");
    int fd = nl_socket_get_fd(socket.get());
    int one = 1;
    // All three are older than Linux 5.0; without them errors have no text and dumps no filter.
    for (int option : {NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK}) {
        if (setsockopt(fd, SOL_NETLINK, option, &one, sizeof one) < 0)
            return system_error(errno, "setting up an rtnetlink socket", "Linux 5.0 or newer is needed");
    }
    for (int group : groups) {
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
            return system_error(errno, fmt::format("subscribing to rtnetlink group {}", group));
    }
    return socket;
}

/// recv(2) of one datagram; EINTR is repeated.
ssize_t receive(int fd, std::vector<std::byte>& buffer, int flags) {
    ssize_t size = 0;
    do size = recv(fd, buffer.data(), buffer.size(), flags);
    while (size < 0 && errno == EINTR);
    return size;
}

template<typename F>
void for_each_message(const std::vector<std::byte>& buffer, ssize_t size, F visit) {
    auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
    auto left = static_cast<unsigned>(size);
    for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) visit(header);
}

std::span<const std::byte> bytes_of(const nlmsghdr* header) {
    return {reinterpret_cast<const std::byte*>(header), header->nlmsg_len};
}

} // namespace

void NlDeleter::operator()(nl_sock* socket) const { nl_socket_free(socket); }

Expected<RouteSocket> RouteSocket::open() {
    auto socket = connect({});
    if (!socket) return tl::make_unexpected(socket.error());
    // A request is answered at once; a kernel that does not answer is an error, never a hang.
    timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(nl_socket_get_fd(socket->get()), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return RouteSocket(std::move(*socket));
}

RouteSocket::RouteSocket(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kReceiveBuffer) {}

std::uint32_t RouteSocket::port() const { return nl_socket_get_local_port(socket_.get()); }

template<typename T, typename Convert>
Expected<std::vector<T>> RouteSocket::dump(int type, const void* header, std::size_t size, Convert convert,
                                           std::string doing) {
    for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
        NlPtr<nl_msg> request(nlmsg_alloc_simple(type, NLM_F_REQUEST | NLM_F_DUMP));
        if (!request || nlmsg_append(request.get(), const_cast<void*>(header), size, NLMSG_ALIGNTO) < 0)
            throw std::bad_alloc();
        if (type == RTM_GETLINK) nla_put_u32(request.get(), IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        nl_complete_msg(socket_.get(), request.get());
        unsigned sequence = nlmsg_hdr(request.get())->nlmsg_seq;
        if (nl_send(socket_.get(), request.get()) < 0) return system_error(errno, doing);

        std::vector<T> found;
        bool done = false;
        bool interrupted = false;
        int failure = 0;
        std::string reason;
        while (!done) {
            ssize_t received = receive(nl_socket_get_fd(socket_.get()), buffer_, 0);
            if (received < 0) return system_error(errno, doing);
            for_each_message(buffer_, received, [&](const nlmsghdr* message) {
                if (message->nlmsg_seq != sequence) return; // what an earlier, failed request left behind
                if (message->nlmsg_flags & NLM_F_DUMP_INTR) interrupted = true;
                if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) {
                    done = true;
                    if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(int)))
                        failure = -*static_cast<const int*>(NLMSG_DATA(message));
                    if (message->nlmsg_type == NLMSG_ERROR) reason = extended_ack(message);
                } else if (auto value = convert(bytes_of(message))) {
                    found.push_back(std::move(*value));
                }
            });
        }
        // A dump of an empty table, filtered strictly, answers ENOENT.
        if (failure && failure != ENOENT) return system_error(failure, doing, reason);
        if (!interrupted) return found;
    }
    return system_error(EINTR, doing, "the kernel's state kept changing during the dump");
}

Expected<std::vector<Link>> RouteSocket::links() {
    ifinfomsg header{};
    return dump<Link>(RTM_GETLINK, &header, sizeof header, to_link, "reading links");
}

Expected<std::vector<Address>> RouteSocket::addresses() {
    ifaddrmsg header{};
    return dump<Address>(RTM_GETADDR, &header, sizeof header, to_address, "reading addresses");
}

Expected<std::vector<Rule>> RouteSocket::rules() {
    fib_rule_hdr header{};
    return dump<Rule>(RTM_GETRULE, &header, sizeof header, to_rule, "reading rules");
}

Expected<std::vector<Route>> RouteSocket::routes(Family family, TableId table) {
    struct {
        rtmsg header;
        rtattr attribute;
        std::uint32_t table;
    } request{};
    request.header.rtm_family = static_cast<unsigned char>(to_af(family));
    request.attribute = {.rta_len = RTA_LENGTH(sizeof request.table), .rta_type = RTA_TABLE};
    request.table = table.value;
    auto in_table = [table](std::span<const std::byte> message) {
        auto route = to_route(message);
        return route && route->table == table ? route : std::nullopt;
    };
    return dump<Route>(RTM_GETROUTE, &request, sizeof request, in_table,
                       fmt::format("reading {} table {}", to_string(family), table.value));
}

Expected<std::vector<Route>> RouteSocket::routes_of(Protocol protocol) {
    std::vector<Route> found;
    for (Family family : kFamilies) {
        rtmsg header{};
        header.rtm_family = static_cast<unsigned char>(to_af(family));
        header.rtm_protocol = protocol.value;
        auto with_protocol = [protocol](std::span<const std::byte> message) {
            auto route = to_route(message);
            return route && route->protocol == protocol ? route : std::nullopt;
        };
        auto routes =
            dump<Route>(RTM_GETROUTE, &header, sizeof header, with_protocol,
                        fmt::format("reading {} routes of protocol {}", to_string(family), to_string(protocol)));
        if (!routes) return routes;
        found.insert(found.end(), routes->begin(), routes->end());
    }
    return found;
}

Expected<Lookup> RouteSocket::lookup(const address& destination, std::optional<Mark> mark) {
    std::string doing = "looking up " + destination.to_string();
    rtmsg header{};
    header.rtm_family = static_cast<unsigned char>(destination.is_v4() ? AF_INET : AF_INET6);
    header.rtm_dst_len = destination.is_v4() ? 32 : 128;
    // A strict IPv6 request has EINVAL for RTM_F_LOOKUP_TABLE (net/ipv6/route.c): its answer names the table anyway.
    header.rtm_flags = destination.is_v4() ? RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH : RTM_F_FIB_MATCH;
    NlPtr<nl_msg> request(nlmsg_alloc_simple(RTM_GETROUTE, NLM_F_REQUEST));
    if (!request || nlmsg_append(request.get(), &header, sizeof header, NLMSG_ALIGNTO) < 0) throw std::bad_alloc();
    nla_put_addr(request.get(), RTA_DST, to_nl(destination).get());
    if (mark) nla_put_u32(request.get(), RTA_MARK, mark->value);
    nl_complete_msg(socket_.get(), request.get());
    unsigned sequence = nlmsg_hdr(request.get())->nlmsg_seq;
    if (nl_send(socket_.get(), request.get()) < 0) return system_error(errno, doing);

    Lookup result{.destination = destination, .mark = mark, .answer = std::nullopt};
    for (bool done = false; !done;) {
        ssize_t received = receive(nl_socket_get_fd(socket_.get()), buffer_, 0);
        if (received < 0) return system_error(errno, doing);
        int failure = 0;
        for_each_message(buffer_, received, [&](const nlmsghdr* message) {
            if (message->nlmsg_seq != sequence) return;
            done = true;
            if (message->nlmsg_type == NLMSG_ERROR) {
                failure = -static_cast<const nlmsgerr*>(NLMSG_DATA(message))->error;
            } else if (auto route = to_route(bytes_of(message)); route && route->type == RouteType::unicast) {
                result.answer = route;
            }
        });
        // A route of type unreachable, prohibit, blackhole or throw answers with its own errno (fib_props in
        // net/ipv4/fib_semantics.c).
        constexpr int kNoRoute[] = {ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL, EAGAIN};
        if (failure && std::ranges::find(kNoRoute, failure) == std::end(kNoRoute)) return system_error(failure, doing);
    }
    return result;
}

Expected<void> RouteSocket::acknowledge(nl_msg* request, std::string doing) {
    nlmsg_hdr(request)->nlmsg_flags |= NLM_F_ACK;
    nl_complete_msg(socket_.get(), request);
    unsigned sequence = nlmsg_hdr(request)->nlmsg_seq;
    if (nl_send(socket_.get(), request) < 0) return system_error(errno, std::move(doing));
    for (;;) {
        ssize_t received = receive(nl_socket_get_fd(socket_.get()), buffer_, 0);
        if (received < 0) return system_error(errno, std::move(doing));
        std::optional<int> failure;
        std::string reason;
        for_each_message(buffer_, received, [&](const nlmsghdr* message) {
            if (message->nlmsg_seq != sequence || message->nlmsg_type != NLMSG_ERROR) return;
            failure = -static_cast<const nlmsgerr*>(NLMSG_DATA(message))->error;
            reason = extended_ack(message);
        });
        if (!failure) continue;
        if (*failure) return system_error(*failure, std::move(doing), std::move(reason));
        return {};
    }
}

namespace {

/// libnl's builders fail for want of memory only, once the values are complete.
NlPtr<nl_msg> take(int error, nl_msg* message) {
    if (error < 0) throw std::bad_alloc();
    return NlPtr<nl_msg>(message);
}

} // namespace

Expected<void> RouteSocket::replace(const Route& route) {
    nl_msg* built = nullptr;
    bool beside_others = family_of(route) == Family::ipv6 && !is_default(route);
    int flags = NLM_F_CREATE | (beside_others ? NLM_F_EXCL : NLM_F_REPLACE);
    int error = rtnl_route_build_add_request(to_nl(route).get(), flags, &built);
    auto request = take(error, built);
    auto done = acknowledge(request.get(), fmt::format("adding route {}", to_string(route, {})));
    if (!done && beside_others && done.error().code == std::errc::file_exists) return {};
    return done;
}

Expected<void> RouteSocket::remove(const Route& route) {
    nl_msg* built = nullptr;
    int error = rtnl_route_build_del_request(to_nl(route).get(), 0, &built);
    auto request = take(error, built);
    auto done = acknowledge(request.get(), fmt::format("deleting route {}", to_string(route, {})));
    if (!done && (done.error().code == std::errc::no_such_process || done.error().code == std::errc::no_such_device))
        return {};
    return done;
}

Expected<void> RouteSocket::add(const Rule& rule) {
    nl_msg* built = nullptr;
    int error = rtnl_rule_build_add_request(to_nl(rule).get(), NLM_F_CREATE | NLM_F_EXCL, &built);
    auto request = take(error, built);
    auto done = acknowledge(request.get(), fmt::format("adding {} rule {}", to_string(rule.family), to_string(rule)));
    if (!done && done.error().code == std::errc::file_exists) return {};
    return done;
}

Expected<void> RouteSocket::remove(const Rule& rule) {
    nl_msg* built = nullptr;
    int error = rtnl_rule_build_delete_request(to_nl(rule).get(), 0, &built);
    auto request = take(error, built);
    auto done = acknowledge(request.get(), fmt::format("deleting {} rule {}", to_string(rule.family), to_string(rule)));
    if (!done && done.error().code == std::errc::no_such_file_or_directory) return {};
    return done;
}

Expected<RouteMonitor> RouteMonitor::open() {
    auto socket = connect({RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE,
                           RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE, RTNLGRP_NEXTHOP});
    if (!socket) return tl::make_unexpected(socket.error());
    int size = kMonitorReceiveBuffer;
    // Without CAP_NET_ADMIN in the initial namespace the default size serves too: an overrun is only one more look.
    setsockopt(nl_socket_get_fd(socket->get()), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    return RouteMonitor(std::move(*socket));
}

RouteMonitor::RouteMonitor(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kReceiveBuffer) {}

int RouteMonitor::fd() const { return nl_socket_get_fd(socket_.get()); }

namespace {

/// Why a notification is a reason to look again; empty when it is none.
std::string_view cause_of(const nlmsghdr* message) {
    switch (message->nlmsg_type) {
    case RTM_NEWLINK:
        return "link changed";
    case RTM_DELLINK:
        return "link deleted";
    case RTM_NEWADDR:
        return "address added";
    case RTM_DELADDR:
        return "address deleted";
    case RTM_NEWRULE:
        return "rule added";
    case RTM_DELRULE:
        return "rule deleted";
    case RTM_NEWNEXTHOP:
        return "next hop added";
    case RTM_DELNEXTHOP:
        return "next hop deleted";
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
        break;
    default:
        return {};
    }
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof(rtmsg))) return {};
    auto* route = static_cast<const rtmsg*>(NLMSG_DATA(message));
    if (route->rtm_table == RT_TABLE_LOCAL) return {};
    bool added = message->nlmsg_type == RTM_NEWROUTE;
    if (route->rtm_dst_len == 0) return added ? "default route added" : "default route deleted";
    return added ? "route added" : "route deleted";
}

} // namespace

RouteMonitor::Drained RouteMonitor::drain(std::uint32_t own_port) {
    Drained drained;
    for (;;) {
        ssize_t received = receive(fd(), buffer_, MSG_DONTWAIT);
        if (received < 0 && errno == ENOBUFS) {
            drained.overrun = true;
            drained.cause = "notifications lost";
            continue;
        }
        if (received <= 0) return drained;
        for_each_message(buffer_, received, [&](const nlmsghdr* message) {
            if (message->nlmsg_pid == own_port || !drained.cause.empty()) return;
            drained.cause = cause_of(message);
        });
    }
}

} // namespace novpn
