// The mirror: what is answered before the next look, and what is left to it.
#include "agent/agent.h"

#include "tests/support/fake_kernel.h"

#include <gtest/gtest.h>
#include <random>

namespace novpn::test {

namespace {

address ip(const char* text) { return boost::asio::ip::make_address(text); }

class MirrorTest : public testing::Test {
  protected:
    MirrorTest() {
        wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        kernel.add_route(by("192.168.10.1"));
    }
    void start(const Config& config = {}) {
        agent.emplace(kernel, config, AgentSetup{.cgroup_root = "novpn-1"});
        ASSERT_TRUE(agent->start());
        agent->trust_mirror();
    }
    Route by(const char* gateway, std::uint32_t metric = 600) const {
        return {.destination = any_prefix(Family::ipv4), .metric = metric, .gateway = ip(gateway), .link = wlan0};
    }
    /// Somebody does `ip route replace`, and the agent hears of it.
    bool replaced(const Route& route) {
        EXPECT_TRUE(kernel.replace_route(route));
        return answered({.added = true, .replaces = true, .hops = {route}});
    }
    bool added(const Route& route) {
        kernel.add_route(route);
        return answered({.added = true, .hops = {route}});
    }
    bool deleted(const Route& route) {
        EXPECT_TRUE(kernel.delete_route(route));
        return answered({.hops = {route}});
    }
    /// Whether no look is due at once.
    bool answered(const RouteChange& change) {
        const auto now = Clock::now();
        const Heard heard = agent->heard_of_default(change, now);
        return heard == Heard::unanswered ? agent->catch_up({family_of(change.hops.front())}, now)
                                          : heard == Heard::answered;
    }
    Pass pass() { return agent->reconcile("test", Clock::now(), Depth::usual); }
    std::optional<address> class_gateway(TableId table = ClassConfig{}.table) const {
        for (const Route& route : kernel.routes())
            if (route.table == table && is_default(route) && route.type == RouteType::unicast &&
                family_of(route) == Family::ipv4)
                return route.gateway;
        return std::nullopt;
    }

    FakeKernel kernel;
    IfIndex wlan0;
    std::optional<Agent> agent;
};

/// One link that may be the uplink, a tunnel, and whatever defaults come and go.
TEST(MirrorReply, SaysWhatTheWholeDecisionWouldSay) {
    std::mt19937 random(1);
    const auto any_of = [&](std::size_t count) {
        return std::uniform_int_distribution<std::size_t>(0, count - 1)(random);
    };
    constexpr IfIndex kWlan0{2}, kEth0{3}, kTun0{4};
    int quick = 0, answers = 0;
    for (int round = 0; round < 400; ++round) {
        Observed observed;
        observed.links = {{.index = kWlan0, .name = "wlan0", .up = true, .carrier = true},
                          {.index = kEth0, .name = "eth0", .up = true, .carrier = round % 8 == 0},
                          {.index = kTun0, .name = "tun0", .kind = "tun", .up = true, .carrier = true}};
        observed.addresses = {{.link = kWlan0, .local = ip("192.168.10.50"), .prefix_length = 24},
                              {.link = kWlan0, .local = ip("192.168.10.51"), .prefix_length = 28},
                              {.link = kEth0, .local = ip("192.168.20.50"), .prefix_length = 24},
                              {.link = kTun0, .local = ip("10.8.0.2"), .prefix_length = 24},
                              {.link = kWlan0, .local = ip("fe80::50"), .prefix_length = 64},
                              {.link = kWlan0, .local = ip("2001:db8:a::50"), .prefix_length = 64}};
        Config config;
        Desired desired;
        for (const auto& [gateway, metric] : {std::pair{"192.168.10.1", 0u}, std::pair{"fe80::1", 1024u}})
            desired.routes.push_back({.table = config.classes.front().table,
                                      .destination = any_prefix(family_of(ip(gateway))),
                                      .metric = metric,
                                      .gateway = ip(gateway),
                                      .link = kWlan0,
                                      .protocol = kNovpnProtocol});
        desired.nft.classes = {{.name = "novpn", .links = {kWlan0, kEth0}}};
        Mirror mirror;
        Memory memory;
        mirror.reflect(observed, desired, false);
        mirror.prepare(config, memory);
        mirror.trust();
        for (int step = 0; step < 12 && mirror.is_trusted(); ++step) {
            constexpr const char* kGateways[] = {"192.168.10.1", "192.168.10.60", "192.168.10.254", "192.168.20.1",
                                                 "fe80::1",      "fe80::2",       "2001:db8:a::1",  "2001:db8:b::1"};
            constexpr IfIndex kOften[] = {kWlan0, kWlan0, kWlan0, kEth0, kTun0};
            const address gateway = ip(kGateways[any_of(std::size(kGateways))]);
            Route route{.destination = any_prefix(family_of(gateway)),
                        .metric = static_cast<std::uint32_t>(any_of(3) * 100),
                        .gateway = gateway,
                        .link = kOften[any_of(std::size(kOften))]};
            if (any_of(4) == 0) route.protocol = Protocol{9};
            if (any_of(4) == 0 && gateway.is_v4()) route.source = ip("192.168.10.51");
            if (any_of(8) == 0) route.onlink = true;
            if (!mirror.take({.added = true, .replaces = true, .hops = {route}})) break;
            Memory of_reply = memory;
            const auto reply = mirror.reply_to(route);
            if (reply) mirror.remember_reply_to(route, of_reply);
            const auto whole = defaults_to_replace(mirror, family_of(gateway), config, memory);
            if (reply) {
                EXPECT_EQ(reply, whole);
                EXPECT_EQ(of_reply, memory);
            }
            quick += reply.has_value();
            answers += whole && !whole->empty();
            for (const Route& own : whole.value_or(std::vector<Route>{})) mirror.take(own);
        }
    }
    EXPECT_GT(quick, answers / 3) << "what is the most frequent";
}

} // namespace

TEST_F(MirrorTest, AnswersANewGatewayBeforeTheNextLook) {
    start();
    EXPECT_TRUE(replaced(by("192.168.10.254"))) << "the look can wait";
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
    EXPECT_EQ(pass().operations, 1u) << "the look finds all done, and tells of it";
    EXPECT_EQ(pass().operations, 0u);
}

TEST_F(MirrorTest, AnswersForEveryClass) {
    Config config;
    ClassConfig second;
    second.name = "second";
    second.table = TableId{7867};
    second.mark = Mark{0x4f000000, 0xff000000};
    second.preference = Preference{68};
    config.classes.push_back(second);
    start(config);
    EXPECT_TRUE(replaced(by("192.168.10.254")));
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
    EXPECT_EQ(class_gateway(second.table), ip("192.168.10.254"));
}

TEST_F(MirrorTest, LeavesAloneWhatStaysRight) {
    start();
    int writes = 0;
    kernel.refuse = [&](const Operation&) {
        ++writes;
        return std::optional<Error>();
    };
    EXPECT_TRUE(added(by("192.168.10.1", 700)));
    EXPECT_TRUE(deleted(by("192.168.10.1", 600)));
    EXPECT_EQ(writes, 0);
}

TEST_F(MirrorTest, RemembersTheGatewayThatATunnelDisplacesBeforeTheLook) {
    start();
    const IfIndex tun0 = kernel.add_link(
        {.name = "tun0", .kind = "tun", .hardware = 65534, .up = true, .carrier = true, .point_to_point = true});
    kernel.add_address("tun0", ip("10.8.0.2"), 24);
    (void)pass(); // links are news of what no mirror follows
    agent->trust_mirror();
    EXPECT_TRUE(replaced(by("192.168.10.254")));
    EXPECT_TRUE(replaced({.destination = any_prefix(Family::ipv4), .metric = 600, .link = tun0}));
    (void)pass();
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
}

TEST_F(MirrorTest, AnswersNothingUntilALookIsKnownToHaveSeenAll) {
    start();
    (void)pass();
    EXPECT_FALSE(replaced(by("192.168.10.254")));
    EXPECT_EQ(class_gateway(), ip("192.168.10.1"));
    (void)pass();
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
    agent->trust_mirror();
    agent->doubt_mirror();
    EXPECT_FALSE(replaced(by("192.168.10.1")));
}

TEST_F(MirrorTest, AnswersWithAnotherLinkAndAsksForTheLookAtOnce) {
    const IfIndex eth0 = kernel.add_link({.name = "eth0", .up = true, .carrier = true});
    kernel.add_address("eth0", ip("10.0.0.5"), 24);
    start();
    Route wired{.destination = any_prefix(Family::ipv4), .metric = 100, .gateway = ip("10.0.0.1"), .link = eth0};
    EXPECT_FALSE(added(wired));
    EXPECT_EQ(class_gateway(), ip("10.0.0.1"));
}

TEST_F(MirrorTest, LeavesALinkThatTheGuardDoesNotKnowToTheLook) {
    const IfIndex wwan0 = kernel.add_link({.name = "wwan0", .up = true, .carrier = true});
    kernel.add_address("wwan0", ip("10.0.0.5"), 32); // on its own, with no prefix to copy
    start();
    EXPECT_FALSE(added({.destination = any_prefix(Family::ipv4), .metric = 100, .link = wwan0}));
    EXPECT_EQ(class_gateway(), ip("192.168.10.1")) << "the guard would drop all";
    (void)pass();
    EXPECT_EQ(class_gateway(), std::nullopt);
}

TEST_F(MirrorTest, LeavesANextHopThatIsNotAloneToTheLook) {
    start();
    Route first = by("192.168.10.2");
    Route second = by("192.168.10.3");
    first.next_hops = second.next_hops = 2;
    EXPECT_FALSE(answered({.added = true, .replaces = true, .hops = {first, second}}));
    EXPECT_EQ(class_gateway(), ip("192.168.10.1"));
}

TEST_F(MirrorTest, LeavesARouteAppendedInTheSamePlaceToTheLook) {
    start();
    EXPECT_FALSE(answered({.added = true, .hops = {by("192.168.10.9")}}));
    EXPECT_EQ(class_gateway(), ip("192.168.10.1"));
}

TEST_F(MirrorTest, AnswersWhatCameTogetherByItsLast) {
    const IfIndex tun0 = kernel.add_link({.name = "tun0", .kind = "tun", .up = true, .carrier = true});
    kernel.add_address("tun0", ip("10.8.0.2"), 24);
    start();
    const auto now = Clock::now();
    const Route before = by("192.168.10.1", 600);
    Route by_tunnel = before;
    by_tunnel.link = tun0;
    by_tunnel.gateway = ip("10.8.0.1");
    by_tunnel.metric = 50;
    const Route after = by("192.168.10.254", 100);
    EXPECT_TRUE(kernel.delete_route(before));
    kernel.add_route(by_tunnel);
    kernel.add_route(after);
    EXPECT_EQ(agent->heard_of_default({.hops = {before}}, now), Heard::unanswered);
    EXPECT_EQ(agent->heard_of_default({.added = true, .hops = {by_tunnel}}, now), Heard::unanswered);
    EXPECT_EQ(class_gateway(), ip("192.168.10.1")) << "nothing is lost meanwhile";
    EXPECT_EQ(agent->heard_of_default({.added = true, .hops = {after}}, now), Heard::answered);
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
    EXPECT_EQ(pass().operations, 1U) << "which tells of the answer alone";
}

TEST_F(MirrorTest, LeavesAnUplinkThatIsGoneToTheLook) {
    start();
    kernel.set_carrier("wlan0", false);
    (void)pass();
    agent->trust_mirror();
    EXPECT_FALSE(replaced(by("192.168.10.254")));
}

TEST_F(MirrorTest, AnswersAsTheSiteHasIt) {
    const IfIndex eth0 = kernel.add_link({.name = "eth0", .up = true, .carrier = true});
    kernel.add_address("eth0", ip("10.0.0.5"), 24);
    Config config;
    config.sites.push_back({.name = "home",
                            .match = {.networks = {prefix_of(ip("192.168.10.0"), 24)}},
                            .prefer = std::vector<std::string>{"wlan0"}});
    start(config);
    Route wired{.destination = any_prefix(Family::ipv4), .metric = 100, .gateway = ip("10.0.0.1"), .link = eth0};
    EXPECT_TRUE(added(wired)) << "the site prefers wlan0";
    EXPECT_EQ(class_gateway(), ip("192.168.10.1"));
    EXPECT_TRUE(replaced(by("192.168.10.254")));
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
}

TEST_F(MirrorTest, ARefusalIsLeftToTheLook) {
    start();
    kernel.refuse = [](const Operation&) {
        return std::optional(Error{.code = std::make_error_code(std::errc::network_unreachable), .doing = "replacing"});
    };
    EXPECT_FALSE(replaced(by("192.168.10.254")));
    kernel.refuse = nullptr;
    (void)pass();
    EXPECT_EQ(class_gateway(), ip("192.168.10.254"));
}

} // namespace novpn::test
