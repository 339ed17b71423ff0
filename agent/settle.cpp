#include "agent/settle.h"

#include <algorithm>

namespace novpn {

Clock::time_point Settle::look_at(Clock::time_point now) {
    bool storm = fruitless_ >= kStormLooks && now - window_start_ < kSettleMax + kSettleMax;
    if (!storm) return now;
    if (waiting_since_ == Clock::time_point{}) waiting_since_ = now;
    return std::min(now + kSettleQuiet, waiting_since_ + kSettleMax);
}

void Settle::looked(Clock::time_point now, bool fruitful) {
    bool waited_out = waiting_since_ != Clock::time_point{};
    waiting_since_ = {};
    if (fruitful) {
        fruitless_ = 0;
        return;
    }
    if (waited_out) {
        window_start_ = now; // the storm goes on until it has been quiet for a while
    } else if (fruitless_ == 0 || now - window_start_ > kSettleMax) {
        window_start_ = now;
        fruitless_ = 1;
    } else {
        ++fruitless_;
    }
}

} // namespace novpn
