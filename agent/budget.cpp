#include "agent/budget.h"

#include <algorithm>

namespace novpn {

std::optional<Clock::duration> Budget::take(Clock::time_point now) {
    now = std::max(now, last_); // a call may come between a notification and the pass that it causes
    std::chrono::duration<double> elapsed = now - last_;
    tokens_ = std::min(burst_, tokens_ + elapsed.count() * per_second_);
    last_ = now;
    if (tokens_ < 1)
        return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>((1 - tokens_) / per_second_));
    tokens_ -= 1;
    return std::nullopt;
}

} // namespace novpn
