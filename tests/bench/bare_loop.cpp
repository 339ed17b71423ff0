// The limit that a reaction is measured against: a filtered socket, and the default of main by LINK copied to TABLE
// with a request that nobody waits for. Decides nothing, checks nothing.
//   bare_loop LINK TABLE
#include "tests/bench/wire.h"

#include <initializer_list>

using namespace novpn::bench;

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const std::uint32_t link = index_of(argv[1]);
    const auto table = static_cast<std::uint32_t>(std::atoi(argv[2]));
    const int requests = open_rtnetlink();
    const int news = open_rtnetlink();
    filter_defaults(news, RT_TABLE_MAIN);
    for (int group : {RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE}) join(news, group);
    Batch batch;
    const auto copy = [&](const nlmsghdr& message) {
        Way way;
        if (message.nlmsg_type != RTM_NEWROUTE || !read_way(message, way)) return;
        if (way.length || way.table != RT_TABLE_MAIN || way.link != link || !way.has_gateway) return;
        way.table = table;
        way.metric = way.family == AF_INET ? 0 : 1024;
        batch.route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, way);
        batch.send(requests);
        while (read_datagram(requests, MSG_DONTWAIT, [](const nlmsghdr&) {})) {
        }
    };
    // What is there already.
    for (int family : {AF_INET, AF_INET6}) {
        const int dump = open_rtnetlink();
        struct {
            nlmsghdr header;
            rtmsg route;
        } request{};
        request.header.nlmsg_len = sizeof request;
        request.header.nlmsg_type = RTM_GETROUTE;
        request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.route.rtm_family = static_cast<unsigned char>(family);
        if (send(dump, &request, sizeof request, 0) < 0) fail("send");
        for (bool done = false; !done;)
            done = !read_datagram(dump, 0, [&](const nlmsghdr& message) {
                if (message.nlmsg_type == NLMSG_DONE) done = true;
                copy(message);
            }) || done;
        close(dump);
    }
    for (;;) read_datagram(news, 0, copy);
}
