#include "agent/plan.h"

#include "rules/nft.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <tuple>

namespace novpn {

namespace {

bool is_backstop(const Route& route) { return route.type == RouteType::unreachable; }

/// Order in which routes are added, so that a packet never meets a table with less than its backstop, and the kernel
/// knows a gateway's prefix before the gateway.
int route_rank(const Route& route) {
    if (is_backstop(route)) return 0;
    if (!is_default(route)) return route.gateway ? 2 : 1;
    return 3;
}

/// Order in which routes are deleted: one that the kernel prefers to another goes after it, so that what is deleted
/// never hands its packets to what is yet to be. The backstop is the last.
auto removal_rank(const Route& route) {
    return std::tuple(is_backstop(route), route.destination.length, family_of(route), ~route.metric);
}

/// Rules are added in this order: the way around the lookup (a target, then the jumps to it) before the lookup.
int rule_rank(const Rule& rule) {
    switch (rule.action) {
    case RuleAction::nop: return 0;
    case RuleAction::goto_: return 1;
    default: return 2;
    }
}

/// What is observed of one route, without what the kernel adds of its own.
Route comparable(Route route) {
    route.link_down = false;
    // IPv6 makes siblings of copies that go by several gateways.
    if (family_of(route) == Family::ipv6) route.next_hops = 1;
    return route;
}

bool is_copy_by_gateway(const Route& route) { return !is_default(route) && route.gateway; }

struct RouteChanges {
    std::vector<Route> to_delete_first; ///< IPv6: the kernel would keep the old one beside the new
    std::vector<Route> to_replace;
    /// Copies by a gateway in nobody's place, of which there may be thousands. Without one of them the default takes
    /// its packets out by the uplink.
    std::vector<Route> copies;
    std::vector<Route> stale;     ///< beside what is desired in its table
    std::vector<Route> to_delete; ///< of tables that no desired rule leads to
};

bool leads_to(const Desired& desired, TableId table) {
    return std::ranges::any_of(
        desired.rules, [&](const Rule& rule) { return rule.action == RuleAction::to_table && rule.table == table; });
}

RouteChanges route_changes(const Observed& observed, const Desired& desired) {
    std::map<RouteKey, Route> ours;
    RouteChanges changes;
    for (const Route& route : observed.routes) {
        if (route.protocol != kNovpnProtocol || route.table == kMainTable) continue;
        auto [_, is_new] = ours.emplace(key(route), comparable(route));
        if (!is_new) changes.stale.push_back(route);
    }
    for (const Route& route : desired.routes) {
        auto found = ours.find(key(route));
        if (found == ours.end()) {
            (is_copy_by_gateway(route) ? changes.copies : changes.to_replace).push_back(route);
            continue;
        }
        if (found->second != route) {
            if (family_of(route) == Family::ipv6 && !is_default(route))
                changes.to_delete_first.push_back(found->second);
            changes.to_replace.push_back(route);
        }
        ours.erase(found);
    }
    for (auto& [_, route] : ours) changes.stale.push_back(route);
    auto unwanted = std::ranges::stable_partition(changes.stale,
                                                  [&](const Route& route) { return leads_to(desired, route.table); });
    changes.to_delete.assign(unwanted.begin(), unwanted.end());
    changes.stale.erase(unwanted.begin(), unwanted.end());
    std::ranges::stable_sort(changes.to_replace, {}, route_rank);
    std::ranges::stable_sort(changes.stale, {}, removal_rank);
    std::ranges::stable_sort(changes.to_delete, {}, removal_rank);
    return changes;
}

struct RuleChanges {
    std::vector<Rule> to_add;
    std::vector<Rule> stale;     ///< for a mark that a desired rule of the family has, or for all
    std::vector<Rule> to_delete; ///< the others, which may be what the marking of another config leans on
};

RuleChanges rule_changes(const Observed& observed, const Desired& desired) {
    RuleChanges changes;
    for (const Rule& rule : observed.rules)
        if (rule.protocol == kNovpnProtocol) changes.to_delete.push_back(rule);
    for (const Rule& rule : desired.rules) {
        auto found = std::ranges::find(changes.to_delete, rule);
        if (found == changes.to_delete.end())
            changes.to_add.push_back(rule);
        else
            changes.to_delete.erase(found);
    }
    std::ranges::stable_sort(changes.to_add, {}, rule_rank);
    auto others = std::ranges::stable_partition(changes.to_delete, [&](const Rule& rule) {
        if (rule.action == RuleAction::goto_ && !rule.mark) return true; // leads every class past what stands there now
        return rule.mark && std::ranges::any_of(desired.rules, [&](const Rule& wanted) {
                   return wanted.family == rule.family && wanted.mark == rule.mark;
               });
    });
    changes.stale.assign(changes.to_delete.begin(), others.begin());
    changes.to_delete.erase(changes.to_delete.begin(), others.begin());
    std::ranges::stable_sort(changes.stale, std::greater{}, rule_rank);
    std::ranges::stable_sort(changes.to_delete, std::greater{}, rule_rank);
    return changes;
}

struct PolicyChanges {
    std::vector<XfrmPolicy> stale; ///< in the place of a desired one
    std::vector<XfrmPolicy> to_add;
    std::vector<XfrmPolicy> to_delete;
};

/// Which of our indexes a policy has says nothing: it tells that it is ours.
bool same_but_index(XfrmPolicy a, const XfrmPolicy& b) {
    a.index = b.index;
    return a == b;
}

std::uint32_t free_index(std::set<std::uint32_t>& used, XfrmDirection direction) {
    constexpr std::uint32_t kStep = 8; // below it is the direction
    std::uint32_t index = kNovpnPolicyIndex + static_cast<std::uint32_t>(direction);
    while (!used.insert(index).second) index += kStep;
    return index;
}

PolicyChanges policy_changes(const Observed& observed, const Desired& desired) {
    PolicyChanges changes;
    std::set<std::uint32_t> used;
    for (const XfrmPolicy& policy : observed.policies) {
        used.insert(policy.index);
        if (owned_by_us(policy)) changes.to_delete.push_back(policy);
    }
    for (XfrmPolicy policy : desired.policies) {
        auto in_place =
            std::ranges::find_if(changes.to_delete, [&](const XfrmPolicy& ours) { return same_key(ours, policy); });
        bool adopted = in_place != changes.to_delete.end() && same_but_index(*in_place, policy);
        if (in_place != changes.to_delete.end()) {
            if (!adopted) changes.stale.push_back(*in_place);
            changes.to_delete.erase(in_place);
        }
        if (adopted) continue;
        policy.index = free_index(used, policy.direction);
        changes.to_add.push_back(policy);
    }
    // The kernel lists the youngest first.
    std::ranges::sort(changes.to_delete, {}, &XfrmPolicy::index);
    return changes;
}

/// Elements of the nft table: wanted before the routes that need them, or unwanted after them.
struct ElementChanges {
    std::vector<Operation> links_to_add;
    std::vector<Operation> members_to_add;
    ElementChange at_once;
    std::vector<Operation> members_to_remove;
    std::vector<Operation> links_to_remove;
};

template<typename Element>
void take_difference(std::set<Element> observed, const std::set<Element>& wanted, std::set<Element>& to_add,
                     std::set<Element>& to_remove) {
    for (const Element& element : wanted)
        if (!observed.erase(element)) to_add.insert(element);
    to_remove = std::move(observed);
}

ElementChange change_of_users_and_destinations(const Observed& observed, const Desired& desired) {
    std::set<UserElement> users;
    std::set<DestinationElement> destinations;
    for (const ClassMarking& c : desired.nft.classes) {
        for (std::uint32_t uid : c.users) users.insert({c.name, uid});
        for (const Prefix& prefix : c.destinations) destinations.insert({c.name, prefix});
    }
    ElementChange change;
    take_difference(observed.nft.users, users, change.users_to_add, change.users_to_remove);
    take_difference(observed.nft.destinations, destinations, change.destinations_to_add, change.destinations_to_remove);
    return change;
}

ElementChanges element_changes(const Observed& observed, const Desired& desired) {
    ElementChanges changes;
    changes.at_once = change_of_users_and_destinations(observed, desired);
    auto links = observed.nft.links;
    auto members = observed.nft.members;
    for (const ClassMarking& c : desired.nft.classes) {
        for (IfIndex link : c.guarded ? c.links : std::set<IfIndex>{}) { // without a guard there is no set of links
            LinkElement element{c.name, link};
            if (!links.erase(element)) changes.links_to_add.push_back(AddLink{element});
        }
        for (const std::string& path : c.cgroups) {
            auto id = observed.cgroups.find(path);
            bool present =
                id != observed.cgroups.end() && members.erase(MemberElement{c.name, cgroup_level(path), id->second});
            if (!present) changes.members_to_add.push_back(AddMember{c.name, path});
        }
        for (const auto& [path, id] : c.others) {
            MemberElement element{c.name, cgroup_level(path), id};
            if (!members.erase(element)) changes.at_once.members_to_add.insert(element);
        }
    }
    const bool has_others = !desired.nft.levels.empty();
    if (has_others)
        changes.at_once.members_to_remove = std::move(members);
    else
        for (const MemberElement& member : members) changes.members_to_remove.push_back(RemoveMember{member});
    for (const LinkElement& link : links) changes.links_to_remove.push_back(RemoveLink{link});
    return changes;
}

struct BirthChanges {
    std::vector<Operation> to_remove;
    std::vector<Operation> to_add;
};

/// A class gets another program by removal and addition: nft marks what is made in between.
BirthChanges birth_changes(const Observed& observed, const Desired& desired) {
    BirthChanges changes;
    const auto& pinned = observed.birth_marks.classes;
    std::map<std::string, std::set<std::string>> attached; // to what stays, by class
    for (const auto& [name, seen] : pinned) {
        auto wanted = desired.birth_marks.find(name);
        bool stays = wanted != desired.birth_marks.end() && program_of(wanted->second.birth) == seen.program;
        if (stays) attached[name] = seen.cgroups;
        for (const std::string& cgroup : seen.cgroups)
            if (!stays || !wanted->second.cgroups.contains(cgroup))
                changes.to_remove.push_back(DetachBirthMark{name, cgroup});
        if (!stays) changes.to_remove.push_back(UnpinBirthMark{name});
    }
    for (const auto& [name, wanted] : desired.birth_marks) {
        if (!attached.contains(name)) changes.to_add.push_back(PinBirthMark{name, wanted.birth});
        for (const std::string& cgroup : wanted.cgroups)
            if (!attached[name].contains(cgroup)) changes.to_add.push_back(AttachBirthMark{name, cgroup});
    }
    return changes;
}

/// As birth_changes(). In between queries go where they were sent, marked as they are.
BirthChanges redirect_changes(const Observed& observed, const Desired& desired) {
    BirthChanges changes;
    std::map<std::string, const ObservedRedirect*> kept;
    for (const auto& [name, seen] : observed.redirects.classes) {
        auto wanted = desired.redirects.find(name);
        bool stays = wanted != desired.redirects.end() && redirect_program_of(wanted->second.mark) == seen.program;
        if (stays) kept[name] = &seen;
        for (const std::string& cgroup : seen.cgroups)
            if (!stays || !wanted->second.cgroups.contains(cgroup))
                changes.to_remove.push_back(DetachRedirect{name, cgroup});
        if (!stays) changes.to_remove.push_back(UnpinRedirect{name});
    }
    static const ObservedRedirect kNothing;
    for (const auto& [name, wanted] : desired.redirects) {
        const bool stays = kept.contains(name);
        const ObservedRedirect& seen = stays ? *kept.at(name) : kNothing;
        if (!stays) changes.to_add.push_back(PinRedirect{name, wanted.mark});
        if (seen.resolvers != wanted.resolvers) changes.to_add.push_back(SetResolvers{name, wanted.resolvers});
        for (const std::string& cgroup : wanted.cgroups)
            if (!seen.cgroups.contains(cgroup)) changes.to_add.push_back(AttachRedirect{name, cgroup});
    }
    return changes;
}

struct SettingChanges {
    std::vector<Operation> to_set;
    std::vector<Operation> to_reset;
};

SettingChanges setting_changes(const Observed& observed, const Desired& desired) {
    SettingChanges changes;
    for (const Link& link : observed.links) {
        const bool is_ours = link.ipv4.tag == kNovpnTag;
        if (!desired.src_valid_mark.contains(link.index)) {
            if (is_ours) changes.to_reset.push_back(SetSrcValidMark{link.index, false});
        } else if (!is_ours || !link.ipv4.src_valid_mark) {
            changes.to_set.push_back(SetSrcValidMark{link.index, true});
        }
    }
    // Whatever the order of the dump.
    auto by_link = [](const Operation& operation) { return std::get<SetSrcValidMark>(operation).link; };
    std::ranges::sort(changes.to_set, {}, by_link);
    std::ranges::sort(changes.to_reset, {}, by_link);
    return changes;
}

struct NetClsChanges {
    std::vector<Operation> to_add;
    std::vector<Operation> to_remove;
};

NetClsChanges net_cls_changes(const ObservedNetCls& observed, const NetClsSteering& desired) {
    NetClsChanges changes;
    const bool is_wanted = !desired.cgroups.empty();
    const std::string& mount = observed.mount.empty() ? desired.mount : observed.mount;
    if (is_wanted && observed.mount.empty()) changes.to_add.push_back(MountNetCls{mount});
    for (const auto& [path, classid] : desired.cgroups) {
        auto found = observed.ours.find(path);
        if (found == observed.ours.end() || found->second != classid)
            changes.to_add.push_back(SetClassid{mount, path, classid});
    }
    for (const auto& [path, _] : observed.ours)
        if (!desired.cgroups.contains(path)) changes.to_remove.push_back(RemoveNetClsCgroup{mount, path});
    if (!is_wanted && observed.mounted_by_us && !observed.has_others) changes.to_remove.push_back(UnmountNetCls{mount});
    return changes;
}

template<typename Op, typename Values>
void append(Plan& plan, const Values& values) {
    for (const auto& value : values) plan.push_back(Op{value});
}

void append(Plan& plan, const std::vector<Operation>& operations) {
    plan.insert(plan.end(), operations.begin(), operations.end());
}

/// The kernel's first choice among IPv6 routes leaves out a gateway whose entry has failed, and takes the backstop,
/// which has none: it asks for the gateway again after a minute (rtr_probe_interval), with packets for it or without.
Plan neighbours_to_forget(const Observed& observed, const Desired& desired) {
    Plan plan;
    for (const Neighbour& neighbour : observed.gateways) {
        bool in_use = std::ranges::any_of(desired.routes, [&](const Route& route) {
            return is_default(route) && route.link == neighbour.link && route.gateway == neighbour.host;
        });
        if (in_use && neighbour.host.is_v6() && neighbour.state == NeighbourState::failed)
            plan.push_back(ForgetNeighbour{neighbour});
    }
    return plan;
}

} // namespace

Plan diff(const Observed& observed, const Desired& desired) {
    RouteChanges routes = route_changes(observed, desired);
    RuleChanges rules = rule_changes(observed, desired);
    PolicyChanges policies = policy_changes(observed, desired);
    bool wants_nft = !desired.nft.classes.empty();
    bool adopts_nft =
        wants_nft && observed.nft.present && observed.nft.intact && observed.nft.structure == structure_of(desired.nft);
    ElementChanges elements;
    if (adopts_nft) elements = element_changes(observed, desired);

    BirthChanges births = birth_changes(observed, desired);
    BirthChanges redirects = redirect_changes(observed, desired);
    SettingChanges settings = setting_changes(observed, desired);
    NetClsChanges net_cls = net_cls_changes(observed.net_cls, desired.net_cls);

    Plan plan;
    // Marking stops before anything that it leans on goes.
    append(plan, births.to_remove);
    append(plan, redirects.to_remove);
    if (!wants_nft && observed.nft.present) plan.push_back(DeleteNft{});
    for (const std::string& path : desired.cgroups)
        if (!observed.cgroups.contains(path)) plan.push_back(CreateCgroup{path});
    append(plan, net_cls.to_add);
    // Before a way out that theirs would take packets from.
    append<DeleteXfrmPolicy>(plan, policies.stale);
    append<AddXfrmPolicy>(plan, policies.to_add);
    append(plan, elements.links_to_add);
    append(plan, settings.to_set);
    append<DeleteRoute>(plan, routes.to_delete_first);
    append<ReplaceRoute>(plan, routes.to_replace);
    // What a former run left beside may lead into what is a tunnel by now.
    append<DeleteRoute>(plan, routes.stale);
    append<AddRule>(plan, rules.to_add);
    append<DeleteRule>(plan, rules.stale);
    if (wants_nft && !adopts_nft) plan.push_back(ReplaceNft{desired.nft});
    append(plan, elements.members_to_add);
    if (!is_empty(elements.at_once)) plan.push_back(ChangeElements{elements.at_once});
    append(plan, births.to_add);
    append(plan, redirects.to_add);
    append(plan, neighbours_to_forget(observed, desired));
    append<ProbeNeighbour>(plan, desired.asked_gateways);

    append(plan, elements.members_to_remove);
    append<DeleteRule>(plan, rules.to_delete);
    append<DeleteRoute>(plan, routes.to_delete);
    // After the rules: what is still marked goes by the uplink as long as they are there.
    append<DeleteXfrmPolicy>(plan, policies.to_delete);
    append(plan, elements.links_to_remove);
    append(plan, settings.to_reset);
    auto is_wanted = [&](const std::string& path) {
        return std::ranges::any_of(desired.cgroups, [&](const std::string& wanted) {
            return wanted == path || wanted.starts_with(path + "/");
        });
    };
    for (const auto& [path, id] : observed.cgroups)
        if (!is_wanted(path)) plan.push_back(RemoveCgroup{path});
    append(plan, net_cls.to_remove);
    append<ReplaceRoute>(plan, routes.copies);
    return plan;
}

namespace {

struct Printer {
    const Observed& observed;
    LinkNames names{&observed.links};

    static std::string ip(Family family) { return family == Family::ipv4 ? "ip" : "ip -6"; }
    std::string cgroup(const std::string& path) const { return observed.cgroup_mount + "/" + path; }
    std::string path_of(std::uint64_t cgroup_id) const {
        for (const auto& [path, id] : observed.cgroups)
            if (id == cgroup_id) return path;
        for (const auto& [path, other] : observed.others)
            if (other.id == cgroup_id) return path;
        return fmt::format("{}", cgroup_id); // the cgroup is gone: nft prints its id
    }

    std::string operator()(const ReplaceRoute& op) const {
        bool beside_others = family_of(op.route) == Family::ipv6 && !is_default(op.route);
        return fmt::format("{} route {} {}", ip(family_of(op.route)), beside_others ? "append" : "replace",
                           to_string(op.route, names));
    }
    std::string operator()(const DeleteRoute& op) const {
        return fmt::format("{} route del {}", ip(family_of(op.route)), to_string(op.route, names));
    }
    std::string operator()(const AddRule& op) const {
        return fmt::format("{} rule add {}", ip(op.rule.family), to_string(op.rule));
    }
    std::string operator()(const DeleteRule& op) const {
        return fmt::format("{} rule del {}", ip(op.rule.family), to_string(op.rule));
    }
    std::string operator()(const AddXfrmPolicy& op) const { return "ip xfrm policy add " + to_string(op.policy); }
    std::string operator()(const DeleteXfrmPolicy& op) const { return "ip xfrm policy delete " + identity(op.policy); }
    std::string operator()(const CreateCgroup& op) const { return "mkdir -p " + cgroup(op.path); }
    std::string operator()(const RemoveCgroup& op) const { return "rmdir " + cgroup(op.path); }
    std::string operator()(const MountNetCls& op) const {
        return fmt::format("mkdir -p {0} && mount -t cgroup -o net_cls novpn {0}", op.directory);
    }
    std::string operator()(const UnmountNetCls& op) const {
        return fmt::format("umount {0} && rmdir {0}", op.directory);
    }
    std::string operator()(const SetClassid& op) const {
        return fmt::format("mkdir -p {0}/{1} && echo {2:#x} > {0}/{1}/net_cls.classid", op.mount, op.path, op.classid);
    }
    std::string operator()(const RemoveNetClsCgroup& op) const { return fmt::format("rmdir {}/{}", op.mount, op.path); }
    std::string operator()(const ReplaceNft& op) const {
        return "nft -f - <<'EOF'\n" + to_nft(op.table, names) + "EOF";
    }
    std::string operator()(const DeleteNft&) const { return "nft delete table inet novpn"; }
    std::string operator()(const AddMember& op) const {
        return fmt::format("nft add element inet novpn cgroup_level_{} {{ \"{}\" : goto mark_{} }}",
                           cgroup_level(op.cgroup), op.cgroup, op.class_name);
    }
    std::string operator()(const RemoveMember& op) const {
        return fmt::format("nft delete element inet novpn cgroup_level_{} {{ \"{}\" : goto mark_{} }}", op.member.level,
                           path_of(op.member.cgroup_id), op.member.class_name);
    }
    std::string operator()(const AddLink& op) const {
        return fmt::format("nft add element inet novpn links_{} {{ {} }}", op.element.class_name,
                           names(op.element.link));
    }
    std::string operator()(const RemoveLink& op) const {
        return fmt::format("nft delete element inet novpn links_{} {{ {} }}", op.element.class_name,
                           names(op.element.link));
    }
    std::string pin(const std::string& class_name) const { return observed.birth_marks.directory + "/" + class_name; }
    std::string operator()(const PinBirthMark& op) const {
        return fmt::format("bpftool prog load {} {} type cgroup/sock_create # mark {}", program_of(op.birth),
                           pin(op.class_name), to_string(op.birth.mark));
    }
    std::string operator()(const UnpinBirthMark& op) const {
        return op.class_name.empty() ? "rmdir " + observed.birth_marks.directory : "rm " + pin(op.class_name);
    }
    std::string operator()(const AttachBirthMark& op) const {
        return fmt::format("bpftool cgroup attach {} sock_create pinned {} multi", cgroup(op.cgroup),
                           pin(op.class_name));
    }
    std::string operator()(const DetachBirthMark& op) const {
        return fmt::format("bpftool cgroup detach {} sock_create pinned {}", cgroup(op.cgroup), pin(op.class_name));
    }
    std::string each_hook(const std::string& command) const {
        std::string hooks;
        for (const std::string& hook : redirect_hooks()) hooks += hook + " ";
        return fmt::format("for hook in {}; do {}; done", hooks.substr(0, hooks.size() - 1), command);
    }
    std::string pins(const std::string& class_name) const { return pin(class_name) + kPinOfOther; }
    std::string operator()(const PinRedirect& op) const {
        return each_hook(fmt::format("bpftool prog load {} {}$hook type cgroup/$hook", redirect_program_of(op.mark),
                                     pins(op.class_name))) +
               " # mark " + to_string(op.mark);
    }
    std::string operator()(const UnpinRedirect& op) const { return "rm " + pins(op.class_name) + "*"; }
    std::string operator()(const SetResolvers& op) const {
        std::vector<std::string> pairs;
        for (const auto& [asked, resolver] : op.resolvers)
            pairs.push_back(fmt::format("{} by {}", asked.to_string(), resolver ? resolver->to_string() : "a refusal"));
        return fmt::format("bpftool map update pinned {}resolvers # {}", pins(op.class_name),
                           pairs.empty() ? "none" : fmt::format("{}", fmt::join(pairs, ", ")));
    }
    std::string operator()(const AttachRedirect& op) const {
        return each_hook(
            fmt::format("bpftool cgroup attach {} $hook pinned {}$hook multi", cgroup(op.cgroup), pins(op.class_name)));
    }
    std::string operator()(const DetachRedirect& op) const {
        return each_hook(
            fmt::format("bpftool cgroup detach {} $hook pinned {}$hook", cgroup(op.cgroup), pins(op.class_name)));
    }
    std::string operator()(const ChangeElements& op) const {
        return fmt::format("nft '{}'",
                           fmt::join(to_nft(op.change, [&](std::uint64_t id) { return path_of(id); }), "; "));
    }
    std::string operator()(const EndSocket& op) const {
        const OpenSocket& s = op.socket;
        std::string text = fmt::format("ss --kill{} src {} sport = {}", s.ip_protocol == IPPROTO_UDP ? " --udp" : "",
                                       s.local.to_string(), s.local_port);
        if (s.remote) text += fmt::format(" dst {} dport = {}", s.remote->to_string(), s.remote_port);
        return text;
    }
    std::string operator()(const DropConnection& op) const { return "conntrack -D " + novpn::to_string(op.connection); }
    std::string operator()(const AddConnections& op) const {
        const std::string first = text_of_adding(op.sockets.front());
        return op.sockets.size() == 1 ? first : fmt::format("{} # and {} more", first, op.sockets.size() - 1);
    }
    std::string operator()(const SetSrcValidMark& op) const {
        std::string conf = "net.ipv4.conf." + names(op.link);
        // As sysctl(8) has it: the dot of a VLAN's name is a slash.
        std::replace(conf.begin() + static_cast<std::ptrdiff_t>(std::string_view("net.ipv4.conf.").size()), conf.end(),
                     '.', '/');
        return fmt::format("sysctl -w {}.src_valid_mark={} {}.tag={}", conf, op.on ? 1 : 0, conf,
                           op.on ? kNovpnTag : 0);
    }
    std::string operator()(const ForgetNeighbour& op) const {
        return fmt::format("ip neighbour del {} dev {}", op.neighbour.host.to_string(), names(op.neighbour.link));
    }
    std::string operator()(const ProbeNeighbour& op) const {
        return fmt::format("ip neighbour add {} dev {} use", op.neighbour.host.to_string(), names(op.neighbour.link));
    }
};

} // namespace

std::string to_string(const Operation& operation, const Observed& observed) {
    return std::visit(Printer{observed}, operation);
}

bool stands_alone(const Operation& operation) {
    const auto* replace = std::get_if<ReplaceRoute>(&operation);
    const auto* remove = std::get_if<DeleteRoute>(&operation);
    return (replace && is_copy_by_gateway(replace->route)) || (remove && is_copy_by_gateway(remove->route));
}

bool is_dispensable(const Operation& operation) {
    if (std::holds_alternative<EndSocket>(operation) || std::holds_alternative<DropConnection>(operation) ||
        std::holds_alternative<AddConnections>(operation) || std::holds_alternative<ForgetNeighbour>(operation) ||
        std::holds_alternative<ProbeNeighbour>(operation) || std::holds_alternative<PinBirthMark>(operation) ||
        std::holds_alternative<AttachBirthMark>(operation) || std::holds_alternative<PinRedirect>(operation) ||
        std::holds_alternative<SetResolvers>(operation) || std::holds_alternative<AttachRedirect>(operation))
        return true;
    const auto* replace = std::get_if<ReplaceRoute>(&operation);
    return replace && !is_default(replace->route);
}

} // namespace novpn
