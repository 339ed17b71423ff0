// Who the members are, and what becomes of their sockets when they leave a class or their address goes. The loop is
// agent.cpp.
#include "agent/agent.h"
#include "agent/apply.h"
#include "agent/stale.h"

#include <algorithm>
#include <spdlog/spdlog.h>
#include <utility>

namespace novpn {

namespace {

/// What follows an address that has gone, such as the next one, is answered first.
constexpr auto kAfterTheNews = std::chrono::milliseconds(20);
constexpr auto kAnotherLookForFlows = std::chrono::seconds(10);

/// The users and destinations that the class had and has no more.
ClassDecision selectors_gone(const ClassDecision& before, const ClassDecision* now) {
    ClassDecision gone;
    for (std::uint32_t uid : before.users)
        if (!now || !now->users.contains(uid)) gone.users.insert(uid);
    for (const Prefix& prefix : before.destinations) {
        auto covers = [&](const Prefix& other) { return contains(other, prefix); };
        if (!now || std::ranges::none_of(now->destinations, covers)) gone.destinations.push_back(prefix);
    }
    return gone;
}

} // namespace

void Agent::ask_about_users(const std::set<uid_t>& managers) {
    std::erase_if(users_, [&](const auto& user) { return !managers.contains(user.first); });
    for (uid_t uid : managers) {
        auto [user, is_new] = users_.try_emplace(uid);
        if (is_new && setup_.is_allowed) user->second = setup_.is_allowed(uid, config_.allow);
    }
}

std::set<uid_t> Agent::allowed_users() const {
    std::set<uid_t> allowed;
    for (const auto& [uid, answer] : users_)
        if (answer.value_or(false)) allowed.insert(uid);
    return allowed;
}

bool Agent::heard_of_user(uid_t uid, bool allowed) {
    auto user = users_.find(uid);
    if (user == users_.end()) return false; // logged out since
    const bool changes = user->second.value_or(false) != allowed;
    user->second = allowed;
    return changes;
}

void Agent::forget_refused_users() {
    std::erase_if(users_, [](const auto& user) { return user.second == false; });
}

bool Agent::heard_of_cgroups(const SeenCgroups& seen, std::string_view cause) {
    if (released_ || !desired_ || (!uses_class_slices() && !selects_cgroups(config_))) return false;
    ask_about_users(managers_in(seen));
    std::map<std::string, MatchedCgroup> before;
    for (const auto& [_, decision] : desired_->classes) before.insert(decision.matched.begin(), decision.matched.end());
    auto now = matched_cgroups(config_at(desired_->site, desired_->place), seen, allowed_users(), uses_class_slices());
    std::erase_if(now, [&](const auto& found) {
        auto of_class = desired_->classes.find(found.second.class_name);
        return of_class != desired_->classes.end() && of_class->second.state == ClassState::off;
    });
    if (!incomplete_ && now != before) take_in(now, seen, cause);
    return incomplete_ || now != before;
}

/// Ahead of the look, which audits it and does the rest: it adds to what stands, and what is not as it was refuses.
void Agent::take_in(const std::map<std::string, MatchedCgroup>& matched, const SeenCgroups& seen,
                    std::string_view cause) {
    std::set<std::uint64_t> known;
    for (const auto& [_, decision] : desired_->classes)
        for (const auto& [path, member] : decision.matched) known.insert(member.id);
    ElementChange change;
    Plan births;
    for (const auto& [path, member] : matched) {
        const unsigned level = cgroup_level(path);
        if (known.contains(member.id) || !desired_->nft.levels.contains(level)) continue;
        if (!desired_->classes.contains(member.class_name)) continue; // of a config that no pass has seen yet
        change.members_to_add.insert({member.class_name, level, member.id});
        if (!desired_->birth_marks.contains(member.class_name)) continue;
        births.push_back(AttachBirthMark{member.class_name, path});
        if (desired_->redirects.contains(member.class_name)) births.push_back(AttachRedirect{member.class_name, path});
        attached_.insert(path);
    }
    if (is_empty(change)) return;
    Plan plan{ChangeElements{change}};
    plan.insert(plan.end(), births.begin(), births.end());
    shown_.others = seen;
    Applied applied = apply_all(kernel_, plan, shown_, cause);
    taken_in_.insert(taken_in_.end(), applied.operations.begin(), applied.operations.end());
}

/// Cgroups of others that were in the class and are not any more, with all below them, but for those in there that a
/// class still has.
std::set<std::uint64_t> Agent::ids_that_leave(const ClassDecision& before, const Desired& after) {
    auto stays = [&](const std::string& path) {
        return std::ranges::any_of(after.classes, [&](const auto& now) {
            return now.second.mark == before.mark && now.second.matched.contains(path);
        });
    };
    std::set<std::uint64_t> leaving;
    for (const auto& [path, _] : before.matched)
        if (!stays(path)) leaving.merge(kernel_.cgroup_ids(path));
    if (leaving.empty()) return leaving;
    for (const auto& [_, now] : after.classes)
        for (const auto& [path, matched] : now.matched)
            if (leaving.contains(matched.id) && (now.mark != before.mark || before.matched.contains(path)))
                for (std::uint64_t id : kernel_.cgroup_ids(path)) leaving.erase(id);
    return leaving;
}

/// Of classes that were on and are not any more, and of selectors that a class has no more: members leave them without
/// moving. While the site is not known yet a class that is off may be on again in a moment: its flows wait, held by
/// the guard, and end once it is known that they have to.
Plan Agent::sockets_to_end(const Desired& after) {
    if (!after.site.known) return {};
    std::set<std::uint64_t> cgroups;
    std::set<std::uint32_t> classids;
    std::vector<ClassDecision> selectors; // those that are gone
    for (const auto& [name, before] : classes_left_) {
        auto now = after.classes.find(name);
        bool goes_on = now != after.classes.end() && now->second.state != ClassState::off &&
                       now->second.mark == before.mark; // with another mark its open flows are nobody's
        bool leaves = before.state != ClassState::off && !goes_on;
        if (before.on_leave != OnLeave::end) continue;
        if (leaves) cgroups.merge(kernel_.cgroup_ids(before.cgroup));
        // With another class id the members stay, and have it from now on.
        if (before.classid && before.state != ClassState::off && (leaves || !now->second.classid))
            classids.insert(*before.classid);
        cgroups.merge(ids_that_leave(before, after));
        if (before.state != ClassState::off)
            selectors.push_back(selectors_gone(before, goes_on ? &now->second : nullptr));
    }
    std::erase_if(selectors, [](const ClassDecision& gone) { return gone.users.empty() && gone.destinations.empty(); });
    Plan plan;
    if (cgroups.empty() && classids.empty() && selectors.empty()) return plan;
    auto sockets = kernel_.sockets();
    if (!sockets) {
        spdlog::warn("ending the sockets of a class that is off: {}", to_string(sockets.error()));
        return plan;
    }
    for (const OpenSocket& socket : *sockets) {
        auto is_selected = [&](const ClassDecision& gone) { return selects(gone, socket); };
        bool ends = cgroups.contains(socket.cgroup_id) || classids.contains(socket.classid) ||
                    std::ranges::any_of(selectors, is_selected);
        if (ends && leaves_this_machine(socket)) plan.push_back(EndSocket{socket});
    }
    return plan;
}

/// Where no class was on: whether the kernel knows no flow of one any more. Until then those that it knows are held to
/// their path, or by the guard. Not asked twice in a while: each time the kernel walks all that it knows.
bool Agent::ask_whether_flows_are_gone(const Observed& observed, Clock::time_point now) {
    const auto is_on = [](const ClassConfig& c) { return c.enabled || c.on_leave == OnLeave::keep; };
    // Of a site that is not known yet a class may be on again in a moment.
    const bool is_off = desired_ ? desired_->site.known && is_all_off(*desired_)
                                 : config_.sites.empty() && std::ranges::none_of(config_.classes, is_on);
    if (!is_off || (observed.nft.present && !observed.nft.follows)) return false;
    if (desired_ && desired_->nft.idle) return true; // somebody removed the table that knew of none
    if (asked_for_flows_at_ && now - *asked_for_flows_at_ < kAnotherLookForFlows) return false;
    asked_for_flows_at_ = now;
    return std::ranges::all_of(config_.classes, [&](const ClassConfig& c) {
        const auto of_class = kernel_.connections(c.mark);
        return of_class && of_class->empty();
    });
}

/// Before a table that begins to follow connections. Where somebody removed one that did, they are known still.
void Agent::keep_flows_from_before(Plan& plan, const Observed& observed, const Desired& desired) {
    follows_ = follows_ || observed.nft.follows;
    if (follows_ || desired.nft.idle) return;
    const auto begins =
        std::ranges::find_if(plan, [](const Operation& op) { return std::holds_alternative<ReplaceNft>(op); });
    if (begins == plan.end()) return;
    auto sockets = kernel_.sockets();
    if (!sockets) {
        spdlog::warn("looking for flows from before: {}", to_string(sockets.error()));
        return;
    }
    auto from_before = flows_from_before(std::move(*sockets), config_);
    if (!from_before.empty()) plan.insert(begins, AddConnections{std::move(from_before)});
}

void Agent::overtake(Clock::time_point asked) {
    overtaken_.erase(overtaken_.begin(),
                     overtaken_.lower_bound(asked - std::chrono::seconds(1))); // nobody came for these
    overtaken_.insert(asked);
}

/// Once after each time that an address has gone or a class goes another way: as soon as there is a way out, and else a
/// moment later.
Plan Agent::flows_gone_stale(const Observed& observed, const Desired& desired, Clock::time_point now) {
    moved_.merge(families_moved(observed, desired, addresses_, desired_ ? &*desired_ : nullptr));
    gone_.merge(addresses_gone(observed, addresses_));
    addresses_.clear();
    // The link-local ones of idle links come and go with the links; a flow that began with one led no farther.
    for (const Address& a : observed.addresses)
        if (!idle_links_.contains(a.link)) addresses_.insert(a.local);
    std::erase_if(gone_, [&](const address& a) {
        return std::ranges::find(observed.addresses, a, &Address::local) != observed.addresses.end();
    });
    // What is older than all steering is nobody's flow of ours.
    if (!desired_ && !observed.nft.present) moved_.clear();
    auto is_due = [&](Family family) {
        return std::ranges::any_of(desired.classes, [&](const auto& c) { return has_way_out(c.second, family); });
    };
    const bool has_moved = std::erase_if(moved_, is_due) != 0;
    if (gone_.empty() || !config_.sockets.destroy_stale) {
        gone_.clear();
        if (gone_at_) overtake(*std::exchange(gone_at_, std::nullopt) + kAfterTheNews);
    } else if (!gone_at_) {
        gone_at_ = now;
        if (setup_.wake_at) setup_.wake_at(now + kAfterTheNews);
    }
    const bool waits_no_longer = gone_at_ && now - *gone_at_ >= kAfterTheNews;
    if ((!has_moved && !waits_no_longer) || !config_.sockets.destroy_stale) return {};
    // Both dumps walk the whole machine's hash tables, which takes milliseconds. Counted first: a flow that begins
    // meanwhile makes another count. It counts neither sockets that only listened nor DNS by the VPN: those of an
    // address that has gone are looked for when it is quiet.
    std::optional<FlowsBegun> begun;
    if (auto packets = kernel_.packets()) begun = flows_begun(*packets, desired);
    if (begun && begun == no_flows_since_ && !waits_no_longer) return {};
    no_flows_since_.reset();
    auto sockets = kernel_.sockets();
    if (!sockets) {
        spdlog::warn("looking for sockets whose address is gone: {}", to_string(sockets.error()));
        return {};
    }
    OpenFlows flows{.sockets = std::move(*sockets), .connections = {}, .cgroups = {}, .gone = std::exchange(gone_, {})};
    if (gone_at_ && !waits_no_longer) overtake(*gone_at_ + kAfterTheNews);
    gone_at_.reset();
    if (auto connections = kernel_.connections(std::nullopt))
        flows.connections = std::move(*connections);
    else
        spdlog::warn("looking for stale connections: {}, ignoring", to_string(connections.error()));
    for (const auto& [name, decision] : desired.classes) {
        auto& ids = flows.cgroups[name];
        ids = kernel_.cgroup_ids(decision.cgroup);
        for (const auto& [path, _] : decision.matched) ids.merge(kernel_.cgroup_ids(path));
    }
    if (!has_flows_of_members(flows, desired)) no_flows_since_ = std::move(begun);
    return stale_flows(flows, observed, desired);
}

} // namespace novpn
