// What holds of every decision and plan, on thousands of random states a run. NOVPN_SEED=N replays the state of a seed
// that a failure names, with NOVPN_STATES=N that many states from it.
#include "agent/decide.h"
#include "agent/mirror.h"
#include "agent/plan.h"
#include "tests/laws/laws.h"
#include "tests/support/random_state.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <random>

namespace novpn {

// gtest prints with these.
void PrintTo(const Route& route, std::ostream* stream) { *stream << to_string(route, {}); }
void PrintTo(const Rule& rule, std::ostream* stream) { *stream << to_string(rule); }
void PrintTo(const Operation& operation, std::ostream* stream) { *stream << to_string(operation, {}); }
void PrintTo(const Link& link, std::ostream* stream) { *stream << link.name; }
void PrintTo(const Address& a, std::ostream* stream) { *stream << a.local.to_string(); }

namespace test {

namespace {

/// The same states in each run, so that what fails is what changed. A hunt for new ones begins elsewhere.
constexpr std::uint32_t kFirstSeed = 1;
constexpr int kStates = 3000;
constexpr int kFailuresShown = 3;

std::optional<std::uint32_t> number_from(const char* variable) {
    const char* text = std::getenv(variable);
    return text ? std::optional(static_cast<std::uint32_t>(std::stoul(text))) : std::nullopt;
}

struct Seeds {
    std::uint32_t first;
    std::uint32_t count;
};

const Seeds& seeds() {
    static const Seeds kSeeds = [] {
        auto count = number_from("NOVPN_STATES");
        if (auto first = number_from("NOVPN_SEED")) return Seeds{*first, count.value_or(1)};
        return Seeds{kFirstSeed, count.value_or(kStates)};
    }();
    return kSeeds;
}

/// A state as the agent finds it, its decision and its plan.
struct Case {
    RandomState state;
    Observed observed;
    Desired desired;
    Plan plan;
};

std::string to_text(const Plan& plan, const Observed& observed) {
    std::string text;
    for (const Operation& operation : plan) text += "  " + to_string(operation, observed) + "\n";
    return text;
}

std::string to_text(const Case& c) {
    LinkNames names{&c.observed.links};
    std::string text;
    for (const Link& link : c.observed.links)
        text += fmt::format("  link {} {} {}{}\n", link.index.value, link.name, link.kind,
                            !link.up       ? " down"
                            : link.carrier ? ""
                                           : " no carrier");
    for (const Address& a : c.observed.addresses)
        text += fmt::format("  address {} dev {}\n", a.local.to_string(), names(a.link));
    for (const Rule& rule : c.observed.rules)
        text += fmt::format("  {} rule {}\n", to_string(rule.family), to_string(rule));
    for (const Route& route : c.observed.routes) text += "  route " + to_string(route, names) + "\n";
    for (const XfrmPolicy& policy : c.observed.policies) text += "  xfrm policy " + to_string(policy) + "\n";
    text += "plan:\n" + to_text(c.plan, c.observed);
    return text;
}

/// Nothing where the agent would not start.
std::optional<Case> make_case(RandomState state) {
    Case c{.state = std::move(state)};
    c.observed = *c.state.kernel.observe(c.state.scope);
    if (!conflicts(c.observed, c.state.config).empty()) return std::nullopt;
    c.desired = decide(c.observed, c.state.config, c.state.memory, kRandomRoot);
    c.plan = diff(c.observed, c.desired);
    return c;
}

/// The case of a seed, made once for all laws; nothing where the agent would not start.
const std::optional<Case>& case_of(std::uint32_t seed) {
    static std::map<std::uint32_t, std::optional<Case>> kCases;
    auto [found, is_new] = kCases.try_emplace(seed);
    if (is_new) found->second = make_case(random_state(seed));
    return found->second;
}

/// Calls `law` with many states; it returns what is wrong, empty when it holds.
template<typename Law>
void for_many_states(Law law) {
    int failed = 0;
    std::uint32_t checked = 0;
    for (std::uint32_t i = 0; i < seeds().count && failed < kFailuresShown; ++i) {
        std::uint32_t seed = seeds().first + i;
        const auto& found = case_of(seed);
        if (!found) continue;
        Case c = *found;
        ++checked;
        std::string wrong = law(c, seed);
        if (wrong.empty()) continue;
        ++failed;
        ADD_FAILURE() << "NOVPN_SEED=" << seed << ": " << wrong << "\n" << to_text(c);
    }
    if (seeds().count > 1) {
        EXPECT_GT(checked, seeds().count / 2) << "the generator's states are refused";
    }
}

/// Applies a whole plan; returns what the kernel refused and the agent would not go on without.
std::string apply_all(FakeKernel& kernel, const Plan& plan, const Observed& observed, Plan* refused = nullptr) {
    for (const Operation& operation : plan) {
        auto done = kernel.apply(operation);
        if (!done && !is_dispensable(operation))
            return fmt::format("refused: {}: {}", to_string(operation, observed), to_string(done.error()));
        if (!done && refused) refused->push_back(operation);
    }
    return {};
}

bool is_ours(const Route& route) { return route.protocol == kNovpnProtocol && route.table != kMainTable; }
bool is_ours(const Rule& rule) { return rule.protocol == kNovpnProtocol; }

/// What belongs to others.
struct Foreign {
    std::vector<Link> links;
    std::vector<Address> addresses;
    std::vector<Route> routes;
    std::vector<Rule> rules;
    std::vector<XfrmPolicy> policies;
    SeenCgroups cgroups;
    bool operator==(const Foreign&) const = default;
};

Foreign foreign_of(RandomState& state) {
    Observed observed = *state.kernel.observe(state.everything);
    std::erase_if(observed.routes, [](const Route& route) { return is_ours(route); });
    std::erase_if(observed.rules, [](const Rule& rule) { return is_ours(rule); });
    std::erase_if(observed.policies, owned_by_us);
    for (Link& link : observed.links)
        if (link.ipv4.tag == kNovpnTag) link.ipv4.tag = link.ipv4.src_valid_mark = 0;
    return {observed.links, observed.addresses, observed.routes, observed.rules, observed.policies, observed.others};
}

// Where a member's packet goes

const std::vector<address>& destinations() {
    static const std::vector<address> kDestinations = [] {
        std::vector<address> all = public_destinations();
        for (const char* text : {"172.16.3.4", "100.64.1.1", "198.51.100.7", "2001:db8:ff1::1", "fd77:1::1"})
            all.push_back(boost::asio::ip::make_address(text));
        return all;
    }();
    return kDestinations;
}

struct Fate {
    Packet packet;
    std::optional<Route> route;
    const XfrmPolicy* taken_by = nullptr; ///< an IPsec policy
};
std::string to_text(const Fate& fate, const Observed& observed) {
    return fmt::format("to {} leaves by {}{}", fate.packet.destination.to_string(),
                       to_string(*fate.route, LinkNames{&observed.links}),
                       fate.taken_by ? ", taken by " + to_string(*fate.taken_by) : "");
}

/// The policy that transforms or blocks a packet to a public destination. Others keep to their LAN.
const XfrmPolicy* taken_by(const FakeKernel& kernel, const Packet& packet, const Route& route) {
    if (std::ranges::find(public_destinations(), packet.destination) == public_destinations().end()) return nullptr;
    const XfrmPolicy* policy = kernel.policy_of(packet, route);
    return policy && (policy->block || policy->templates) ? policy : nullptr;
}

/// A plan answers IPsec policies for the marks it desires. One that goes may meet the default of a table that it
/// shared.
enum class Policies { count, do_not_count };

/// The first packet of the class that would leave by a tunnel it must not, or by one made of IPsec policies; nothing
/// when none does. `config` says what a tunnel is; `observed` is the look that the plan was made of.
std::optional<Fate> stray_packet(const FakeKernel& kernel, const ClassConfig& c, const Config& config,
                                 const Observed& observed, Policies policies) {
    bool has_tunnel = std::ranges::any_of(
        observed.links, [&](const Link& link) { return link.up && is_tunnel(link, observed, config); });
    bool has_policies = policies == Policies::count && !kernel.policies().empty();
    if (!has_tunnel && !has_policies) return std::nullopt;
    std::vector<Packet> packets;
    for (const address& destination : destinations()) {
        packets.push_back({destination, c.mark.value, IPPROTO_UDP, 443});
        // With `dns: vpn` queries take the ordinary path on purpose.
        if (c.dns == Dns::uplink && can_redirect(observed, config))
            packets.push_back({destination, c.mark.value, IPPROTO_UDP, 53});
    }
    for (const Packet& packet : packets) {
        auto route = kernel.lookup(packet);
        const Link* link = route ? find_link(observed, route->link) : nullptr;
        if (!link) continue;
        const XfrmPolicy* policy = has_policies ? taken_by(kernel, packet, *route) : nullptr;
        if (policy) return Fate{packet, route, policy};
        if (!is_tunnel(*link, observed, config)) continue;
        if (!c.via.empty() && matches({c.via}, link->name)) continue;
        return Fate{packet, route};
    }
    return std::nullopt;
}

/// Whether packets must stay out of tunnels. Those of a class that is off are marked no more.
bool is_kept_out(const ClassConfig& c) {
    return c.enabled && (c.when_no_uplink == WhenNoUplink::block || !c.via.empty());
}

/// New flows of the class's members are marked.
bool marks(const ObservedNft& nft, const ClassConfig& c) {
    return nft.present &&
           std::ranges::any_of(nft.members, [&](const MemberElement& member) { return member.class_name == c.name; });
}

/// A class whose new sockets are marked while no nft table guards their packets.
std::optional<std::string> loose_birth_mark(const FakeKernel& kernel) {
    for (const auto& [name, pinned] : kernel.birth_marks())
        if (!pinned.cgroups.empty() && !kernel.nft().present) return name;
    return std::nullopt;
}

/// The former run's classes, without those that the config now lets into a tunnel: the plan may do so at any time.
Config still_kept_out(const RandomState& state) {
    Config former = state.former.value_or(Config{.classes = {}});
    std::erase_if(former.classes, [&](const ClassConfig& c) {
        auto now = std::ranges::find(state.config.classes, c.name, &ClassConfig::name);
        return now != state.config.classes.end() && (!is_kept_out(*now) || now->via != c.via);
    });
    for (ClassConfig& c : former.classes) c.dns = Dns::vpn; // so are its queries
    return former;
}

/// Of the nft tables by which a class is marked.
struct Structures {
    std::string desired;
    std::string former;
};

/// Other operations change neither where a marked packet goes nor who is marked.
bool touches_packets(const Operation& operation) {
    const auto* changed = std::get_if<ChangeElements>(&operation);
    return !std::holds_alternative<CreateCgroup>(operation) && !std::holds_alternative<RemoveCgroup>(operation) &&
           !std::holds_alternative<AddLink>(operation) && !std::holds_alternative<RemoveLink>(operation) &&
           !(changed && changed->change.members_to_add.empty());
}

/// Walks a plan. Of each class, from the moment that its members are marked and its packets are kept out of tunnels,
/// they are after every operation. A state that was found with marking on and broken may be broken until it is mended.
std::string walk(const Case& c, FakeKernel kernel, const Plan& plan, const Structures& structures) {
    struct Watched {
        const ClassConfig* config;
        Policies policies;
        std::string structure; ///< of the nft table that has its mark
        bool held;
    };
    std::vector<Watched> watched;
    auto watch = [&](const Config& config, const std::string& structure, Policies policies) {
        for (const ClassConfig& one : config.classes) {
            if (!is_kept_out(one)) continue;
            Watched w{&one, policies, structure, true};
            if (marks(kernel.nft(), one) && kernel.nft().structure == w.structure)
                w.held = !stray_packet(kernel, one, c.state.config, c.observed, policies);
            watched.push_back(w);
        }
    };
    watch(c.state.config, structures.desired, Policies::count);
    Config former = still_kept_out(c.state);
    if (structures.former != structures.desired) watch(former, structures.former, Policies::do_not_count);

    bool was_loose = loose_birth_mark(kernel).has_value();
    for (std::size_t step = 0; step < plan.size(); ++step) {
        auto done = kernel.apply(plan[step]);
        if (!done && !is_dispensable(plan[step]))
            return fmt::format("refused: {}: {}", to_string(plan[step], c.observed), to_string(done.error()));
        auto loose = loose_birth_mark(kernel);
        if (!loose) was_loose = false;
        if (loose && !was_loose)
            return fmt::format("after operation {}, '{}', sockets of class {} are marked and nothing guards them",
                               step + 1, to_string(plan[step], c.observed), *loose);
        if (!touches_packets(plan[step])) continue;
        for (Watched& w : watched) {
            if (!marks(kernel.nft(), *w.config) || kernel.nft().structure != w.structure) continue;
            auto stray = stray_packet(kernel, *w.config, c.state.config, c.observed, w.policies);
            if (!stray) {
                w.held = true;
            } else if (w.held) {
                return fmt::format("after operation {}, '{}', a packet of class {} {}", step + 1,
                                   to_string(plan[step], c.observed), w.config->name, to_text(*stray, c.observed));
            }
        }
    }
    return {};
}

bool has_ppp(const Observed& observed) {
    return std::ranges::any_of(observed.links, [](const Link& link) { return link.hardware == ARPHRD_PPP; });
}

/// Shuffles all that a dump lists in no order of meaning. Routes of one key keep theirs; rules have one.
void shuffle(Observed& observed, std::uint32_t seed) {
    std::mt19937 random(seed);
    auto mix = [&](auto& values) {
        for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random() % i]);
    };
    std::map<RouteKey, std::vector<Route>> by_key;
    for (const Route& route : observed.routes) by_key[key(route)].push_back(route);
    mix(observed.routes);
    for (Route& route : observed.routes) {
        auto& group = by_key[key(route)];
        Route next = group.front();
        group.erase(group.begin());
        route = next;
    }
    mix(observed.links);
    mix(observed.addresses);
    mix(observed.lookups);
    mix(observed.policies);
}

std::string a_plan_applied_leaves_nothing_to_do(Case& c, std::uint32_t) {
    Plan refused; // copied routes that the kernel does not take are asked for again
    if (auto wrong = apply_all(c.state.kernel, c.plan, c.observed, &refused); !wrong.empty()) return wrong;
    Observed after = *c.state.kernel.observe(c.state.scope);
    if (Plan left = diff(after, c.desired); left != refused) return "left to do:\n" + to_text(left, after);
    Desired again = decide(after, c.state.config, c.desired.memory, kRandomRoot);
    Plan left = diff(after, again);
    // Whether ppp is a modem or a tunnel leans on our own defaults too; once one of another config is gone, a
    // second pass may see it otherwise.
    if (left != refused && has_ppp(c.observed)) {
        refused.clear();
        if (auto wrong = apply_all(c.state.kernel, left, after, &refused); !wrong.empty()) return wrong;
        after = *c.state.kernel.observe(c.state.scope);
        left = diff(after, decide(after, c.state.config, again.memory, kRandomRoot));
    }
    if (left != refused) return "decided otherwise:\n" + to_text(left, after);
    return {};
}

struct Names {
    const Case& c;
    bool of_our_table(TableId table) const {
        return std::ranges::find(c.state.config.classes, table, &ClassConfig::table) != c.state.config.classes.end();
    }
    static bool below_our_root(const std::string& path) { return path.starts_with(std::string(kRandomRoot) + "/"); }
    bool operator()(const ReplaceRoute& op) const { return is_ours(op.route) && of_our_table(op.route.table); }
    bool operator()(const DeleteRoute& op) const {
        Route seen = op.route;
        auto same = [&](Route route) {
            route.link_down = seen.link_down;
            return route == seen;
        };
        return is_ours(op.route) && std::ranges::any_of(c.observed.routes, same);
    }
    bool operator()(const AddRule& op) const { return is_ours(op.rule); }
    bool operator()(const DeleteRule& op) const {
        return is_ours(op.rule) && std::ranges::find(c.observed.rules, op.rule) != c.observed.rules.end();
    }
    bool operator()(const AddXfrmPolicy& op) const { return owned_by_us(op.policy); }
    bool operator()(const DeleteXfrmPolicy& op) const {
        return owned_by_us(op.policy) && std::ranges::find(c.observed.policies, op.policy) != c.observed.policies.end();
    }
    bool operator()(const CreateCgroup& op) const { return below_our_root(op.path); }
    bool operator()(const RemoveCgroup& op) const { return below_our_root(op.path); }
    bool operator()(const AddMember& op) const { return below_our_root(op.cgroup); }
    bool operator()(const RemoveMember& op) const { return c.observed.nft.members.contains(op.member); }
    bool operator()(const RemoveLink& op) const { return c.observed.nft.links.contains(op.element); }
    bool operator()(const AddLink& op) const { return find_link(c.observed, op.element.link) != nullptr; }
    bool operator()(const ChangeElements& op) const {
        bool selected = std::ranges::all_of(op.change.members_to_add, [&](const MemberElement& member) {
            const auto& matched = c.desired.classes.at(member.class_name).matched;
            return std::ranges::any_of(matched, [&](const auto& m) { return m.second.id == member.cgroup_id; });
        });
        return selected && std::ranges::includes(c.observed.nft.members, op.change.members_to_remove) &&
               std::ranges::includes(c.observed.nft.users, op.change.users_to_remove) &&
               std::ranges::includes(c.observed.nft.destinations, op.change.destinations_to_remove);
    }
    bool operator()(const ReplaceNft&) const { return true; } // table inet novpn is ours by its name
    bool operator()(const DeleteNft&) const { return c.observed.nft.present; }
    bool operator()(const PinBirthMark& op) const { return op.birth.mark == c.desired.classes.at(op.class_name).mark; }
    bool operator()(const AttachBirthMark& op) const {
        return below_our_root(op.cgroup) || c.desired.classes.at(op.class_name).matched.contains(op.cgroup);
    }
    bool operator()(const DetachBirthMark& op) const {
        const auto& pinned = c.observed.birth_marks.classes;
        return pinned.contains(op.class_name) && pinned.at(op.class_name).cgroups.contains(op.cgroup);
    }
    bool operator()(const UnpinBirthMark& op) const { return c.observed.birth_marks.classes.contains(op.class_name); }
    bool operator()(const PinRedirect& op) const { return op.mark == c.desired.classes.at(op.class_name).mark; }
    bool operator()(const SetResolvers& op) const { return c.desired.redirects.contains(op.class_name); }
    bool operator()(const AttachRedirect& op) const {
        return below_our_root(op.cgroup) || c.desired.classes.at(op.class_name).matched.contains(op.cgroup);
    }
    bool operator()(const DetachRedirect& op) const {
        const auto& pinned = c.observed.redirects.classes;
        return pinned.contains(op.class_name) && pinned.at(op.class_name).cgroups.contains(op.cgroup);
    }
    bool operator()(const UnpinRedirect& op) const { return c.observed.redirects.classes.contains(op.class_name); }
    bool operator()(const EndSocket&) const { return false; } // is no difference between two states
    bool operator()(const SetSrcValidMark& op) const {
        const Link* link = find_link(c.observed, op.link);
        const bool is_tagged = link && link->ipv4.tag == kNovpnTag;
        return is_tagged || (op.on && link && !link->ipv4.tag && !link->ipv4.src_valid_mark);
    }
    bool operator()(const DropConnection&) const { return false; } // likewise of what is behind a plan
    bool operator()(const AddConnections&) const { return false; } // and before it
    // No config of a random state is of net_cls.
    bool operator()(const MountNetCls&) const { return false; }
    bool operator()(const UnmountNetCls&) const { return false; }
    bool operator()(const SetClassid&) const { return false; }
    bool operator()(const RemoveNetClsCgroup&) const { return false; }
    bool operator()(const ProbeNeighbour&) const { return false; }  // nothing of ours
    bool operator()(const ForgetNeighbour&) const { return false; } // what has failed is the kernel's to say
};
std::string no_operation_names_what_is_not_ours(Case& c, std::uint32_t) {
    Plan plans[] = {c.plan, diff(c.observed, Desired{})};
    for (const Plan& plan : plans)
        for (const Operation& operation : plan)
            if (!std::visit(Names{c}, operation)) return "not ours: " + to_string(operation, c.observed);
    Foreign before = foreign_of(c.state);
    for (const Plan& plan : plans) {
        RandomState copy = c.state;
        if (auto refused = apply_all(copy.kernel, plan, c.observed); !refused.empty()) return refused;
        if (foreign_of(copy) != before) return "what belongs to others is not as it was";
    }
    return {};
}

std::string every_prefix_keeps_members_out_of_tunnels(Case& c, std::uint32_t) {
    Structures structures{structure_of(c.desired.nft), c.state.former_structure};
    if (auto wrong = walk(c, c.state.kernel, c.plan, structures); !wrong.empty()) return "up: " + wrong;
    FakeKernel kernel = c.state.kernel;
    (void)apply_all(kernel, c.plan, c.observed);
    for (const ClassConfig& one : c.state.config.classes) {
        if (!is_kept_out(one)) continue;
        if (!marks(kernel.nft(), one)) return "after the plan nothing marks class " + one.name;
        if (auto stray = stray_packet(kernel, one, c.state.config, c.observed, Policies::count))
            return fmt::format("after the plan a packet of class {} {}", one.name, to_text(*stray, c.observed));
    }
    // The way down, from here and from the state as it was found.
    Observed after = *kernel.observe(c.state.everything);
    if (auto wrong = walk(c, kernel, diff(after, Desired{}), structures); !wrong.empty()) return "down: " + wrong;
    if (auto wrong = walk(c, c.state.kernel, diff(c.observed, Desired{}), structures); !wrong.empty())
        return "down: " + wrong;
    return {};
}

std::string the_order_of_a_dump_does_not_matter(Case& c, std::uint32_t seed) {
    Observed shuffled = c.observed;
    for (std::uint32_t round = 0; round < 3; ++round) {
        shuffle(shuffled, seed + round);
        Desired desired = decide(shuffled, c.state.config, c.state.memory, kRandomRoot);
        if (desired.memory != c.desired.memory) return "another memory";
        if (desired.uplinks != c.desired.uplinks) return "another uplink";
        if (desired.takeovers != c.desired.takeovers) return "another takeover";
        if (desired != c.desired) return "another decision";
        if (Plan plan = diff(shuffled, desired); plan != c.plan) return "another plan:\n" + to_text(plan, c.observed);
    }
    return {};
}

/// Goes down or up, and its link-local addresses with it, or comes by one.
Observed with_another_state(Observed observed, const Link& link, std::uint32_t seed) {
    Link& changed = *std::ranges::find(observed.links, link.index, &Link::index);
    changed.up = !changed.up || seed % 2;
    changed.carrier = !changed.carrier;
    std::erase_if(observed.addresses, [&](const Address& a) { return a.link == link.index; });
    std::erase_if(observed.routes, [&](const Route& route) { return route.link == link.index; });
    if (seed % 3) observed.addresses.push_back({.link = link.index, .local = boost::asio::ip::make_address("fe80::77"), .prefix_length = 64});
    return observed;
}

int idle_links_seen = 0;

std::string idle_links_lead_nowhere(Case& c, std::uint32_t seed) {
    for (const auto& [_, link] : idle_links(c.observed, c.state.config)) {
        ++idle_links_seen;
        Desired desired =
            decide(with_another_state(c.observed, link, seed), c.state.config, c.state.memory, kRandomRoot);
        Desired before = c.desired;
        for (Desired* d : {&desired, &before}) { // what follows at leisure
            std::erase_if(d->routes, [&](const Route& route) { return route.link == link.index; });
            for (ClassMarking& marking : d->nft.classes) marking.links.erase(link.index);
        }
        if (desired.memory != before.memory) return "another memory by " + link.name;
        if (desired != before) return "another decision by " + link.name;
    }
    return {};
}

std::string release_leaves_what_was_there_before(Case& c, std::uint32_t) {
    Foreign before = foreign_of(c.state);
    Observed found = *c.state.kernel.observe(c.state.everything);
    if (auto refused = apply_all(c.state.kernel, diff(found, c.desired), found); !refused.empty()) return refused;
    Observed steered = *c.state.kernel.observe(c.state.everything);
    Plan release = diff(steered, Desired{});
    if (auto refused = apply_all(c.state.kernel, release, steered); !refused.empty()) return refused;
    Observed after = *c.state.kernel.observe(c.state.everything);
    bool routes = std::ranges::any_of(after.routes, [](const Route& route) { return is_ours(route); });
    bool rules = std::ranges::any_of(after.rules, [](const Rule& rule) { return is_ours(rule); });
    bool policies = std::ranges::any_of(after.policies, owned_by_us);
    if (routes || rules || policies || after.nft.present || !after.cgroups.empty() ||
        !after.birth_marks.classes.empty() || !after.redirects.classes.empty())
        return "something of ours is left";
    if (foreign_of(c.state) != before) return "what belongs to others is not as it was";
    if (!diff(after, Desired{}).empty()) return "there is more to release";
    return {};
}

} // namespace

std::optional<std::string> broken_law(RandomState state) {
    const auto made = make_case(std::move(state));
    if (!made) return std::nullopt;
    for (auto law : {a_plan_applied_leaves_nothing_to_do, no_operation_names_what_is_not_ours,
                     every_prefix_keeps_members_out_of_tunnels, the_order_of_a_dump_does_not_matter,
                     idle_links_lead_nowhere, release_leaves_what_was_there_before}) {
        Case c = *made;
        if (std::string wrong = law(c, 1); !wrong.empty()) return wrong + "\n" + to_text(c);
    }
    return std::nullopt;
}

class Laws : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        fmt::print("{} states from NOVPN_SEED={}\n", seeds().count, seeds().first);
        std::fflush(stdout);
    }
};

TEST_F(Laws, APlanAppliedLeavesNothingToDo) { for_many_states(a_plan_applied_leaves_nothing_to_do); }

TEST_F(Laws, NoOperationNamesWhatIsNotOurs) { for_many_states(no_operation_names_what_is_not_ours); }

TEST_F(Laws, EveryPrefixOfAPlanKeepsMembersOutOfTunnels) { for_many_states(every_prefix_keeps_members_out_of_tunnels); }

TEST_F(Laws, TheOrderOfADumpDoesNotMatter) { for_many_states(the_order_of_a_dump_does_not_matter); }

TEST_F(Laws, IdleLinksLeadNowhere) {
    for_many_states(idle_links_lead_nowhere);
    if (seeds().count > 1) {
        EXPECT_GT(idle_links_seen, 0) << "of what there is none no law says anything";
    }
}

TEST_F(Laws, ReleaseLeavesWhatWasThereBefore) { for_many_states(release_leaves_what_was_there_before); }

} // namespace test

} // namespace novpn
