#include "netlink/rtnetlink.h"
#include "netlink/attributes.h"
#include "netlink/route_filter.h"
#include "netlink/route_request.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
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

} // namespace novpn
