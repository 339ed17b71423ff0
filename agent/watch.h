// When to look: notifications of routing, nft and IPsec policy changes, signals, retries and the resync timer, on the
// agent's one io_context. What a look does is agent.h.
#pragma once

#include "agent/agent.h"
#include "agent/budget.h"
#include "agent/unique_fd.h"
#include "netlink/nl80211.h"
#include "netlink/route_monitor.h"
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

    /// Notifications that matter to these classes only.
    void follow(const Config& config);
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
        WifiMonitor wifi;
        UniqueFd clock;
    };
    Watch(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel, Monitors monitors);
    void watch_routes();
    void read_routes();
    boost::asio::awaitable<void> watch_nft();
    boost::asio::awaitable<void> watch_xfrm();
    boost::asio::awaitable<void> watch_wifi();
    boost::asio::awaitable<void> watch_cgroups();
    boost::asio::awaitable<void> watch_removals();
    boost::asio::awaitable<void> watch_clock();
    boost::asio::awaitable<void> watch_signals(std::function<void()> on_term, std::function<void()> on_leave);
    RouteMonitor::Drained drain_routes(const RouteMonitor::OnDefault& on_default = {});
    void look(std::string_view cause, Clock::time_point since, Depth depth = Depth::news);
    void narrow_down();
    void widen();
    void set_filter(bool narrow, bool leaves_out_idle = false);
    void look_when_quiet(std::string_view cause, Clock::time_point now);
    void looked();
    void audit();
    Depth depth_of_audit() const;
    void audit_at(Clock::time_point when);
    void look_later(Clock::time_point when, std::string_view cause, Clock::time_point since);
    void schedule_resync();

    boost::asio::io_context& io_;
    Agent& agent_;
    const LinuxKernel& kernel_;
    RouteMonitor routes_;
    NftMonitor nft_;
    XfrmMonitor xfrm_;
    WifiMonitor wifi_;
    /// Neither a coroutine nor a type that hides its executor: a reaction waits for this one.
    boost::asio::posix::basic_stream_descriptor<boost::asio::io_context::executor_type> routes_fd_;
    boost::asio::posix::stream_descriptor nft_fd_;
    boost::asio::posix::stream_descriptor wifi_fd_;
    boost::asio::posix::stream_descriptor cgroups_fd_;
    boost::asio::posix::stream_descriptor removals_fd_;
    boost::asio::posix::stream_descriptor xfrm_fd_;  ///< not open on a kernel without xfrm
    boost::asio::posix::stream_descriptor clock_fd_; ///< a timer that never ends, but for a change of the clock
    boost::asio::signal_set signals_;
    boost::asio::steady_timer later_; ///< a look that waits for the end of a storm, a retry or the repair budget
    boost::asio::steady_timer audit_; ///< a look after news that can wait for it
    boost::asio::steady_timer resync_;
    Settle settle_;
    std::optional<Clock::time_point> waiting_since_;
    std::uint64_t waits_ = 0;         ///< so far: a look that was posted for an earlier one is of no use
    RouteFilter filter_;              ///< in force
    boost::asio::steady_timer flood_; ///< how long the filter stays narrow
    bool flooded_ = false;            ///< the filter is narrow for a flood, or just was
    std::size_t of_idle_ = 0;      ///< of the news since the last look or flood, about links by which nothing leads out
    std::size_t by_gateway_ = 0;   ///< of the news since the last look, about routes of main by a gateway
    Budget audits_left_{4, 4};     ///< of those that are about answered defaults alone
    bool other_news_ = false;      ///< since the last look, than about defaults and of a flood
    std::string_view news_;        ///< cause of the audit; empty: none is due
    Clock::time_point first_news_; ///< of those that an audit is due for
    Clock::time_point last_news_;
    std::chrono::milliseconds retry_{0};
};

} // namespace novpn
