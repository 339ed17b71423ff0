// An agent on the fake kernel, with a Wi-Fi that is the uplink.
#pragma once

#include "agent/agent.h"
#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace novpn::test {

inline address ip(const char* text) { return boost::asio::ip::make_address(text); }

class AgentTest : public testing::Test {
  protected:
    AgentTest() {
        IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        kernel.add_route(
            {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
    }
    Pass pass() { return agent.reconcile("test", Clock::now(), Depth::usual); }
    std::vector<Rule> our_rules() {
        std::vector<Rule> rules;
        const Observed observed = *kernel.observe({});
        for (const Rule& rule : observed.rules)
            if (rule.protocol == kNovpnProtocol) rules.push_back(rule);
        return rules;
    }

    Route default_of_the_class() {
        const Observed observed = *kernel.observe({.tables = {TableId{7866}}});
        const auto found = std::ranges::find_if(observed.routes, [](const Route& route) {
            return route.table == TableId{7866} && is_default(route) && route.gateway;
        });
        return found == observed.routes.end() ? Route{} : *found;
    }
    std::vector<Route> routes_with_strays() { return kernel.observe({.strays = true})->routes; }

    FakeKernel kernel;
    Agent agent{kernel, Config{}, {.cgroup_root = "novpn-1"}};
};

} // namespace novpn::test
