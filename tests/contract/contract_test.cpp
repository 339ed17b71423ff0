// What the agent leans on in a kernel: one body, run on the fake and on Linux. Where they differ the fake is wrong.
// Needs root for Linux: every test has a network namespace of its own.
#include "agent/decide.h"
#include "rules/cgroup.h"
#include "tests/contract/world.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

namespace novpn {

// gtest prints with these.
void PrintTo(const Route& route, std::ostream* stream) { *stream << to_string(route, {}); }
void PrintTo(const Rule& rule, std::ostream* stream) { *stream << to_string(rule); }
void PrintTo(const Operation& operation, std::ostream* stream) { *stream << to_string(operation, {}); }

namespace test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr TableId kTable{7866};
constexpr Mark kMark{0x4e000000, 0xff000000};
constexpr Protocol kKernelProtocol{2};
constexpr std::uint8_t kLinkScope = 253;
constexpr std::uint32_t kMember = 0x4e000000; ///< the mark of a member's packet

address ip(const char* text) { return boost::asio::ip::make_address(text); }
Prefix prefix(const char* network, unsigned length) { return {ip(network), length}; }
const address kInternet4 = ip("203.0.113.10");
const address kInternet6 = ip("2001:db8:ffff::10");

struct Side {
    const char* name;
    std::unique_ptr<World> (*make)();
};
void PrintTo(const Side& side, std::ostream* stream) { *stream << side.name; }

class Contract : public testing::TestWithParam<Side> {
  protected:
    void SetUp() override {
        world = GetParam().make();
        cgroup = world->cgroup_root() + "/novpn";
    }

    Expected<void> apply(const Operation& operation) { return world->kernel().apply(operation); }
    /// Of a table, but those of the loopback link.
    std::vector<Route> routes(TableId table, Family family) {
        Observed observed = observe();
        std::erase_if(observed.routes, [&](const Route& route) {
            const Link* link = find_link(observed, route.link);
            return route.table != table || family_of(route) != family || (link && link->loopback);
        });
        return observed.routes;
    }
    std::vector<Rule> rules_at(Preference preference, Family family = Family::ipv4) {
        Observed observed = observe();
        std::erase_if(observed.rules,
                      [&](const Rule& rule) { return rule.preference != preference || rule.family != family; });
        return observed.rules;
    }
    Observed observe() {
        auto observed = world->kernel().observe({.tables = {kTable, TableId{7867}}, .cgroups = {cgroup}});
        if (!observed) throw std::runtime_error(to_string(observed.error()));
        return *observed;
    }
    std::string leaves_by(const address& destination, std::uint32_t mark = 0) {
        return world->leaves_by({.destination = destination, .mark = mark});
    }

    /// eth0 with 192.168.10.50/24 and 2001:db8:a::50/64.
    IfIndex add_eth0() {
        IfIndex eth0 = world->add_link("eth0");
        world->add_address("eth0", ip("192.168.10.50"), 24);
        world->add_address("eth0", ip("2001:db8:a::50"), 64);
        return eth0;
    }
    static Route ours(const Prefix& destination, IfIndex link, std::optional<address> gateway = std::nullopt,
                      std::uint32_t metric = 0) {
        bool ipv4 = destination.network.is_v4();
        return {.table = kTable,
                .destination = destination,
                .metric = ipv4 || metric ? metric : 1024,
                .gateway = gateway,
                .link = link,
                .scope = ipv4 && !gateway ? kLinkScope : std::uint8_t{0},
                .protocol = kNovpnProtocol};
    }
    static Route default4(IfIndex link, const char* gateway, std::uint32_t metric = 0) {
        return ours(any_prefix(Family::ipv4), link, ip(gateway), metric);
    }
    static Route default6(IfIndex link, const char* gateway) {
        return ours(any_prefix(Family::ipv6), link, ip(gateway));
    }
    static Route backstop(Family family, TableId table = kTable) {
        return {.table = table,
                .type = RouteType::unreachable,
                .destination = any_prefix(family),
                .metric = kBackstopMetric,
                .protocol = kNovpnProtocol};
    }
    static Rule lookup_rule(Family family, std::uint32_t preference = 64) {
        return {.family = family,
                .preference = Preference{preference},
                .table = kTable,
                .mark = kMark,
                .protocol = kNovpnProtocol};
    }
    static XfrmPolicy pass(Family family, XfrmDirection direction, std::uint32_t index, Mark mark = kMark) {
        return {.direction = direction,
                .source = any_prefix(family),
                .destination = any_prefix(family),
                .mark = mark,
                .index = kNovpnPolicyIndex + index * 8 + static_cast<std::uint32_t>(direction)};
    }
    static XfrmPolicy block(Family family, std::uint32_t priority) {
        return {.source = any_prefix(family), .destination = any_prefix(family), .priority = priority, .block = true};
    }
    static Route foreign(const Prefix& destination, IfIndex link, std::optional<address> gateway, std::uint32_t metric,
                         TableId table = kMainTable) {
        Route route = ours(destination, link, gateway, metric);
        route.table = table;
        route.protocol = kStatic;
        return route;
    }
    static NftTable steering(const std::string& cgroup, std::set<IfIndex> links) {
        return {{{.name = "novpn", .mark = kMark, .cgroups = {cgroup}, .links = std::move(links)}}};
    }

    std::unique_ptr<World> world;
    std::string cgroup;
};

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

INSTANTIATE_TEST_SUITE_P(On, Contract, testing::Values(Side{"Fake", make_fake_world}, Side{"Linux", make_linux_world}),
                         [](const auto& tested) { return std::string(tested.param.name); });

// Routes of the agent

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

// Rules

TEST_P(Contract, ARuleAddedTwiceIsOne) {
    for (Family family : kFamilies) {
        ASSERT_TRUE(apply(AddRule{lookup_rule(family)}));
        ASSERT_TRUE(apply(AddRule{lookup_rule(family)}));
        EXPECT_THAT(rules_at(Preference{64}, family), ElementsAre(lookup_rule(family)));
        ASSERT_TRUE(apply(DeleteRule{lookup_rule(family)}));
        EXPECT_THAT(rules_at(Preference{64}, family), IsEmpty());
    }
}

TEST_P(Contract, RulesOfOnePreferenceStandInTheOrderOfTheirInsertion) {
    Rule first = lookup_rule(Family::ipv4);
    first.table = TableId{7867};
    Rule second = lookup_rule(Family::ipv4);
    Rule third{.preference = Preference{64}, .table = TableId{100}, .protocol = kStatic};
    Rule before = lookup_rule(Family::ipv4, 60);
    ASSERT_TRUE(apply(AddRule{first}));
    ASSERT_TRUE(apply(AddRule{second}));
    world->add_rule(third);
    ASSERT_TRUE(apply(AddRule{before}));
    EXPECT_THAT(rules_at(Preference{64}), ElementsAre(first, second, third));
    Observed observed = observe();
    auto at = [&](const Rule& rule) { return std::ranges::find(observed.rules, rule) - observed.rules.begin(); };
    EXPECT_LT(at(before), at(first));
}

TEST_P(Contract, ARuleOfSomebodyElseWithOurSelectorsIsNotOurs) {
    Rule theirs = lookup_rule(Family::ipv4);
    theirs.protocol = kStatic;
    world->add_rule(theirs);
    ASSERT_TRUE(apply(AddRule{lookup_rule(Family::ipv4)}));
    EXPECT_THAT(rules_at(Preference{64}), ElementsAre(theirs, lookup_rule(Family::ipv4)));
    ASSERT_TRUE(apply(DeleteRule{lookup_rule(Family::ipv4)}));
    EXPECT_THAT(rules_at(Preference{64}), ElementsAre(theirs));
}

TEST_P(Contract, EveryRuleOfTheAgentComesBackAsItWasAdded) {
    std::vector<Rule> rules{
        {.preference = Preference{65}, .action = RuleAction::nop, .protocol = kNovpnProtocol},
        {.preference = Preference{63},
         .action = RuleAction::goto_,
         .target = Preference{65},
         .mark = kMark,
         .ip_protocol = std::uint8_t{IPPROTO_UDP},
         .destination_port = PortRange{53, 53},
         .protocol = kNovpnProtocol},
        lookup_rule(Family::ipv4),
    };
    Rule unmarked{.mark = Mark{0, 0xff000000}, .iif = "lo", .protocol = kNovpnProtocol};
    for (std::uint32_t uid : {1000u, 1001u}) {
        Rule& rule = rules.emplace_back(unmarked);
        rule.preference = Preference{70 + uid};
        rule.table = kTable;
        rule.uids = UidRange{uid, uid};
    }
    for (Family family : kFamilies) {
        bool ipv4 = family == Family::ipv4;
        std::vector<Rule> of_family = rules;
        Rule& to = of_family.emplace_back(unmarked);
        to.preference = Preference{66};
        to.table = kTable;
        to.to = ipv4 ? prefix("203.0.113.0", 24) : prefix("2001:db8:ffff::", 48);
        Rule& from = of_family.emplace_back(unmarked);
        from.preference = Preference{62};
        from.action = RuleAction::goto_;
        from.target = Preference{65};
        from.from = ipv4 ? prefix("10.8.0.2", 32) : prefix("2001:db8:8::2", 128);
        for (Rule& rule : of_family) {
            rule.family = family;
            ASSERT_TRUE(apply(AddRule{rule}));
            EXPECT_THAT(rules_at(rule.preference, family), ElementsAre(rule));
        }
        for (const Rule& rule : of_family) {
            ASSERT_TRUE(apply(DeleteRule{rule}));
            EXPECT_THAT(rules_at(rule.preference, family), IsEmpty());
        }
    }
}

TEST_P(Contract, RulesOfOnePreferenceAreDeletedEachForItself) {
    Rule marked = lookup_rule(Family::ipv4);
    std::vector<Rule> left{marked};
    ASSERT_TRUE(apply(AddRule{marked}));
    for (unsigned i = 0; i < 3; ++i) {
        Rule& rule = left.emplace_back(marked);
        rule.mark->value = 0;
        rule.iif = "lo";
        if (i < 2) rule.to = i == 0 ? prefix("203.0.113.0", 24) : prefix("203.0.113.0", 25);
        if (i == 2) rule.uids = UidRange{1000, 1000};
        ASSERT_TRUE(apply(AddRule{rule}));
    }
    EXPECT_THAT(rules_at(Preference{64}), testing::ElementsAreArray(left));
    for (std::size_t at : {2u, 2u, 0u}) {
        ASSERT_TRUE(apply(DeleteRule{left[at]}));
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(at));
        EXPECT_THAT(rules_at(Preference{64}), testing::ElementsAreArray(left));
    }
}

TEST_P(Contract, RulesForSocketsWithoutAMarkGoByDestinationUserAndSource) {
    IfIndex eth0 = add_eth0();
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_route(foreign(any_prefix(Family::ipv4), tun0, std::nullopt, 50));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    Rule to{.preference = Preference{64},
            .table = kTable,
            .mark = Mark{0, 0xff000000},
            .to = prefix("203.0.113.0", 24),
            .iif = "lo",
            .protocol = kNovpnProtocol};
    Rule user = to;
    user.to.reset();
    user.uids = UidRange{1000, 1000};
    Rule past{.preference = Preference{65}, .action = RuleAction::nop, .protocol = kNovpnProtocol};
    Rule around = to;
    around.preference = Preference{63};
    around.action = RuleAction::goto_;
    around.table = {};
    around.target = Preference{65};
    around.to.reset();
    around.from = prefix("10.8.0.2", 32);
    for (const Rule& rule : {past, around, to, user}) ASSERT_TRUE(apply(AddRule{rule}));
    const address other = ip("198.51.100.1");
    EXPECT_EQ(world->leaves_by({.destination = kInternet4}), "eth0");
    EXPECT_EQ(world->leaves_by({.destination = kInternet4, .mark = 0x4f000000}), "tun0") << "in another class";
    EXPECT_EQ(world->leaves_by({.destination = kInternet4, .mark = 0x00ca6c}), "eth0") << "other bits are free";
    EXPECT_EQ(world->leaves_by({.destination = kInternet4, .source = ip("10.8.0.2")}), "tun0");
    EXPECT_EQ(world->leaves_by({.destination = other}), "tun0");
    EXPECT_EQ(world->leaves_by({.destination = other, .uid = 1000}), "eth0");
    EXPECT_EQ(world->leaves_by({.destination = other, .source = ip("10.8.0.2"), .uid = 1000}), "tun0");
    EXPECT_EQ(world->leaves_by({.destination = other, .uid = 1001}), "tun0");
}

// Settings

TEST_P(Contract, SrcValidMarkComesAndGoesWithItsTag) {
    IfIndex eth0 = add_eth0();
    auto settings = [&] {
        const Observed observed = observe();
        const Ipv4Settings& of_link = find_link(observed, eth0)->ipv4;
        return std::pair(of_link.src_valid_mark, of_link.tag);
    };
    EXPECT_EQ(settings(), (std::pair{0u, 0u}));
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(apply(SetSrcValidMark{eth0, true}));
        EXPECT_EQ(settings(), (std::pair{1u, kNovpnTag}));
    }
    EXPECT_EQ(observe().ipv4_of_all.src_valid_mark, 0u);
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(apply(SetSrcValidMark{eth0, false}));
        EXPECT_EQ(settings(), (std::pair{0u, 0u}));
    }
    world->delete_link("eth0");
    EXPECT_TRUE(apply(SetSrcValidMark{eth0, false})) << "it went with the link";
    auto refused = apply(SetSrcValidMark{eth0, true});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::no_such_device);
}

// What a packet does

TEST_P(Contract, TheLongestPrefixWinsThenTheLowestMetric) {
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("wlan0", ip("10.0.0.5"), 24);
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(any_prefix(Family::ipv4), wlan0, ip("10.0.0.1"), 100));
    EXPECT_EQ(leaves_by(kInternet4), "wlan0");
    world->add_route(foreign(prefix("128.0.0.0", 1), tun0, std::nullopt, 900));
    EXPECT_EQ(leaves_by(kInternet4), "tun0");
    EXPECT_EQ(leaves_by(ip("64.0.0.1")), "wlan0");
    EXPECT_EQ(leaves_by(kInternet6), "refused");
}

TEST_P(Contract, TheBackstopStopsWhatTheTableHasNoRouteFor) {
    IfIndex eth0 = add_eth0();
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_address("tun0", ip("2001:db8:8::2"), 64);
    world->add_route(foreign(any_prefix(Family::ipv4), tun0, std::nullopt, 50));
    world->add_route(foreign(any_prefix(Family::ipv6), tun0, std::nullopt, 50));
    for (Family family : kFamilies) {
        const address& internet = family == Family::ipv4 ? kInternet4 : kInternet6;
        ASSERT_TRUE(apply(AddRule{lookup_rule(family)}));
        EXPECT_EQ(leaves_by(internet, kMember), "tun0") << "an empty table is passed over";
        ASSERT_TRUE(apply(ReplaceRoute{backstop(family)}));
        EXPECT_EQ(leaves_by(internet, kMember), "refused");
        EXPECT_EQ(leaves_by(internet, 0x4f000000), "tun0");
        EXPECT_EQ(leaves_by(internet), "tun0");
    }
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "fe80::1")}));
    EXPECT_EQ(leaves_by(kInternet4, kMember | 0x00ca6c), "eth0");
    EXPECT_EQ(leaves_by(kInternet6, kMember), "eth0");
}

TEST_P(Contract, ARuleLeadsPastOthersToItsTarget) {
    IfIndex eth0 = add_eth0();
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_address("tun0", ip("2001:db8:8::2"), 64);
    world->add_route(foreign(any_prefix(Family::ipv4), tun0, std::nullopt, 50));
    world->add_route(foreign(any_prefix(Family::ipv6), tun0, std::nullopt, 50));
    ASSERT_TRUE(apply(ReplaceRoute{default4(eth0, "192.168.10.1")}));
    ASSERT_TRUE(apply(ReplaceRoute{default6(eth0, "fe80::1")}));
    for (Family family : kFamilies) {
        const address& internet = family == Family::ipv4 ? kInternet4 : kInternet6;
        Packet query{.destination = internet, .mark = kMember, .ip_protocol = IPPROTO_UDP, .destination_port = 53};
        Packet other = query;
        other.destination_port = 443;
        Rule around{.family = family,
                    .preference = Preference{63},
                    .action = RuleAction::goto_,
                    .target = Preference{65},
                    .mark = kMark,
                    .ip_protocol = std::uint8_t{IPPROTO_UDP},
                    .destination_port = PortRange{53, 53},
                    .protocol = kNovpnProtocol};
        ASSERT_TRUE(apply(AddRule{lookup_rule(family)}));
        ASSERT_TRUE(apply(AddRule{around}));
        EXPECT_EQ(world->leaves_by(query), "eth0") << "without a rule to go to it is passed over";
        ASSERT_TRUE(apply(AddRule{
            {.family = family, .preference = Preference{65}, .action = RuleAction::nop, .protocol = kNovpnProtocol}}));
        EXPECT_EQ(world->leaves_by(query), "tun0");
        EXPECT_EQ(world->leaves_by(other), "eth0");
    }
}

TEST_P(Contract, AnInvertedMarkRuleCatchesAllOthersAndSuppressPassesDefaultsOver) {
    // wg-quick's pair.
    IfIndex eth0 = add_eth0();
    IfIndex wg0 = world->add_tunnel("wg0");
    world->add_address("wg0", ip("10.8.0.2"), 24);
    world->add_address("wg0", ip("2001:db8:8::2"), 64);
    constexpr TableId kWireguard{51820};
    constexpr std::uint32_t kWireguardMark = 0xca6c;
    for (Family family : kFamilies) {
        bool ipv4 = family == Family::ipv4;
        const address& internet = ipv4 ? kInternet4 : kInternet6;
        world->add_route(
            foreign(any_prefix(family), eth0, ip(ipv4 ? "192.168.10.1" : "2001:db8:a::1"), ipv4 ? 600 : 1024));
        world->add_route(foreign(any_prefix(family), wg0, std::nullopt, ipv4 ? 0 : 1024, kWireguard));
        Rule inverted{.family = family,
                      .preference = Preference{32765},
                      .table = kWireguard,
                      .invert = true,
                      .mark = Mark{kWireguardMark},
                      .protocol = kStatic};
        Rule suppressing{.family = family,
                         .preference = Preference{32764},
                         .table = kMainTable,
                         .suppress_prefix_length = 0,
                         .protocol = kStatic};
        world->add_rule(inverted);
        EXPECT_EQ(leaves_by(ip(ipv4 ? "192.168.10.9" : "2001:db8:a::9")), "wg0");
        world->add_rule(suppressing);
        EXPECT_EQ(leaves_by(ip(ipv4 ? "192.168.10.9" : "2001:db8:a::9")), "eth0");
        EXPECT_EQ(leaves_by(internet), "wg0");
        EXPECT_EQ(leaves_by(internet, kWireguardMark), "eth0");
        EXPECT_THAT(rules_at(Preference{32765}, family), ElementsAre(inverted));
        EXPECT_THAT(rules_at(Preference{32764}, family), ElementsAre(suppressing));
    }
}

TEST_P(Contract, ARouteThatThrowsLetsTheNextRuleDecide) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(AddRule{lookup_rule(Family::ipv4)}));
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    ASSERT_TRUE(apply(ReplaceRoute{{.table = kTable,
                                    .type = RouteType::throw_,
                                    .destination = prefix("203.0.113.0", 24),
                                    .protocol = kNovpnProtocol}}));
    ASSERT_TRUE(apply(ReplaceRoute{backstop(Family::ipv4)}));
    EXPECT_EQ(leaves_by(kInternet4, kMember), "eth0");
    EXPECT_EQ(leaves_by(ip("198.51.100.1"), kMember), "refused");
}

TEST_P(Contract, TheLookSeesTheAnswerForEveryPublicDestination) {
    IfIndex eth0 = add_eth0();
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(prefix("128.0.0.0", 1), tun0, std::nullopt, 0));
    Observed observed = observe();
    std::vector<Lookup> bound;
    std::ranges::copy_if(observed.lookups, std::back_inserter(bound),
                         [](const Lookup& l) { return l.link.has_value(); });
    std::erase_if(observed.lookups, [](const Lookup& l) { return l.link.has_value(); });
    // Bound to the tunnel, the first destination finds neither its half nor the default of another link.
    EXPECT_EQ(bound, (std::vector<Lookup>{{.destination = public_destinations().front(), .link = tun0},
                                          {.destination = ip("2001:500::1"), .link = tun0}}));
    ASSERT_EQ(observed.lookups.size(), public_destinations().size());
    for (const Lookup& lookup : observed.lookups) {
        SCOPED_TRACE(lookup.destination.to_string());
        if (lookup.destination.is_v6()) {
            EXPECT_FALSE(lookup.answer);
            continue;
        }
        ASSERT_TRUE(lookup.answer);
        bool upper_half = contains(prefix("128.0.0.0", 1), lookup.destination);
        EXPECT_EQ(*lookup.answer, upper_half ? foreign(prefix("128.0.0.0", 1), tun0, std::nullopt, 0)
                                             : foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    }
}

TEST_P(Contract, APacketBoundToATunnelFindsTheRouteThatStandsBehind) {
    IfIndex eth0 = add_eth0();
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 100));
    world->add_route(foreign(any_prefix(Family::ipv4), tun0, std::nullopt, 600));
    Observed observed = observe();
    auto bound = std::ranges::find_if(observed.lookups, [](const Lookup& l) { return l.link.has_value(); });
    ASSERT_NE(bound, observed.lookups.end());
    EXPECT_EQ(bound->answer, foreign(any_prefix(Family::ipv4), tun0, std::nullopt, 600));
}

// IPsec policies

TEST_P(Contract, PoliciesOfTheAgentComeBackAsTheyWereAddedTheYoungestFirst) {
    std::vector<XfrmPolicy> added;
    std::uint32_t number = 0;
    for (Family family : kFamilies)
        for (XfrmDirection direction : kXfrmDirections) added.push_back(pass(family, direction, number++));
    for (const XfrmPolicy& policy : added) ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    EXPECT_EQ(observe().policies, std::vector(added.rbegin(), added.rend()));
    for (const XfrmPolicy& policy : added) ASSERT_TRUE(apply(DeleteXfrmPolicy{policy}));
    EXPECT_THAT(observe().policies, IsEmpty());
    ASSERT_TRUE(apply(DeleteXfrmPolicy{added.front()})) << "what is not there is deleted";
}

TEST_P(Contract, APolicyOfSomebodyElseComesBackWithWhatItSelects) {
    XfrmPolicy policy{.direction = XfrmDirection::in,
                      .source = prefix("2001:db8:a::", 64),
                      .destination = prefix("2001:db8:b::7", 128),
                      .ip_protocol = std::uint8_t{IPPROTO_UDP},
                      .destination_port = {500, 0xffff},
                      .mark = Mark{0x10, 0xff},
                      .if_id = 42,
                      .priority = 1234,
                      .index = 80,
                      .block = true};
    world->add_policy(policy);
    EXPECT_THAT(observe().policies, ElementsAre(policy));
}

TEST_P(Contract, ASecondPolicyOfTheSameSelectorAndMarkIsRefusedWhateverItsPriority) {
    ASSERT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::out, 0)}));
    XfrmPolicy other = pass(Family::ipv4, XfrmDirection::out, 1);
    other.priority = 7;
    auto refused = apply(AddXfrmPolicy{other});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::file_exists);
    EXPECT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::out, 1, Mark{0x4f000000, 0xff000000})}));
    EXPECT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::in, 1)}));
}

TEST_P(Contract, AnIndexInUseIsNotGivenTwice) {
    XfrmPolicy first = pass(Family::ipv4, XfrmDirection::out, 0);
    XfrmPolicy second = pass(Family::ipv6, XfrmDirection::out, 0);
    for (const XfrmPolicy& policy : {first, second}) ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    auto policies = observe().policies;
    ASSERT_EQ(policies.size(), 2u);
    EXPECT_EQ(policies[1], first);
    EXPECT_NE(policies[0].index, second.index);
    EXPECT_FALSE(owned_by_us(policies[0]));
}

TEST_P(Contract, DeletingAPolicyNamesItsMarkToo) {
    XfrmPolicy policy = pass(Family::ipv6, XfrmDirection::fwd, 3);
    ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    XfrmPolicy other = policy;
    other.mark = Mark{0x4f000000, 0xff000000};
    ASSERT_TRUE(apply(DeleteXfrmPolicy{other}));
    EXPECT_THAT(observe().policies, ElementsAre(policy));
}

TEST_P(Contract, TheLowestPriorityIsTakenAndOfTwoTheOlder) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("2001:db8:a::1"), 1024));
    for (auto [family, destination] : {std::pair{Family::ipv4, kInternet4}, std::pair{Family::ipv6, kInternet6}}) {
        EXPECT_FALSE(world->is_blocked(destination, 0));
        world->add_policy(block(family, 1));
        EXPECT_TRUE(world->is_blocked(destination, kMember));
        XfrmPolicy ours = pass(family, XfrmDirection::out, family == Family::ipv4 ? 0 : 1);
        ASSERT_TRUE(apply(AddXfrmPolicy{ours}));
        EXPECT_FALSE(world->is_blocked(destination, kMember));
        EXPECT_TRUE(world->is_blocked(destination, 0));
        XfrmPolicy younger = block(family, 0);
        younger.source = prefix_of(destination.is_v4() ? ip("192.168.10.0") : ip("2001:db8:a::"), 24);
        world->add_policy(younger);
        EXPECT_FALSE(world->is_blocked(destination, kMember)) << "of the same priority as ours, and younger";
        ASSERT_TRUE(apply(DeleteXfrmPolicy{ours}));
        ASSERT_TRUE(apply(AddXfrmPolicy{ours}));
        EXPECT_TRUE(world->is_blocked(destination, kMember)) << "of the same priority as ours, and older";
    }
}

// Marking

TEST_P(Contract, TheNftTableAndItsElementsComeBackAsTheyWereWritten) {
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    EXPECT_FALSE(observe().nft.present);
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    std::uint64_t id = observe().cgroups.at(cgroup);
    NftTable table = steering(cgroup, {eth0});
    ASSERT_TRUE(apply(ReplaceNft{table}));
    ObservedNft wanted{.present = true,
                       .intact = true,
                       .structure = structure_of(table),
                       .members = {{"novpn", cgroup_level(cgroup), id}},
                       .links = {{"novpn", eth0}}};
    EXPECT_EQ(observe().nft, wanted);

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AddLink{{"novpn", wlan0}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveLink{{"novpn", eth0}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveMember{*wanted.members.begin()}));
    wanted.links = {{"novpn", wlan0}};
    wanted.members.clear();
    EXPECT_EQ(observe().nft, wanted);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AddMember{"novpn", cgroup}));
    wanted.members = {{"novpn", cgroup_level(cgroup), id}};
    EXPECT_EQ(observe().nft, wanted);

    table.classes.front().dns_by_vpn = false;
    ASSERT_TRUE(apply(ReplaceNft{table}));
    wanted.structure = structure_of(table);
    wanted.links = {{"novpn", eth0}};
    EXPECT_EQ(observe().nft, wanted);
    ASSERT_TRUE(apply(DeleteNft{}));
    EXPECT_EQ(observe().nft, ObservedNft{});
}

TEST_P(Contract, TheRedirectsComeBackAsTheyWereWritten) {
    const Mark mark{.value = 0x4e000000, .mask = 0xff000000};
    const Resolvers resolvers{{ip("127.0.0.53"), ip("192.168.10.1")},
                              {ip("10.8.0.1"), std::nullopt},
                              {ip("2001:db8:8::1"), ip("2001:db8:a::1")}};
    const std::string program = redirect_program_of(mark);
    auto classes = [&] { return observe().redirects.classes; };
    using Classes = decltype(classes());
    EXPECT_EQ(observe().redirects.unavailable, "");
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_FALSE(apply(AttachRedirect{"novpn", cgroup})) << "nothing is pinned";
    EXPECT_FALSE(apply(SetResolvers{"novpn", resolvers})) << "nothing is pinned";
    ASSERT_TRUE(apply(PinRedirect{"novpn", mark}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, {}, {}}}}));
    EXPECT_EQ(observe().birth_marks.classes.size(), 0u) << "it is not taken for a mark at birth";

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AttachRedirect{"novpn", cgroup}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(SetResolvers{"novpn", resolvers}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, resolvers, {cgroup}}}}));
    const Resolvers fewer{{ip("127.0.0.53"), ip("10.20.0.1")}};
    ASSERT_TRUE(apply(SetResolvers{"novpn", fewer}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, fewer, {cgroup}}}}));
    ASSERT_TRUE(apply(PinBirthMark{"novpn", {.mark = mark, .taken = 0xff000000}}));
    EXPECT_EQ(classes().size(), 1u) << "nor a mark at birth for it";
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(DetachRedirect{"novpn", cgroup}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, fewer, {}}}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnpinRedirect{"novpn"}));
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(UnpinBirthMark{"novpn"}));
}

TEST_P(Contract, NetClsComesBackAsItWasWritten) {
    const std::string directory = testing::TempDir() + "novpn-contract-net_cls";
    auto net_cls = [&] { return world->kernel().observe({.net_cls = true})->net_cls; };
    const auto root = cgroup_root_of_this_netns(); // what is below another is another agent's
    ASSERT_TRUE(root);
    const std::string ours = *root + "/novpn";
    using Cgroups = std::map<std::string, std::uint32_t>;
    ASSERT_EQ(net_cls().unavailable, "");
    ASSERT_EQ(net_cls().mount, "");
    EXPECT_FALSE(apply(SetClassid{directory, ours, 0x100001})) << "not mounted";
    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(MountNetCls{directory}));
    EXPECT_EQ(net_cls().mount, directory);
    EXPECT_TRUE(net_cls().mounted_by_us);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(SetClassid{directory, ours, 0x100001}));
    EXPECT_EQ(net_cls().ours, (Cgroups{{ours, 0x100001}}));
    ASSERT_TRUE(apply(SetClassid{directory, ours, 0xffffffff}));
    EXPECT_EQ(net_cls().ours, (Cgroups{{ours, 0xffffffff}}));
    EXPECT_FALSE(world->kernel().place_in_net_cls(ours + "-absent", getpid()));
    ASSERT_TRUE(world->kernel().place_in_net_cls(ours, getpid()));
    EXPECT_EQ(world->kernel().net_cls_of(getpid()), ours);
    EXPECT_EQ(world->kernel().net_cls_processes(ours), std::vector{getpid()});
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveNetClsCgroup{directory, ours}));
    EXPECT_EQ(net_cls().ours, Cgroups{});
    EXPECT_NE(world->kernel().net_cls_of(getpid()), ours) << "it was moved out";
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnmountNetCls{directory}));
    EXPECT_EQ(net_cls().mount, "");
}

TEST_P(Contract, TheMarkAtBirthComesBackAsItWasWritten) {
    const BirthMark birth{.mark = {.value = 0x4e000000, .mask = 0xff000000}, .taken = 0xff000000};
    const BirthMark other{.mark = {.value = 0x4f000000, .mask = 0xff000000}, .taken = 0xff000000};
    const std::string inner = cgroup + "/inner";
    auto classes = [&] { return observe().birth_marks.classes; };
    using Classes = decltype(classes());
    EXPECT_EQ(observe().birth_marks.unavailable, "");
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_FALSE(apply(AttachBirthMark{"novpn", cgroup})) << "nothing is pinned";
    ASSERT_TRUE(apply(PinBirthMark{"novpn", birth}));
    ASSERT_TRUE(apply(PinBirthMark{"games", other}));
    EXPECT_EQ(classes(), (Classes{{"games", {program_of(other), {}}}, {"novpn", {program_of(birth), {}}}}));
    EXPECT_FALSE(apply(AttachBirthMark{"novpn", inner})) << "no such cgroup";

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AttachBirthMark{"novpn", cgroup}));
    ASSERT_TRUE(apply(AttachBirthMark{"games", cgroup})) << "beside the other";
    EXPECT_EQ(classes(), (Classes{{"games", {program_of(other), {cgroup}}}, {"novpn", {program_of(birth), {cgroup}}}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(DetachBirthMark{"games", cgroup}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnpinBirthMark{"games"}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(birth), {cgroup}}}}));
    ASSERT_TRUE(apply(RemoveCgroup{cgroup}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(birth), {}}}})) << "the cgroup took it along";
    ASSERT_TRUE(apply(DetachBirthMark{"novpn", cgroup})) << "the cgroup is gone";
    ASSERT_TRUE(apply(PinBirthMark{"novpn", other}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(other), {}}}}));
    ASSERT_TRUE(apply(UnpinBirthMark{"novpn"}));
    EXPECT_EQ(classes(), Classes{});
}

TEST_P(Contract, UsersAndDestinationsComeBackAsTheyWereWritten) {
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    NftTable table = steering(cgroup, {});
    ClassMarking& c = table.classes.front();
    c.users = {1, 1000};
    c.destinations = {prefix("0.0.0.0", 8),      prefix("198.18.0.0", 16),   prefix("198.19.0.0", 16),
                      prefix("203.0.113.7", 32), prefix("255.0.0.0", 8),     prefix("2001:db8::", 32),
                      prefix("2001:db9::", 127), prefix("2001:db9::2", 128), prefix("ff00::", 8)};
    ASSERT_TRUE(apply(ReplaceNft{table}));
    ObservedNft wanted = observe().nft;
    EXPECT_TRUE(wanted.intact);
    EXPECT_THAT(wanted.users, ElementsAre(UserElement{"novpn", 1}, UserElement{"novpn", 1000}));
    std::set<Prefix> found;
    for (const DestinationElement& element : wanted.destinations) found.insert(element.prefix);
    EXPECT_EQ(found, c.destinations);

    // One in place of two neighbours, and a part in place of the whole.
    ElementChange change{.users_to_remove = {{"novpn", 1}},
                         .users_to_add = {{"novpn", 2}},
                         .destinations_to_remove = {{"novpn", prefix("198.18.0.0", 16)},
                                                    {"novpn", prefix("198.19.0.0", 16)},
                                                    {"novpn", prefix("ff00::", 8)},
                                                    {"novpn", prefix("255.0.0.0", 8)}},
                         .destinations_to_add = {{"novpn", prefix("198.18.0.0", 15)},
                                                 {"novpn", prefix("ff02::", 16)},
                                                 {"novpn", prefix("255.255.255.255", 32)}}};
    ASSERT_TRUE(apply(ChangeElements{change}));
    for (const auto& user : change.users_to_remove) wanted.users.erase(user);
    for (const auto& destination : change.destinations_to_remove) wanted.destinations.erase(destination);
    wanted.users.merge(change.users_to_add);
    wanted.destinations.merge(change.destinations_to_add);
    EXPECT_EQ(observe().nft, wanted);
}

TEST_P(Contract, CgroupsOfOthersComeAndGoByTheirIds) {
    auto seen = [&] { return world->kernel().observe({.strays = true, .others = true})->others; };
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    const std::string other = world->add_other();
    ASSERT_TRUE(seen().contains(other));
    const SeenCgroup first = seen().at(other);
    EXPECT_EQ(first.owner, 0u);
    EXPECT_EQ(world->kernel().cgroup_ids(other), std::set{first.id});
    EXPECT_TRUE(world->kernel().observe({})->others.empty()) << "nobody selects any";

    NftTable table = steering(cgroup, {});
    table.levels = {1, 2, 3};
    table.classes.front().others = {{other, first.id}};
    ASSERT_TRUE(apply(ReplaceNft{table}));
    const std::set<MemberElement> own{{"novpn", cgroup_level(cgroup), observe().cgroups.at(cgroup)}};
    const MemberElement element{"novpn", 1, first.id};
    std::set<MemberElement> wanted = own;
    wanted.insert(element);
    EXPECT_EQ(observe().nft.members, wanted);
    EXPECT_EQ(observe().nft.structure, structure_of(table));

    world->remove_other();
    EXPECT_FALSE(seen().contains(other));
    (void)world->add_other();
    const MemberElement next{"novpn", 1, seen().at(other).id};
    EXPECT_NE(next, element) << "another one of that path has another id";
    ASSERT_TRUE(apply(ChangeElements{{.members_to_remove = {element}, .members_to_add = {next}}}));
    wanted = own;
    wanted.insert(next);
    EXPECT_EQ(observe().nft.members, wanted) << "also of a cgroup that is gone";
    EXPECT_FALSE(apply(ChangeElements{{.members_to_remove = {element}}})) << "all or nothing";
    EXPECT_EQ(observe().nft.members, wanted);
}

TEST_P(Contract, AClassWithoutAGuardHasNoSetOfLinks) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    NftTable table = steering(cgroup, {eth0});
    table.classes.front().guarded = false;
    ASSERT_TRUE(apply(ReplaceNft{table}));
    EXPECT_TRUE(observe().nft.intact);
    EXPECT_TRUE(observe().nft.links.empty());
    EXPECT_EQ(observe().nft.members.size(), 1u);
}

TEST_P(Contract, ElementsNeedTheirTable) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    for (const Operation& operation : {Operation(AddMember{"novpn", cgroup}), Operation(AddLink{{"novpn", eth0}})}) {
        auto refused = apply(operation);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, std::errc::no_such_file_or_directory);
    }
    EXPECT_TRUE(apply(RemoveMember{{"novpn", 2, 42}}));
    EXPECT_TRUE(apply(RemoveLink{{"novpn", eth0}}));
}

TEST_P(Contract, MarkingNeedsItsCgroup) {
    auto refused = apply(ReplaceNft{steering(cgroup, {})});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::no_such_file_or_directory);
    EXPECT_FALSE(observe().nft.present);
}

TEST_P(Contract, ACgroupThatIsMadeAgainHasAnotherId) {
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    std::uint64_t id = observe().cgroups.at(cgroup);
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_EQ(observe().cgroups.at(cgroup), id) << "one that exists is left alone";
    ASSERT_TRUE(apply(RemoveCgroup{cgroup}));
    EXPECT_THAT(observe().cgroups, IsEmpty());
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_NE(observe().cgroups.at(cgroup), id);
}

// The whole agent

class WholeAgent : public Contract {
  protected:
    /// A look, a decision and the operations that it asks for, each of which the kernel takes.
    Plan pass() {
        Observed observed = *world->kernel().observe(scope());
        Desired desired = decide(observed, config, memory, world->cgroup_root());
        memory = desired.memory;
        Plan plan = diff(observed, desired);
        for (const Operation& operation : plan) {
            auto done = apply(operation);
            EXPECT_TRUE(done) << to_string(operation, observed) << ": " << to_string(done.error());
        }
        return plan;
    }
    void settles() {
        EXPECT_FALSE(pass().empty());
        EXPECT_THAT(pass(), IsEmpty());
    }
    void release() {
        Observed observed = *world->kernel().observe(scope());
        for (const Operation& operation : diff(observed, Desired{})) EXPECT_TRUE(apply(operation));
    }
    Scope scope() const { return {.tables = {kTable}, .strays = true, .cgroup_root = world->cgroup_root()}; }

    Config config;
    Memory memory;
};

INSTANTIATE_TEST_SUITE_P(On, WholeAgent,
                         testing::Values(Side{"Fake", make_fake_world}, Side{"Linux", make_linux_world}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST_P(WholeAgent, APlanAppliedLeavesNothingToDo) {
    // The stand-ins for physical links are of kind veth, which is no tunnel.
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("eth0", ip("fe80::50"), 64);
    world->add_address("wlan0", ip("fe80::51"), 64);
    world->add_address("wlan0", ip("10.0.0.5"), 24);
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_address("tun0", ip("2001:db8:8::2"), 64);
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(any_prefix(Family::ipv4), wlan0, ip("10.0.0.1"), 700));
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("fe80::1"), 1024));
    world->add_route(foreign(prefix("172.16.0.0", 12), eth0, ip("192.168.10.254"), 600));
    auto main_before = routes(kMainTable, Family::ipv4);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "eth0");

    // Take-overs: both halves, then the physical default deleted, and both back.
    for (const char* half : {"0.0.0.0", "128.0.0.0"}) world->add_route(foreign(prefix(half, 1), tun0, std::nullopt, 0));
    EXPECT_THAT(pass(), IsEmpty()) << "a split takeover needs no change";
    world->add_route(foreign(any_prefix(Family::ipv6), tun0, std::nullopt, 50));
    world->delete_route(foreign(any_prefix(Family::ipv6), eth0, ip("fe80::1"), 1024));
    EXPECT_THAT(pass(), IsEmpty()) << "the uplink is remembered";
    EXPECT_EQ(leaves_by(kInternet4), "tun0");
    EXPECT_EQ(leaves_by(kInternet6), "tun0");
    EXPECT_EQ(leaves_by(kInternet4, kMember), "eth0");
    EXPECT_EQ(leaves_by(kInternet6, kMember), "eth0");

    // The uplink goes: the other one, then none.
    world->set_up("eth0", false);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "wlan0");
    EXPECT_EQ(leaves_by(kInternet6, kMember), "refused");
    world->set_up("wlan0", false);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "refused");
    EXPECT_EQ(leaves_by(kInternet4), "tun0");

    world->set_up("wlan0", true);
    world->add_route(foreign(any_prefix(Family::ipv4), wlan0, ip("10.0.0.1"), 700));
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "wlan0");

    release();
    Observed left = *world->kernel().observe(scope());
    EXPECT_TRUE(std::ranges::none_of(left.routes, [](const Route& r) { return r.protocol == kNovpnProtocol; }));
    EXPECT_TRUE(std::ranges::none_of(left.rules, [](const Rule& r) { return r.protocol == kNovpnProtocol; }));
    EXPECT_FALSE(left.nft.present);
    EXPECT_THAT(left.cgroups, IsEmpty());
}

TEST_P(WholeAgent, AChangedIpv6RouteOfTheLanIsReplaced) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("2001:db8:a::1"), 1024));
    Route lan = foreign(prefix("2001:db8:77::", 48), eth0, ip("2001:db8:a::7"), 1024);
    world->add_route(lan);
    settles();
    world->delete_route(lan);
    lan.source = ip("2001:db8:a::50");
    world->add_route(lan);
    settles();
}

} // namespace

} // namespace test

} // namespace novpn
