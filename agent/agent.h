// The agent: looks at the kernel, decides, and applies the difference; and answers control. One thread; knows nothing
// of sockets, signals or timers: those are watch.h, which says when to look.
#pragma once

#include "agent/kernel.h"
#include "agent/service.h"
#include "agent/settle.h"
#include "config/load.h"

#include <functional>
#include <string_view>

namespace novpn {

/// What one pass through look, decide, diff, apply did.
struct Pass {
    std::size_t operations = 0;          ///< applied
    std::optional<Error> failure;        ///< the pass is to be repeated
    std::optional<Clock::duration> wait; ///< repairs are too frequent: repeat the pass after this
};

/// What the agent is, besides its kernel and config.
struct AgentSetup {
    std::string cgroup_root;                                           ///< "novpn-4026531840"
    std::function<tl::expected<Config, ConfigError>()> load = nullptr; ///< for reload; none: the built-in default
    std::function<void()> on_stop = nullptr;                           ///< ends the loop
};

/// Repairs of what someone else removed: a burst, then one a second (a rival that does the same would win nothing).
class RepairBudget {
  public:
    /// Nothing when a repair may be made now, else how long to wait.
    std::optional<Clock::duration> take(Clock::time_point now);

  private:
    double tokens_ = 10;
    Clock::time_point last_{};
};

class Agent : public Service {
  public:
    Agent(Kernel& kernel, Config config, AgentSetup setup);

    /// The first pass. Refuses numbers that somebody else uses. Writes nothing when a former run left all in place.
    Expected<void> start();
    /// One pass. `nft_changed`: the nft table may have been changed by somebody else. The reaction is measured from
    /// `since`, when the notification was read.
    Pass reconcile(std::string_view cause, Clock::time_point since, bool nft_changed);
    /// Takes everything of ours out of the kernel, marking first, backstop last. Goes on where one thing fails.
    Expected<void> release();
    bool released() const { return released_; }
    /// Of the last pass; nothing before the first.
    const std::optional<Desired>& desired() const { return desired_; }
    /// Re-reads the config; a bad one changes nothing.
    Expected<void> reload();

    boost::json::object status(const Caller& caller) override;
    Expected<std::vector<std::string>> plan() override;
    bool has_class(const std::string& name) const override;
    bool is_steered(const std::string& name) const override;
    Allow allow() const override { return config_.allow; }
    Expected<void> place(const std::string& class_name, pid_t pid) override;
    Expected<void> down() override { return release(); }
    void stop() override;
    void warn(const std::string& text) override;

  private:
    Scope scope() const;
    void report_decision(const Desired& desired, std::string_view cause);

    Kernel& kernel_;
    Config config_;
    AgentSetup setup_;
    Memory memory_;
    std::optional<Desired> desired_; ///< of the last pass
    bool incomplete_ = true;         ///< the last pass did not make the kernel what is desired
    bool released_ = false;
    RepairBudget repair_budget_;
    std::uint64_t repairs_ = 0;
    std::optional<std::chrono::microseconds> last_reaction_;
    std::map<std::string, std::string> warnings_; ///< code → text, until the cause is gone
};

/// Takes everything of ours out of the kernel: Agent::release() without an agent.
Expected<void> release_everything(Kernel& kernel, const Config& config, const std::string& cgroup_root);

} // namespace novpn
