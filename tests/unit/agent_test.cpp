// The agent on the fake kernel: what one pass does when the kernel refuses, when others interfere, and on the way out.
#include "tests/unit/agent_fixture.h"

#include <boost/json/array.hpp>

namespace novpn::test {

TEST_F(AgentTest, ASecondPassWritesNothing) {
    ASSERT_TRUE(agent.start());
    EXPECT_EQ(pass().operations, 0u);
}

TEST_F(AgentTest, AFailureStopsThePassAndTheNextOneFinishes) {
    int applied = 0;
    kernel.refuse = [&](const Operation& operation) -> std::optional<Error> {
        if (std::holds_alternative<AddRule>(operation))
            return Error{.code = std::make_error_code(std::errc::no_buffer_space), .doing = "adding a rule"};
        ++applied;
        return std::nullopt;
    };
    Pass failed = pass();
    ASSERT_TRUE(failed.failure);
    EXPECT_EQ(failed.failure->code, std::errc::no_buffer_space);
    EXPECT_FALSE(kernel.observe({})->nft.present) << "nothing is marked before the rules are there";
    kernel.refuse = nullptr;
    EXPECT_FALSE(pass().failure);
    EXPECT_TRUE(kernel.observe({})->nft.present);
    EXPECT_EQ(pass().operations, 0u);
}

TEST_F(AgentTest, ACopiedRouteThatTheKernelRefusesDoesNotStopThePass) {
    kernel.refuse = [](const Operation& operation) -> std::optional<Error> {
        if (is_dispensable(operation))
            return Error{.code = std::make_error_code(std::errc::invalid_argument), .doing = "adding a route"};
        return std::nullopt;
    };
    EXPECT_FALSE(pass().failure);
    EXPECT_TRUE(kernel.observe({})->nft.present);
}

TEST_F(AgentTest, ThousandsOfCopiesComeLastAndAreToldInALine) {
    const IfIndex wlan0 = kernel.link("wlan0")->index;
    constexpr unsigned kMany = 2000;
    for (unsigned i = 0; i < kMany; ++i) {
        const boost::asio::ip::address_v4 network(0x0a000000 + (i << 8));
        kernel.add_route({.destination = {network, 24}, .gateway = ip("192.168.10.2"), .link = wlan0});
    }
    std::vector<bool> copies;
    kernel.refuse = [&](const Operation& operation) -> std::optional<Error> {
        copies.push_back(stands_alone(operation));
        return std::nullopt;
    };
    testing::internal::CaptureStdout();
    ASSERT_TRUE(agent.start());
    const std::string log = testing::internal::GetCapturedStdout();
    EXPECT_EQ(std::ranges::count(copies, true), kMany);
    EXPECT_TRUE(std::ranges::is_sorted(copies)) << "the default, the rules and the marking are first";
    EXPECT_LT(std::ranges::count(log, '\n'), 100);
    EXPECT_NE(log.find("start: as many as 2000 of these"), std::string::npos) << log;
    EXPECT_EQ(pass().operations, 0u);
    // One that is no more in main is no repair.
    const auto routes = kernel.observe({.tables = {TableId{7866}}})->routes;
    const auto copy = std::ranges::find_if(routes, [](const Route& route) {
        return route.table == TableId{7866} && route.destination.length == 24 && route.gateway;
    });
    ASSERT_NE(copy, routes.end());
    Route in_main = *copy;
    in_main.table = kMainTable;
    in_main.protocol = {};
    ASSERT_TRUE(kernel.delete_route(in_main));
    EXPECT_EQ(pass().operations, 1u);
    EXPECT_EQ(agent.status({}).at("repairs"), 0);
    copies.clear();
    ASSERT_TRUE(agent.release());
    EXPECT_EQ(std::ranges::count(copies, true), kMany - 1);
}

TEST_F(AgentTest, RepairsARuleAndCountsIt) {
    ASSERT_TRUE(agent.start());
    ASSERT_TRUE(kernel.delete_rule(our_rules().front()));
    EXPECT_EQ(pass().operations, 1u);
    EXPECT_EQ(our_rules().size(), 8u);
    EXPECT_EQ(agent.status({}).at("repairs"), 1);
}

TEST_F(AgentTest, CalmsDownAgainstARivalThatNeverStops) {
    ASSERT_TRUE(agent.start());
    auto now = Clock::now();
    int repaired = 0;
    for (int i = 0; i < 99; ++i) {
        if (!our_rules().empty()) kernel.delete_rule(our_rules().front());
        Pass p = agent.reconcile("rival", now, Depth::usual);
        if (p.operations) ++repaired;
        EXPECT_LE(p.wait.value_or(Clock::duration{}), std::chrono::seconds(1));
        now += std::chrono::milliseconds(1);
    }
    EXPECT_EQ(repaired, 10);
    EXPECT_TRUE(agent.reconcile("later", now + std::chrono::seconds(1), Depth::usual).operations);
}

TEST_F(AgentTest, WhatTheKernelTookAlongWithALinkOrAnAddressIsNoRepair) {
    ASSERT_TRUE(agent.start());
    const Route ours = default_of_the_class();
    const IfIndex wlan0 = ours.link;
    const Losses kLosses[] = {{.links_down = {wlan0}, .addresses = {}},
                              {.links_down = {}, .addresses = {{wlan0, ip("192.168.10.77")}}}};
    for (const Losses& losses : kLosses) {
        // The link's last: the one that is there now is the one that went.
        const bool by_address = losses.links_down.empty();
        if (by_address) kernel.delete_address("wlan0", ip("192.168.10.50"));
        if (by_address) kernel.add_address("wlan0", ip("192.168.10.77"), 24);
        pass();
        for (int i = 0; i < 20; ++i) {
            kernel.delete_route(ours);
            agent.heard_of_losses(losses);
            EXPECT_FALSE(pass().wait);
            EXPECT_EQ(default_of_the_class(), ours);
        }
    }
    EXPECT_EQ(agent.status({}).at("repairs"), 0);
}

TEST_F(AgentTest, ARivalIsNotTakenForTheKernel) {
    ASSERT_TRUE(agent.start());
    const Route ours = default_of_the_class();
    const IfIndex other{ours.link.value + 7};
    const Losses kOthers[] = {{},
                              {.links_down = {other}, .addresses = {}},
                              {.links_down = {}, .addresses = {{ours.link, ip("192.168.10.99")}}},
                              {.links_down = {}, .addresses = {{other, ip("192.168.10.50")}}}};
    int repairs = 0;
    for (const Losses& losses : kOthers) {
        kernel.delete_route(ours);
        agent.heard_of_losses(losses);
        pass();
        EXPECT_EQ(agent.status({}).at("repairs"), ++repairs);
    }
    // With the link its routes go, and nothing else.
    kernel.delete_rule(our_rules().front());
    agent.heard_of_losses({.links_down = {ours.link}, .addresses = {}});
    pass();
    EXPECT_EQ(agent.status({}).at("repairs"), ++repairs);
    // Once it is put back, the next to delete it is somebody else.
    kernel.delete_route(ours);
    pass();
    EXPECT_EQ(agent.status({}).at("repairs"), ++repairs);
}

TEST_F(AgentTest, DoesNotFillTheLogUnderARival) {
    ASSERT_TRUE(agent.start());
    auto now = Clock::now();
    std::size_t repaired = 0;
    testing::internal::CaptureStdout();
    for (int second = 0; second < 600; ++second, now += std::chrono::seconds(1)) {
        kernel.delete_rule(our_rules().front());
        repaired += agent.reconcile("rival", now, Depth::usual).operations;
    }
    const std::string log = testing::internal::GetCapturedStdout();
    EXPECT_EQ(repaired, 600u);
    const auto lines = std::ranges::count(log, '\n');
    EXPECT_GT(lines, 100);
    EXPECT_LT(lines, 300);
    EXPECT_NE(log.find(" more times since, another program undid"), std::string::npos) << log;
}

TEST_F(AgentTest, ReleaseLeavesNothingAndLooksNoMore) {
    auto before = *kernel.observe({.strays = true});
    ASSERT_TRUE(agent.start());
    ASSERT_TRUE(agent.release());
    auto after = *kernel.observe({.strays = true, .cgroup_root = "novpn-1"});
    EXPECT_EQ(after.routes, before.routes);
    EXPECT_EQ(after.rules, before.rules);
    EXPECT_TRUE(after.cgroups.empty());
    EXPECT_FALSE(after.nft.present);
    EXPECT_EQ(pass().operations, 0u);
}

TEST_F(AgentTest, StartRefusesATableInUseAndWritesNothing) {
    kernel.add_route(
        {.table = TableId{7866}, .destination = any_prefix(Family::ipv4), .link = IfIndex{2}, .protocol = Protocol{4}});
    auto started = agent.start();
    ASSERT_FALSE(started);
    EXPECT_NE(to_string(started.error()).find("holds a route of static"), std::string::npos)
        << to_string(started.error());
    EXPECT_FALSE(kernel.observe({})->nft.present);
    EXPECT_TRUE(our_rules().empty());
}

TEST_F(AgentTest, StartTakesOverWhatAnotherConfigLeft) {
    Config old;
    old.classes[0].table = TableId{7000};
    old.classes[0].mark = Mark{0x5e000000, 0xff000000};
    Agent former(kernel, old, {.cgroup_root = "novpn-1"});
    ASSERT_TRUE(former.start());
    ASSERT_TRUE(agent.start());
    for (const Route& route : routes_with_strays()) EXPECT_NE(route.table, TableId{7000});
    EXPECT_EQ(our_rules().size(), 8u);
    EXPECT_EQ(pass().operations, 0u);
}

TEST_F(AgentTest, ABadConfigOnReloadChangesNothing) {
    Agent reloading(kernel, Config{},
                    {.cgroup_root = "novpn-1", .load = [] { return parse_config("clases: {}", "novpn.yaml"); }});
    ASSERT_TRUE(reloading.start());
    auto reloaded = reloading.reload();
    ASSERT_FALSE(reloaded);
    EXPECT_NE(to_string(reloaded.error()).find("novpn.yaml:1:1"), std::string::npos) << to_string(reloaded.error());
    auto status = reloading.status({});
    EXPECT_EQ(status.at("health"), "degraded");
    EXPECT_EQ(status.at("warnings").as_array().at(0).at("code"), "config");
}

TEST_F(AgentTest, ReloadMovesToOtherNumbers) {
    Agent reloading(kernel, Config{}, {.cgroup_root = "novpn-1", .load = [] {
                                           return parse_config("classes: {novpn: {table: 7000, preference: 100}}",
                                                               "novpn.yaml");
                                       }});
    ASSERT_TRUE(reloading.start());
    ASSERT_TRUE(reloading.reload());
    for (const Rule& rule : our_rules()) EXPECT_GE(rule.preference.value, 99u);
    for (const Route& route : routes_with_strays()) EXPECT_NE(route.table, TableId{7866});
}

TEST_F(AgentTest, OffForAWhileAsksForAPassThenAndIsOnAgain) {
    std::optional<Clock::time_point> asked;
    Agent switched(kernel, Config{},
                   {.cgroup_root = "novpn-1", .wake_at = [&](Clock::time_point when) { asked = when; }});
    ASSERT_TRUE(switched.start());
    ASSERT_TRUE(switched.set_enabled("novpn", false, std::chrono::seconds(60)));
    ASSERT_TRUE(asked);
    EXPECT_FALSE(switched.is_steered("novpn"));
    switched.reconcile("early", *asked - std::chrono::seconds(1), Depth::usual);
    EXPECT_FALSE(switched.is_steered("novpn"));
    switched.reconcile("time is up", *asked, Depth::usual);
    EXPECT_TRUE(switched.is_steered("novpn"));
}

TEST_F(AgentTest, RemovingAClassByReloadRemovesItsSteeringAndOnlyThat) {
    std::string yaml = "classes: {novpn: {}, work: {table: 7867, mark: 0x4f000000/0xff000000, preference: 70}}";
    Agent reloading(kernel, *parse_config(yaml, "novpn.yaml"),
                    {.cgroup_root = "novpn-1", .load = [&] { return parse_config(yaml, "novpn.yaml"); }});
    ASSERT_TRUE(reloading.start());
    auto before = *kernel.observe({.tables = {TableId{7866}}, .cgroups = {"novpn-1/novpn"}});
    yaml = "classes: {novpn: {}}";
    ASSERT_TRUE(reloading.reload());
    for (const Route& route : routes_with_strays()) EXPECT_NE(route.table, TableId{7867});
    EXPECT_EQ(our_rules().size(), 8u);
    auto after = *kernel.observe({.tables = {TableId{7866}}, .cgroups = {"novpn-1/novpn"}, .cgroup_root = "novpn-1"});
    EXPECT_EQ(after.cgroups, before.cgroups) << "the other class's cgroup is gone, this one is the same";
    EXPECT_EQ(reloading.reconcile("again", Clock::now(), Depth::everything).operations, 0u);
}

TEST_F(AgentTest, NamesAFirewallThatDropsWhatAClassSendsWhileThereIsOne) {
    ASSERT_TRUE(agent.start());
    const auto warned = [&] { return agent.status({}).at("summary").as_string().find("held up") != std::string::npos; };
    kernel.others_firewalls = {{"inet", "killswitch", "output", Firewall::Drops::by_policy}};
    kernel.flow_counters["novpn"] = {.sent = 2, .arrived = 2};
    EXPECT_FALSE(warned()) << "what it has did not matter";
    kernel.flow_counters["novpn"] = {.sent = 5, .arrived = 2};
    EXPECT_TRUE(warned());
    EXPECT_TRUE(warned()) << "nothing has moved since";
    EXPECT_EQ(agent.status({}).at("health"), "degraded");
    EXPECT_NE(agent.status({}).at("summary").as_string().find("table inet killswitch"), std::string::npos);
    kernel.others_firewalls.clear();
    EXPECT_FALSE(warned()) << "it is gone";
    kernel.others_firewalls = {{"inet", "killswitch", "output", Firewall::Drops::by_policy}};
    kernel.flow_counters["novpn"] = {.sent = 6, .arrived = 3};
    EXPECT_FALSE(warned()) << "it lets them pass";
}

TEST_F(AgentTest, MovesItsRulesBeforeARivalsAndBack) {
    ASSERT_TRUE(agent.start());
    std::vector<Rule> at_base = our_rules();
    Rule rival{.preference = Preference{62}, .table = TableId{51820}, .invert = true, .mark = Mark{.value = 0xca6c}};
    kernel.add_rule(rival);
    std::vector<bool> ours_first;
    kernel.refuse = [&](const Operation& operation) -> std::optional<Error> {
        ours_first.push_back(std::holds_alternative<AddRule>(operation));
        return std::nullopt;
    };
    ASSERT_EQ(pass().operations, 8u);
    EXPECT_TRUE(std::ranges::is_partitioned(ours_first, std::identity{})) << "make before break";
    for (const Rule& rule : our_rules()) EXPECT_TRUE(rule.family == Family::ipv6 || rule.preference < rival.preference);
    EXPECT_EQ(pass().operations, 0u);
    kernel.delete_rule(rival);
    EXPECT_EQ(pass().operations, 8u);
    EXPECT_EQ(our_rules(), at_base);
}

TEST_F(AgentTest, CalmsDownAgainstARivalThatAlsoMoves) {
    ASSERT_TRUE(agent.start());
    Rule rival{.preference = Preference{62}, .table = TableId{51820}};
    auto now = Clock::now();
    Pass last;
    for (int i = 0; i < 999; ++i) {
        if (i % 2)
            kernel.delete_rule(rival);
        else
            kernel.add_rule(rival);
        last = agent.reconcile("test", now, Depth::usual);
    }
    EXPECT_TRUE(last.wait);
    EXPECT_EQ(last.operations, 0u);
    EXPECT_FALSE(last.failure);
    EXPECT_GT(agent.reconcile("test", now + std::chrono::seconds(2), Depth::usual).operations, 0u);
}

TEST_F(AgentTest, AnAnswerThatIsLostSaysNothingOfASitesDomain) {
    Agent roaming(kernel,
                  *parse_config("sites: [{name: office, match: {domain: corp.example}, classes: {novpn: off}}]\n", "f"),
                  {.cgroup_root = "novpn-1"});
    ASSERT_TRUE(roaming.start());
    const auto is_known_after = [&](Answer networkmanager) {
        Hints hints{.networkmanager = networkmanager};
        for (const Address& a : kernel.addresses())
            hints.name_servers.networks.emplace(a.link, prefix_of(a.local, a.prefix_length));
        roaming.heard(std::move(hints));
        roaming.reconcile("sources answered", Clock::now(), Depth::usual);
        return roaming.desired()->site.known;
    };
    for (int time = 0; time < 3; ++time) EXPECT_FALSE(is_known_after(Answer::lost)) << "the domain may be the office's";
    EXPECT_FALSE(is_known_after(Answer::whole)) << "a lease may be late";
    EXPECT_FALSE(is_known_after(Answer::lost));
    EXPECT_TRUE(is_known_after(Answer::nobody)) << "another source would have said so by now";
    EXPECT_EQ(roaming.desired()->site.name, std::nullopt);
}

TEST_F(AgentTest, StartRefusesAPreferenceInUseButNotBesideItsOwnRules) {
    Rule others{.preference = Preference{64}, .table = TableId{99}, .protocol = Protocol{3}};
    kernel.add_rule(others);
    auto refused = agent.start();
    ASSERT_FALSE(refused);
    EXPECT_NE(to_string(refused.error()).find("preference 64 of class novpn is that of the ipv4 rule of boot"),
              std::string::npos)
        << to_string(refused.error());
    kernel.delete_rule(others);
    ASSERT_TRUE(agent.start());
    kernel.add_rule(others);
    Agent next{kernel, Config{}, {.cgroup_root = "novpn-1"}};
    EXPECT_TRUE(next.start());
}

TEST_F(AgentTest, StatusSaysWhoseRuleLeadsMembersAstray) {
    kernel.add_link({.name = "wg0", .kind = "wireguard", .hardware = 65534, .up = true, .carrier = true});
    ASSERT_TRUE(agent.start());
    EXPECT_EQ(agent.status({}).at("health"), "ok");
    kernel.add_route(
        {.table = TableId{51820}, .destination = any_prefix(Family::ipv4), .link = kernel.link("wg0")->index});
    kernel.add_rule(
        {.preference = Preference{62}, .table = TableId{51820}, .invert = true, .mark = Mark{0xca6c, 0xffffffff}});
    auto status = agent.status({});
    EXPECT_EQ(status.at("health"), "degraded");
    EXPECT_EQ(status.at("summary"),
              "Class novpn is held up: the rule 'preference 62 not fwmark 0xca6c/0xffffffff lookup "
              "51820' of wg-quick leads its packets to wg0, and the guard drops them.");
}

TEST_F(AgentTest, ExplainNamesRouteRuleAndOwner) {
    ASSERT_TRUE(agent.start());
    auto explained = agent.explain(ip("203.0.113.10"), "novpn");
    ASSERT_TRUE(explained);
    const auto& member = explained->at("member").as_object();
    EXPECT_EQ(member.at("route"), "default via 192.168.10.1 dev wlan0 table 7866 proto 78");
    EXPECT_EQ(member.at("rule"), "preference 64 fwmark 0x4e000000/0xff000000 lookup 7866 protocol 78");
    EXPECT_EQ(member.at("owner"), "novpn");
    const auto& ordinary = explained->at("ordinary").as_object();
    EXPECT_EQ(ordinary.at("table"), 254);
    EXPECT_EQ(ordinary.at("preference"), 32766);
    EXPECT_EQ(ordinary.at("owner"), "kernel");
}

TEST_F(AgentTest, MetricsAreOpenMetrics) {
    ASSERT_TRUE(agent.start());
    std::string text = agent.metrics();
    EXPECT_NE(text.find("novpn_class_state{class=\"novpn\",novpn_class_state=\"steering\"} 1\n"), std::string::npos)
        << text;
    EXPECT_NE(text.find("novpn_uplink_info{family=\"ipv4\",link=\"wlan0\",gateway=\"192.168.10.1\",from=\"main\"} 1\n"),
              std::string::npos)
        << text;
    EXPECT_TRUE(text.ends_with("# EOF\n"));
}

TEST_F(AgentTest, TellsASubscriberWhatAPassDid) {
    std::vector<boost::json::object> events;
    agent.on_event([&](const boost::json::object& event) { events.push_back(event); });
    ASSERT_TRUE(agent.start());
    pass();
    ASSERT_EQ(events.size(), 1u) << "a pass that changes nothing is no event";
    EXPECT_EQ(events[0].at("cause"), "start");
    EXPECT_GT(events[0].at("operations").as_array().size(), 5u);
}

} // namespace novpn::test
