// novpnd: the agent as a program. Arguments, the order of start and stop, readiness, exit status.

#include "agent/control/control.h"
#include "agent/linux_kernel.h"
#include "agent/lock.h"
#include "agent/log.h"
#include "agent/privileges.h"
#include "agent/setup.h"
#include "agent/sources/file_watch.h"
#include "agent/sources/gather.h"
#include "agent/sources/sources.h"
#include "agent/spawn.h"
#include "agent/system_calls.h"
#include "agent/table_names.h"
#include "agent/units.h"
#include "agent/watch.h"
#include "rules/net_cls.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <ctime>
#include <fmt/format.h>
#include <malloc.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#ifdef NOVPN_HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

namespace novpn {

namespace {

struct Options {
    std::string config;
    std::string runtime_dir = kDefaultRuntimeDir;
};

void tell_systemd([[maybe_unused]] const char* state) {
#ifdef NOVPN_HAVE_SYSTEMD
    sd_notify(0, state);
#endif
}

/// Of a reload; the time is for Type=notify-reload of sd_notify(3), which older ones pay no heed to.
std::string reloading() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return fmt::format("RELOADING=1\nMONOTONIC_USEC={}", std::int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000);
}

/// The time that systemd gives the agent between two signs of life (WatchdogSec=); none: it does not ask for any.
std::optional<std::chrono::microseconds> watchdog_time() {
#ifdef NOVPN_HAVE_SYSTEMD
    std::uint64_t microseconds = 0;
    if (sd_watchdog_enabled(0, &microseconds) > 0) return std::chrono::microseconds(microseconds);
#endif
    return std::nullopt;
}

/// Says that the loop turns. At a quarter of the time: one late turn is no hang.
boost::asio::awaitable<void> feed_watchdog(boost::asio::io_context& io, std::chrono::microseconds time) {
    boost::asio::steady_timer next(io);
    for (;;) {
        tell_systemd("WATCHDOG=1");
        next.expires_after(time / 4);
        co_await next.async_wait(boost::asio::use_awaitable);
    }
}

void set_up_log() {
    if (log_to_journal()) return;
    auto logger = spdlog::stderr_logger_st("novpnd");
    logger->set_pattern("%H:%M:%S.%e %^%l%$ %v");
    spdlog::set_default_logger(std::move(logger));
}

Expected<void> make_runtime_dir(const std::string& path) {
    if (mkdir(path.c_str(), 0755) < 0 && errno != EEXIST) return system_error(errno, "making " + path);
    return {};
}

/// A disk that does not answer holds up the sources' thread, and nothing more is asked until it does. Says so once;
/// true while it lasts.
bool report_hang(Clock::duration looked, bool reported) {
    constexpr Clock::duration kHangs = 5 * kSourcesMaxWait;
    if (looked < kHangs) return false;
    if (!reported)
        spdlog::warn(
            "no answer from the sources (DHCP leases, NetworkManager) for {} ms: one hangs, and until it goes on "
            "an uplink that the VPN replaced is not looked for there",
            std::chrono::duration_cast<std::chrono::milliseconds>(looked).count());
    return true;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
    switch (level) {
    case LogLevel::error: return spdlog::level::err;
    case LogLevel::warning: return spdlog::level::warn;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::debug: return spdlog::level::debug;
    }
    return spdlog::level::info;
}

bool dns_by_uplink(const Config& config) {
    const auto changes_to_uplink = [](const SiteConfig& site) {
        return std::ranges::any_of(site.classes, [](const auto& of) { return of.second.dns == Dns::uplink; });
    };
    return std::ranges::find(config.classes, Dns::uplink, &ClassConfig::dns) != config.classes.end() ||
           std::ranges::any_of(config.sites, changes_to_uplink);
}

enum class Ending { release, leave };

/// Runs until told to stop. A start that is refused leaves the kernel as it was.
Expected<void> run(const Options& options) {
    auto load = [&options] { return load_config_or_default(options.config, options.runtime_dir); };
    bool default_dir = options.runtime_dir == kDefaultRuntimeDir;
    std::string no_bpf, no_redirects; // why not
    Watch* follows = nullptr;
    auto on_config = [default_dir, &no_bpf, &no_redirects, &follows](const Config& config) {
        if (follows) follows->follow(config);
        if (dns_by_uplink(config) && !no_redirects.empty())
            spdlog::warn("dns: uplink cannot be done, names are resolved as the VPN has it: {}", no_redirects);
        spdlog::set_level(to_spdlog(config.log_level));
        if (config.marking == Marking::automatic && !no_bpf.empty())
            spdlog::info("marking: nft alone, with masquerade: {}", no_bpf);
        if (!default_dir) return;
        if (auto written = write_table_names(config); !written) spdlog::warn("{}", to_string(written.error()));
    };
    auto config = load();
    if (!config) return tl::make_unexpected(Error{.doing = to_string(config.error())});
    auto kernel = LinuxKernel::open();
    if (!kernel) return tl::make_unexpected(kernel.error());
    no_bpf = kernel->birth_marks().unavailable();
    no_redirects = kernel->redirects().unavailable();
    auto lock = NamespaceLock::take();
    if (!lock) return tl::make_unexpected(lock.error());
    auto cgroup_root = cgroup_root_of_this_netns();
    if (!cgroup_root) return tl::make_unexpected(cgroup_root.error());
    const bool mounts = config->marking == Marking::net_cls || NetCls(*cgroup_root).observe().mounted_by_us;
    // Before there are threads. Some systems forbid even this, and none needs it.
    const auto mounting = mounts ? Mounting::kept : Mounting::given_up;
    if (auto dropped = drop_privileges(mounting); !dropped) spdlog::warn("{}, ignoring", to_string(dropped.error()));
    if (auto refused = refuse_system_calls(mounting); !refused)
        spdlog::warn("{}, ignoring", to_string(refused.error()));
    if (auto made = make_runtime_dir(options.runtime_dir); !made) return made;

    boost::asio::io_context io(1);
    Ending ending = Ending::leave;
    std::unique_ptr<Watch> watch; // outlives the agent, which asks it for passes
    std::unique_ptr<Sources> sources;
    bool sources_hang = false;
    FileWatch name_server_files(io, "", [&] { sources->ask(); });
    Accounts accounts(io);
    bool running = false;
    Agent* asking = nullptr;
    UnitStarter units(io, [&](const std::string& unit, const std::optional<Error>& failure) {
        asking->heard_of_unit(unit, failure);
    });
    // Before the loop runs the answer is waited for: an agent that adopts must not let go of a user's apps first.
    auto is_allowed_user = [&](uid_t uid, const Allow& allow) -> std::optional<bool> {
        if (!running)
            if (const auto answer = is_allowed_now(uid, allow)) return answer;
        spawn(io, [](Accounts& of, uid_t user, Allow to, Agent& agent, Watch& passes) -> boost::asio::awaitable<void> {
            const bool allowed = co_await of.allowed_at_last(user_alone(user), std::move(to));
            if (agent.heard_of_user(user, allowed)) passes.notified("a user's apps may be matched, or not any more");
        }(accounts, uid, allow, *asking, *watch));
        return std::nullopt;
    };
    Agent agent(*kernel, *config,
                {.cgroup_root = *cgroup_root,
                 .load = load,
                 .class_slices = default_dir,
                 .on_config = on_config,
                 .wake_at = [&](Clock::time_point when) { watch->wake_at(when); },
                 .ask_sources = [&] { sources_hang = report_hang(sources->ask(), sources_hang); },
                 .watch_name_servers = [&](bool wanted) { name_server_files.watch(wanted); },
                 .on_stop = [&] { io.stop(); },
                 .on_reload = [](bool begins) { tell_systemd(begins ? reloading().c_str() : "READY=1"); },
                 .on_news = [](const std::string& summary) { tell_systemd(("STATUS=" + summary).c_str()); },
                 .start_unit = [&](const std::string& unit) { units.start(unit); },
                 .is_allowed = is_allowed_user});
    asking = &agent;
    auto opened = Watch::open(io, agent, *kernel);
    if (!opened) return tl::make_unexpected(opened.error());
    watch = std::move(*opened);
    follows = watch.get();
    sources = std::make_unique<Sources>(
        io, [] { return gather({}, std::chrono::system_clock::now(), kSourcesMaxWait); },
        [&](Hints hints) {
            agent.heard(std::move(hints));
            watch->notified("sources answered");
        });
    auto control = Control::listen(io, agent, options.runtime_dir);
    if (!control) return tl::make_unexpected(control.error());

    // An agent that adopts must know what the former one knew of the resolvers and of the place, or it would take them
    // away for a moment.
    if (dns_by_uplink(*config) || tells_by_domain(*config)) {
        Hints hints = gather({}, std::chrono::system_clock::now(), kSourcesMaxWait);
        hints.settled = true;
        agent.heard(std::move(hints));
    }
    if (auto started = agent.start(); !started) {
        // What the kernel lacks says more than what it refused. Asked no earlier, as it takes as long as all else here.
        if (auto probed = kernel->probe(); !probed) return probed;
        return started;
    }
    auto end = [&](Ending how) {
        ending = how;
        io.stop();
    };
    ::malloc_trim(0); // what a first look takes is not needed again
    watch->start([&] { end(Ending::release); }, [&] { end(Ending::leave); });
    tell_systemd("READY=1");
    running = true;
    if (auto time = watchdog_time()) spawn(io, feed_watchdog(io, *time));
    io.run();

    tell_systemd("STOPPING=1");
    if (ending == Ending::leave && !agent.released()) control->leave_socket();
    // After control's Down there is nothing left to do, unless it failed: then this is the second try.
    if (ending == Ending::release || agent.released()) {
        if (auto released = agent.release(); !released) return released;
    }
    if (default_dir && agent.released()) return remove_table_names();
    return {};
}

} // namespace

} // namespace novpn

int main(int argc, char** argv) { // NOLINT(bugprone-exception-escape): out of memory, it ends
    novpn::Options options;
    CLI::App app{"Keeps chosen programs out of the VPN: runs the agent in the foreground.", "novpnd"};
    app.set_version_flag("--version", NOVPN_VERSION);
    app.add_option("--config", options.config, "Configuration file (default: /etc/novpn/novpn.yaml where it exists)");
    app.add_option("--runtime-dir", options.runtime_dir, "Where the control socket is made")->capture_default_str();
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
    novpn::set_up_log();
    if (auto done = novpn::run(options); !done) {
        fmt::print(stderr, "novpnd: {}\n", novpn::to_string(done.error()));
        return 1;
    }
    return 0;
}
