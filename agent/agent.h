// The agent: looks at the kernel, decides, and applies the difference; and answers control. One thread; knows nothing
// of sockets, signals or timers: those are watch.h, which says when to look. The loop is agent.cpp, who the members are
// and which of their sockets end agent_members.cpp, the answers to control agent_service.cpp.
#pragma once

#include "agent/budget.h"
#include "agent/control/service.h"
#include "agent/inquiry.h"
#include "agent/kernel.h"
#include "agent/log.h"
#include "agent/mirror.h"
#include "agent/passage.h"
#include "agent/settle.h"
#include "agent/stale.h"
#include "agent/status.h"
#include "config/load.h"

#include <functional>
#include <string_view>

namespace novpn {

/// How much of the kernel a pass looks at.
enum class Depth {
    flood,     ///< as `defaults`, however large main was before; what a flood leaves there is looked at after it
    defaults,  ///< as usual, but that of a large main only its defaults have changed, by the mirror's account
    news,      ///< as `usual`, but what is in files only where inotify has told of it, or some time ago
    usual,     ///< what the config's classes have to do with
    everything ///< and what another config or a crash may have left anywhere
};

/// What one pass through look, decide, diff, apply did.
struct Pass {
    std::size_t operations = 0;          ///< applied
    std::optional<Error> failure;        ///< the pass is to be repeated
    std::optional<Clock::duration> wait; ///< repairs are too frequent: repeat the pass after this
};

/// What became of news about a default route.
enum class Heard {
    answered,   ///< classes whose default it changes have another now
    unanswered, ///< the mirror has it, and catch_up() answers
    doubtful    ///< only a look can tell
};

/// What the agent is given, besides its kernel and config. A function that is not given is not called.
struct AgentSetup {
    std::string cgroup_root;                                 ///< "novpn-4026531840"
    std::function<tl::expected<Config, ConfigError>()> load; ///< for reload
    /// Systemd's slices named for classes count: of the machine's one agent. One beside it would mark the same
    /// programs.
    bool class_slices = false;
    std::function<void(const Config&)> on_config;   ///< a config is in force: at the start, after a reload
    std::function<void(Clock::time_point)> wake_at; ///< asks for a pass then
    std::function<void()> ask_sources;              ///< asks for hints; returns at once, heard() comes later
    std::function<void(bool)> watch_name_servers;   ///< whether changes of what the sources say of resolvers matter
    std::function<void()> on_stop;                  ///< ends the loop
    std::function<void(bool begins)> on_reload;     ///< the config is read again; it has been, or was refused
    std::function<void(const std::string& summary)> on_news; ///< the sentence that says how things are now
    std::function<void(const std::string&)> start_unit; ///< asks systemd; returns at once, heard_of_unit() comes later
    /// Whether the apps of a user are to be matched: nothing where that takes time, and heard_of_user() comes later.
    std::function<std::optional<bool>(uid_t, const Allow&)> is_allowed;
};

class Agent : public Service {
  public:
    Agent(Kernel& kernel, Config config, AgentSetup setup);

    /// The first pass. Refuses numbers that somebody else uses. Writes nothing when a former run left all in place.
    Expected<void> start();
    /// One pass. The reaction is measured from `since`, when the notification was read.
    Pass reconcile(std::string_view cause, Clock::time_point since, Depth depth);
    /// The sources' answer: the next pass judges it.
    void heard(Hints hints);
    /// What became of a unit that a site wanted started.
    void heard_of_unit(const std::string& unit, const std::optional<Error>& failure);
    /// What is_allowed could not say at once. True: it matters, and a pass is due.
    bool heard_of_user(uid_t uid, bool allowed) override;
    /// Asks again of users whose apps are not matched.
    void forget_refused_users();
    /// Cgroups of others have come or gone. True: a member is among them, and a pass is due. Those that came are in
    /// their class when this returns, as a program's first packet does not wait for a look.
    bool heard_of_cgroups(const SeenCgroups& seen, std::string_view cause);
    /// A default route of main has come or gone. Where a few comparisons tell what follows, classes whose default it
    /// changes have another when this returns, whatever was left unanswered of its family before.
    Heard heard_of_default(const RouteChange& change, Clock::time_point since);
    /// One that came during the last look, which may have seen it. False: doubtful.
    bool heard_of_default_late(const RouteChange& change);
    /// Answers what was left unanswered of these, once all of it is heard of: what one of them says may be long over.
    /// True: the look that audits it can wait for a quiet moment.
    bool catch_up(const std::set<Family>& families, Clock::time_point since);
    /// The pass that was asked for at that time has nothing to do any more, as another one did it or it is over.
    bool is_overtaken(Clock::time_point asked) { return overtaken_.erase(asked) != 0; }
    /// The kernel's own deletions, since the last of these: what puts them back is no repair.
    void heard_of_losses(Losses losses);
    /// Main has more routes by a gateway than are copied: which of them come and go is of no use.
    bool is_crowded() const { return crowded_; }
    /// The pass that ended just now saw all there was to see: no news is still to come about what it saw.
    void trust_mirror() { mirror_.trust(); }
    /// News of what no mirror follows.
    void doubt_mirror() { mirror_.doubt(); }
    /// Takes everything of ours out of the kernel, marking first, backstop last. Goes on where one thing fails.
    Expected<void> release();
    bool released() const { return released_; }
    /// Of the last pass, but for its routes; nothing before the first.
    const std::optional<Desired>& desired() const { return desired_; }
    /// Those of main's defaults, where there are several: whether they answer matters. And those that tell sites.
    const std::set<address>& gateways() const { return gateways_; }
    /// By what link-layer addresses those are known; null: no site is told by them.
    const std::set<MacAddress>* gateway_macs() const { return gateway_macs_ ? &*gateway_macs_ : nullptr; }

    /// As the last pass saw them; none where sites are told by links.
    const IdleLinks& idle_links() const { return idle_links_; }

    boost::json::object status(const Caller& caller) override;
    Expected<std::vector<std::string>> plan() override;
    bool has_class(const std::string& name) const override;
    bool is_steered(const std::string& name) const override;
    Allow allow() const override { return config_.allow; }
    Expected<Placed> place(const std::string& class_name, pid_t pid) override;
    Expected<Released> release(pid_t pid, const std::function<bool()>& is_that_one) override;
    std::optional<std::string> class_of(pid_t pid) override;
    std::optional<std::string> selector_of(pid_t pid) override;
    std::vector<OldSocket> old_sockets_of(pid_t pid) override;
    Expected<void> set_enabled(const std::string& class_name, bool enabled,
                               std::optional<std::chrono::seconds> for_how_long) override;
    Expected<void> reload() override;
    Expected<boost::json::object> explain(const address& destination, const std::string& class_name) override;
    std::string metrics() override;
    void on_event(Subscriber subscriber) override { subscriber_ = std::move(subscriber); }
    Expected<void> down() override { return release(); }
    void stop() override;
    void warn(const std::string& text) override;

  private:
    /// `novpn off` and `on`: stands above the config until `until`.
    struct Switch {
        bool enabled = false;
        std::optional<Clock::time_point> until;
    };

    enum class Repairs : std::uint8_t { in_budget, at_once };
    Pass reconcile(std::string_view cause, Clock::time_point since, Expected<Observed> observed, Repairs repairs);
    Pass reconcile_on_call(std::string_view cause, Depth depth);
    Expected<void> take_config();
    bool is_at_the_same_site() const;
    Config config_at(const SiteDecision& site, const Place& place) const; ///< with the switches applied
    /// Who is put in a class goes to net_cls, and systemd's slices say nothing.
    bool places_by_net_cls() const { return config_.marking == Marking::net_cls; }
    bool uses_class_slices() const { return setup_.class_slices && !places_by_net_cls(); }
    /// What a look at a large main takes is not needed until the next: it goes back to the machine behind the rest.
    struct GivesBack {
        const Agent& agent;
        ~GivesBack();
    };
    Desired decide_at_site(const Observed& observed) const;
    Scope scope(Depth depth) const;
    Expected<Observed> look(Depth depth);
    std::optional<Observed> look_at_defaults(Scope scope);
    bool answer_new_defaults(Family family, Clock::time_point since);
    bool replace_ahead(const Route& route, Clock::time_point since);
    bool leads_by_idle_link(const RouteChange& change) const;
    void keep_others_of_main(const Observed& observed);
    void take_in(const std::map<std::string, MatchedCgroup>& matched, const SeenCgroups& seen, std::string_view cause);
    void ask_about_users(const std::set<uid_t>& managers);
    std::set<uid_t> allowed_users() const;
    /// By which cgroup a process is in a class.
    struct Membership {
        std::string class_name;
        std::string selector;
        std::string cgroup;
        bool by_net_cls = false; ///< then the cgroup is one of that hierarchy
    };
    /// By the nearest of the cgroups that the process is in.
    std::optional<Membership> membership_of(pid_t pid);
    /// The class's slice that the process is in, whether or not it is steered yet.
    Expected<Placed> place_by_net_cls(const ClassConfig& c, pid_t pid);
    std::optional<std::string> class_slice_of(const std::string& class_name, pid_t pid);
    /// This very cgroup, and not a former one of its name, is in the class.
    bool is_taken_in(const std::string& class_name, const std::string& cgroup);
    std::set<std::uint64_t> ids_that_leave(const ClassDecision& before, const Desired& after);
    void ask_sources(const Observed& observed, const Desired& desired, Clock::time_point now);
    Plan sockets_to_end(const Desired& after);
    void overtake(Clock::time_point asked);
    bool ask_whether_flows_are_gone(const Observed& observed, Clock::time_point now);
    void keep_flows_from_before(Plan& plan, const Observed& observed, const Desired& desired);
    Plan flows_gone_stale(const Observed& observed, const Desired& desired, Clock::time_point now);
    std::optional<Clock::duration> limit_moves(const Observed& observed, Desired& desired, Clock::time_point now);
    std::vector<std::string> report_decision(const Desired& desired, std::string_view cause);
    LogTone tone_of(bool contested, Clock::time_point now);
    void publish(std::string_view cause, const std::vector<std::string>& decisions,
                 const std::vector<std::string>& operations);
    void watch_gateways_of(const Place& place);
    void start_units(std::string_view cause);
    StatusFacts facts();
    std::optional<std::string> find_firewall(const StatusFacts& facts);
    std::optional<std::string> find_astray(const StatusFacts& facts);
    const ClassConfig* find_class(const std::string& name) const;

    Kernel& kernel_;
    Config config_;
    AgentSetup setup_;
    Memory memory_;
    Hints hints_;                                          ///< until the next pass: they tell of one moment
    NameServers name_servers_;                             ///< until the next answer
    bool is_answer_lost_ = false;                          ///< NetworkManager's last one
    std::map<std::pair<IfIndex, Prefix>, unsigned> heard_; ///< answers of the sources in a network that a link is in
    Inquiry inquiry_;
    std::map<std::string, Switch> switches_;
    std::optional<Desired> desired_;                    ///< of the last pass, but for its routes
    std::uint64_t desired_routes_ = 0;                  ///< those, as agent.cpp has them for comparison
    std::map<std::string, ClassDecision> classes_left_; ///< as they were when the site was known last
    std::set<address> addresses_;                       ///< as the last pass saw them
    std::set<Family> moved_; ///< where flows may have gone stale, and nobody has looked since
    std::optional<Clock::time_point> asked_for_flows_at_; ///< whether any is left of classes that are off
    bool follows_ = false; ///< the table, as a pass left it: the kernel knows every flow since, and those from before
    std::optional<FlowsBegun> no_flows_since_; ///< members had no flow open then
    std::set<address> gone_;                   ///< addresses, and nobody has looked for their sockets since
    std::optional<Clock::time_point> gone_at_; ///< the first of them
    std::set<Clock::time_point> overtaken_;    ///< times asked for, of which nothing is left to do
    std::set<address> gateways_;
    std::optional<std::set<MacAddress>> gateway_macs_;
    std::optional<SiteConfig> entered_; ///< as it was then; the last that was known
    /// From a reload until the site is known, or the laptop has moved.
    struct BeforeReload {
        std::vector<ClassConfig> classes;
        std::optional<Place> place; ///< of the first pass after it
    };
    std::optional<BeforeReload> before_reload_;
    std::map<uid_t, std::optional<bool>> users_; ///< with a manager: whether their apps are matched, once that is known
    std::vector<std::string> taken_in_;          ///< operations ahead of the next pass, as their text
    IdleLinks idle_links_;                       ///< as the last look saw them
    Losses losses_;                              ///< that the next pass puts back
    Mirror mirror_;
    std::vector<Route> others_of_main_;                    ///< than its defaults, as of the last look at it
    bool crowded_ = false;                                 ///< as of the last pass
    std::vector<ReplaceRoute> answered_;                   ///< ahead of the next pass too, which tells of them
    std::optional<std::chrono::microseconds> answered_in_; ///< the last of them
    Observed shown_;                 ///< of the last pass, what operations on cgroups are told with
    std::set<std::string> attached_; ///< cgroups of others that a BPF program of ours may be on
    bool incomplete_ = true;         ///< the last pass did not make the kernel what is desired
    bool bpf_refused_ = false;       ///< the kernel refused a program in the last pass
    bool released_ = false;
    Budget repairs_left_{10, 1};
    Budget moves_left_{200, 10}; ///< of our rules before a rival's: wg-quick costs four, and two back
    Budget told_left_{50, 0.2};  ///< passes of those two that are in the log
    std::uint64_t untold_ = 0;
    std::uint64_t repairs_ = 0;
    std::optional<std::chrono::microseconds> last_reaction_;
    std::map<std::string, Passage> passages_;     ///< by class: whether somebody's firewall drops what it sends
    std::map<std::string, std::string> warnings_; ///< code → text, until the cause is gone
    Subscriber subscriber_;
};

/// Takes everything of ours out of the kernel: Agent::release() without an agent.
Expected<void> release_everything(Kernel& kernel, const Config& config, const std::string& cgroup_root);

} // namespace novpn
