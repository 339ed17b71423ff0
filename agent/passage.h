// Whether another program's firewall drops what a class sends, told by counters alone: of the first packets of its
// flows, how many of those that came out of our marking came to the end of the way. A value; pure.
#pragma once

#include "rules/firewall.h"

namespace novpn {

class Passage {
  public:
    /// What the counters say now. Nothing moved since the last time: what was found then stands.
    void take(const FlowCounts& now);
    /// Most of what was sent between the last two counts that differ did not arrive. Some rules drop a packet now and
    /// then, and are no obstacle.
    bool is_blocked() const { return blocked_; }
    /// Of those counts.
    const FlowCounts& last() const { return last_; }

  private:
    FlowCounts counted_; ///< in all
    FlowCounts last_;
    bool blocked_ = false;
};

} // namespace novpn
