#include "agent/watch.h"

#include "agent/linux_kernel.h"
#include "agent/spawn.h"

#include <algorithm>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <spdlog/spdlog.h>

namespace novpn {

namespace {

constexpr auto kFirstRetry = std::chrono::milliseconds(100);
constexpr auto kLongestRetry = std::chrono::milliseconds(5000);

} // namespace

Expected<std::unique_ptr<Watch>> Watch::open(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel) {
    auto routes = RouteMonitor::open();
    if (!routes) return tl::make_unexpected(routes.error());
    auto nft = NftMonitor::open();
    if (!nft) return tl::make_unexpected(nft.error());
    return std::unique_ptr<Watch>(new Watch(io, agent, kernel, std::move(*routes), std::move(*nft)));
}

Watch::Watch(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel, RouteMonitor routes, NftMonitor nft)
    : io_(io)
    , agent_(agent)
    , kernel_(kernel)
    , routes_(std::move(routes))
    , nft_(std::move(nft))
    , routes_fd_(io, routes_.fd())
    , nft_fd_(io, nft_.fd())
    , signals_(io, SIGTERM, SIGINT, SIGUSR1)
    , later_(io)
    , resync_(io) {
    signals_.add(SIGHUP);
}

Watch::~Watch() {
    // The monitors own their sockets: Asio lets go of them before they are closed.
    routes_fd_.release();
    nft_fd_.release();
}

void Watch::start(std::function<void()> on_term, std::function<void()> on_leave) {
    spawn(io_, watch_routes());
    spawn(io_, watch_nft());
    spawn(io_, watch_signals(std::move(on_term), std::move(on_leave)));
    schedule_resync();
}

boost::asio::awaitable<void> Watch::watch_routes() {
    for (;;) {
        co_await routes_fd_.async_wait(routes_fd_.wait_read, boost::asio::use_awaitable);
        auto drained = routes_.drain(kernel_.routing().port());
        if (!drained.cause.empty()) notified(drained.cause);
    }
}

boost::asio::awaitable<void> Watch::watch_nft() {
    for (;;) {
        co_await nft_fd_.async_wait(nft_fd_.wait_read, boost::asio::use_awaitable);
        if (nft_.drain(kernel_.nft())) notified("nft table changed");
    }
}

boost::asio::awaitable<void> Watch::watch_signals(std::function<void()> on_term, std::function<void()> on_leave) {
    for (;;) {
        int signal = co_await signals_.async_wait(boost::asio::use_awaitable);
        if (signal == SIGUSR1) {
            on_leave();
        } else if (signal == SIGHUP) {
            if (auto done = agent_.reload(); done) spdlog::info("config reloaded");
        } else {
            on_term();
        }
    }
}

void Watch::notified(std::string_view cause) {
    auto now = Clock::now();
    auto when = settle_.look_at(now);
    if (when <= now)
        look(cause, waiting_since_.value_or(now));
    else
        look_later(when, cause, now);
}

void Watch::look(std::string_view cause, Clock::time_point since) {
    later_.cancel();
    waiting_since_.reset();
    Pass pass = agent_.reconcile(cause, since, Depth::usual);
    auto now = Clock::now();
    settle_.looked(now, pass.operations > 0);
    if (pass.failure) {
        retry_ = retry_.count() ? std::min(retry_ * 2, kLongestRetry) : kFirstRetry;
        spdlog::warn("{}; trying again in {} ms", to_string(*pass.failure), retry_.count());
        look_later(now + retry_, "retry", now);
        return;
    }
    retry_ = {};
    if (pass.wait) look_later(now + *pass.wait, "repair", now);
}

void Watch::look_later(Clock::time_point when, std::string_view cause, Clock::time_point since) {
    if (!waiting_since_) waiting_since_ = since;
    later_.expires_at(when);
    // Causes are literals: they outlive the wait.
    later_.async_wait([this, cause](const boost::system::error_code& error) {
        if (!error) look(cause, waiting_since_.value_or(Clock::now()));
    });
}

void Watch::wake_at(Clock::time_point when) {
    // One timer a call: a class is switched by hand, a few at a time.
    auto timer = std::make_shared<boost::asio::steady_timer>(io_, when);
    timer->async_wait([this, timer](const boost::system::error_code& error) {
        if (!error) look("time is up", Clock::now());
    });
}

void Watch::schedule_resync() {
    resync_.expires_after(kResync);
    resync_.async_wait([this](const boost::system::error_code& error) {
        if (error) return;
        look("resync", Clock::now());
        schedule_resync();
    });
}

} // namespace novpn
