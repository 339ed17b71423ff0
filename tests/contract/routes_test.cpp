// The contract: routes, and what the kernel takes away without a word.
#include "tests/contract/contract.h"

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

INSTANTIATE_TEST_SUITE_P(On, Contract, both_sides(), name_of);

TEST_P(Contract, AnEmptyTableIsEmptyAndNoError) {
    world->add_link("eth0");
    EXPECT_THAT(routes(kTable, Family::ipv4), IsEmpty());
    EXPECT_THAT(routes(kTable, Family::ipv6), IsEmpty());
}

TEST_P(Contract, ReplaceIsIdempotent) {
    IfIndex eth0 = add_eth0();
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
        ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "2001:db8:a::1")}));
        ASSERT_TRUE(apply(ReplaceRoute{backstop(Family::ipv4)}));
        ASSERT_TRUE(apply(ReplaceRoute{backstop(Family::ipv6)}));
    }
    EXPECT_THAT(routes(kTable, Family::ipv4),
                UnorderedElementsAre(default4(eth0, "192.168.10.1"), backstop(Family::ipv4)));
    EXPECT_THAT(routes(kTable, Family::ipv6),
                UnorderedElementsAre(default6(eth0, "2001:db8:a::1"), backstop(Family::ipv6)));
}

TEST_P(Contract, ReplaceTakesTheOldGatewayAway) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.2")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "2001:db8:a::1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "fe80::2")}));
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(default4(eth0, "192.168.10.2")));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(default6(eth0, "fe80::2")));
}

TEST_P(Contract, ReplaceMovesADefaultToAnotherLink) {
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    world->add_address("wlan0", ip("10.0.0.5"), 24);
    world->add_address("wlan0", ip("2001:db8:b::5"), 64);
    ASSERT_TRUE(apply(ReplaceRoute{backstop(Family::ipv6)}));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "2001:db8:a::1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default4(wlan0, "10.0.0.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(wlan0, "2001:db8:b::1")}));
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(default4(wlan0, "10.0.0.1")));
    EXPECT_THAT(routes(kTable, Family::ipv6),
                UnorderedElementsAre(default6(wlan0, "2001:db8:b::1"), backstop(Family::ipv6)));
}

TEST_P(Contract, ReplaceWithAnotherMetricAddsARoute) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1", 600)}));
    EXPECT_THAT(routes(kTable, Family::ipv4),
                UnorderedElementsAre(default4(eth0, "192.168.10.1"), default4(eth0, "192.168.10.1", 600)));
}

TEST_P(Contract, OnLinkRouteOfIpv6TwiceIsOne) {
    IfIndex eth0 = add_eth0();
    Route on_link = ours(prefix("2001:db8:a::", 64), eth0, std::nullopt, 256);
    ASSERT_TRUE(apply(ReplaceRoute{on_link}));
    ASSERT_TRUE(apply(ReplaceRoute{on_link}));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(on_link));
}

TEST_P(Contract, RoutesOfTwoLinksToOneIpv6PrefixStandSideBySide) {
    // fe80::/64 of every link, for one.
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    Route of_eth0 = ours(prefix("fe80::", 64), eth0, std::nullopt, 256);
    Route of_wlan0 = ours(prefix("fe80::", 64), wlan0, std::nullopt, 256);
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(apply(ReplaceRoute{of_eth0}));
        ASSERT_TRUE(apply(ReplaceRoute{of_wlan0}));
    }
    EXPECT_THAT(routes(kTable, Family::ipv6), UnorderedElementsAre(of_eth0, of_wlan0));
    ASSERT_TRUE(apply(DeleteRoute{of_eth0}));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(of_wlan0));
}

TEST_P(Contract, RefusesAGatewayThatIsNotOnLink) {
    IfIndex eth0 = add_eth0();
    auto refused4 = apply(ReplaceRoute{default4(eth0, "10.1.2.3")});
    ASSERT_FALSE(refused4);
    EXPECT_EQ(refused4.error().code, std::errc::network_unreachable);
    auto refused6 = apply(ReplaceRoute{default6(eth0, "2001:db8:cccc::1")});
    ASSERT_FALSE(refused6);
    EXPECT_EQ(refused6.error().code, std::errc::host_unreachable);
    EXPECT_THAT(routes(kTable, Family::ipv4), IsEmpty());
    EXPECT_THAT(routes(kTable, Family::ipv6), IsEmpty());
}

TEST_P(Contract, TakesAGatewayBehindItsOwnHostRoute) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(ReplaceRoute{ours(prefix("10.1.2.3", 32), eth0)}));
    EXPECT_TRUE(apply(ReplaceRoute{default4(eth0, "10.1.2.3")}));
}

TEST_P(Contract, TakesAGatewayThatNeedNotBeOnLink) {
    IfIndex eth0 = add_eth0();
    Route onlink4 = default4(eth0, "10.9.9.9");
    Route onlink6 = default6(eth0, "2001:db8:cccc::1");
    for (Route* route : {&onlink4, &onlink6}) {
        route->onlink = true;
        ASSERT_TRUE(apply(ReplaceRoute{*route}));
    }
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(onlink4));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(onlink6));
}

TEST_P(Contract, RefusesASourceThatIsNoAddressOfOurs) {
    IfIndex eth0 = add_eth0();
    Route route4 = default4(eth0, "192.168.10.1");
    route4.source = ip("192.168.10.77");
    Route route6 = default6(eth0, "2001:db8:a::1");
    route6.source = ip("2001:db8:a::77");
    for (const Route& route : {route4, route6}) {
        auto refused = apply(ReplaceRoute{route});
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, std::errc::invalid_argument);
    }
}

TEST_P(Contract, RefusesARouteOfALinkThatIsDownOrGone) {
    IfIndex eth0 = add_eth0();
    world->set_up("eth0", false);
    for (const Route& route : {ours(prefix("10.0.0.0", 8), eth0), ours(prefix("2001:db8:9::", 64), eth0)}) {
        auto refused = apply(ReplaceRoute{route});
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, std::errc::network_down);
    }
    auto refused = apply(ReplaceRoute{ours(prefix("10.0.0.0", 8), IfIndex{4242})});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::no_such_device);
}

TEST_P(Contract, DeletingWhatIsNotThereIsDone) {
    IfIndex eth0 = add_eth0();
    EXPECT_TRUE(apply(DeleteRoute{default4(eth0, "192.168.10.1")}));
    EXPECT_TRUE(apply(DeleteRoute{default6(eth0, "2001:db8:a::1")}));
    EXPECT_TRUE(apply(DeleteRoute{backstop(Family::ipv4)}));
    EXPECT_TRUE(apply(DeleteRoute{ours(prefix("10.0.0.0", 8), IfIndex{4242})}));
    EXPECT_TRUE(apply(DeleteRule{lookup_rule(Family::ipv4)}));
    EXPECT_TRUE(apply(DeleteRule{lookup_rule(Family::ipv6)}));
    EXPECT_TRUE(apply(DeleteNft{}));
    EXPECT_TRUE(apply(RemoveCgroup{cgroup}));
}

TEST_P(Contract, DeletesTheRouteItNamesAndNoOther) {
    IfIndex eth0 = add_eth0();
    Route low = default4(eth0, "192.168.10.1", 5);
    Route high = default4(eth0, "192.168.10.2", 6);
    for (const Route& route : {low, high, backstop(Family::ipv4)}) ASSERT_TRUE(apply(ReplaceRoute{route}));
    Route of_another = low;
    of_another.protocol = kStatic;
    Route by_another = low;
    by_another.gateway = ip("192.168.10.9");
    ASSERT_TRUE(apply(DeleteRoute{of_another}));
    ASSERT_TRUE(apply(DeleteRoute{by_another}));
    EXPECT_EQ(routes(kTable, Family::ipv4).size(), 3u);
    ASSERT_TRUE(apply(DeleteRoute{low}));
    EXPECT_THAT(routes(kTable, Family::ipv4), UnorderedElementsAre(high, backstop(Family::ipv4)));
}

TEST_P(Contract, DeletingAnIpv6RouteWithoutAGatewayTakesTheFirstOfItsLinkAndMetric) {
    IfIndex eth0 = add_eth0();
    Route by_gateway = ours(prefix("2001:db8:77::", 48), eth0, ip("fe80::1"));
    Route on_link = ours(prefix("2001:db8:77::", 48), eth0);
    for (const Route& route : {by_gateway, on_link}) ASSERT_TRUE(apply(ReplaceRoute{route}));
    ASSERT_TRUE(apply(DeleteRoute{on_link}));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(on_link));
}

// What the kernel takes away without a word

TEST_P(Contract, ALinkThatGoesDownTakesItsRoutesFromEveryTable) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    for (const Route& route :
         {default4(eth0, "192.168.10.1"), ours(prefix("192.168.10.0", 24), eth0), backstop(Family::ipv4),
          default6(eth0, "2001:db8:a::1"), ours(prefix("2001:db8:a::", 64), eth0), backstop(Family::ipv6)})
        ASSERT_TRUE(apply(ReplaceRoute{route}));
    world->set_up("eth0", false);
    for (Family family : kFamilies) {
        EXPECT_THAT(routes(kTable, family), ElementsAre(backstop(family)));
        EXPECT_THAT(routes(kMainTable, family), IsEmpty());
    }
}

TEST_P(Contract, ALinkThatComesUpAgainHasItsConnectedPrefixOnly) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    world->set_up("eth0", false);
    world->set_up("eth0", true);
    EXPECT_THAT(routes(kTable, Family::ipv4), IsEmpty());
    EXPECT_THAT(routes(kMainTable, Family::ipv4), ElementsAre(Route{.destination = prefix("192.168.10.0", 24),
                                                                    .link = eth0,
                                                                    .source = ip("192.168.10.50"),
                                                                    .scope = kLinkScope,
                                                                    .protocol = kKernelProtocol}));
    EXPECT_THAT(routes(kMainTable, Family::ipv6), IsEmpty()) << "IPv6 addresses do not survive a link that is down";
}

TEST_P(Contract, DeletesTheLowestMetricWhereNoneIsNamed) {
    IfIndex eth0 = add_eth0();
    Route with_metric = ours(prefix("100.64.2.0", 24), eth0, std::nullopt, 1);
    Route without = ours(prefix("100.64.2.0", 24), eth0);
    ASSERT_TRUE(apply(ReplaceRoute{with_metric}));
    ASSERT_TRUE(apply(ReplaceRoute{without}));
    ASSERT_TRUE(apply(DeleteRoute{without}));
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(with_metric));
}

TEST_P(Contract, ADeletedLinkTakesItsRoutes) {
    IfIndex eth0 = add_eth0();
    for (const Route& route : {default4(eth0, "192.168.10.1"), default6(eth0, "2001:db8:a::1"), backstop(Family::ipv4),
                               backstop(Family::ipv6)})
        ASSERT_TRUE(apply(ReplaceRoute{route}));
    world->delete_link("eth0");
    for (Family family : kFamilies) EXPECT_THAT(routes(kTable, family), ElementsAre(backstop(family)));
}

TEST_P(Contract, TheLastIpv4AddressTakesEveryRouteOfItsLink) {
    IfIndex eth0 = add_eth0();
    for (const Route& route : {default4(eth0, "192.168.10.1"), ours(prefix("10.0.0.0", 8), eth0),
                               backstop(Family::ipv4), default6(eth0, "2001:db8:a::1")})
        ASSERT_TRUE(apply(ReplaceRoute{route}));
    world->delete_address("eth0", ip("192.168.10.50"), 24);
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(backstop(Family::ipv4)));
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(default6(eth0, "2001:db8:a::1")));
}

TEST_P(Contract, AnAddressTakesMainsRoutesThatPreferItAsSourceAndLeavesOurs) {
    IfIndex eth0 = add_eth0();
    world->add_address("eth0", ip("10.7.0.2"), 16);
    Route sourced = ours(prefix("10.8.0.0", 16), eth0, ip("192.168.10.1"));
    sourced.source = ip("10.7.0.2");
    Route of_main = sourced;
    of_main.table = kMainTable;
    of_main.protocol = kStatic;
    ASSERT_TRUE(apply(ReplaceRoute{sourced}));
    world->add_route(of_main);
    ASSERT_EQ(routes(kMainTable, Family::ipv4).size(), 3u);
    world->delete_address("eth0", ip("10.7.0.2"), 16);
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(sourced)) << "with a source that is no address any more";
    EXPECT_EQ(routes(kMainTable, Family::ipv4).size(), 1u);
}

TEST_P(Contract, AGatewayStaysInUseWhileItsLinkHasAnotherAddress) {
    IfIndex eth0 = add_eth0();
    world->add_address("eth0", ip("10.7.0.2"), 16);
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    world->delete_address("eth0", ip("192.168.10.50"), 24);
    EXPECT_THAT(routes(kTable, Family::ipv4), ElementsAre(default4(eth0, "192.168.10.1")));
    auto again = apply(ReplaceRoute{default4(eth0, "192.168.10.1", 5)});
    ASSERT_FALSE(again) << "it would not be taken any more";
    EXPECT_EQ(again.error().code, std::errc::network_unreachable);
}

TEST_P(Contract, AnIpv6AddressTakesItsPrefixAndLeavesItsGatewaysRoutesWithoutSource) {
    IfIndex eth0 = add_eth0();
    Route sourced = default6(eth0, "2001:db8:a::1");
    sourced.source = ip("2001:db8:a::50");
    ASSERT_TRUE(apply(ReplaceRoute{sourced}));
    world->delete_address("eth0", ip("2001:db8:a::50"), 64);
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(default6(eth0, "2001:db8:a::1")));
    EXPECT_THAT(routes(kMainTable, Family::ipv6), IsEmpty());
}

TEST_P(Contract, LostCarrierRemovesNothingAndSaysSo) {
    IfIndex eth0 = add_eth0();
    for (const Route& route : {default4(eth0, "192.168.10.1"), default6(eth0, "2001:db8:a::1")})
        ASSERT_TRUE(apply(ReplaceRoute{route}));
    world->set_carrier("eth0", false);
    for (Family family : kFamilies) {
        auto left = routes(kTable, family);
        ASSERT_EQ(left.size(), 1u);
        EXPECT_TRUE(left.front().link_down);
        EXPECT_EQ(routes(kMainTable, family).size(), 1u);
    }
    EXPECT_FALSE(find_link(observe(), eth0)->carrier);
    Route more = ours(prefix("10.5.0.0", 16), eth0, ip("192.168.10.1"));
    ASSERT_TRUE(apply(ReplaceRoute{more}));
    more.link_down = true;
    EXPECT_THAT(routes(kTable, Family::ipv4), testing::Contains(more));
    world->set_carrier("eth0", true);
    EXPECT_THAT(routes(kTable, Family::ipv6), ElementsAre(default6(eth0, "2001:db8:a::1")));
}

TEST_P(Contract, AGatewayIsAskedForItsMacAddressAndForgottenWithTheCarrier) {
    const IfIndex eth0 = add_eth0();
    const MacAddress mac{{0xc0, 0xff, 0xee, 0x00, 0x11, 0x22}};
    const auto seen = [&] { return world->kernel().observe({.place_gateways = true}).value().place_gateways; };
    std::vector<Neighbour> asked, known;
    for (const char* gateway : {"192.168.10.1", "2001:db8:a::1"}) {
        const Neighbour neighbour{.link = eth0, .host = ip(gateway)};
        world->add_route({.destination = any_prefix(family_of(neighbour.host)),
                          .metric = 100,
                          .gateway = neighbour.host,
                          .link = eth0,
                          .protocol = kStatic});
        asked.push_back(neighbour);
        asked.back().state = NeighbourState::incomplete;
        known.push_back(neighbour);
        known.back().state = NeighbourState::reachable;
        known.back().mac = mac;
    }
    EXPECT_THAT(seen(), IsEmpty());
    for (const Neighbour& neighbour : asked) ASSERT_TRUE(apply(ProbeNeighbour{neighbour}));
    EXPECT_EQ(seen(), asked) << "nobody answers";
    for (const Neighbour& neighbour : known) world->set_neighbour("eth0", neighbour.host, mac);
    EXPECT_EQ(seen(), known);
    EXPECT_THAT(world->kernel().observe({}).value().place_gateways, IsEmpty()) << "nobody wants to know";
    world->set_carrier("eth0", false);
    EXPECT_THAT(seen(), IsEmpty());
}

} // namespace

} // namespace novpn::test
