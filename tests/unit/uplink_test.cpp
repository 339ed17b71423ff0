#include "agent/uplink.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

address ip(const char* text) { return boost::asio::ip::make_address(text); }

Link ethernet(std::uint32_t index, std::string name) {
    return {.index = IfIndex{index}, .name = std::move(name), .up = true, .carrier = true};
}

Link tun(std::uint32_t index, std::string name) {
    return {.index = IfIndex{index},
            .name = std::move(name),
            .kind = "tun",
            .hardware = 65534,
            .up = true,
            .carrier = true,
            .point_to_point = true};
}

Route default_by(std::uint32_t link, const char* gateway, std::uint32_t metric = 0) {
    return {.destination = any_prefix(Family::ipv4), .metric = metric, .gateway = ip(gateway), .link = IfIndex{link}};
}

Observed one_network() {
    return {.links = {ethernet(2, "wlan0")},
            .addresses = {{.link = IfIndex{2}, .local = ip("192.168.10.50"), .prefix_length = 24}},
            .routes = {default_by(2, "192.168.10.1", 600)}};
}

Selection select(const Observed& observed, const Config& config = {}, const Memory& memory = {},
                 std::optional<std::string> displaced_by = {}) {
    return select_uplink({.family = Family::ipv4}, observed, config, memory, displaced_by);
}

} // namespace

TEST(SelectUplink, TakesTheDefaultOfAPhysicalLink) {
    Selection selection = select(one_network());
    ASSERT_TRUE(selection.uplink);
    EXPECT_EQ(
        *selection.uplink,
        (Uplink{.family = Family::ipv4, .link = IfIndex{2}, .link_name = "wlan0", .gateway = ip("192.168.10.1")}));
    EXPECT_EQ(selection.from, UplinkSource::main);
    EXPECT_EQ(selection.remembered->on_link, prefix_of(ip("192.168.10.0"), 24));
}

TEST(SelectUplink, IgnoresTunnelEvenWithLowerMetric) {
    Observed observed = one_network();
    observed.links.push_back(tun(3, "tun0"));
    observed.addresses.push_back({.link = IfIndex{3}, .local = ip("10.8.0.2"), .prefix_length = 24});
    observed.routes.push_back(default_by(3, "10.8.0.1", 0));
    EXPECT_EQ(select(observed).uplink->link_name, "wlan0");
}

TEST(SelectUplink, WantsCarrierAndAddress) {
    Observed no_carrier = one_network();
    no_carrier.links[0].carrier = false;
    EXPECT_FALSE(select(no_carrier).uplink);
    Observed no_address = one_network();
    no_address.addresses.clear();
    EXPECT_FALSE(select(no_address).uplink);
    Observed down = one_network();
    down.links[0].up = false;
    EXPECT_FALSE(select(down).uplink);
}

TEST(SelectUplink, KeepsTheOneInUseAmongEquals) {
    Observed observed = one_network();
    observed.links.push_back(ethernet(3, "eth0"));
    observed.addresses.push_back({.link = IfIndex{3}, .local = ip("192.168.1.5"), .prefix_length = 24});
    observed.routes.push_back(default_by(3, "192.168.1.1", 600));
    EXPECT_EQ(select(observed).uplink->link_name, "wlan0") << "lowest ifindex";
    Memory memory;
    memory.uplinks[{"", Family::ipv4}].uplink = {.link = IfIndex{3}, .link_name = "eth0", .gateway = ip("192.168.1.1")};
    EXPECT_EQ(select(observed, {}, memory).uplink->link_name, "eth0") << "the one in use";
    Config config;
    config.uplinks.prefer = {"wlan*"};
    EXPECT_EQ(select(observed, config, memory).uplink->link_name, "wlan0") << "the config's order";
}

TEST(SelectUplink, DoesNotDependOnTheOrderOfTheDump) {
    Observed observed = one_network();
    observed.links.push_back(ethernet(3, "eth0"));
    observed.addresses.push_back({.link = IfIndex{3}, .local = ip("192.168.1.5"), .prefix_length = 24});
    observed.routes.push_back(default_by(3, "192.168.1.1", 100));
    Selection forward = select(observed);
    std::ranges::reverse(observed.links);
    std::ranges::reverse(observed.addresses);
    std::ranges::reverse(observed.routes);
    EXPECT_EQ(select(observed), forward);
}

TEST(SelectUplink, RemembersADisplacedDefaultWhileItsNetworkIsThere) {
    Observed observed = one_network();
    Memory memory;
    memory.uplinks[{"", Family::ipv4}] = *select(observed).remembered;
    observed.routes.clear();
    Selection displaced = select(observed, {}, memory, "tun0");
    ASSERT_TRUE(displaced.uplink);
    EXPECT_EQ(displaced.from, UplinkSource::memory);
    EXPECT_EQ(displaced.reason, "its default in main was displaced by tun0");

    observed.addresses[0].local = ip("172.16.0.9");
    EXPECT_FALSE(select(observed, {}, memory, "tun0").uplink) << "another subnet is another network";
}

TEST(SelectUplink, DropsASourceAddressThatIsGone) {
    Observed observed = one_network();
    observed.routes[0].source = ip("192.168.10.50");
    Memory memory;
    memory.uplinks[{"", Family::ipv4}] = *select(observed).remembered;
    observed.routes.clear();
    observed.addresses[0].local = ip("192.168.10.51"); // a new lease in the same subnet
    Selection selection = select(observed, {}, memory, "tun0");
    ASSERT_TRUE(selection.uplink);
    EXPECT_FALSE(selection.uplink->source);
}

TEST(SelectUplink, InfersFromAHostRouteUnderATakeoverOnly) {
    Observed observed = one_network();
    observed.routes = {
        {.destination = prefix_of(ip("203.0.113.20"), 32), .gateway = ip("192.168.10.1"), .link = IfIndex{2}}};
    EXPECT_FALSE(select(observed).uplink);
    Selection selection = select(observed, {}, {}, "tun0");
    ASSERT_TRUE(selection.uplink);
    EXPECT_EQ(selection.from, UplinkSource::host_route);
}

TEST(SelectUplink, DoesNotGuessAGatewayThatIsNotOnLink) {
    Observed observed = one_network();
    observed.routes = {
        {.destination = prefix_of(ip("203.0.113.20"), 32), .gateway = ip("10.99.0.1"), .link = IfIndex{2}}};
    EXPECT_FALSE(select(observed, {}, {}, "tun0").uplink);
}

TEST(SelectUplink, OpenVpnsBlockLocalRouteIsNoServerRoute) {
    Observed observed = one_network();
    observed.routes = {
        {.destination = prefix_of(ip("192.168.10.1"), 32), .gateway = ip("192.168.10.1"), .link = IfIndex{2}}};
    EXPECT_FALSE(select(observed, {}, {}, "tun0").uplink);
}

TEST(IsTunnel, GoesByKind) {
    Observed observed;
    for (const char* kind : {"tun", "wireguard", "xfrm", "vti", "gre", "sit", "ip6tnl", "ipip"}) {
        Link link = ethernet(5, "x0");
        link.kind = kind;
        EXPECT_TRUE(is_tunnel(link, observed, {})) << kind;
    }
    for (const char* kind : {"", "veth", "bridge", "bond", "vlan", "macvlan"}) {
        Link link = ethernet(5, "x0");
        link.kind = kind;
        EXPECT_FALSE(is_tunnel(link, observed, {})) << kind;
    }
}

TEST(IsTunnel, PppIsAModemUntilAnotherUplinkLives) {
    Link ppp = ethernet(5, "ppp0");
    ppp.hardware = 512;
    Observed alone{.links = {ppp}};
    EXPECT_FALSE(is_tunnel(ppp, alone, {}));
    Observed over_wifi = one_network();
    over_wifi.links.push_back(ppp);
    EXPECT_TRUE(is_tunnel(ppp, over_wifi, {}));
    over_wifi.links[0].carrier = false;
    EXPECT_FALSE(is_tunnel(ppp, over_wifi, {}));
}

TEST(IsTunnel, OfTwoPppLinksTheFirstIsTheModem) {
    Link modem = ethernet(5, "ppp0");
    modem.hardware = 512;
    Link vpn = ethernet(6, "ppp1");
    vpn.hardware = 512;
    Observed observed{.links = {modem, vpn},
                      .addresses = {{.link = IfIndex{5}, .local = ip("10.64.0.2"), .prefix_length = 32}},
                      .routes = {{.destination = any_prefix(Family::ipv4), .link = IfIndex{5}}}};
    EXPECT_FALSE(is_tunnel(modem, observed, {}));
    EXPECT_TRUE(is_tunnel(vpn, observed, {}));
}

TEST(SelectUplink, AGatewayThatDoesNotAnswerLosesToALiveUplink) {
    Observed observed = one_network();
    observed.links.push_back(ethernet(3, "eth0"));
    observed.addresses.push_back({.link = IfIndex{3}, .local = ip("192.168.20.50"), .prefix_length = 24});
    observed.routes.push_back(default_by(3, "192.168.20.1", 100));
    EXPECT_EQ(select(observed).uplink->link_name, "eth0");
    Neighbour gateway{.link = IfIndex{3}, .host = ip("192.168.20.1"), .state = NeighbourState::failed};
    observed.gateways = {gateway};
    Selection selection = select(observed);
    EXPECT_EQ(selection.uplink->link_name, "wlan0");
    EXPECT_EQ(selection.reason, "default route of main, metric 600; gateway 192.168.20.1 does not answer");
}

TEST(SelectUplink, AGatewayIsDeadUntilItAnswers) {
    Observed observed = one_network();
    observed.routes.push_back(default_by(2, "192.168.10.2", 700));
    Neighbour gateway{.link = IfIndex{2}, .host = ip("192.168.10.1"), .state = NeighbourState::failed};
    Memory memory;
    auto dead_as = [&](NeighbourState state) {
        gateway.state = state;
        observed.gateways = {gateway};
        memory.dead_gateways = dead_gateways(observed, memory);
        return !memory.dead_gateways.empty();
    };
    EXPECT_FALSE(dead_as(NeighbourState::incomplete));
    EXPECT_TRUE(dead_as(NeighbourState::failed));
    EXPECT_TRUE(dead_as(NeighbourState::incomplete)) << "another try";
    observed.gateways.clear();
    EXPECT_FALSE(dead_gateways(observed, memory).empty()) << "forgotten by the kernel";
    EXPECT_FALSE(dead_as(NeighbourState::reachable));
    EXPECT_FALSE(dead_as(NeighbourState::stale));
}

TEST(SelectUplink, TheOnlyGatewayIsTakenAlsoWhereItDoesNotAnswer) {
    Observed observed = one_network();
    observed.gateways = {{.link = IfIndex{2}, .host = ip("192.168.10.1"), .state = NeighbourState::failed}};
    EXPECT_EQ(select(observed).uplink->link_name, "wlan0");
}

TEST(SelectUplink, TakesTheHopOfAMultipathDefaultThatCarries) {
    Observed observed = one_network();
    observed.links.push_back(ethernet(3, "eth0"));
    observed.links[1].carrier = false;
    observed.addresses.push_back({.link = IfIndex{3}, .local = ip("192.168.20.50"), .prefix_length = 24});
    observed.routes = {default_by(3, "192.168.20.1"), default_by(2, "192.168.10.1")};
    for (Route& route : observed.routes) route.next_hops = 2;
    EXPECT_EQ(select(observed).uplink->link_name, "wlan0");
}

TEST(SelectUplink, ADefaultThatLeadsNowhereOrByALinkThatIsGoneIsNone) {
    Observed observed = one_network();
    observed.routes.push_back(default_by(9, "192.168.10.9", 1));
    observed.routes.push_back({.type = RouteType::unreachable, .destination = any_prefix(Family::ipv4)});
    EXPECT_EQ(select(observed).uplink->gateway, ip("192.168.10.1"));
    observed.routes.erase(observed.routes.begin());
    EXPECT_FALSE(select(observed).uplink);
}

TEST(SelectUplink, WhereNoGatewayAnswersTheBestMetricCounts) {
    Observed observed = one_network();
    observed.routes.push_back(default_by(2, "192.168.10.2", 700));
    for (const char* gateway : {"192.168.10.1", "192.168.10.2"})
        observed.gateways.push_back({.link = IfIndex{2}, .host = ip(gateway), .state = NeighbourState::failed});
    const Selection selection = select(observed);
    EXPECT_EQ(selection.uplink->gateway, ip("192.168.10.1"));
    EXPECT_EQ(selection.reason, "default route of main, metric 600") << "it is no better than the other";
}

TEST(SelectUplink, AGuessByALinkThatIsGoneIsNone) {
    Observed observed = one_network();
    const Route own{.table = TableId{7866},
                    .destination = any_prefix(Family::ipv4),
                    .gateway = ip("192.168.10.1"),
                    .link = IfIndex{2},
                    .protocol = kNovpnProtocol};
    observed.routes = {own,
                       {.destination = {ip("203.0.113.20"), 32}, .gateway = ip("192.168.10.2"), .link = IfIndex{2}}};
    EXPECT_EQ(select(observed, {}, {}, "tun0").from, UplinkSource::table);
    observed.routes[0].link = IfIndex{9};
    EXPECT_EQ(select(observed, {}, {}, "tun0").from, UplinkSource::host_route);
    observed.routes[1].link = IfIndex{9};
    EXPECT_FALSE(select(observed, {}, {}, "tun0").uplink);
}

TEST(SelectUplink, ATentativeAddressIsNoneYet) {
    const Prefix all = any_prefix(Family::ipv6);
    Observed observed{.links = {ethernet(2, "wlan0")},
                      .addresses = {{.link = IfIndex{2}, .local = ip("2001:db8:a::50"), .prefix_length = 64}},
                      .routes = {{.destination = all, .gateway = ip("2001:db8:a::1"), .link = IfIndex{2}}}};
    const auto found = [&] { return select_uplink({.family = Family::ipv6}, observed, {}, {}, {}); };
    ASSERT_TRUE(found().uplink);
    EXPECT_EQ(found().remembered->on_link, prefix_of(ip("2001:db8:a::"), 64));
    observed.addresses.push_back(
        {.link = IfIndex{2}, .local = ip("2001:db8:a:0:1::1"), .prefix_length = 80, .tentative = true});
    EXPECT_EQ(found().remembered->on_link, prefix_of(ip("2001:db8:a::"), 64)) << "the other is not in use";
    observed.addresses[0].tentative = true;
    EXPECT_FALSE(found().uplink);
}

TEST(OnlyUplink, IsTheOneLinkThatCarriesTheFamily) {
    Observed observed = one_network();
    EXPECT_EQ(only_uplink(Family::ipv4, observed, {}), IfIndex{2});
    EXPECT_EQ(only_uplink(Family::ipv6, observed, {}), std::nullopt);
    observed.links.push_back(ethernet(3, "eth0"));
    observed.links.push_back(tun(4, "tun0"));
    for (std::uint32_t link : {3u, 4u})
        observed.addresses.push_back({.link = IfIndex{link}, .local = ip("10.0.0.2"), .prefix_length = 24});
    EXPECT_EQ(only_uplink(Family::ipv4, observed, {}), std::nullopt) << "which of the two is not known";
    observed.links[1].carrier = false;
    EXPECT_EQ(only_uplink(Family::ipv4, observed, {}), IfIndex{2});
}

TEST(IsTunnel, APppLinkThatWasOneStaysOneByItsNameAlone) {
    Link vpn = ethernet(5, "ppp*");
    vpn.hardware = 512;
    Link modem = ethernet(6, "ppp1");
    modem.hardware = 512;
    const Observed observed{.links = {vpn, modem}};
    Memory memory;
    memory.ppp_tunnels = {IfIndex{5}, IfIndex{77}};
    const Config config = with_known_tunnels({}, memory, observed);
    EXPECT_TRUE(is_tunnel(vpn, observed, config));
    EXPECT_FALSE(is_tunnel(modem, observed, config)) << "a name is no glob";
}

TEST(HostRouteGateways, AreAFewOfManyAndEachOnce) {
    std::vector<Route> routes;
    for (int i = 1; i <= 20; ++i)
        for (const char* server : {"203.0.113.1", "203.0.113.2"})
            routes.push_back({.destination = {ip(server), 32},
                              .gateway = ip(("192.168.10." + std::to_string(i)).c_str()),
                              .link = IfIndex{2}});
    EXPECT_EQ(host_route_gateways(routes).size(), 8u);
    EXPECT_EQ(host_route_gateways({routes[0], routes[1]}).size(), 1u);
    routes[0].table = TableId{52};
    EXPECT_TRUE(host_route_gateways({routes[0]}).empty()) << "of another table";
}

} // namespace novpn::test
