#include "agent/watch.h"

#include "agent/linux_kernel.h"
#include "agent/spawn.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <limits>
#include <spdlog/spdlog.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <utility>

namespace novpn {

namespace {

/// A filter that a flood made narrow stays so for this long,
constexpr auto kFloodPause = std::chrono::seconds(1);
/// and the flood is over when a wide one lets no more than a trickle through for this long.
constexpr auto kFloodOver = std::chrono::milliseconds(200);
constexpr auto kFirstRetry = std::chrono::milliseconds(100);
constexpr auto kLongestRetry = std::chrono::milliseconds(5000);

/// A timer of the wall clock that ends when the machine resumes or the clock is set (TFD_TIMER_CANCEL_ON_SET in
/// timerfd_create(2)): whatever was notified before may be long over.
Expected<UniqueFd> watched_clock() {
    UniqueFd fd(::timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC));
    itimerspec never{};
    never.it_value.tv_sec = std::numeric_limits<std::time_t>::max(); // 0 would disarm it
    if (!fd || ::timerfd_settime(fd.get(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, nullptr) != 0)
        return system_error(errno, "watching the clock");
    return fd;
}

} // namespace

Expected<std::unique_ptr<Watch>> Watch::open(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel) {
    auto routes = RouteMonitor::open();
    if (!routes) return tl::make_unexpected(routes.error());
    auto nft = NftMonitor::open();
    if (!nft) return tl::make_unexpected(nft.error());
    auto xfrm = XfrmMonitor::open();
    if (!xfrm) return tl::make_unexpected(xfrm.error());
    auto wifi = WifiMonitor::open();
    if (!wifi) return tl::make_unexpected(wifi.error());
    auto clock = watched_clock();
    if (!clock) return tl::make_unexpected(clock.error());
    return std::unique_ptr<Watch>(
        new Watch(io, agent, kernel,
                  {std::move(*routes), std::move(*nft), std::move(*xfrm), std::move(*wifi), std::move(*clock)}));
}

Watch::Watch(boost::asio::io_context& io, Agent& agent, const LinuxKernel& kernel, Monitors monitors)
    : io_(io)
    , agent_(agent)
    , kernel_(kernel)
    , routes_(std::move(monitors.routes))
    , nft_(std::move(monitors.nft))
    , xfrm_(std::move(monitors.xfrm))
    , wifi_(std::move(monitors.wifi))
    , routes_fd_(io, routes_.fd())
    , nft_fd_(io, nft_.fd())
    , wifi_fd_(io, wifi_.fd())
    , cgroups_fd_(io, kernel.cgroup_watch().fd())
    , removals_fd_(io, kernel.removal_watch().fd())
    , xfrm_fd_(io)
    , clock_fd_(io, monitors.clock.release())
    , signals_(io, SIGTERM, SIGINT, SIGUSR1)
    , later_(io)
    , audit_(io)
    , resync_(io)
    , flood_(io) {
    signals_.add(SIGHUP);
    if (auto fd = xfrm_.fd()) xfrm_fd_.assign(*fd);
    filter_.own_port = kernel.routing().port();
}

Watch::~Watch() {
    // The monitors own their sockets: Asio lets go of them before they are closed.
    routes_fd_.release();
    nft_fd_.release();
    wifi_fd_.release();
    cgroups_fd_.release();
    removals_fd_.release();
    if (xfrm_fd_.is_open()) xfrm_fd_.release();
}

void Watch::follow(const Config& config) {
    filter_.tables.clear();
    for (const ClassConfig& c : config.classes) filter_.tables.push_back(c.table);
    set_filter(filter_.narrow || agent_.is_crowded());
}

void Watch::set_filter(bool narrow, bool leaves_out_idle) {
    filter_.narrow = narrow;
    filter_.idle.clear();
    if (leaves_out_idle)
        for (const auto& [link, _] : agent_.idle_links()) filter_.idle.push_back(link);
    // Without it there are more notifications than needed, no fewer.
    if (auto followed = routes_.follow(filter_); !followed) spdlog::warn("{}", to_string(followed.error()));
}

/// In a flood of routes by gateways, or of links that lead nowhere, nobody reads them: after it a look sees what they
/// came to.
void Watch::narrow_down() {
    const bool narrow = filter_.narrow || by_gateway_ >= RouteMonitor::kFlood;
    const bool leaves_out_idle = !filter_.idle.empty() || of_idle_ >= RouteMonitor::kFloodOfIdle;
    if (narrow != filter_.narrow || leaves_out_idle == filter_.idle.empty()) set_filter(narrow, leaves_out_idle);
    flooded_ = true;
    flood_.expires_after(kFloodPause);
    flood_.async_wait([this](const boost::system::error_code& error) {
        if (!error) widen();
    });
}

/// Where the flood goes on, the filter is narrow again before the look.
void Watch::widen() {
    set_filter(false);
    of_idle_ = 0;
    flood_.expires_after(kFloodOver);
    flood_.async_wait([this](const boost::system::error_code& error) {
        if (error) return;
        flooded_ = false;
        look("the flood is over", Clock::now());
    });
}

void Watch::start(std::function<void()> on_term, std::function<void()> on_leave) {
    looked(); // by the agent, as it started
    watch_routes();
    spawn(io_, watch_nft());
    spawn(io_, watch_wifi());
    spawn(io_, watch_cgroups());
    spawn(io_, watch_removals());
    spawn(io_, watch_clock());
    if (xfrm_fd_.is_open()) spawn(io_, watch_xfrm());
    spawn(io_, watch_signals(std::move(on_term), std::move(on_leave)));
    schedule_resync();
}

void Watch::watch_routes() {
    routes_fd_.async_wait(routes_fd_.wait_read, [this](const boost::system::error_code& error) {
        if (error) return;
        read_routes();
        watch_routes();
    });
}

void Watch::read_routes() {
    for (bool more = true; more;) {
        struct {
            Clock::time_point since = Clock::now();
            std::set<Family> unanswered;
        } news; // in one, as a std::function that captures more than two pointers allocates
        const auto drained = drain_routes([this, &news](const RouteChange& change) {
            const Heard heard = agent_.heard_of_default(change, news.since);
            const Family family = family_of(change.hops.front());
            if (heard == Heard::unanswered) news.unanswered.insert(family);
            if (heard == Heard::answered) news.unanswered.erase(family);
            return heard != Heard::doubtful;
        });
        // Of what came together only the last is of use: a VPN deletes a default, and adds two.
        if (!drained.cause.empty())
            notified(drained.cause);
        else if (!news.unanswered.empty() && !agent_.catch_up(news.unanswered, news.since))
            notified(drained.later);
        else if (!drained.later.empty())
            look_when_quiet(drained.later, Clock::now());
        more = drained.flooded;
    }
}

RouteMonitor::Drained Watch::drain_routes(const RouteMonitor::OnDefault& on_default) {
    auto drained = routes_.drain(kernel_.routing().port(), agent_.gateways(), agent_.gateway_macs(), on_default,
                                 agent_.idle_links());
    if (!drained.cause.empty()) agent_.doubt_mirror();
    agent_.heard_of_losses(std::move(drained.losses));
    by_gateway_ += drained.by_gateway;
    of_idle_ += drained.idle;
    const bool is_flooded_by_idle = !filter_.idle.empty();
    // In such a flood the look after it is enough.
    if (drained.later.empty() && !is_flooded_by_idle) drained.later = drained.of_idle;
    // What gets past the filter all the same does not make it longer.
    const bool floods = !is_flooded_by_idle && of_idle_ >= RouteMonitor::kFloodOfIdle;
    if (by_gateway_ >= RouteMonitor::kFlood || floods) narrow_down();
    other_news_ = other_news_ || !drained.cause.empty() || drained.others > drained.by_gateway || drained.idle;
    return drained;
}

boost::asio::awaitable<void> Watch::watch_nft() {
    for (;;) {
        co_await nft_fd_.async_wait(nft_fd_.wait_read, boost::asio::use_awaitable);
        if (nft_.drain(kernel_.nft())) notified("nft table changed");
    }
}

boost::asio::awaitable<void> Watch::watch_xfrm() {
    for (;;) {
        co_await xfrm_fd_.async_wait(xfrm_fd_.wait_read, boost::asio::use_awaitable);
        if (xfrm_.drain(kernel_.xfrm().port())) notified("IPsec policy changed");
    }
}

boost::asio::awaitable<void> Watch::watch_wifi() {
    for (;;) {
        co_await wifi_fd_.async_wait(wifi_fd_.wait_read, boost::asio::use_awaitable);
        const std::string_view cause = wifi_.drain();
        if (!cause.empty()) notified(cause);
    }
}

boost::asio::awaitable<void> Watch::watch_cgroups() {
    CgroupWatch& cgroups = kernel_.cgroup_watch();
    for (;;) {
        co_await cgroups_fd_.async_wait(cgroups_fd_.wait_read, boost::asio::use_awaitable);
        constexpr std::string_view kCause = "programs came or went";
        if (cgroups.drain() && agent_.heard_of_cgroups(cgroups.seen(), kCause)) notified(kCause);
    }
}

boost::asio::awaitable<void> Watch::watch_removals() {
    for (;;) {
        co_await removals_fd_.async_wait(removals_fd_.wait_read, boost::asio::use_awaitable);
        if (kernel_.removal_watch().drain()) notified("a cgroup or a BPF pin went, or a setting changed");
    }
}

boost::asio::awaitable<void> Watch::watch_clock() {
    for (;;) {
        co_await clock_fd_.async_wait(clock_fd_.wait_read, boost::asio::use_awaitable);
        std::uint64_t expirations = 0;
        ssize_t size = ::read(clock_fd_.native_handle(), &expirations, sizeof expirations);
        if (size >= 0 || errno != ECANCELED) continue;
        notified("resumed, or the clock was set");
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

void Watch::look(std::string_view cause, Clock::time_point since, Depth depth) {
    later_.cancel();
    waiting_since_.reset();
    news_ = {};
    // What is queued is older than what is looked at now: after the look it would tell of a past.
    while (drain_routes().flooded) {
    }
    depth = std::max(depth, depth_of_audit());
    by_gateway_ = of_idle_ = 0;
    other_news_ = false;
    Pass pass = agent_.reconcile(cause, since, depth);
    const auto now = Clock::now();
    settle_.looked(now, pass.operations > 0);
    if (pass.failure) {
        retry_ = retry_.count() ? std::min(retry_ * 2, kLongestRetry) : kFirstRetry;
        spdlog::warn("{}; trying again in {} ms", to_string(*pass.failure), retry_.count());
        look_later(now + retry_, "retry", now);
    } else {
        retry_ = {};
        if (pass.wait) look_later(now + *pass.wait, "repair", now);
    }
    if (!flooded_ && filter_.narrow != agent_.is_crowded()) set_filter(agent_.is_crowded());
    const auto is_idle = [&](IfIndex link) { return agent_.idle_links().contains(link); };
    if (!std::ranges::all_of(filter_.idle, is_idle)) {
        // One leads somewhere by now, and what became of it since was left out.
        set_filter(filter_.narrow);
        look_later(now, cause, now);
    }
    looked();
}

/// What came during the look may be in it, or not.
void Watch::looked() {
    agent_.trust_mirror(); // of other routes than defaults it knows nothing
    std::set<Family> changed;
    const auto take = [&](const RouteChange& change) {
        changed.insert(family_of(change.hops.front()));
        return agent_.heard_of_default_late(change);
    };
    std::string_view cause, later;
    for (bool more = true; more;) {
        const auto missed = drain_routes(take);
        if (cause.empty()) cause = missed.cause;
        if (later.empty()) later = missed.later;
        more = missed.flooded;
    }
    const auto now = Clock::now();
    if (cause.empty() && !changed.empty() && !agent_.catch_up(changed, now)) cause = later;
    if (!cause.empty())
        look_later(settle_.look_at(now), cause, now);
    else if (!later.empty())
        look_when_quiet(later, now);
}

/// Once there has been no news for kAuditQuiet, or kAuditMax after the first.
void Watch::look_when_quiet(std::string_view cause, Clock::time_point now) {
    last_news_ = now;
    const bool is_first = news_.empty();
    if (is_first) {
        news_ = cause;
        first_news_ = now;
    }
    // An audit that waits for its turn does not hold up what is not answered yet.
    if (is_first || (depth_of_audit() == Depth::news && audit_.expiry() > now + kAuditQuiet))
        audit_at(now + kAuditQuiet);
}

void Watch::audit_at(Clock::time_point when) {
    audit_.expires_at(when);
    audit_.async_wait([this](const boost::system::error_code& error) {
        if (!error) audit();
    });
}

void Watch::audit() {
    if (news_.empty()) return; // another look was first
    const auto now = Clock::now();
    const auto due = std::min(last_news_ + kAuditQuiet, first_news_ + kAuditMax);
    if (due > now) return audit_at(due);
    // While one gateway follows another, each of them is answered; to tell of them all takes a look for many.
    if (const auto wait = depth_of_audit() != Depth::news ? audits_left_.take(now) : std::nullopt)
        return audit_at(now + *wait);
    look(news_, first_news_, depth_of_audit());
}

/// The least that shows all that there has been news about.
Depth Watch::depth_of_audit() const {
    if (other_news_) return Depth::news;
    if (flooded_) return Depth::flood;
    return by_gateway_ ? Depth::news : Depth::defaults;
}

void Watch::look_later(Clock::time_point when, std::string_view cause, Clock::time_point since) {
    if (!waiting_since_) waiting_since_ = since;
    ++waits_;
    if (when <= Clock::now()) {
        // A timer that is over when it is set costs an eighth of a look.
        later_.cancel();
        boost::asio::post(io_, [this, cause, wait = waits_] {
            if (waiting_since_ && wait == waits_) look(cause, *waiting_since_);
        });
        return;
    }
    later_.expires_at(when);
    // Causes are literals: they outlive the wait.
    later_.async_wait([this, cause](const boost::system::error_code& error) {
        if (!error) look(cause, waiting_since_.value_or(Clock::now()));
    });
}

void Watch::wake_at(Clock::time_point when) {
    // One timer a call: a class is switched by hand, a few at a time.
    auto timer = std::make_shared<boost::asio::steady_timer>(io_, when);
    timer->async_wait([this, timer, when](const boost::system::error_code& error) {
        if (!error && !agent_.is_overtaken(when)) look("time is up", Clock::now());
    });
}

void Watch::schedule_resync() {
    resync_.expires_after(kResync);
    resync_.async_wait([this](const boost::system::error_code& error) {
        if (error) return;
        agent_.forget_refused_users();
        if (kernel_.cgroup_watch().is_watching()) kernel_.cgroup_watch().scan();
        look("resync", Clock::now(), Depth::usual);
        schedule_resync();
    });
}

} // namespace novpn
