// The same as bare_loop, by libnl's objects: a subscribed socket, each notification parsed into an rtnl_route, and
// requests whose answer libnl waits for. What is there already comes from a cache of all routes.
//   libnl_loop LINK TABLE
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/netlink.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>

namespace {

[[noreturn]] void fail(const char* what, int error) {
    std::fprintf(stderr, "libnl_loop: %s: %s\n", what, nl_geterror(error));
    std::exit(1);
}

struct Loop {
    int link = 0;
    std::uint32_t table = 0;
    nl_sock* requests = nullptr;
};

void copy(nl_object* object, void* argument) {
    const auto& loop = *static_cast<const Loop*>(argument);
    auto* seen = reinterpret_cast<rtnl_route*>(object);
    if (rtnl_route_get_table(seen) != RT_TABLE_MAIN || nl_addr_get_prefixlen(rtnl_route_get_dst(seen))) return;
    rtnl_nexthop* way = rtnl_route_nexthop_n(seen, 0);
    if (!way || rtnl_route_nh_get_ifindex(way) != loop.link || !rtnl_route_nh_get_gateway(way)) return;

    rtnl_route* own = rtnl_route_alloc();
    const int family = rtnl_route_get_family(seen);
    rtnl_route_set_family(own, static_cast<std::uint8_t>(family));
    rtnl_route_set_dst(own, rtnl_route_get_dst(seen));
    rtnl_route_set_table(own, loop.table);
    rtnl_route_set_protocol(own, RTPROT_STATIC);
    if (family == AF_INET6) rtnl_route_set_priority(own, 1024);
    rtnl_nexthop* own_way = rtnl_route_nh_alloc();
    rtnl_route_nh_set_ifindex(own_way, loop.link);
    rtnl_route_nh_set_gateway(own_way, rtnl_route_nh_get_gateway(way));
    rtnl_route_add_nexthop(own, own_way);
    if (const int error = rtnl_route_add(loop.requests, own, NLM_F_REPLACE); error < 0)
        std::fprintf(stderr, "libnl_loop: adding a route: %s\n", nl_geterror(error));
    rtnl_route_put(own);
}

int take(nl_msg* message, void* argument) {
    if (nlmsg_hdr(message)->nlmsg_type == RTM_NEWROUTE) nl_msg_parse(message, copy, argument);
    return NL_OK;
}

nl_sock* connect() {
    nl_sock* socket = nl_socket_alloc();
    if (const int error = nl_connect(socket, NETLINK_ROUTE); error < 0) fail("connecting", error);
    return socket;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    Loop loop{.link = static_cast<int>(if_nametoindex(argv[1])),
              .table = static_cast<std::uint32_t>(std::atoi(argv[2])),
              .requests = connect()};
    nl_sock* news = connect();
    nl_socket_disable_seq_check(news);
    nl_socket_modify_cb(news, NL_CB_VALID, NL_CB_CUSTOM, take, &loop);
    if (const int error = nl_socket_add_memberships(news, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, 0); error < 0)
        fail("joining the groups", error);
    for (const int family : {AF_INET, AF_INET6}) {
        nl_cache* routes = nullptr;
        if (const int error = rtnl_route_alloc_cache(loop.requests, family, 0, &routes); error < 0)
            fail("reading the routes", error);
        nl_cache_foreach(routes, copy, &loop);
        nl_cache_free(routes);
    }
    for (;;)
        if (const int error = nl_recvmsgs_default(news); error < 0 && error != -NLE_NOMEM) fail("receiving", error);
}
