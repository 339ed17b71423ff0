#include "agent/agent.h"

#include "agent/status.h"

#include <algorithm>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace novpn {

namespace {

Scope scope_of(const Config& config, const std::string& cgroup_root) {
    Scope scope;
    for (const ClassConfig& c : config.classes) {
        scope.tables.push_back(c.table);
        scope.cgroups.push_back(cgroup_of(c, cgroup_root));
    }
    return scope;
}

/// Everything of ours that a former run may have left, wherever it is.
Scope scope_of_start(const Config& config, const std::string& cgroup_root) {
    Scope scope = scope_of(config, cgroup_root);
    scope.strays = true;
    scope.cgroup_root = cgroup_root;
    return scope;
}

bool same_steering(const Desired& a, const Desired& b) {
    return a.routes == b.routes && a.rules == b.rules && a.cgroups == b.cgroups && a.nft == b.nft;
}

/// A batch is many lines of nft; the log has one.
std::string first_line(std::string text) {
    if (auto end = text.find('\n'); end != std::string::npos) text = text.substr(0, end) + " …";
    return text;
}

struct Applied {
    std::size_t operations = 0;
    std::optional<Error> failure; ///< the first
};

/// Applies in order. Stops at a failure, since what follows leans on what came before; `to_the_end`: on the way out.
Applied apply_all(Kernel& kernel, const Plan& plan, const Observed& observed, std::string_view cause,
                  bool to_the_end = false) {
    Applied applied;
    for (const Operation& operation : plan) {
        std::string text = first_line(to_string(operation, observed));
        auto done = kernel.apply(operation);
        if (done) {
            ++applied.operations;
            spdlog::info("{}: {}", cause, text);
            continue;
        }
        spdlog::warn("{}: {}: {}", cause, text, to_string(done.error()));
        if (is_dispensable(operation)) continue;
        if (!applied.failure) applied.failure = done.error();
        if (!to_the_end) break;
    }
    return applied;
}

} // namespace

std::optional<Clock::duration> RepairBudget::take(Clock::time_point now) {
    constexpr double kBurst = 10;
    std::chrono::duration<double> elapsed = now - last_;
    tokens_ = std::min(kBurst, tokens_ + elapsed.count());
    last_ = now;
    if (tokens_ < 1) return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 - tokens_));
    tokens_ -= 1;
    return std::nullopt;
}

Agent::Agent(Kernel& kernel, Config config, AgentSetup setup)
    : kernel_(kernel)
    , config_(std::move(config))
    , setup_(std::move(setup)) {}

Scope Agent::scope() const { return scope_of(config_, setup_.cgroup_root); }

Pass Agent::reconcile(std::string_view cause, Clock::time_point since, bool nft_changed) {
    Pass pass;
    if (released_) return pass;
    Scope where = scope();
    where.nft = nft_changed || incomplete_;

    auto observed = kernel_.observe(where);
    if (!observed) {
        pass.failure = observed.error();
        return pass;
    }
    Desired desired = decide(*observed, config_, memory_, setup_.cgroup_root);
    Plan plan = diff(*observed, desired);

    bool repair = !plan.empty() && !incomplete_ && same_steering(*desired_, desired);
    if (repair && (pass.wait = repair_budget_.take(since))) return pass;
    report_decision(desired, cause);
    Applied applied = apply_all(kernel_, plan, *observed, cause);
    pass.operations = applied.operations;
    pass.failure = applied.failure;
    if (repair) ++repairs_;
    incomplete_ = pass.failure.has_value();
    memory_ = desired.memory;
    desired_ = std::move(desired);
    if (pass.operations) last_reaction_ = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since);
    return pass;
}

Expected<void> Agent::start() {
    auto observed = kernel_.observe(scope_of_start(config_, setup_.cgroup_root));
    if (!observed) return tl::make_unexpected(observed.error());
    if (auto found = conflicts(*observed, config_); !found.empty())
        return tl::make_unexpected(Error{.doing = "starting", .detail = found.front()});
    // What a former run with another config left in other tables and cgroups goes with the first plan's deletions.
    Desired desired = decide(*observed, config_, memory_, setup_.cgroup_root);
    report_decision(desired, "start");
    Applied applied = apply_all(kernel_, diff(*observed, desired), *observed, "start");
    if (applied.failure) return tl::make_unexpected(*applied.failure);
    memory_ = desired.memory;
    desired_ = std::move(desired);
    incomplete_ = false;
    return {};
}

void Agent::report_decision(const Desired& desired, std::string_view cause) {
    for (Family family : kFamilies) {
        const Selection& now = desired.uplinks.at(family);
        const Selection* before = desired_ ? &desired_->uplinks.at(family) : nullptr;
        if (!before || before->uplink != now.uplink || before->from != now.from)
            spdlog::info("{}: {} uplink {} ({})", cause, to_string(family), describe(now.uplink), now.reason);
        const auto& takeovers = desired.takeovers.at(family);
        if (desired_ ? desired_->takeovers.at(family) != takeovers : !takeovers.empty())
            spdlog::info("{}: {} takeover {}", cause, to_string(family), describe(takeovers));
    }
}

Expected<void> Agent::release() {
    released_ = true;
    return release_everything(kernel_, config_, setup_.cgroup_root);
}

Expected<void> release_everything(Kernel& kernel, const Config& config, const std::string& cgroup_root) {
    std::optional<Error> failure;
    // Twice: the second look finds what came back while the first plan ran, such as a process forked into a cgroup.
    for (int round = 0; round < 2; ++round) {
        auto observed = kernel.observe(scope_of_start(config, cgroup_root));
        if (!observed) return tl::make_unexpected(observed.error());
        failure = apply_all(kernel, diff(*observed, Desired{}), *observed, "release", true).failure;
    }
    if (failure) return tl::make_unexpected(*failure);
    return {};
}

Expected<void> Agent::reload() {
    if (!setup_.load) return {};
    auto loaded = setup_.load();
    if (!loaded) {
        warnings_["config"] = to_string(loaded.error());
        spdlog::error("config not changed: {}", to_string(loaded.error()));
        return tl::make_unexpected(Error{.doing = "reloading", .detail = to_string(loaded.error())});
    }
    Scope where = scope_of(*loaded, setup_.cgroup_root);
    where.nft = false;
    auto observed = kernel_.observe(where);
    if (!observed) return tl::make_unexpected(observed.error());
    if (auto found = conflicts(*observed, *loaded); !found.empty()) {
        warnings_["config"] = found.front();
        return tl::make_unexpected(Error{.doing = "reloading", .detail = found.front()});
    }
    warnings_.erase("config");
    config_ = std::move(*loaded);
    Pass pass = reconcile("reload", Clock::now(), true);
    if (pass.failure) return tl::make_unexpected(*pass.failure);
    return {};
}

boost::json::object Agent::status(const Caller& caller) {
    StatusFacts facts{.config = config_,
                      .cgroup_root = setup_.cgroup_root,
                      .repairs = repairs_,
                      .last_reaction = last_reaction_,
                      .warnings = warnings_};
    if (auto observed = kernel_.observe(scope())) {
        facts.observed = std::move(*observed);
        facts.desired = decide(facts.observed, config_, memory_, setup_.cgroup_root);
        if (!diff(facts.observed, *facts.desired).empty())
            facts.warnings["pending"] =
                "the kernel is not yet as it should be; run 'novpn plan' to see what is missing";
    } else {
        facts.warnings["look"] = to_string(observed.error());
    }
    if (auto packets = kernel_.packets()) facts.packets = std::move(*packets);
    for (const ClassConfig& c : config_.classes)
        facts.processes[c.name] = visible_processes(kernel_.processes(cgroup_of(c, setup_.cgroup_root)), caller);
    return to_status(facts);
}

Expected<std::vector<std::string>> Agent::plan() {
    auto observed = kernel_.observe(scope());
    if (!observed) return tl::make_unexpected(observed.error());
    std::vector<std::string> text;
    for (const Operation& operation : diff(*observed, decide(*observed, config_, memory_, setup_.cgroup_root)))
        text.push_back(to_string(operation, *observed));
    return text;
}

bool Agent::has_class(const std::string& name) const {
    return std::ranges::find(config_.classes, name, &ClassConfig::name) != config_.classes.end();
}

bool Agent::is_steered(const std::string& name) const { return desired_ && desired_->classes.contains(name); }

Expected<void> Agent::place(const std::string& class_name, pid_t pid) {
    // CMD starts after this: what steers its cgroup is looked at now, not remembered.
    Pass pass = reconcile("place", Clock::now(), true);
    if (pass.failure) return tl::make_unexpected(*pass.failure);
    auto found = std::ranges::find(config_.classes, class_name, &ClassConfig::name);
    if (found == config_.classes.end()) return system_error(ENOENT, "placing in class " + class_name);
    return kernel_.place(cgroup_of(*found, setup_.cgroup_root), pid);
}

void Agent::stop() {
    if (setup_.on_stop) setup_.on_stop();
}

void Agent::warn(const std::string& text) { spdlog::warn("control: {}", text); }

} // namespace novpn
