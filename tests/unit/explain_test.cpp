// Which rule leads a packet to the table of the kernel's answer, and whose rule that is.
#include "agent/explain.h"

#include <boost/json/serialize.hpp>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

namespace json = boost::json;

address ip(const char* text) { return boost::asio::ip::make_address(text); }

constexpr Mark kOurs{0x4e000000, 0xff000000};
constexpr TableId kTunnels{51820};
constexpr IfIndex kTunnel{7};

Lookup into_tunnel(std::optional<Mark> mark = std::nullopt, const char* destination = "203.0.113.10") {
    const address to = ip(destination);
    return {.destination = to,
            .mark = mark,
            .answer = Route{
                .table = kTunnels, .destination = any_prefix(family_of(to)), .link = kTunnel, .protocol = Protocol{4}}};
}

Rule to_tunnel(std::uint32_t preference = 100) { return {.preference = Preference{preference}, .table = kTunnels}; }

/// The preference of the rule that leads there, among `rules`.
std::optional<std::uint32_t> leads(std::vector<Rule> rules, const Lookup& lookup = into_tunnel()) {
    Observed observed;
    observed.rules = std::move(rules);
    const Rule* rule = leading_rule(observed, lookup);
    return rule ? std::optional(rule->preference.value) : std::nullopt;
}

} // namespace

TEST(LeadingRule, IsTheFirstOfTheFamilyToTheTableOfTheAnswer) {
    Rule ipv6 = to_tunnel(1), switch_off = to_tunnel(2), elsewhere = to_tunnel(3);
    ipv6.family = Family::ipv6;
    switch_off.action = RuleAction::unreachable;
    elsewhere.table = kMainTable;
    EXPECT_EQ(leads({ipv6, switch_off, elsewhere, to_tunnel(4), to_tunnel(5)}), 4u);
    EXPECT_EQ(leads({ipv6, switch_off, elsewhere}), std::nullopt);
    EXPECT_EQ(leads({ipv6, to_tunnel(4)}, into_tunnel({}, "2001:db8::1")), 1u);
}

TEST(LeadingRule, GoesByTheMark) {
    Rule of_marked = to_tunnel(1), of_others = to_tunnel(2);
    of_marked.mark = kOurs;
    of_others.mark = Mark{.value = 0xca6c};
    of_others.invert = true;
    EXPECT_EQ(leads({of_marked, of_others}), 2u) << "a packet without a mark";
    EXPECT_EQ(leads({of_marked, of_others}, into_tunnel(kOurs)), 1u);
    EXPECT_EQ(leads({of_others}, into_tunnel(Mark{.value = 0xca6c})), std::nullopt) << "the VPN's own";
}

TEST(LeadingRule, GoesByTheDestination) {
    Rule to = to_tunnel(1), past = to_tunnel(2);
    to.to = past.to = Prefix{ip("203.0.113.0"), 24};
    past.invert = true;
    EXPECT_EQ(leads({to, past}), 1u);
    EXPECT_EQ(leads({to, past}, into_tunnel({}, "192.0.2.1")), 2u);
}

TEST(LeadingRule, IsNotOneThatMayMeanOtherPackets) {
    std::vector<Rule> rules(8, to_tunnel());
    rules[0].from = Prefix{ip("192.168.10.0"), 24};
    rules[1].iif = "docker0";
    rules[2].oif = "wlan0";
    rules[3].ip_protocol = 6;
    rules[4].source_port = PortRange{500, 500};
    rules[5].destination_port = PortRange{53, 53};
    rules[6].uids = UidRange{1000, 1000};
    rules[7].l3mdev = true;
    for (const Rule& rule : rules) EXPECT_EQ(leads({rule, to_tunnel(200)}), 200u) << to_string(rule);
    Rule of_this_machine = to_tunnel(100);
    of_this_machine.iif = "lo";
    EXPECT_EQ(leads({of_this_machine, to_tunnel(200)}), 100u) << "what is sent from here comes in by lo";
}

TEST(LeadingRule, IsNoneWhereTheKernelHasNoAnswer) {
    EXPECT_EQ(leads({to_tunnel()}, {.destination = ip("203.0.113.10")}), std::nullopt);
}

TEST(OwnerOf, ToolsAreKnownByTheirNumbers) {
    Rule rule = to_tunnel();
    EXPECT_EQ(owner_of(rule), "a program that does not say its name");
    rule.mark = Mark{.value = 0xca6c};
    EXPECT_EQ(owner_of(rule), "a program that does not say its name") << "wg-quick's is inverted";
    rule.invert = true;
    EXPECT_EQ(owner_of(rule), "wg-quick");
    rule.mark = Mark{.value = 0x1};
    EXPECT_EQ(owner_of(rule), "a program that does not say its name") << "wg-quick has a mark of its own";
    rule.mark.reset();
    EXPECT_EQ(owner_of(rule), "a program that does not say its name");
    EXPECT_EQ(owner_of({.table = TableId{52}}), "Tailscale");
    EXPECT_EQ(owner_of({.table = TableId{220}}), "strongSwan");
    EXPECT_EQ(owner_of({.table = TableId{220}, .protocol = kNovpnProtocol}), "novpn") << "the protocol is ours alone";
    EXPECT_EQ(owner_of({.table = kMainTable, .protocol = Protocol{2}}), "kernel");
    EXPECT_EQ(owner_of({.table = kMainTable, .protocol = Protocol{99}}), "99");
}

TEST(Explain, SaysOfBothPacketsWhereTheyGoAndWhy) {
    Observed observed;
    observed.links = {{.index = kTunnel, .name = "wg0"}};
    Rule rule = to_tunnel();
    rule.invert = true;
    rule.mark = Mark{.value = 0xca6c};
    observed.rules = {rule};
    const Lookup refused{.destination = ip("203.0.113.10"), .mark = kOurs};
    const json::object nothing{{"route", nullptr}, {"link", nullptr},       {"table", nullptr},
                               {"rule", nullptr},  {"preference", nullptr}, {"owner", nullptr}};
    const json::object ordinary{{"route", "default dev wg0 table 51820 proto static"},
                                {"link", "wg0"},
                                {"table", 51820u},
                                {"rule", "preference 100 not fwmark 0xca6c/0xffffffff lookup 51820"},
                                {"preference", 100u},
                                {"owner", "wg-quick"}};
    const json::object both{
        {"destination", "203.0.113.10"}, {"class", "novpn"}, {"ordinary", ordinary}, {"member", nothing}};
    EXPECT_EQ(json::serialize(explain(observed, "novpn", into_tunnel(), refused)), json::serialize(both));
}

} // namespace novpn::test
