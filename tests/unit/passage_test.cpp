// Whether a firewall of another program drops what a class sends, of counters; and how that firewall is called.
#include "agent/passage.h"

#include <gtest/gtest.h>

namespace novpn {
namespace {

TEST(Passage, IsNotBlockedWhileNobodySendsOrAllArrives) {
    Passage passage;
    passage.take({});
    EXPECT_FALSE(passage.is_blocked());
    passage.take({.sent = 5, .arrived = 5});
    EXPECT_FALSE(passage.is_blocked());
    passage.take({.sent = 6, .arrived = 7});
    EXPECT_FALSE(passage.is_blocked()) << "a multicast leaves twice";
}

TEST(Passage, IsBlockedWhenMostIsLostUntilMostArrives) {
    Passage passage;
    passage.take({.sent = 100, .arrived = 100});
    passage.take({.sent = 103, .arrived = 101});
    EXPECT_TRUE(passage.is_blocked());
    EXPECT_EQ(passage.last(), (FlowCounts{.sent = 3, .arrived = 1}));
    passage.take({.sent = 103, .arrived = 101});
    EXPECT_TRUE(passage.is_blocked()) << "nothing has moved: what was found stands";
    passage.take({.sent = 104, .arrived = 102});
    EXPECT_FALSE(passage.is_blocked());
}

TEST(Passage, IsNotBlockedByARuleThatDropsNowAndThen) {
    Passage passage;
    passage.take({.sent = 10, .arrived = 9});
    EXPECT_FALSE(passage.is_blocked());
    passage.take({.sent = 12, .arrived = 10});
    EXPECT_FALSE(passage.is_blocked()) << "half of them";
}

TEST(Passage, BeginsAnewWhereEitherCounterDoes) {
    Passage passage;
    passage.take({.sent = 10, .arrived = 10});
    passage.take({.sent = 12, .arrived = 1});
    EXPECT_EQ(passage.last(), (FlowCounts{.sent = 12, .arrived = 1}));
    EXPECT_TRUE(passage.is_blocked());
}

TEST(Passage, IsBlockedForTheFirstWhoLooks) {
    Passage passage;
    passage.take({.sent = 3, .arrived = 0});
    EXPECT_TRUE(passage.is_blocked());
}

TEST(Passage, BeginsAnewWithTheCounters) {
    Passage passage;
    passage.take({.sent = 100, .arrived = 100});
    passage.take({.sent = 2, .arrived = 0});
    EXPECT_TRUE(passage.is_blocked());
    EXPECT_EQ(passage.last(), (FlowCounts{.sent = 2, .arrived = 0}));
}

const Mark kMark{.value = 0x4e000000, .mask = 0xff000000};

TEST(FirewallText, SaysWhichAndHowToHaveAMarkPass) {
    const Firewall nft{"inet", "killswitch", "output", Firewall::Drops::by_policy};
    EXPECT_EQ(to_string(nft), "table inet killswitch, chain output (policy drop)");
    EXPECT_EQ(to_let_pass(nft, kMark),
              "sudo nft insert rule inet killswitch output meta mark and 0xff000000 == 0x4e000000 accept");
    const Firewall iptables{"ip6", "filter", "OUTPUT", Firewall::Drops::some};
    EXPECT_EQ(to_string(iptables), "table ip6 filter, chain OUTPUT");
    EXPECT_EQ(to_let_pass(iptables, kMark),
              "sudo ip6tables -t filter -I OUTPUT -m mark --mark 0x4e000000/0xff000000 -j ACCEPT");
    const Firewall legacy{"ip", "mangle", "OUTPUT", Firewall::Drops::unread};
    EXPECT_EQ(to_string(legacy), "table mangle of iptables-legacy");
    EXPECT_EQ(to_let_pass(legacy, kMark),
              "sudo iptables-legacy -t mangle -I OUTPUT -m mark --mark 0x4e000000/0xff000000 -j ACCEPT");
    const Firewall own_table{"ip", "filter", "output", Firewall::Drops::all};
    EXPECT_TRUE(to_let_pass(own_table, kMark).starts_with("sudo nft ")) << "not of iptables: small letters";
}

TEST(Likeliest, AreThoseThatDropMost) {
    const Firewall policy{"inet", "a", "output", Firewall::Drops::by_policy};
    const Firewall all{"inet", "b", "output", Firewall::Drops::all};
    const Firewall some{"inet", "c", "output", Firewall::Drops::some};
    const Firewall unread{"ip", "filter", "OUTPUT", Firewall::Drops::unread};
    EXPECT_EQ(likeliest({some, all, policy, unread}), std::vector{policy});
    EXPECT_EQ(likeliest({some, all}), std::vector{all});
    EXPECT_EQ(likeliest({some, unread}), (std::vector{some, unread})) << "as likely";
    EXPECT_EQ(likeliest({}), std::vector<Firewall>{});
}

} // namespace
} // namespace novpn
