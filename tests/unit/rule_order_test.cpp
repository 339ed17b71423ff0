// Where our policy rules stand against other people's.
#include "agent/rule_order.h"

#include <boost/asio/ip/address.hpp>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

constexpr Mark kOurs{0x4e000000, 0xff000000};

Rule wg_quick(std::uint32_t preference) {
    return {
        .preference = Preference{preference}, .table = TableId{51820}, .invert = true, .mark = Mark{.value = 0xca6c}};
}

Rule suppressed_main(std::uint32_t preference) {
    return {.preference = Preference{preference}, .table = kMainTable, .suppress_prefix_length = 0};
}

ClassConfig class_at(const std::string& name, std::uint32_t preference) {
    ClassConfig c;
    c.name = name;
    c.mark = kOurs;
    c.preference = Preference{preference};
    return c;
}

std::uint32_t lookup_at(const std::vector<Rule>& rules) {
    return order_rules(Family::ipv4, rules, {class_at("novpn", 64)}).lookups.at("novpn").value;
}

} // namespace

TEST(CouldCarry, ARuleWithoutSelectors) { EXPECT_TRUE(could_carry({.table = TableId{220}}, kOurs)); }

TEST(CouldCarry, NotOurOwnNorTheLocalTableNorATarget) {
    EXPECT_FALSE(could_carry({.table = TableId{7866}, .protocol = kNovpnProtocol}, kOurs));
    EXPECT_FALSE(could_carry({.table = kLocalTable}, kOurs));
    EXPECT_FALSE(could_carry({.action = RuleAction::nop}, kOurs));
}

TEST(CouldCarry, OnlyMarksThatAPacketOfOursCanHave) {
    EXPECT_TRUE(could_carry({.table = TableId{52}, .mark = Mark{0x80000, 0xff0000}}, kOurs)) << "other bits are free";
    EXPECT_FALSE(could_carry({.table = TableId{52}, .mark = Mark{.value = 0xca6c}}, kOurs));
    EXPECT_TRUE(could_carry({.table = TableId{52}, .mark = Mark{0x4e000001, 0xffffffff}}, kOurs));
}

TEST(CouldCarry, AnInvertedRuleUnlessItMeansOurPackets) {
    EXPECT_TRUE(could_carry(wg_quick(1), kOurs));
    EXPECT_FALSE(could_carry({.table = TableId{9}, .invert = true, .mark = kOurs}, kOurs));
    EXPECT_TRUE(could_carry({.table = TableId{9}, .invert = true, .mark = kOurs, .oif = "eth0"}, kOurs));
}

TEST(CouldCarry, AnInvertedRuleThatNamesMoreThanOurMark) {
    const Rule of_our_mark{.table = TableId{9}, .invert = true, .mark = kOurs};
    std::vector<Rule> rules(11, of_our_mark);
    const Prefix lan{boost::asio::ip::make_address("192.168.10.0"), 24};
    rules[0].from = lan;
    rules[1].to = lan;
    rules[2].iif = "docker0";
    rules[3].oif = "wlan0";
    rules[4].ip_protocol = 6;
    rules[5].source_port = PortRange{500, 500};
    rules[6].destination_port = PortRange{53, 53};
    rules[7].uids = UidRange{1000, 1000};
    rules[8].l3mdev = true;
    rules[9].mark = Mark{.value = 0x4e000000, .mask = 0xff0000ff}; // not of those of ours that have another bit
    rules[10].mark = Mark{.value = 0x4f000000, .mask = 0xff000000};
    for (const Rule& rule : rules) EXPECT_TRUE(could_carry(rule, kOurs)) << to_string(rule);
    EXPECT_FALSE(could_carry(of_our_mark, kOurs));
}

TEST(CouldCarry, NotForwardedPacketsOnly) {
    EXPECT_FALSE(could_carry({.table = TableId{9}, .iif = "docker0"}, kOurs));
    EXPECT_TRUE(could_carry({.table = TableId{9}, .iif = "lo"}, kOurs));
}

TEST(CouldCarry, KillSwitchesToo) {
    for (RuleAction action : {RuleAction::unreachable, RuleAction::blackhole, RuleAction::prohibit, RuleAction::goto_})
        EXPECT_TRUE(could_carry({.action = action}, kOurs));
}

TEST(OrderRules, StaysWhereTheConfigSays) {
    EXPECT_EQ(lookup_at({}), 64u);
    EXPECT_EQ(lookup_at({suppressed_main(32764), wg_quick(32765)}), 64u);
}

TEST(OrderRules, GoesRightBelowTheLowestRival) {
    EXPECT_EQ(lookup_at({wg_quick(62)}), 60u) << "59 to 61";
    EXPECT_EQ(lookup_at({suppressed_main(58), wg_quick(62)}), 56u);
    EXPECT_EQ(lookup_at({wg_quick(65)}), 63u) << "between the lookup and the end of the way around";
}

TEST(OrderRules, GoesByFamily) {
    Rule ipv6 = wg_quick(62);
    ipv6.family = Family::ipv6;
    EXPECT_EQ(lookup_at({ipv6}), 64u);
}

TEST(OrderRules, NeverBelowTwo) {
    EXPECT_EQ(lookup_at({wg_quick(5)}), 3u) << "2 to 4";
    auto order = order_rules(Family::ipv4, {wg_quick(4)}, {class_at("novpn", 64)});
    EXPECT_EQ(order.lookups.at("novpn").value, 64u);
    EXPECT_EQ(order.ahead, (std::vector<Rule>{wg_quick(4)}));
}

TEST(OrderRules, StandsBeforeAsManyAsCanBe) {
    auto order = order_rules(Family::ipv4, {wg_quick(3), suppressed_main(40), wg_quick(62)}, {class_at("novpn", 64)});
    EXPECT_EQ(order.lookups.at("novpn").value, 38u);
    EXPECT_EQ(order.ahead, (std::vector<Rule>{wg_quick(3)}));
}

TEST(OrderRules, ClassesKeepTheirOrderAndDoNotMeet) {
    auto order = order_rules(Family::ipv4, {wg_quick(68)}, {class_at("backup", 80), class_at("novpn", 64)});
    EXPECT_EQ(order.lookups.at("novpn").value, 63u);
    EXPECT_EQ(order.lookups.at("backup").value, 66u);
}

} // namespace novpn::test
