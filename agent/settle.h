// When to look after a notification: at once, unless a storm of them brings nothing. Pure; time is passed in.
#pragma once

#include <chrono>

namespace novpn {

using Clock = std::chrono::steady_clock;

/// A storm is waited out until it is quiet for this long,
inline constexpr auto kSettleQuiet = std::chrono::milliseconds(2);
/// or has gone on for this long.
inline constexpr auto kSettleMax = std::chrono::milliseconds(20);
/// News that is answered already, or that can wait, is audited once it has been quiet for this long,
inline constexpr auto kAuditQuiet = std::chrono::milliseconds(5);
/// or the first of it is this old.
inline constexpr auto kAuditMax = std::chrono::milliseconds(50);
/// Fruitless looks within kSettleMax that make a storm. A VPN client's burst or a link flap has a dozen; each is
/// answered at once.
inline constexpr int kStormLooks = 32;

class Settle {
  public:
    /// A notification came at `now`: look at the returned time, which is `now` itself outside a storm. Ask again at
    /// each further notification while waiting.
    Clock::time_point look_at(Clock::time_point now);
    /// A look ended at `now`; fruitful when it led to an operation.
    void looked(Clock::time_point now, bool fruitful);

  private:
    Clock::time_point window_start_;  ///< of the fruitless looks counted
    Clock::time_point waiting_since_; ///< epoch: not waiting
    int fruitless_ = 0;
};

} // namespace novpn
