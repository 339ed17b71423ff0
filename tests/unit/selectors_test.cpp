// Users and destinations: the rules and the marking that they come to, and changes of them.
#include "agent/plan.h"
#include "rules/nft.h"
#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

namespace novpn::test {

namespace {

address ip(const std::string& text) { return boost::asio::ip::make_address(text); }
Prefix prefix(const char* network, unsigned length) { return {ip(network), length}; }
const std::string kRoot = "novpn-1";
const address kListed = ip("203.0.113.10");

class Selectors : public testing::Test {
  protected:
    Selectors() {
        IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
        tun0 = kernel.add_link({.name = "tun0", .kind = "tun", .up = true, .carrier = true});
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        kernel.add_address("tun0", ip("10.8.0.2"), 24);
        kernel.add_route(
            {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
        for (const char* half : {"0.0.0.0", "128.0.0.0"})
            kernel.add_route({.destination = prefix(half, 1), .link = tun0});
    }

    Plan apply() {
        Observed observed = *kernel.observe({.tables = {TableId{7866}},
                                             .cgroups = {kRoot + "/novpn"},
                                             .destinations = config.classes.front().destinations});
        desired = decide(observed, config, {}, kRoot);
        Plan plan = diff(observed, desired);
        for (const Operation& operation : plan) {
            text += to_string(operation, observed) + "\n";
            EXPECT_TRUE(kernel.apply(operation)) << text;
        }
        return plan;
    }
    std::string leaves_by(Packet packet) {
        auto route = kernel.lookup(packet);
        return route ? kernel.link_name(route->link) : "refused";
    }
    ClassConfig& novpn() { return config.classes.front(); }

    FakeKernel kernel;
    IfIndex tun0;
    Config config;
    Desired desired;
    std::string text;
};

} // namespace

TEST_F(Selectors, ADestinationIsEveryProcesss) {
    novpn().destinations = {prefix("203.0.113.0", 24)};
    apply();
    EXPECT_EQ(leaves_by({.destination = kListed}), "wlan0");
    EXPECT_EQ(leaves_by({.destination = ip("198.51.100.1")}), "tun0");
    EXPECT_NE(text.find("ip rule add preference 64 to 203.0.113.0/24 fwmark 0x0/0xff000000 iif lo lookup 7866"),
              std::string::npos)
        << text;
    EXPECT_TRUE(apply().empty());
}

TEST_F(Selectors, AUserIsAUser) {
    novpn().users = {{"alice", 1000}};
    apply();
    EXPECT_EQ(leaves_by({.destination = kListed, .uid = 1000}), "wlan0");
    EXPECT_EQ(leaves_by({.destination = kListed, .uid = 1001}), "tun0");
    EXPECT_TRUE(apply().empty());
}

TEST_F(Selectors, NamesAreResolvedAsTheVpnHasIt) {
    novpn().users = {{"alice", 1000}};
    novpn().destinations = {prefix("203.0.113.0", 24)};
    apply();
    for (std::uint8_t protocol : {std::uint8_t{IPPROTO_UDP}, std::uint8_t{IPPROTO_TCP}})
        for (std::uint32_t mark : {0u, 0x4e000000u}) {
            Packet query{.destination = kListed, .mark = mark, .ip_protocol = protocol, .destination_port = 53};
            query.uid = 1000;
            EXPECT_EQ(leaves_by(query), "tun0");
        }
}

TEST_F(Selectors, WhatHasATunnelsAddressKeepsItsPath) {
    novpn().destinations = {prefix("203.0.113.0", 24)};
    apply();
    Packet old{.destination = kListed, .source = ip("10.8.0.2")};
    EXPECT_EQ(leaves_by(old), "tun0");
    old.mark = 0x4e000000; // a flow that is masqueraded
    EXPECT_EQ(leaves_by(old), "wlan0");
    kernel.add_address("tun0", ip("10.8.0.9"), 24);
    EXPECT_EQ(apply().size(), 1u) << text;
    EXPECT_EQ(leaves_by({.destination = kListed, .source = ip("10.8.0.9")}), "tun0");
}

TEST_F(Selectors, AnotherClassesMarkDecidesAlone) {
    ClassConfig work{.name = "work", .via = "tun0"};
    work.table = TableId{7867};
    work.mark = {0x4f000000, 0xff000000};
    work.preference = Preference{70};
    config.classes.push_back(work);
    novpn().destinations = {prefix("203.0.113.0", 24)};
    apply();
    EXPECT_EQ(leaves_by({.destination = kListed, .mark = 0x4f000000}), "tun0");
}

TEST_F(Selectors, WithoutAnUplinkNothingGoesToTheTunnel) {
    novpn().destinations = {prefix("203.0.113.0", 24)};
    apply();
    kernel.delete_link("wlan0");
    apply();
    EXPECT_EQ(leaves_by({.destination = kListed}), "refused");
}

TEST_F(Selectors, AClassThatIsOffSelectsNothing) {
    novpn().destinations = {prefix("203.0.113.0", 24)};
    novpn().users = {{"alice", 1000}};
    apply();
    for (OnLeave on_leave : {OnLeave::keep, OnLeave::end}) {
        novpn().on_leave = on_leave;
        novpn().enabled = false;
        apply();
        EXPECT_EQ(leaves_by({.destination = kListed, .uid = 1000}), "tun0");
        EXPECT_TRUE(desired.classes.at("novpn").destinations.empty());
    }
}

TEST_F(Selectors, SixtyFourDestinationsHaveARule) {
    for (unsigned i = 0; i < 70; ++i) novpn().destinations.push_back({ip(fmt::format("198.18.{}.0", i)), 24});
    novpn().destinations.push_back(prefix("198.18.0.0", 25)); // in the first one
    apply();
    auto with_destination = [](const Rule& rule) { return rule.to.has_value(); };
    EXPECT_EQ(std::ranges::count_if(desired.rules, with_destination), 64);
    EXPECT_EQ(desired.nft.classes.front().destinations.size(), 70u);
}

TEST_F(Selectors, AChangeOfPrefixesIsOneTransactionOfElements) {
    novpn().destinations = {prefix("198.18.0.0", 15), prefix("203.0.113.0", 24)};
    apply();
    novpn().destinations = {prefix("198.18.0.0", 16), prefix("203.0.113.0", 24)};
    text.clear();
    Plan plan = apply();
    EXPECT_EQ(plan.size(), 3u) << text;
    EXPECT_NE(text.find("nft 'delete element inet novpn destinations4_novpn { 198.18.0.0/15 }; add element inet novpn "
                        "destinations4_novpn { 198.18.0.0/16 }'"),
              std::string::npos)
        << text;
}

TEST_F(Selectors, ProbesOfTheInternetAreNotAmongTheDestinations) {
    novpn().destinations = {prefix("16.0.0.0", 8), prefix("48.0.0.0", 8)};
    apply();
    EXPECT_FALSE(desired.takeovers.at(Family::ipv4).empty());
    Scope scope{.destinations = {prefix("16.0.0.0", 8)}};
    EXPECT_EQ(telling_destinations(scope).front(), ip("48.0.0.1"));
    scope.destinations = {prefix("0.0.0.0", 1), prefix("128.0.0.0", 1)};
    EXPECT_EQ(telling_destinations(scope), public_destinations());
}

TEST_F(Selectors, AForeignRuleForUnmarkedPacketsIsARival) {
    Rule rival{.preference = Preference{60}, .table = TableId{9}, .invert = true, .mark = Mark{0x4e000000, 0xff000000}};
    ClassConfig without = novpn();
    EXPECT_EQ(order_rules(Family::ipv4, {rival}, {without}).lookups.at("novpn"), Preference{64});
    novpn().destinations = {prefix("203.0.113.0", 24)};
    EXPECT_LT(order_rules(Family::ipv4, {rival}, config.classes).lookups.at("novpn"), Preference{60});
}

TEST(FirstBehind, CarriesAndEnds) {
    EXPECT_EQ(first_behind(prefix("192.0.2.255", 32)), ip("192.0.3.0"));
    EXPECT_EQ(first_behind(prefix("198.18.0.0", 15)), ip("198.20.0.0"));
    EXPECT_EQ(first_behind(prefix("10.255.255.255", 32)), ip("11.0.0.0"));
    EXPECT_EQ(first_behind(prefix("255.0.0.0", 8)), std::nullopt);
    EXPECT_EQ(first_behind(prefix("0.0.0.0", 0)), std::nullopt);
    EXPECT_EQ(first_behind(prefix("2001:db8:ffff::", 48)), ip("2001:db9::"));
}

} // namespace novpn::test
