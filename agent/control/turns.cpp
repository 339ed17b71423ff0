#include "agent/control/turns.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace novpn {

namespace asio = boost::asio;

namespace {

/// More users than this at a time have those forgotten that have their whole share again.
constexpr std::size_t kMaxShares = 256;

} // namespace

Turns::Clock::duration Turns::spend(uid_t uid) {
    const auto now = Clock::now();
    const auto left_now = [&](const Share& share) {
        const std::chrono::duration<double> since = now - share.at;
        return std::min(kBurst, share.left + since.count() * kPerSecond);
    };
    if (shares_.size() >= kMaxShares)
        std::erase_if(shares_, [&](const auto& entry) { return left_now(entry.second) >= kBurst; });
    Share& share = shares_.try_emplace(uid, Share{.left = kBurst, .at = now}).first->second;
    share.left = left_now(share) - 1;
    share.at = now;
    if (share.left >= 0) return {};
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(-share.left / kPerSecond));
}

asio::awaitable<void> Turns::take(uid_t uid) {
    if (uid != 0) {
        if (const auto wait = spend(uid); wait > Clock::duration::zero()) {
            asio::steady_timer timer(io_, wait);
            co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
        }
    }
    // post() queues behind all that is ready, the descriptors among it: a round. First come, first served.
    while (*taken_) co_await asio::post(io_, asio::use_awaitable);
    *taken_ = true;
    asio::post(io_, [taken = taken_] { *taken = false; });
}

} // namespace novpn
