#include "agent/decide.h"

#include "agent/default_route.h"
#include "agent/explain.h"
#include "agent/policies.h"
#include "config/sites.h"

#include <algorithm>
#include <compare>
#include <fmt/format.h>
#include <net/if_arp.h>
#include <netinet/in.h>

namespace novpn {

namespace {

Route backstop(Family family, TableId table) {
    return {.table = table,
            .type = RouteType::unreachable,
            .destination = any_prefix(family),
            .metric = kBackstopMetric,
            .protocol = kNovpnProtocol};
}

/// Bits of the marks of all classes: what has one of them, socket or packet, is in a class.
std::uint32_t bits_of_all_classes(const Config& config) {
    std::uint32_t bits = 0;
    for (const ClassConfig& c : config.classes) bits |= c.mark.mask;
    return bits;
}

bool is_copied(const Route& route, Family family, const std::set<IfIndex>& links) {
    return route.table == kMainTable && route.type == RouteType::unicast && family_of(route) == family &&
           !is_default(route) && links.contains(route.link);
}

/// By which main's routes are copied.
std::set<IfIndex> links_to_copy(const Observed& observed, const Config& config) {
    std::set<IfIndex> links;
    for (const Link& link : observed.links)
        if (link.up && !link.loopback && !is_tunnel(link, observed, config)) links.insert(link.index);
    return links;
}

/// Main's on-link prefixes, LAN, containers and DHCP option 121 routes: a table with a default alone would send an
/// on-link neighbour's packets to the gateway. Sorted by key, without two of the same key.
std::vector<Route> copied_routes(Family family, TableId table, const std::optional<Uplink>& uplink,
                                 const Observed& observed, const Config& config) {
    const auto links = links_to_copy(observed, config);
    // One answer for all that a gateway has.
    std::map<std::tuple<IfIndex, std::optional<address>, bool>, bool> on_link;
    std::vector<Route> copies;
    for (const Route& route : observed.routes) {
        if (!is_copied(route, family, links)) continue;
        Route& copy = copies.emplace_back(route);
        copy.table = table;
        copy.protocol = kNovpnProtocol;
        copy.next_hops = 1;
        // The kernel goes on with a gateway whose prefix is gone, and refuses a copy of its route.
        const auto [known, is_new] = on_link.try_emplace({route.link, route.gateway, route.onlink});
        if (is_new)
            known->second = gateway_is_on_link(
                {.family = family, .link = route.link, .gateway = route.gateway, .onlink = route.onlink}, observed);
        copy.onlink = !known->second || route.onlink;
    }
    auto rank = [&](const Route& route) {
        bool elsewhere = !uplink || route.link != uplink->link;
        return std::tuple(key(route), route.link_down, elsewhere, route.link, route.gateway, route.source);
    };
    // A rank takes its time, and a dump has them in this order as a rule.
    const auto comes_before = [&](const Route& a, const Route& b) {
        const auto by_place = std::tie(a.destination, a.metric) <=> std::tie(b.destination, b.metric);
        return std::is_eq(by_place) ? rank(a) < rank(b) : std::is_lt(by_place);
    };
    if (!std::ranges::is_sorted(copies, comes_before)) std::ranges::sort(copies, comes_before);
    for (Route& copy : copies) copy.link_down = false;
    auto same_key = std::ranges::unique(copies, {}, [](const Route& route) { return key(route); });
    copies.erase(same_key.begin(), same_key.end());
    if (copies.size() > kMaxCopiedRoutes) {
        std::ranges::stable_partition(copies, [](const Route& route) { return !route.gateway; });
        copies.resize(kMaxCopiedRoutes);
    }
    return copies;
}

/// A packet of this machine (what it forwards comes in by another link than lo) that is in no class yet. What nft has
/// marked goes by its mark alone: whichever selector it was marked for.
Rule for_unmarked(Family family, Preference preference, const Config& config) {
    return {.family = family,
            .preference = preference,
            .mark = Mark{.value = 0, .mask = bits_of_all_classes(config)},
            .iif = "lo",
            .protocol = kNovpnProtocol};
}

/// Addresses of tunnels other than the class's own way out.
std::set<address> tunnel_addresses(Family family, const ClassDecision& decision, const Observed& observed,
                                   const Config& config) {
    std::set<address> sources;
    const auto& way_out = decision.ways_out.at(family).uplink;
    for (const Address& a : observed.addresses) {
        const Link* link = find_link(observed, a.link);
        if (family_of(a.local) != family || !link || !is_tunnel(*link, observed, config)) continue;
        if ((way_out && way_out->link == a.link) || (a.local.is_v6() && a.local.to_v6().is_link_local())) continue;
        sources.insert(a.local);
    }
    return sources;
}

/// Lookups for sockets that have no mark when connect() chooses their source address.
void add_unmarked_rules(std::vector<Rule>& rules, Family family, const ClassConfig& c, const ClassDecision& decision,
                        Preference preference, const Observed& observed, const Config& config) {
    Rule lookup = for_unmarked(family, preference, config);
    lookup.table = c.table;
    const std::size_t with_rule = std::min(decision.destinations.size(), kMaxDestinationRules);
    for (std::size_t i = 0; i < with_rule; ++i) {
        if (family_of(decision.destinations[i].network) != family) continue;
        Rule& rule = rules.emplace_back(lookup);
        rule.to = decision.destinations[i];
    }
    for (std::uint32_t uid : decision.users) {
        Rule& rule = rules.emplace_back(lookup);
        rule.uids = UidRange{uid, uid};
    }
    // A flow keeps the path it began on: what has a tunnel's address already goes on by the ordinary one.
    for (const address& source : tunnel_addresses(family, decision, observed, config)) {
        Rule around = for_unmarked(family, Preference{preference.value - 1}, config);
        around.action = RuleAction::goto_;
        around.target = Preference{preference.value + 1};
        around.from = prefix_of(source, source.is_v4() ? 32 : 128);
        rules.push_back(around);
    }
}

/// `fwmark M/K lookup T`, the lookups for destinations and users and, where names are resolved as the VPN has it, the
/// way around them for port 53.
void add_rules(std::vector<Rule>& rules, Family family, const ClassConfig& c, const ClassDecision& decision,
               Preference preference, const Observed& observed, const Config& config) {
    const Preference past{preference.value + 1};
    const bool unmarked = selects_unmarked(c) && c.enabled;
    if (c.dns == Dns::vpn || unmarked)
        rules.push_back({.family = family, .preference = past, .action = RuleAction::nop, .protocol = kNovpnProtocol});
    if (c.dns == Dns::vpn) {
        for (std::uint8_t protocol : {std::uint8_t{IPPROTO_UDP}, std::uint8_t{IPPROTO_TCP}}) {
            rules.push_back({.family = family,
                             .preference = Preference{preference.value - 1},
                             .action = RuleAction::goto_,
                             .target = past,
                             .mark = unmarked ? std::nullopt : std::optional(c.mark),
                             .ip_protocol = protocol,
                             .destination_port = PortRange{53, 53},
                             .protocol = kNovpnProtocol});
        }
    }
    rules.push_back({.family = family,
                     .preference = preference,
                     .action = RuleAction::to_table,
                     .table = c.table,
                     .mark = c.mark,
                     .protocol = kNovpnProtocol});
    if (unmarked) add_unmarked_rules(rules, family, c, decision, preference, observed, config);
}

/// `dns: uplink` only where it can be.
Config with_possible_dns(Config config, const Observed& observed) {
    if (can_redirect(observed, config)) return config;
    for (ClassConfig& c : config.classes) c.dns = Dns::vpn;
    return config;
}

/// IPsec policies take packets, no default route.
std::optional<std::string> displaced_by(const std::vector<Takeover>& takeovers) {
    auto by_link = std::ranges::find_if(takeovers, [](const Takeover& takeover) { return takeover.link.has_value(); });
    return by_link == takeovers.end() ? std::nullopt : std::optional(by_link->link_name);
}

Selection way_out(const ClassConfig& c, Family family, const Desired& desired, const Observed& observed,
                  const Config& config, const Memory& memory) {
    if (!c.via.empty()) return select_tunnel(family, c.via, observed, config);
    UplinkQuery query{.family = family, .only = c.uplink};
    return select_uplink(query, observed, config, memory, displaced_by(desired.takeovers.at(family)));
}

/// Its table and the rules that lead there: for a class that is on, and for one whose open flows may go on.
void add_steering(Desired& desired, ClassMarking& marking, const ClassConfig& c, const ClassDecision& decision,
                  const Observed& observed, const Config& config) {
    for (Family family : kFamilies) {
        const auto& way_out = decision.ways_out.at(family).uplink;
        if (!may_use_tunnel(c)) desired.routes.push_back(backstop(family, c.table));
        auto copies = copied_routes(family, c.table, way_out, observed, config);
        for (const Route& route : copies) marking.links.insert(route.link);
        desired.routes.insert(desired.routes.end(), copies.begin(), copies.end());
        if (way_out) {
            desired.routes.push_back(default_route(*way_out, c.table));
            marking.links.insert(way_out->link);
            const Link* link = find_link(observed, way_out->link);
            if (family == Family::ipv4 && link && needs_src_valid_mark(*link, observed) &&
                may_set_src_valid_mark(*link))
                desired.src_valid_mark.insert(link->index);
        }
        add_rules(desired.rules, family, c, decision, desired.rule_order.at(family).lookups.at(c.name), observed,
                  config);
        // Without a way out the VPN is one for the class that may use it.
        bool keeps_out = way_out || !may_use_tunnel(c);
        if (keeps_out && !taking_policies(family, observed, way_out).empty())
            add_passing(desired.policies, family, c.mark, observed);
    }
}

bool marks_at_birth(const Observed& observed, const Config& config) {
    return marks_by_bpf(config.marking) && observed.birth_marks.unavailable.empty();
}

/// On the cgroups where sockets get the mark that it goes by.
void add_redirect(Desired& desired, ClassDecision& decision, const ClassConfig& c, const Observed& observed,
                  const Config& config) {
    const bool taken_over = std::ranges::any_of(desired.takeovers, [](const auto& of) { return !of.second.empty(); });
    decision.dns = decide_dns({.ways_out = decision.ways_out,
                               .goes_with_the_rest = decision.state == ClassState::tunnel,
                               .taken_over = taken_over,
                               .remembered = desired.memory.resolvers},
                              observed, config);
    desired.asks_resolvers = true;
    const bool is_steered = decision.state == ClassState::steering;
    if (is_steered && decision.dns.state != DnsState::uplink) desired.wants_resolvers = true;
    desired.redirects[c.name] = {c.mark, decision.dns.resolvers, desired.birth_marks.at(c.name).cgroups};
}

ClassState state_of(const ClassConfig& c, const ClassDecision& decision) {
    if (!c.enabled) return ClassState::off;
    bool has_way_out =
        std::ranges::any_of(decision.ways_out, [](const auto& way) { return way.second.uplink.has_value(); });
    if (has_way_out) return ClassState::steering;
    return may_use_tunnel(c) ? ClassState::tunnel : ClassState::blocked;
}

void add_class(Desired& desired, const ClassConfig& c, const Observed& observed, const Config& config,
               const Memory& memory, const std::string& cgroup_root,
               const std::map<std::string, MatchedCgroup>& matched) {
    ClassDecision decision{.mark = c.mark, .on_leave = c.on_leave, .cgroup = cgroup_of(c, cgroup_root)};
    for (Family family : kFamilies) decision.ways_out[family] = way_out(c, family, desired, observed, config, memory);
    for (const auto& [family, selection] : decision.ways_out)
        if (c.enabled && c.via.empty() && !selection.uplink && !desired.takeovers.at(family).empty())
            desired.wanted_uplinks.insert(family);
    for (const auto& [family, selection] : decision.ways_out)
        if (selection.remembered) desired.memory.uplinks[{c.uplink, family}] = *selection.remembered;
    decision.state = state_of(c, decision);

    ClassMarking marking{
        .name = c.name, .mark = c.mark, .dns_by_vpn = c.dns == Dns::vpn, .guarded = !may_use_tunnel(c)};
    // A class that is off marks no new flow. Flows that it had marked go on where `on_leave` lets them; where it ends
    // them, the guard drops and counts what the end of the sockets left over.
    if (c.enabled) {
        decision.destinations = outermost_destinations(c);
        for (const UserSelector& user : c.users) decision.users.insert(user.uid);
        marking.cgroups = {decision.cgroup};
        marking.users = decision.users;
        marking.destinations = {decision.destinations.begin(), decision.destinations.end()};
        for (const auto& [path, found] : matched) {
            if (found.class_name != c.name) continue;
            decision.matched.emplace(path, found);
            marking.others.emplace(path, found.id);
        }
    }
    if (c.enabled || c.on_leave == OnLeave::keep) add_steering(desired, marking, c, decision, observed, config);
    if (c.enabled && marks_at_birth(observed, config)) {
        ClassBirthMark& marked = desired.birth_marks[c.name];
        marked = {{.mark = c.mark, .taken = bits_of_all_classes(config)}, marking.cgroups};
        for (const auto& [path, _] : marking.others) marked.cgroups.insert(path);
    }
    if (c.enabled && c.dns == Dns::uplink) add_redirect(desired, decision, c, observed, config);
    desired.cgroups.push_back(decision.cgroup);
    if (config.marking == Marking::net_cls && c.classid) {
        decision.classid = c.classid;
        desired.net_cls.mount = config.net_cls_mount;
        desired.net_cls.cgroups[decision.cgroup] = *c.classid;
        if (c.enabled) marking.classid = c.classid;
    }
    desired.nft.classes.push_back(std::move(marking));
    desired.classes[c.name] = std::move(decision);
}

/// Whether a packet can have both.
bool meet(Mark a, Mark b) {
    std::uint32_t common = a.mask & b.mask;
    return common && (a.value & common) == (b.value & common);
}

} // namespace

std::string to_string(ClassState state) {
    switch (state) {
    case ClassState::steering: return "steering";
    case ClassState::blocked: return "blocked";
    case ClassState::tunnel: return "tunnel";
    case ClassState::off: return "off";
    }
    return {};
}

Route default_route(const Uplink& uplink, TableId table) {
    constexpr std::uint8_t kLinkScope = 253; // RT_SCOPE_LINK: what the kernel wants of an IPv4 route without a gateway
    bool ipv4 = uplink.family == Family::ipv4;
    return {.table = table,
            .destination = any_prefix(uplink.family),
            // The kernel turns an IPv6 metric of 0 into 1024 (IP6_RT_PRIO_USER). Always the same metric: with another
            // one a replace adds a route.
            .metric = ipv4 ? 0u : 1024u,
            .gateway = uplink.gateway,
            .link = uplink.link,
            .source = uplink.source,
            .scope = ipv4 && !uplink.gateway ? kLinkScope : std::uint8_t{0},
            .protocol = kNovpnProtocol,
            .onlink = uplink.onlink};
}

bool may_use_tunnel(const ClassConfig& c) { return c.via.empty() && c.when_no_uplink == WhenNoUplink::tunnel; }

bool needs_src_valid_mark(const Link& link, const Observed& observed) {
    constexpr std::uint32_t kStrict = 1;
    const Ipv4Settings& all = observed.ipv4_of_all;
    return std::max(link.ipv4.rp_filter, all.rp_filter) == kStrict && !all.src_valid_mark;
}

bool may_set_src_valid_mark(const Link& link) {
    return link.ipv4.tag == kNovpnTag || (!link.ipv4.tag && !link.ipv4.src_valid_mark);
}

std::vector<Prefix> outermost_destinations(const ClassConfig& c) {
    std::vector<Prefix> outermost;
    for (const Prefix& prefix : c.destinations) {
        auto is_inside_another = [&](const Prefix& other) { return other != prefix && contains(other, prefix); };
        if (std::ranges::any_of(c.destinations, is_inside_another)) continue;
        if (std::ranges::find(outermost, prefix) == outermost.end()) outermost.push_back(prefix);
    }
    return outermost;
}

bool selects_cgroups(const Config& config) {
    const auto selects_some = [](const ClassConfig& c) {
        return !c.apps.empty() || !c.units.empty() || !c.slices.empty() || !c.cgroups.empty();
    };
    // Also those of a site that the laptop is not in: the maps are there when it arrives.
    const auto selects_at = [&](const SiteConfig& site) {
        return std::ranges::any_of(config.classes,
                                   [&](const ClassConfig& c) { return selects_some(class_at(site, c)); });
    };
    return std::ranges::any_of(config.classes, selects_some) || std::ranges::any_of(config.sites, selects_at);
}

std::map<std::string, MatchedCgroup> matched_cgroups(const Config& config, const SeenCgroups& seen,
                                                     const std::set<uid_t>& allowed_users, bool class_slices) {
    std::vector<CgroupSelectors> selectors;
    for (const ClassConfig& c : config.classes)
        selectors.push_back({c.name, c.apps, c.units, c.slices, c.cgroups, class_slices});
    return matched_cgroups(selectors, seen, allowed_users);
}

bool selects(const ClassDecision& decision, const OpenSocket& socket) {
    auto leads_there = [&](const Prefix& prefix) { return socket.remote && contains(prefix, *socket.remote); };
    return decision.users.contains(socket.uid) || std::ranges::any_of(decision.destinations, leads_there);
}

bool is_all_off(const Desired& desired) {
    return std::ranges::all_of(desired.classes, [](const auto& c) {
        return c.second.state == ClassState::off && c.second.on_leave == OnLeave::end;
    });
}

std::string cgroup_of(const ClassConfig& class_config, const std::string& cgroup_root) {
    return cgroup_root + "/" + class_config.name;
}

Desired decide(const Observed& observed, const Config& asked, const Memory& memory, const std::string& cgroup_root) {
    const Config config = with_possible_dns(with_known_tunnels(asked, memory, observed), observed);
    Desired desired;
    desired.memory.dead_gateways = dead_gateways(observed, memory);
    for (const Link& link : observed.links)
        if (link.hardware == ARPHRD_PPP && is_tunnel(link, observed, config))
            desired.memory.ppp_tunnels.insert(link.index);
    // What is not selected now, as in a gap of the carrier, is known again when its network is back: a link that is
    // gone or on another network does not pass for it.
    for (const auto& [query, remembered] : memory.uplinks)
        if (find_link(observed, remembered.uplink.link)) desired.memory.uplinks.insert({query, remembered});
    for (Family family : kFamilies) {
        auto takeovers = find_takeovers(family, observed, config);
        UplinkQuery query{.family = family};
        Selection selection = select_uplink(query, observed, config, memory, displaced_by(takeovers));
        if (selection.remembered) desired.memory.uplinks[{query.only, family}] = *selection.remembered;
        if (!taking_policies(family, observed, selection.uplink).empty())
            takeovers.push_back({.family = family, .shape = Shape::xfrm});
        desired.uplinks[family] = std::move(selection);
        desired.takeovers[family] = std::move(takeovers);
        desired.rule_order[family] = order_rules(family, observed.rules, config.classes);
    }
    remember_resolvers(desired.memory, memory, desired.uplinks, observed, config);
    const auto matched = matched_cgroups(config, observed.others, observed.allowed_users, observed.class_slices);
    for (const ClassConfig& c : config.classes) add_class(desired, c, observed, config, memory, cgroup_root, matched);
    if (observed.class_slices)
        desired.nft.levels.insert(std::begin(kLevelsOfClassSlices), std::end(kLevelsOfClassSlices));
    if (selects_cgroups(config))
        for (unsigned level = 1; level <= kLevelsInAdvance; ++level) desired.nft.levels.insert(level);
    desired.nft.answers_early = observed.nft.early_filter;
    const bool is_idle = observed.nft.present && !observed.nft.follows;
    if (is_all_off(desired) && (is_idle || observed.flows_gone))
        desired.nft = {.classes = std::move(desired.nft.classes), .levels = {}, .idle = true};
    return desired;
}

std::vector<std::string> conflicts(const Observed& observed, const Config& config) {
    std::vector<std::string> found;
    if (config.marking == Marking::bpf && !observed.birth_marks.unavailable.empty())
        found.push_back(
            fmt::format("marking is bpf, and cannot be: {}; or choose auto or nft", observed.birth_marks.unavailable));
    if (config.marking == Marking::net_cls && !observed.net_cls.unavailable.empty())
        found.push_back(
            fmt::format("marking is net_cls, and cannot be: {}; or choose auto", observed.net_cls.unavailable));
    LinkNames names{&observed.links};
    bool starts_anew = std::ranges::find(observed.rules, kNovpnProtocol, &Rule::protocol) == observed.rules.end();
    for (const ClassConfig& c : config.classes) {
        for (const Route& route : observed.routes) {
            if (route.table != c.table || route.protocol == kNovpnProtocol) continue;
            found.push_back(fmt::format("table {} of class {} holds a route of {}: {}; choose another table",
                                        c.table.value, c.name, to_string(route.protocol), to_string(route, names)));
            break;
        }
        for (const Rule& rule : observed.rules) {
            // An inverted rule (wg-quick's) names the mark of its own packets; a full mask can only mean that one
            // value.
            if (rule.protocol == kNovpnProtocol || !rule.mark || !meet(*rule.mark, c.mark)) continue;
            found.push_back(fmt::format("mark {} of class {} meets the {} rule of {}: {}; choose another mark",
                                        to_string(c.mark), c.name, to_string(rule.family), owner_of(rule),
                                        to_string(rule)));
            break;
        }
        auto same = std::ranges::find(observed.rules, c.preference, &Rule::preference);
        if (starts_anew && same != observed.rules.end())
            found.push_back(fmt::format("preference {} of class {} is that of the {} rule of {}: {}; choose another "
                                        "preference",
                                        c.preference.value, c.name, to_string(same->family), owner_of(*same),
                                        to_string(*same)));
        for (const auto& [path, classid] : observed.net_cls.others)
            if (classid == c.classid)
                found.push_back(fmt::format("classid {:#x} of class {} is that of the cgroup {}/{}; choose another "
                                            "classid, or remove that cgroup",
                                            classid, c.name, observed.net_cls.mount, path));
        for (const XfrmPolicy& policy : observed.policies) {
            if (owned_by_us(policy) || !policy.mark || !meet(*policy.mark, c.mark)) continue;
            found.push_back(fmt::format("mark {} of class {} meets the IPsec policy '{}'; choose another mark",
                                        to_string(c.mark), c.name, to_string(policy)));
            break;
        }
    }
    return found;
}

} // namespace novpn
