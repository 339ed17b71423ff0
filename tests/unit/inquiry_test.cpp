// When the sources are asked.
#include "agent/inquiry.h"

#include <gtest/gtest.h>

namespace novpn::test {

namespace {

using namespace std::chrono_literals;

const Clock::time_point kNow{1000s};

Observed laptop() { return {.links = {{.index = IfIndex{2}, .name = "wlan0", .up = true, .carrier = true}}}; }

} // namespace

TEST(Inquiry, AsksForNothingThatIsNotWanted) { EXPECT_EQ(Inquiry{}.ask_at(kNow, laptop(), Desired{}), std::nullopt); }

TEST(Inquiry, AsksEverMoreSeldomForAsLongAsNothingHelps) {
    Inquiry inquiry;
    Desired blind{.wanted_uplinks = {Family::ipv4}};
    EXPECT_EQ(inquiry.ask_at(kNow, laptop(), blind), kNow + 1s);
    EXPECT_EQ(inquiry.ask_at(kNow + 999ms, laptop(), blind), std::nullopt);
    EXPECT_EQ(inquiry.ask_at(kNow + 1s, laptop(), blind), kNow + 3s);
    EXPECT_EQ(inquiry.ask_at(kNow + 2s, laptop(), blind), std::nullopt);
    auto next = kNow + 3s;
    for (int i = 0; i < 20; ++i) next = inquiry.ask_at(next, laptop(), blind).value();
    EXPECT_EQ(inquiry.ask_at(next, laptop(), blind), next + 5min);
}

TEST(Inquiry, AsksAtOnceWhenSomethingIsNew) {
    Inquiry inquiry;
    Desired blind{.wanted_uplinks = {Family::ipv4}};
    EXPECT_TRUE(inquiry.ask_at(kNow, laptop(), blind));
    Observed with_address = laptop();
    with_address.addresses.push_back({.link = IfIndex{2}, .local = boost::asio::ip::make_address("192.168.10.50")});
    EXPECT_EQ(inquiry.ask_at(kNow, with_address, blind), kNow + 1s);
    blind.wanted_uplinks.insert(Family::ipv6);
    EXPECT_EQ(inquiry.ask_at(kNow, with_address, blind), kNow + 1s);
    EXPECT_EQ(inquiry.ask_at(kNow, with_address, blind), std::nullopt);
    EXPECT_EQ(inquiry.ask_at(kNow, with_address, Desired{}), std::nullopt) << "found";
    EXPECT_EQ(inquiry.ask_at(kNow, with_address, blind), kNow + 1s) << "lost again";
}

} // namespace novpn::test
