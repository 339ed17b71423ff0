// The agent on the fake kernel: what one pass does when the kernel refuses, when others interfere, and on the way out.
#include "agent/agent.h"

#include "tests/support/fake_kernel.h"

#include <boost/json/array.hpp>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

address ip(const char* text) { return boost::asio::ip::make_address(text); }

class AgentTest : public testing::Test {
  protected:
    AgentTest() {
        IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        kernel.add_route(
            {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
    }
    Pass pass() { return agent.reconcile("test", Clock::now(), true); }
    std::vector<Rule> our_rules() {
        std::vector<Rule> rules;
        const Observed observed = *kernel.observe({});
        for (const Rule& rule : observed.rules)
            if (rule.protocol == kNovpnProtocol) rules.push_back(rule);
        return rules;
    }

    std::vector<Route> routes_with_strays() { return kernel.observe({.strays = true})->routes; }

    FakeKernel kernel;
    Agent agent{kernel, Config{}, {.cgroup_root = "novpn-1"}};
};

} // namespace

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
    for (int i = 0; i < 100; ++i) {
        if (!our_rules().empty()) kernel.delete_rule(our_rules().front());
        Pass p = agent.reconcile("rival", now, true);
        if (p.operations) ++repaired;
        EXPECT_LE(p.wait.value_or(Clock::duration{}), std::chrono::seconds(1));
        now += std::chrono::milliseconds(1);
    }
    EXPECT_EQ(repaired, 10);
    EXPECT_TRUE(agent.reconcile("later", now + std::chrono::seconds(1), true).operations);
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

} // namespace novpn::test
