#include "agent/settle.h"

#include <gtest/gtest.h>

namespace novpn::test {

using namespace std::chrono_literals;

TEST(Settle, TheFirstNotificationIsActedOnAtOnce) {
    Settle settle;
    Clock::time_point now{1s};
    EXPECT_EQ(settle.look_at(now), now);
}

TEST(Settle, FruitfulLooksAreNeverAStorm) {
    Settle settle;
    Clock::time_point now{1s};
    for (int i = 0; i < 1000; ++i) {
        EXPECT_EQ(settle.look_at(now), now);
        settle.looked(now, true);
        now += 100us;
    }
}

TEST(Settle, AStormIsWaitedOut) {
    Settle settle;
    Clock::time_point now{1s};
    for (int i = 0; i < kStormLooks; ++i) {
        ASSERT_EQ(settle.look_at(now), now);
        settle.looked(now, false);
        now += 100us;
    }
    Clock::time_point first = now;
    EXPECT_EQ(settle.look_at(now), now + kSettleQuiet);
    now += 1ms;
    EXPECT_EQ(settle.look_at(now), now + kSettleQuiet) << "not quiet yet";
    now = first + 19ms;
    EXPECT_EQ(settle.look_at(now), first + kSettleMax) << "but not for ever";
}

TEST(Settle, AfterAQuietWhileTheNextIsActedOnAtOnce) {
    Settle settle;
    Clock::time_point now{1s};
    for (int i = 0; i < kStormLooks; ++i) settle.looked(now, false);
    ASSERT_GT(settle.look_at(now), now);
    settle.looked(now + 2ms, false);
    ASSERT_GT(settle.look_at(now + 3ms), now + 3ms) << "the storm goes on";
    settle.looked(now + 5ms, false);
    now += 100ms;
    EXPECT_EQ(settle.look_at(now), now);
}

TEST(Settle, AFruitfulLookEndsAStorm) {
    Settle settle;
    Clock::time_point now{1s};
    for (int i = 0; i < kStormLooks; ++i) settle.looked(now, false);
    settle.looked(now, true);
    EXPECT_EQ(settle.look_at(now), now);
}

} // namespace novpn::test
