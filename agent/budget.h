// How often something may be done.
#pragma once

#include "agent/settle.h"

#include <optional>

namespace novpn {

/// What someone else makes us do again and again: a burst, then so often a second. A rival that does the same would
/// win nothing, and the machine stays usable.
class Budget {
  public:
    Budget(double burst, double per_second)
        : burst_(burst)
        , per_second_(per_second)
        , tokens_(burst) {}
    /// Nothing when it may be done now, else how long to wait.
    std::optional<Clock::duration> take(Clock::time_point now);

  private:
    double burst_;
    double per_second_;
    double tokens_;
    Clock::time_point last_;
};

} // namespace novpn
