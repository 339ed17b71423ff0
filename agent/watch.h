// When to look: notifications of routing, nft and IPsec policy changes, signals, retries and the resync timer, on the
// agent's one io_context. What a look does is agent.h.
#pragma once

#include "agent/agent.h"
#include "agent/unique_fd.h"
#include "netlink/rtnetlink.h"
#include "netlink/xfrm.h"
#include "rules/nft.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

namespace novpn {

class LinuxKernel;

/// Looks again without a cause this often: a lost event costs time, not truth.
inline constexpr auto kResync = std::chrono::minutes(5);

class Watch {
  public:
    /// Subscribes at once, so that nothing between the agent's first look and the loop is missed.
    static Expected<std::unique_ptr<Watch>> open(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    /// Starts to react. SIGTERM and SIGINT call `on_term`, SIGUSR1 `on_leave`; SIGHUP reloads.
    void start(std::function<void()> on_term, std::function<void()> on_leave);
    /// A pass at that time, besides those that notifications cause.
    void wake_at(Clock::time_point when);
    /// A pass now, or at the end of a storm. `cause` is a literal.
    void notified(std::string_view cause);

  private:
    struct Monitors {
        RouteMonitor routes;
        NftMonitor nft;
        XfrmMonitor xfrm;
        UniqueFd clock;
    };
    Watch(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel, Monitors monitors);
    boost::asio::awaitable<void> watch_routes();
    boost::asio::awaitable<void> watch_nft();
    boost::asio::awaitable<void> watch_xfrm();
    boost::asio::awaitable<void> watch_cgroups();
    boost::asio::awaitable<void> watch_clock();
    boost::asio::awaitable<void> watch_signals(std::function<void()> on_term, std::function<void()> on_leave);
    void look(std::string_view cause, Clock::time_point since);
    void look_later(Clock::time_point when, std::string_view cause, Clock::time_point since);
    void schedule_resync();

    boost::asio::io_context& io_;
    Agent& agent_;
    const LinuxKernel& kernel_;
    RouteMonitor routes_;
    NftMonitor nft_;
    XfrmMonitor xfrm_;
    boost::asio::posix::stream_descriptor routes_fd_;
    boost::asio::posix::stream_descriptor nft_fd_;
    boost::asio::posix::stream_descriptor cgroups_fd_;
    boost::asio::posix::stream_descriptor xfrm_fd_;  ///< not open on a kernel without xfrm
    boost::asio::posix::stream_descriptor clock_fd_; ///< a timer that never ends, but for a change of the clock
    boost::asio::signal_set signals_;
    boost::asio::steady_timer later_; ///< a look that waits for the end of a storm, a retry or the repair budget
    boost::asio::steady_timer resync_;
    Settle settle_;
    std::optional<Clock::time_point> waiting_since_;
    std::chrono::milliseconds retry_{0};
};

} // namespace novpn
