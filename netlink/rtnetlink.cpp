#include "netlink/rtnetlink.h"
#include "netlink/attributes.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/netconf.h>
#include <linux/rtnetlink.h>
#include <map>
#include <net/if.h>
#include <netlink/addr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/rule.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace novpn {

namespace {

struct ObjectDeleter {
    void operator()(nl_addr* a) const { nl_addr_put(a); }
    void operator()(rtnl_rule* rule) const { rtnl_rule_put(rule); }
};
template<typename T>
using NlPtr = std::unique_ptr<T, ObjectDeleter>;

// Some 10,000 notifications, what a whole look may miss on a busy machine; SO_RCVBUFFORCE lifts net.core.rmem_max. Room
// that is not used costs nothing.
constexpr int kMonitorReceiveBuffer = 8 << 20;

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
    case RouteType::unreachable: return RTN_UNREACHABLE;
    case RouteType::blackhole: return RTN_BLACKHOLE;
    case RouteType::prohibit: return RTN_PROHIBIT;
    case RouteType::throw_: return RTN_THROW;
    case RouteType::local: return RTN_LOCAL;
    case RouteType::unicast:
    case RouteType::other: break;
    }
    return RTN_UNICAST;
}

std::uint8_t to_action(RuleAction action) {
    switch (action) {
    case RuleAction::to_table: return FR_ACT_TO_TBL;
    case RuleAction::goto_: return FR_ACT_GOTO;
    case RuleAction::nop: return FR_ACT_NOP;
    case RuleAction::blackhole: return FR_ACT_BLACKHOLE;
    case RuleAction::unreachable: return FR_ACT_UNREACHABLE;
    case RuleAction::prohibit: return FR_ACT_PROHIBIT;
    case RuleAction::other: break;
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
    if (!rule.iif.empty()) rtnl_rule_set_iif(r, rule.iif.c_str());
    if (rule.from) rtnl_rule_set_src(r, to_nl(rule.from->network, rule.from->length).get());
    if (rule.to) rtnl_rule_set_dst(r, to_nl(rule.to->network, rule.to->length).get());
    if (rule.ip_protocol) rtnl_rule_set_ipproto(r, *rule.ip_protocol);
    if (rule.destination_port) rtnl_rule_set_dport_range(r, rule.destination_port->first, rule.destination_port->last);
    rtnl_rule_set_protocol(r, rule.protocol.value);
    return result;
}

/// RTM_NEWROUTE, RTM_DELROUTE or RTM_GETROUTE, built in place: these are what a reaction and a look wait for, and
/// libnl's objects cost more than the kernel's whole answer.
class RouteRequest {
  public:
    RouteRequest(int type, const rtmsg& route, int flags) {
        nlmsghdr& head = header();
        head.nlmsg_len = NLMSG_LENGTH(sizeof route);
        head.nlmsg_type = static_cast<std::uint16_t>(type);
        head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
        std::memcpy(NLMSG_DATA(&head), &route, sizeof route);
    }
    nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }

    void put(unsigned short attribute, const void* data, std::size_t size) {
        nlmsghdr& head = header();
        const rtattr fixed{.rta_len = static_cast<unsigned short>(RTA_LENGTH(size)), .rta_type = attribute};
        std::byte* at = bytes_.data() + NLMSG_ALIGN(head.nlmsg_len);
        std::memcpy(at, &fixed, sizeof fixed);
        std::memcpy(at + RTA_LENGTH(0), data, size);
        head.nlmsg_len = static_cast<std::uint32_t>(NLMSG_ALIGN(head.nlmsg_len) + RTA_ALIGN(fixed.rta_len));
    }
    void put(unsigned short attribute, std::uint32_t value) { put(attribute, &value, sizeof value); }
    void put(unsigned short attribute, const address& a) {
        const auto write = [&](const auto& bytes) { put(attribute, bytes.data(), bytes.size()); };
        a.is_v4() ? write(a.to_v4().to_bytes()) : write(a.to_v6().to_bytes());
    }

  private:
    /// Headers, four numbers, three IPv6 addresses and a via are less.
    alignas(nlmsghdr) std::array<std::byte, 192> bytes_{};
};

} // namespace

Expected<RouteSocket> RouteSocket::open() {
    auto requests = RequestSocket::open(NETLINK_ROUTE, "rtnetlink");
    if (!requests) return tl::make_unexpected(requests.error());
    return RouteSocket(std::move(*requests));
}

RouteSocket::RouteSocket(RequestSocket requests)
    : requests_(std::move(requests)) {}

std::uint32_t RouteSocket::port() const { return requests_.port(); }

Expected<std::vector<Link>> RouteSocket::links() {
    NlMessage request = make_request(RTM_GETLINK, ifinfomsg{});
    nla_put_u32(request.get(), IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    return requests_.dump<Link>(*request, to_link, "reading links");
}

Expected<std::vector<Address>> RouteSocket::addresses() {
    return requests_.dump<Address>(*make_request(RTM_GETADDR, ifaddrmsg{}), to_address, "reading addresses");
}

Expected<std::vector<Rule>> RouteSocket::rules() {
    return requests_.dump<Rule>(*make_request(RTM_GETRULE, fib_rule_hdr{}), to_rule, "reading rules");
}

Expected<std::vector<Neighbour>> RouteSocket::neighbours() {
    return requests_.dump<Neighbour>(*make_request(RTM_GETNEIGH, ndmsg{}), to_neighbour, "reading neighbours");
}

Expected<std::optional<Neighbour>> RouteSocket::neighbour(IfIndex link, const address& host) {
    ndmsg header{};
    header.ndm_family = static_cast<unsigned char>(host.is_v4() ? AF_INET : AF_INET6);
    header.ndm_ifindex = static_cast<int>(link.value);
    NlMessage request = make_request(RTM_GETNEIGH, header);
    nla_put_addr(request.get(), NDA_DST, to_nl(host).get());
    std::optional<Neighbour> found;
    auto done = requests_.get(
        *nlmsg_hdr(request.get()), [&](std::span<const std::byte> message) { found = to_neighbour(message); },
        "asking for neighbour " + host.to_string());
    // The link may be gone by now.
    if (!done && done.error().code != std::errc::no_such_file_or_directory &&
        done.error().code != std::errc::no_such_device)
        return tl::make_unexpected(done.error());
    return found;
}

Expected<std::vector<Route>>
RouteSocket::dump_routes(nl_msg& request, const std::function<std::vector<Route>(std::span<const std::byte>)>& convert,
                         const std::string& doing) {
    auto routes = requests_.dump<Route>(request, convert, doing);
    // A dump of an empty table, filtered strictly, answers ENOENT.
    if (!routes && routes.error().code == std::errc::no_such_file_or_directory) return std::vector<Route>{};
    return routes;
}

namespace {

/// What is counted of the routes that are not about the internet: a link's by a gateway, or on-link. By their headers
/// alone, as there may be a million of them. Of several hops: nothing, and they are kept.
std::optional<std::pair<IfIndex, bool>> counted_with(std::span<const std::byte> message) {
    const auto& header = *reinterpret_cast<const nlmsghdr*>(message.data());
    if (header.nlmsg_type != RTM_NEWROUTE || message.size() < NLMSG_LENGTH(sizeof(rtmsg))) return std::nullopt;
    const auto& route = *static_cast<const rtmsg*>(NLMSG_DATA(&header));
    if (route.rtm_dst_len <= (route.rtm_family == AF_INET ? kInternetLength4 : kInternetLength6)) return std::nullopt;
    const auto find = [&](int type) { return nlmsg_find_attr(const_cast<nlmsghdr*>(&header), sizeof(rtmsg), type); };
    const nlattr* link = find(RTA_OIF);
    if (!link || nla_len(link) < static_cast<int>(sizeof(std::uint32_t))) return std::nullopt;
    return std::pair(IfIndex{nla_get_u32(link)}, find(RTA_GATEWAY) || find(RTA_VIA));
}

} // namespace

Expected<std::vector<Route>> RouteSocket::routes(Family family, TableId table, std::size_t of_a_link) {
    rtmsg header{};
    header.rtm_family = static_cast<unsigned char>(to_af(family));
    NlMessage request = make_request(RTM_GETROUTE, header);
    nla_put_u32(request.get(), RTA_TABLE, table.value);
    std::map<std::pair<IfIndex, bool>, std::size_t> counted;
    std::uint32_t sequence = 0; // another one each time that the dump is taken, which then begins anew
    auto convert = [&](std::span<const std::byte> message) {
        const std::uint32_t now = reinterpret_cast<const nlmsghdr*>(message.data())->nlmsg_seq;
        if (std::exchange(sequence, now) != now) counted.clear();
        const auto with = counted_with(message);
        if (with && counted[*with] >= of_a_link) return std::vector<Route>{};
        auto routes = to_routes(message);
        std::erase_if(routes, [&](const Route& route) { return route.table != table; });
        if (with) counted[*with] += routes.size();
        return routes;
    };
    return dump_routes(*request, convert, fmt::format("reading {} table {}", to_string(family), table.value));
}

Expected<std::vector<Route>> RouteSocket::routes_of(Protocol protocol) {
    std::vector<Route> found;
    for (Family family : kFamilies) {
        rtmsg header{};
        header.rtm_family = static_cast<unsigned char>(to_af(family));
        header.rtm_protocol = protocol.value;
        auto convert = [protocol](std::span<const std::byte> message) {
            auto of_message = to_routes(message);
            std::erase_if(of_message, [&](const Route& route) { return route.protocol != protocol; });
            return of_message;
        };
        auto routes =
            dump_routes(*make_request(RTM_GETROUTE, header), convert,
                        fmt::format("reading {} routes of protocol {}", to_string(family), to_string(protocol)));
        if (!routes) return routes;
        found.insert(found.end(), routes->begin(), routes->end());
    }
    return found;
}

Expected<Lookup> RouteSocket::lookup(const address& destination, std::optional<Mark> mark,
                                     std::optional<IfIndex> link) {
    rtmsg header{};
    header.rtm_family = static_cast<unsigned char>(destination.is_v4() ? AF_INET : AF_INET6);
    header.rtm_dst_len = destination.is_v4() ? 32 : 128;
    // A strict IPv6 request has EINVAL for RTM_F_LOOKUP_TABLE (net/ipv6/route.c): its answer names the table anyway.
    header.rtm_flags = destination.is_v4() ? RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH : RTM_F_FIB_MATCH;
    RouteRequest request(RTM_GETROUTE, header, 0);
    request.put(RTA_DST, destination);
    if (mark) request.put(RTA_MARK, mark->value);
    if (link) request.put(RTA_OIF, link->value);

    Lookup result{.destination = destination, .mark = mark, .link = link, .answer = std::nullopt};
    auto take_answer = [&result](std::span<const std::byte> message) {
        auto routes = to_routes(message);
        if (!routes.empty() && routes.front().link.value) result.answer = routes.front();
    };
    auto done = requests_.get(request.header(), take_answer, {});
    // A route of type unreachable, prohibit, blackhole or throw answers with its own errno (fib_props in
    // net/ipv4/fib_semantics.c).
    constexpr int kNoRoute[] = {ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL, EAGAIN};
    const auto is_answer = [&](int error) {
        // The link may have gone since it was seen.
        return (link && error == ENODEV) || std::ranges::find(kNoRoute, error) != std::end(kNoRoute);
    };
    if (!done && !is_answer(done.error().code.value())) {
        done.error().doing = "looking up " + destination.to_string();
        return tl::make_unexpected(done.error());
    }
    return result;
}

Expected<void> RouteSocket::acknowledge(nl_msg& request, const std::string& doing) {
    return requests_.ask(
        request, [](std::span<const std::byte>) {}, doing);
}

Expected<void> RouteSocket::set_src_valid_mark(IfIndex link, bool on) {
    ifinfomsg header{};
    header.ifi_index = static_cast<int>(link.value);
    NlMessage request = make_request(RTM_SETLINK, header);
    // The kernel takes each setting as an attribute of its own number (inet_set_link_af in net/ipv4/devinet.c).
    nlattr* families = nla_nest_start(request.get(), IFLA_AF_SPEC);
    nlattr* inet = nla_nest_start(request.get(), AF_INET);
    nlattr* conf = nla_nest_start(request.get(), IFLA_INET_CONF);
    nla_put_u32(request.get(), IPV4_DEVCONF_TAG, on ? kNovpnTag : 0);
    nla_put_u32(request.get(), IPV4_DEVCONF_SRC_VMARK, on ? 1 : 0);
    for (nlattr* nest : {conf, inet, families}) nla_nest_end(request.get(), nest);
    auto done = acknowledge(*request, fmt::format("setting src_valid_mark of link {}", link.value));
    if (!done && !on && done.error().code == std::errc::no_such_device) return {};
    return done;
}

namespace {

/// libnl's builders fail for want of memory only, once the values are complete.
NlMessage take(int error, nl_msg* message) {
    if (error < 0) throw std::bad_alloc();
    return NlMessage(message);
}

} // namespace

namespace {

/// RTA_VIA: a gateway of the other family (RFC 5549), struct rtvia {family, address}.
void put_via(RouteRequest& message, const address& gateway) {
    std::array<unsigned char, sizeof(std::uint16_t) + 16> via{};
    const auto family = static_cast<std::uint16_t>(to_af(family_of(gateway)));
    std::memcpy(via.data(), &family, sizeof family);
    const auto write = [&](const auto& bytes) {
        std::memcpy(via.data() + sizeof family, bytes.data(), bytes.size());
        return sizeof family + bytes.size();
    };
    const std::size_t size = gateway.is_v4() ? write(gateway.to_v4().to_bytes()) : write(gateway.to_v6().to_bytes());
    message.put(RTA_VIA, via.data(), size);
}

RouteRequest to_request(int type, const Route& route, int flags) {
    const unsigned length = route.destination.length;
    rtmsg header{};
    header.rtm_family = static_cast<unsigned char>(to_af(family_of(route)));
    header.rtm_dst_len = static_cast<unsigned char>(length);
    header.rtm_table = RT_TABLE_UNSPEC; // RTA_TABLE has it, which has room for all numbers
    header.rtm_protocol = route.protocol.value;
    header.rtm_scope = route.scope;
    header.rtm_type = to_rtn(route.type);
    if (route.onlink) header.rtm_flags = RTNH_F_ONLINK;
    RouteRequest request(type, header, flags);
    request.put(RTA_TABLE, route.table.value);
    if (length) request.put(RTA_DST, route.destination.network);
    if (route.metric) request.put(RTA_PRIORITY, route.metric);
    if (route.source) request.put(RTA_PREFSRC, *route.source);
    if (route.type != RouteType::unicast) return request;
    request.put(RTA_OIF, route.link.value);
    if (route.gateway && family_of(*route.gateway) == family_of(route))
        request.put(RTA_GATEWAY, *route.gateway);
    else if (route.gateway)
        put_via(request, *route.gateway);
    return request;
}

/// IPv6 has routes of one prefix and metric beside each other, where they are not defaults.
bool is_beside_others(const Route& route) { return family_of(route) == Family::ipv6 && !is_default(route); }

RouteRequest to_request(const RouteWrite& write) {
    if (write.removes) return to_request(RTM_DELROUTE, *write.route, 0);
    // With EXCL the kernel refuses a second link's route of the same prefix and metric; without it, an equal one only.
    const int how = is_beside_others(*write.route) ? NLM_F_APPEND : NLM_F_REPLACE;
    return to_request(RTM_NEWROUTE, *write.route, NLM_F_CREATE | how);
}

/// What is refused is so already.
bool is_done(const RouteWrite& write, const Error& refusal) {
    if (write.removes) return refusal.code == std::errc::no_such_process || refusal.code == std::errc::no_such_device;
    return is_beside_others(*write.route) && refusal.code == std::errc::file_exists;
}

std::string to_doing(const RouteWrite& write) {
    return fmt::format("{} route {}", write.removes ? "deleting" : "adding", to_string(*write.route, {}));
}

} // namespace

Expected<void> RouteSocket::write(const RouteWrite& write) {
    RouteRequest request = to_request(write);
    auto done = requests_.ask(request.header(), [](std::span<const std::byte>) {}, {});
    if (done || is_done(write, done.error())) return {};
    done.error().doing = to_doing(write);
    return done;
}

Expected<void> RouteSocket::replace(const Route& route) { return write({.route = &route, .removes = false}); }

Expected<void> RouteSocket::remove(const Route& route) { return write({.route = &route, .removes = true}); }

std::map<std::size_t, Error> RouteSocket::write(std::span<const RouteWrite> writes) {
    constexpr std::size_t kAtOnce = 256; // as requests, which are larger than the messages
    std::map<std::size_t, Error> refused;
    std::vector<RouteRequest> requests;
    std::vector<nlmsghdr*> headers;
    for (std::size_t begun = 0; begun < writes.size(); begun += kAtOnce) {
        const auto some = writes.subspan(begun, std::min(kAtOnce, writes.size() - begun));
        requests.clear();
        headers.clear();
        for (const RouteWrite& write : some) requests.push_back(to_request(write));
        for (RouteRequest& request : requests) headers.push_back(&request.header());
        for (auto& [at, error] : requests_.ask_each(headers)) {
            if (is_done(some[at], error)) continue;
            error.doing = to_doing(some[at]);
            refused.emplace(begun + at, std::move(error));
        }
    }
    return refused;
}

Expected<void> RouteSocket::forget(const Neighbour& neighbour) {
    ndmsg header{};
    header.ndm_family = static_cast<unsigned char>(neighbour.host.is_v4() ? AF_INET : AF_INET6);
    header.ndm_ifindex = static_cast<int>(neighbour.link.value);
    NlMessage request = make_request(RTM_DELNEIGH, header);
    nla_put_addr(request.get(), NDA_DST, to_nl(neighbour.host).get());
    auto done = acknowledge(*request, "forgetting neighbour " + neighbour.host.to_string());
    if (!done &&
        (done.error().code == std::errc::no_such_file_or_directory || done.error().code == std::errc::no_such_device))
        return {};
    return done;
}

Expected<void> RouteSocket::probe(const Neighbour& neighbour) {
    ndmsg header{};
    header.ndm_family = static_cast<unsigned char>(neighbour.host.is_v4() ? AF_INET : AF_INET6);
    header.ndm_ifindex = static_cast<int>(neighbour.link.value);
    header.ndm_flags = NTF_USE;
    NlMessage request = make_request(RTM_NEWNEIGH, header);
    nlmsg_hdr(request.get())->nlmsg_flags |= NLM_F_CREATE;
    nla_put_addr(request.get(), NDA_DST, to_nl(neighbour.host).get());
    return acknowledge(*request, "asking for neighbour " + neighbour.host.to_string());
}

namespace {

/// libnl 3.7's rule objects know no uidrange.
NlMessage with_uids(NlMessage request, const Rule& rule) {
    if (!rule.uids) return request;
    const fib_rule_uid_range range{rule.uids->first, rule.uids->last};
    if (nla_put(request.get(), FRA_UID_RANGE, sizeof range, &range) < 0) throw std::bad_alloc();
    return request;
}

} // namespace

Expected<void> RouteSocket::add(const Rule& rule) {
    nl_msg* built = nullptr;
    int error = rtnl_rule_build_add_request(to_nl(rule).get(), NLM_F_CREATE | NLM_F_EXCL, &built);
    auto request = with_uids(take(error, built), rule);
    auto done = acknowledge(*request, fmt::format("adding {} rule {}", to_string(rule.family), to_string(rule)));
    if (!done && done.error().code == std::errc::file_exists) return {};
    return done;
}

Expected<void> RouteSocket::remove(const Rule& rule) {
    nl_msg* built = nullptr;
    int error = rtnl_rule_build_delete_request(to_nl(rule).get(), 0, &built);
    auto request = with_uids(take(error, built), rule);
    auto done = acknowledge(*request, fmt::format("deleting {} rule {}", to_string(rule.family), to_string(rule)));
    if (!done && done.error().code == std::errc::no_such_file_or_directory) return {};
    return done;
}

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

Expected<void> RouteMonitor::follow(const RouteFilter& filter) { return attach(fd(), filter); }

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

} // namespace

void RouteMonitor::take(Drained& drained, const nlmsghdr& message, const std::set<address>& gateways,
                        const std::set<MacAddress>* macs, const OnDefault& on_default) {
    const bool added = message.nlmsg_type == RTM_NEWROUTE;
    if (!added && message.nlmsg_type != RTM_DELROUTE) {
        add_losses(drained.losses, message);
        if (!drained.cause.empty()) return;
        drained.cause =
            message.nlmsg_type == RTM_NEWNEIGH ? cause_of_gateway(message, gateways, macs) : cause_of(message);
        return;
    }
    if (message.nlmsg_len < NLMSG_LENGTH(sizeof(rtmsg))) return;
    const auto& route = *static_cast<const rtmsg*>(NLMSG_DATA(&message));
    if (route.rtm_table == RT_TABLE_LOCAL || (route.rtm_flags & RTM_F_CLONED)) return;
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
        ++drained.other_routes;
        if (is_by_gateway(message, route)) ++drained.by_gateway;
    }
    std::string_view& kind = can_wait ? drained.later : drained.cause;
    if (kind.empty()) kind = cause_of(route, added);
}

RouteMonitor::Drained RouteMonitor::drain(std::uint32_t own_port, const std::set<address>& gateways,
                                          const std::set<MacAddress>* macs, const OnDefault& on_default) {
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
            if (message.nlmsg_pid != own_port) take(drained, message, gateways, macs, on_default);
        });
        drained.flooded = drained.by_gateway >= kFlood;
        if (drained.flooded) return drained;
    }
}

} // namespace novpn
