// The contract: rules, a setting of links, and the answers of lookups.
#include "tests/contract/contract.h"

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

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

} // namespace

} // namespace novpn::test
