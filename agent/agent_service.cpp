// What the agent answers to control. The loop is agent.cpp.
#include "agent/agent.h"
#include "agent/explain.h"
#include "agent/metrics.h"
#include "agent/old_sockets.h"
#include "agent/policies.h"
#include "agent/process.h"

#include <algorithm>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace novpn {

namespace {

/// The selector of what `novpn run` and `add` have put into the class's own cgroup.
constexpr const char* kByRun = "run";

/// Of the sockets that keep their path, so many are named.
constexpr std::size_t kMostSockets = 20;

/// Sockets that the process holds and that leave this machine, of those born inside the cgroups, or outside of them.
/// None where /proc does not tell: the process is gone.
std::vector<OpenSocket> held_by(pid_t pid, const std::vector<OpenSocket>& sockets,
                                const std::set<std::uint64_t>& cgroups, bool inside) {
    auto inodes = socket_inodes_of(pid);
    std::vector<OpenSocket> held;
    for (const OpenSocket& socket : sockets) {
        if (std::ranges::find(inodes, socket.inode) == inodes.end()) continue;
        if (leaves_this_machine(socket) && cgroups.contains(socket.cgroup_id) == inside) held.push_back(socket);
    }
    return held;
}

/// The IPsec policy that takes members' packets whatever we do, as a sentence.
std::optional<std::string> find_impassable(const StatusFacts& facts) {
    if (!facts.desired || facts.desired->policies.empty()) return std::nullopt;
    for (Family family : kFamilies)
        for (const XfrmPolicy& policy :
             taking_policies(family, facts.observed, facts.desired->uplinks.at(family).uplink))
            if (!is_passable(policy))
                return fmt::format("Members are held up: no policy of ours comes before the IPsec policy '{}'. Give it "
                                   "a priority above {}.",
                                   to_string(policy), kNovpnPolicyPriority);
    return std::nullopt;
}

/// What of `dns: uplink` is not as the config asks for, as a sentence with the mend.
std::optional<std::string> find_dns_problem(const StatusFacts& facts) {
    if (!facts.desired) return std::nullopt;
    for (const ClassConfig& c : facts.config.classes) {
        if (!c.enabled || c.dns != Dns::uplink) continue;
        if (!can_redirect(facts.observed, facts.config))
            return fmt::format("Class {} asks the VPN's name servers, not its uplink's (dns: uplink): {}.", c.name,
                               !marks_by_bpf(facts.config.marking) ? "marking is nft or net_cls, and only BPF redirects"
                                                                   : facts.observed.redirects.unavailable);
        const ClassDecision& decision = facts.desired->classes.at(c.name);
        if (decision.state == ClassState::steering && decision.dns.state == DnsState::none)
            return fmt::format("Class {} cannot resolve names: neither systemd-resolved, systemd-networkd, "
                               "NetworkManager nor a DHCP lease says what the resolver of its uplink is, by the "
                               "protocol that programs ask in. `dns: vpn` asks the VPN's.",
                               c.name);
    }
    return std::nullopt;
}

/// Whose replies the kernel drops because src_valid_mark cannot be ours, as a sentence with the mend.
std::optional<std::string> find_lost_replies(const StatusFacts& facts) {
    if (!facts.desired) return std::nullopt;
    for (const auto& [name, decision] : facts.desired->classes) {
        const auto& way_out = decision.ways_out.at(Family::ipv4).uplink;
        const Link* link = way_out ? find_link(facts.observed, way_out->link) : nullptr;
        if (decision.state != ClassState::steering || !link || !needs_src_valid_mark(*link, facts.observed)) continue;
        if (link->ipv4.src_valid_mark || may_set_src_valid_mark(*link)) continue;
        return fmt::format("Replies to class {} are dropped on {} under a VPN: rp_filter is strict, and src_valid_mark "
                           "stays as it is, as another program uses net.ipv4.conf.{}.tag. Set rp_filter=2.",
                           name, link->name, link->name);
    }
    return std::nullopt;
}

std::vector<OldSocket> named(const std::vector<OpenSocket>& sockets, pid_t pid) {
    std::vector<OldSocket> names;
    for (const OpenSocket& socket : sockets) {
        if (names.size() == kMaxNamedSockets) break;
        names.push_back(named(socket, pid));
    }
    return names;
}

} // namespace

StatusFacts Agent::facts() {
    StatusFacts facts{.config = config_,
                      .cgroup_root = setup_.cgroup_root,
                      .repairs = repairs_,
                      .last_reaction = last_reaction_,
                      .warnings = warnings_};
    if (auto observed = look(Depth::usual)) {
        facts.observed = std::move(*observed);
        facts.desired = decide_at_site(facts.observed);
        facts.config = config_at(facts.desired->site, facts.desired->place);
        Plan left = diff(facts.observed, *facts.desired);
        // To ask is not to change: a gateway may never answer.
        std::erase_if(left,
                      [](const Operation& operation) { return std::holds_alternative<ProbeNeighbour>(operation); });
        if (!left.empty())
            facts.warnings["pending"] =
                "the kernel is not yet as it should be; run 'novpn plan' to see what is missing";
    } else {
        facts.warnings["look"] = to_string(observed.error());
    }
    if (!facts.observed.others_problem.empty())
        facts.warnings["cgroups"] = "Not all programs that are selected are found: " + facts.observed.others_problem;
    if (auto packets = kernel_.packets()) facts.packets = std::move(*packets);
    if (auto astray = find_astray(facts)) facts.warnings[kRuleOrderWarning] = *astray;
    if (auto firewall = find_firewall(facts)) facts.warnings[kFirewallWarning] = *firewall;
    if (auto problem = find_dns_problem(facts)) facts.warnings["dns"] = *problem;
    if (auto lost = find_lost_replies(facts)) facts.warnings["rp_filter"] = *lost;
    if (auto policy = find_impassable(facts)) facts.warnings[kPolicyWarning] = *policy;
    if (facts.desired)
        for (const auto& [family, order] : facts.desired->rule_order)
            if (!order.ahead.empty())
                facts.warnings["rule_ahead"] = fmt::format(
                    "No preference is left before the {} rule '{}' of {}; the guard drops what it leads astray.",
                    to_string(family), to_string(order.ahead.front()), owner_of(order.ahead.front()));
    return facts;
}

/// Whose firewall drops what a class sends, as a sentence; counters are the evidence, rules tell the name only.
std::optional<std::string> Agent::find_firewall(const StatusFacts& facts) {
    const auto counts = kernel_.flow_counts();
    if (!facts.desired || !counts) return std::nullopt;
    std::erase_if(passages_, [&](const auto& passage) { return !counts->contains(passage.first); });
    for (const auto& [name, count] : *counts) passages_[name].take(count);
    for (const ClassConfig& c : facts.config.classes) {
        const auto passage = passages_.find(c.name);
        if (passage == passages_.end() || !passage->second.is_blocked()) continue;
        if (facts.desired->classes.at(c.name).state != ClassState::steering) continue;
        const auto firewalls = kernel_.firewalls();
        // Without one now, there was one.
        if (!firewalls || firewalls->empty()) return std::nullopt;
        std::vector<std::string> names;
        for (const Firewall& firewall : likeliest(*firewalls)) names.push_back(to_string(firewall));
        const auto& [sent, arrived] = passage->second.last();
        return fmt::format("Class {} is held up: the firewall in {} drops what its programs send ({} of the last {} "
                           "new connections). Let mark {} pass there; 'sudo novpn doctor' has the command.",
                           c.name, fmt::join(names, " or "), sent - arrived, sent, to_string(c.mark));
    }
    return std::nullopt;
}

/// Asks the kernel where members' packets go: by a rule that stands before ours they may go elsewhere.
std::optional<std::string> Agent::find_astray(const StatusFacts& facts) {
    if (!facts.desired) return std::nullopt;
    for (const ClassConfig& c : facts.config.classes) {
        const ClassDecision& decision = facts.desired->classes.at(c.name);
        if (decision.state != ClassState::steering) continue;
        for (const address& destination : public_destinations()) {
            const auto& way_out = decision.ways_out.at(family_of(destination)).uplink;
            if (!way_out && may_use_tunnel(c)) continue;
            auto lookup = kernel_.lookup(destination, c.mark);
            if (!lookup || !leaves_this_machine(*lookup) || (way_out && lookup->answer->link == way_out->link))
                continue;
            const Rule* rule = leading_rule(facts.observed, *lookup);
            return fmt::format("Class {} is held up: {} leads its packets to {}, and the guard drops them.", c.name,
                               rule ? fmt::format("the rule '{}' of {}", to_string(*rule), owner_of(*rule))
                                    : "a rule before ours",
                               LinkNames{&facts.observed.links}(lookup->answer->link));
        }
    }
    return std::nullopt;
}

boost::json::object Agent::status(const Caller& caller) {
    const GivesBack at_the_end{*this};
    StatusFacts now = facts();
    auto sockets = kernel_.sockets();
    if (!sockets) now.warnings["sockets"] = "open sockets cannot be counted: " + to_string(sockets.error());
    if (sockets)
        for (const OpenSocket& socket : *sockets)
            if (caller.uid == 0 || caller.uid == socket.uid) now.sockets.push_back(socket);
    auto members_in = [&](const std::string& cgroup) {
        Members members;
        auto inside = kernel_.cgroup_ids(cgroup);
        for (pid_t pid : visible_processes(kernel_.processes(cgroup), caller)) {
            ++members.processes;
            if (!sockets) continue;
            const auto old = held_by(pid, *sockets, inside, false);
            members.old_sockets += old.size();
            if (members.named.size() < kMaxNamedSockets)
                std::ranges::move(named(old, pid), std::back_inserter(members.named));
        }
        return members;
    };
    for (const ClassConfig& c : now.config.classes) {
        now.members[c.name] = members_in(cgroup_of(c, setup_.cgroup_root));
        if (c.classid)
            now.net_cls_members[c.name] =
                visible_processes(kernel_.net_cls_processes(cgroup_of(c, setup_.cgroup_root)), caller).size();
    }
    for (const auto& [_, decision] : now.desired ? now.desired->classes : std::map<std::string, ClassDecision>{})
        for (const auto& [path, matched] : decision.matched)
            // What another user runs is not told.
            if (const auto owner = manager_of(path); caller.uid == 0 || !owner || *owner == caller.uid)
                now.matched[path] = members_in(path);
    return to_status(now);
}

Expected<std::vector<std::string>> Agent::plan() {
    const GivesBack at_the_end{*this};
    auto observed = look(Depth::usual);
    if (!observed) return tl::make_unexpected(observed.error());
    observed->hints = hints_;
    std::vector<std::string> text;
    for (const Operation& operation : diff(*observed, decide_at_site(*observed)))
        text.push_back(to_string(operation, *observed));
    return text;
}

const ClassConfig* Agent::find_class(const std::string& name) const {
    auto found = std::ranges::find(config_.classes, name, &ClassConfig::name);
    return found == config_.classes.end() ? nullptr : &*found;
}

bool Agent::has_class(const std::string& name) const { return find_class(name) != nullptr; }

bool Agent::is_steered(const std::string& name) const {
    if (!desired_) return false;
    auto found = desired_->classes.find(name);
    return found != desired_->classes.end() && found->second.state != ClassState::off;
}

Expected<Placed> Agent::place(const std::string& class_name, pid_t pid) {
    const ClassConfig* c = find_class(class_name);
    if (!c) return system_error(ENOENT, "placing in class " + class_name);
    const auto slice = class_slice_of(class_name, pid);
    // CMD starts after this: what steers its cgroup is looked at now, not remembered. The news of a slice that systemd
    // has just made may still be waiting to be read, so then the tree is.
    const bool is_news = slice && !is_taken_in(class_name, *slice);
    Pass pass = reconcile_on_call("place", is_news ? Depth::everything : Depth::usual);
    if (pass.failure) return tl::make_unexpected(*pass.failure);
    if (pass.wait)
        return system_error(EAGAIN, "placing in class " + class_name,
                            "another program keeps removing what steers it; see 'novpn status'");
    if (places_by_net_cls()) return place_by_net_cls(*c, pid);
    const bool stays = slice && is_taken_in(class_name, *slice);
    std::string cgroup = stays ? *slice : cgroup_of(*c, setup_.cgroup_root);
    if (!stays)
        if (auto moved = kernel_.place(cgroup, pid); !moved) return tl::make_unexpected(moved.error());
    auto sockets = kernel_.sockets();
    if (!sockets) {
        warn(to_string(sockets.error()));
        return Placed{};
    }
    const auto old = held_by(pid, *sockets, kernel_.cgroup_ids(cgroup), false);
    return Placed{.old_sockets = old.size(), .named = named(old, pid)};
}

/// The kernel tags the open sockets of the process anew, so that none can be told from a later one: counted before.
Expected<Placed> Agent::place_by_net_cls(const ClassConfig& c, pid_t pid) {
    const std::string cgroup = cgroup_of(c, setup_.cgroup_root);
    const auto before = kernel_.net_cls_of(pid);
    const bool is_inside = before == cgroup || (before && before->starts_with(cgroup + "/"));
    auto sockets = kernel_.sockets();
    if (!sockets) warn(to_string(sockets.error()));
    const std::size_t open = sockets && !is_inside ? held_by(pid, *sockets, {}, false).size() : 0;
    if (is_inside) return Placed{};
    if (auto moved = kernel_.place_in_net_cls(cgroup, pid); !moved) return tl::make_unexpected(moved.error());
    return Placed{.old_sockets = open};
}

std::optional<std::string> Agent::class_slice_of(const std::string& class_name, pid_t pid) {
    if (!uses_class_slices()) return std::nullopt;
    const auto cgroup = kernel_.cgroup_of(pid);
    return cgroup ? class_slice_above(*cgroup, class_name) : std::nullopt;
}

bool Agent::is_taken_in(const std::string& class_name, const std::string& cgroup) {
    if (!desired_) return false;
    const auto of_class = desired_->classes.find(class_name);
    if (of_class == desired_->classes.end()) return false;
    const auto found = of_class->second.matched.find(cgroup);
    return found != of_class->second.matched.end() && kernel_.cgroup_ids(cgroup).contains(found->second.id);
}

std::optional<Agent::Membership> Agent::membership_of(pid_t pid) {
    if (places_by_net_cls())
        if (const auto of = kernel_.net_cls_of(pid))
            for (const ClassConfig& c : config_.classes)
                if (const std::string own = cgroup_of(c, setup_.cgroup_root); *of == own || of->starts_with(own + "/"))
                    return Membership{c.name, kByRun, own, true};
    auto cgroup = kernel_.cgroup_of(pid);
    if (!cgroup) return std::nullopt;
    for (std::string path = *cgroup; !path.empty();) {
        for (const ClassConfig& c : config_.classes)
            if (path == cgroup_of(c, setup_.cgroup_root)) return Membership{c.name, kByRun, path, false};
        for (const auto& [_, decision] : desired_ ? desired_->classes : std::map<std::string, ClassDecision>{})
            if (auto found = decision.matched.find(path); found != decision.matched.end()) {
                const auto& [name, selector, _id] = found->second;
                const bool is_own = path.ends_with("/" + class_slice(name)) && is_run_scope(*cgroup, path);
                return Membership{name, is_own ? kByRun : selector, path, false};
            }
        const auto slash = path.rfind('/');
        path.resize(slash == std::string::npos ? 0 : slash);
    }
    return std::nullopt;
}

std::optional<std::string> Agent::class_of(pid_t pid) {
    auto membership = membership_of(pid);
    return membership ? std::optional(membership->class_name) : std::nullopt;
}

std::optional<std::string> Agent::selector_of(pid_t pid) {
    auto membership = membership_of(pid);
    return membership ? std::optional(membership->selector) : std::nullopt;
}

std::vector<OldSocket> Agent::old_sockets_of(pid_t pid) {
    const auto membership = membership_of(pid);
    if (!membership) return {};
    const auto sockets = kernel_.sockets();
    if (!sockets) {
        warn(to_string(sockets.error()));
        return {};
    }
    return named(held_by(pid, *sockets, kernel_.cgroup_ids(membership->cgroup), false), pid);
}

Expected<Released> Agent::release(pid_t pid, const std::function<bool()>& is_that_one) {
    const std::string doing = fmt::format("releasing process {}", pid);
    auto membership = membership_of(pid);
    if (!membership) return system_error(EINVAL, doing);
    if (membership->selector != kByRun)
        return system_error(
            EINVAL, doing,
            fmt::format(
                "is in class {} by '{}' of {}, and stays where it is", membership->class_name, membership->selector,
                membership->selector == "slice " + class_slice(membership->class_name) ? "its unit" : "the config"));
    const std::string* name = &membership->class_name;
    const ClassConfig* c = find_class(*name);
    auto sockets = kernel_.sockets();
    if (!sockets) return tl::make_unexpected(sockets.error());
    auto inside = kernel_.cgroup_ids(membership->cgroup);
    // Where it came from is not known any more; the root of the tree takes every process.
    const auto moved = membership->by_net_cls ? kernel_.place_in_net_cls("", pid) : kernel_.place("", pid);
    if (!moved) return tl::make_unexpected(moved.error());
    if (!is_that_one()) return system_error(ESRCH, doing);
    Released released{.class_name = *name};
    // In net_cls all its sockets have the class id.
    const auto held = membership->by_net_cls ? held_by(pid, *sockets, {}, false) : held_by(pid, *sockets, inside, true);
    for (const OpenSocket& socket : held) {
        bool ended = c->on_leave == OnLeave::end && kernel_.apply(EndSocket{socket});
        ++(ended ? released.ended : released.kept);
    }
    return released;
}

Expected<void> Agent::set_enabled(const std::string& class_name, bool enabled,
                                  std::optional<std::chrono::seconds> for_how_long) {
    if (!has_class(class_name)) return system_error(ENOENT, "switching class " + class_name);
    auto now = Clock::now();
    Switch& to = switches_[class_name];
    to.enabled = enabled;
    to.until.reset();
    if (for_how_long) {
        to.until = now + *for_how_long;
        if (setup_.wake_at) setup_.wake_at(*to.until);
    }
    Pass pass = reconcile_on_call(enabled ? "class switched on" : "class switched off", Depth::usual);
    if (pass.failure) return tl::make_unexpected(*pass.failure);
    return {};
}

Expected<boost::json::object> Agent::explain(const address& destination, const std::string& class_name) {
    const GivesBack at_the_end{*this};
    const ClassConfig* c = find_class(class_name);
    if (!c) return system_error(ENOENT, "explaining class " + class_name);
    auto observed = kernel_.observe(scope(Depth::usual));
    if (!observed) return tl::make_unexpected(observed.error());
    auto ordinary = kernel_.lookup(destination, std::nullopt);
    if (!ordinary) return tl::make_unexpected(ordinary.error());
    auto member = kernel_.lookup(destination, c->mark);
    if (!member) return tl::make_unexpected(member.error());
    auto explanation = novpn::explain(*observed, class_name, *ordinary, *member);
    if (desired_ && desired_->classes.contains(class_name))
        explanation["dns"] = to_json(desired_->classes.at(class_name).dns);
    return explanation;
}

std::string Agent::metrics() {
    const GivesBack at_the_end{*this};
    return to_metrics(facts());
}

void Agent::stop() {
    if (setup_.on_stop) setup_.on_stop();
}

void Agent::warn(const std::string& text) { spdlog::warn("control: {}", text); }

} // namespace novpn
