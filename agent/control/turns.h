// When a call may make the agent look at the kernel: one look a round of the loop, so that notifications wait for one
// look at most, whatever clients ask; and no user gets more than its share. On the loop's thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <sys/types.h>

namespace novpn {

class Turns {
  public:
    static constexpr double kBurst = 20;
    static constexpr double kPerSecond = 50; ///< a look costs a millisecond: a twentieth of the agent's time

    explicit Turns(boost::asio::io_context& io)
        : io_(io) {}

    /// Returns when it is the caller's turn, which is to be used before the next await. Root waits for the round only:
    /// it could end the agent.
    boost::asio::awaitable<void> take(uid_t uid);

  private:
    using Clock = std::chrono::steady_clock;
    struct Share {
        double left = kBurst; ///< negative: that many wait
        Clock::time_point at;
    };
    /// How long the user has to wait for the turn that is counted here.
    Clock::duration spend(uid_t uid);

    boost::asio::io_context& io_;
    std::map<uid_t, Share> shares_;
    std::shared_ptr<bool> taken_ = std::make_shared<bool>(false); ///< this round's look is
};

} // namespace novpn
