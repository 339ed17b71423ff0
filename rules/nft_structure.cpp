#include "rules/nft_structure.h"

#include "rules/nft_parts.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <functional>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <map>
#include <netinet/in.h>
#include <set>

namespace novpn::nft {
namespace {

constexpr std::uint16_t kDnsPort = 53;
constexpr std::int32_t kMangle = -150; // NF_IP_PRI_MANGLE

Rule rule(std::string chain, std::string comment, const std::vector<Part>& parts) {
    Rule rule{.chain = std::move(chain), .text = {}, .comment = std::move(comment), .exprs = {}};
    for (const Part& part : parts) {
        rule.text += (rule.text.empty() ? "" : " ") + part.text;
        rule.exprs.insert(rule.exprs.end(), part.exprs.begin(), part.exprs.end());
    }
    return rule;
}

/// Classes whose marks have the same bits: one look into a map tells which of them a packet is of.
using ClassesByMask = std::map<std::uint32_t, std::vector<const ClassMarking*>>;
ClassesByMask by_mask(const NftTable& table) {
    ClassesByMask classes;
    for (const ClassMarking& c : table.classes) classes[c.mark.mask].push_back(&c);
    return classes;
}

/// Rules of `chain` that send what `which` says, and has a class's mark, to the chain `prefix`C.
void add_by_mark(Structure& to, const NftTable& table, const std::string& chain, const std::string& comment,
                 const std::vector<Part>& which, MarkOf of, int code, const std::string& prefix) {
    for (const auto& [mask, classes] : by_mask(table)) {
        std::vector<Part> parts = which;
        std::string whose = "a class";
        if (classes.size() > 1) {
            std::vector<std::pair<std::uint32_t, std::string>> chains;
            for (const ClassMarking* c : classes) chains.emplace_back(c->mark.value, prefix + c->name);
            parts.push_back(go_by_mark(of, mask, chains, code));
        } else {
            const ClassMarking& c = *classes.front();
            whose = c.name;
            parts.push_back(of == MarkOf::packet ? mark_is(c.mark) : ct_mark_is(c.mark));
            parts.push_back(code == NFT_GOTO ? goto_(prefix + c.name) : jump(prefix + c.name));
        }
        to.rules.push_back(rule(chain, fmt::format("{} {}", comment, whose), parts));
    }
}

/// `born_C`, where packets go that have the class's mark from their socket: some are not the class's to carry.
void add_born_chain(Structure& to, const ClassMarking& c) {
    const std::string born = kBornChain + c.name;
    to.chains.push_back({born, std::nullopt});
    if (c.dns_by_vpn) {
        // The rules before ours gave the socket the ordinary path and its source already; without the mark no allow
        // policy of xfrm that knows it takes the packet past a mandatory IPsec.
        for (const auto& [protocol, number] : {std::pair{"udp", IPPROTO_UDP}, std::pair{"tcp", IPPROTO_TCP}})
            to.rules.push_back(rule(born, "DNS takes the ordinary path",
                                    {destination_port_is(protocol, static_cast<std::uint8_t>(number), kDnsPort),
                                     clear_mark(c.mark), accept()}));
    }
    // A listening socket's mark is on its answers too. To who asked for the tunnel's address, they go by the tunnel.
    to.rules.push_back(rule(born, "an answer goes where it was asked",
                            {ct_direction_is_reply(), source_is_not_of_outgoing_link(), clear_mark(c.mark), accept()}));
}

/// Chains of one class: `restore_C`, `born_C`, then `mark_C`, where its members' new flows go.
void add_class_chains(Structure& to, const ClassMarking& c) {
    const std::string restore = kRestoreChain + c.name;
    to.chains.push_back({restore, std::nullopt});
    to.rules.push_back(rule(restore, "the mark of " + c.name, {set_mark(c.mark), accept()}));
    add_born_chain(to, c);
    const std::string mark = kMarkChain + c.name;
    to.chains.push_back({mark, std::nullopt});
    if (c.dns_by_vpn) {
        // Re-routing in an output chain carries no ports (ip_route_me_harder), so a policy rule with dport cannot hold
        // these back once they are marked.
        to.rules.push_back(
            rule(mark, "DNS takes the ordinary path", {destination_port_is("udp", IPPROTO_UDP, kDnsPort), return_()}));
        to.rules.push_back(
            rule(mark, "DNS takes the ordinary path", {destination_port_is("tcp", IPPROTO_TCP, kDnsPort), return_()}));
    }
    // Path and address are the socket's own: nothing is lost where conntrack has forgotten the flow.
    to.rules.push_back(rule(mark, "marked at birth",
                            {mark_is(c.mark), source_is_of_outgoing_link(), set_ct_mark(c.mark),
                             count_in(kMarkedCounter + c.name), accept()}));
    // With nf_conntrack_tcp_loose a packet amid an unknown TCP flow is `new`. The kernel forgets masqueraded flows when
    // the uplink loses its address: left alone, their retransmissions would go into the tunnel.
    std::vector<Part> forgotten{protocol_is("tcp", IPPROTO_TCP), tcp_is_not_syn()};
    if (c.guarded) forgotten.push_back(count_in(kDroppedCounter + c.name));
    forgotten.push_back(drop());
    to.rules.push_back(rule(mark, "amid a forgotten flow of " + c.name, forgotten));
    // The ct mark first: where there is no connection to carry it, the rule ends before it marks the packet.
    to.rules.push_back(rule(mark, "a new flow of " + c.name,
                            {set_ct_mark(c.mark), set_mark(c.mark), count_in(kMarkedCounter + c.name)}));
}

/// `guard_C`, where packets with the class's mark leave.
void add_guard_chain(Structure& to, const ClassMarking& c, bool counts_flows) {
    const std::string guard = kGuardChain + c.name;
    const std::string links = kLinkSet + c.name;
    to.chains.push_back({guard, std::nullopt});
    if (counts_flows)
        to.rules.push_back(
            rule(guard, "no firewall of another program dropped it",
                 {leaves_by_other_than_loopback(), is_first_of_flow(), count_in(kArrivedCounter + c.name)}));
    if (!c.guarded) return;
    to.rules.push_back(rule(guard, "to this machine", {leaves_by_loopback(), accept()}));
    to.rules.push_back(rule(guard, "links of " + c.name, {leaves_by_link_in(links), accept()}));
    if (c.dns_by_vpn) {
        to.rules.push_back(
            rule(guard, "DNS takes the ordinary path", {destination_port_is("udp", IPPROTO_UDP, kDnsPort), accept()}));
        to.rules.push_back(
            rule(guard, "DNS takes the ordinary path", {destination_port_is("tcp", IPPROTO_TCP, kDnsPort), accept()}));
    }
    to.rules.push_back(rule(guard, "never by another link", {count_in(kDroppedCounter + c.name), drop()}));
}

using Levels = std::set<unsigned, std::greater<>>;

bool has_users(const NftTable& table) {
    return std::ranges::any_of(table.classes, [](const ClassMarking& c) { return !c.users.empty(); });
}

Chain output() { return {"output", Hook{"route", "output", NF_INET_LOCAL_OUT, kMangle}}; }

void add_output(Structure& to, const NftTable& table, const Levels& levels) {
    to.chains.push_back(output());
    add_by_mark(to, table, "output", "a flow that began in", {}, MarkOf::connection, NFT_GOTO, kRestoreChain);
    add_by_mark(to, table, "output", "a socket of", {}, MarkOf::packet, NFT_JUMP, kBornChain);
    // Not an invalid packet: a FIN or RST amid a stream that conntrack forgot is one (tcp_new in
    // nf_conntrack_proto_tcp.c), and a member's has no business in the tunnel.
    to.rules.push_back(
        rule("output", "a flow keeps the path it began on", {ct_state_is_known_or_untracked(), return_()}));
    // A flow that nobody has answered is still `new`; it is confirmed once its first packet has left.
    to.rules.push_back(rule("output", "a flow keeps the path it began on", {ct_is_confirmed(), return_()}));
    to.rules.push_back(rule("output", "to this machine", {destination_is_local(), return_()}));
    // Who put a process into a class of net_cls meant it, whatever app it is.
    for (const ClassMarking& c : table.classes)
        if (c.classid)
            to.rules.push_back(rule("output", "members of " + c.name + " by net_cls",
                                    {classid_is(*c.classid), goto_(kMarkChain + c.name)}));
    // Deepest first: the nearest cgroup decides.
    for (const unsigned level : levels) {
        to.rules.push_back(rule("output", fmt::format("members at level {}", level),
                                {go_by_cgroup(level, fmt::format("{}{}", kLevelMap, level))}));
    }
    for (const ClassMarking& c : table.classes) {
        if (c.destinations.empty()) continue;
        for (const Family family : kFamilies)
            to.rules.push_back(
                rule("output", "destinations of " + c.name,
                     {destination_is_in(destination_set(c.name, family), family), goto_(kMarkChain + c.name)}));
    }
    if (has_users(table)) to.rules.push_back(rule("output", "users", {go_by_user()}));
}

void add_prerouting(Structure& to, const NftTable& table) {
    // One after mangle: wg-quick restores its own mark at mangle (-150) and would overwrite ours.
    to.chains.push_back({"prerouting", Hook{"filter", "prerouting", NF_INET_PRE_ROUTING, kAnswerPriority}});
    add_by_mark(to, table, "prerouting", "replies to", {ct_direction_is_reply()}, MarkOf::connection, NFT_GOTO,
                kRestoreChain);
}

/// Counts what came out of our marking and re-routing. A nat chain sees the first packet of a flow only. Not by
/// loopback: there goes what a firewall rejects with, as part of the flow that it rejects.
void add_sent(Structure& to, const NftTable& table) {
    constexpr std::int32_t kDestinationNat = -100;
    to.chains.push_back({"sent", Hook{"nat", "output", NF_INET_LOCAL_OUT, kDestinationNat}});
    for (const ClassMarking& c : table.classes)
        to.rules.push_back(rule("sent", "flows of " + c.name,
                                {mark_is(c.mark), leaves_by_other_than_loopback(), count_in(kSentCounter + c.name)}));
}

void add_guard(Structure& to, const NftTable& table) {
    to.chains.push_back({"guard", Hook{"filter", "postrouting", NF_INET_POST_ROUTING, kMangle}});
    add_by_mark(to, table, "guard", "packets of", {}, MarkOf::packet, NFT_GOTO, kGuardChain);
}

void add_postrouting(Structure& to, const NftTable& table) {
    constexpr std::int32_t kSourceNat = 100;
    to.chains.push_back({"postrouting", Hook{"nat", "postrouting", NF_INET_POST_ROUTING, kSourceNat}});
    for (const ClassMarking& c : table.classes) {
        to.rules.push_back(rule("postrouting", "a source chosen for the tunnel",
                                {mark_is(c.mark), leaves_by_other_than_loopback(), source_is_not_of_outgoing_link(),
                                 count_in(kMasqueradedCounter + c.name), masquerade()}));
    }
}

struct Asked {
    std::string asked, pinged;
};
Asked asked_sets(const std::string& class_name, Family family) {
    if (family == Family::ipv4) return {kAskedSet4 + class_name, kPingedSet4 + class_name};
    return {kAskedSet6 + class_name, kPingedSet6 + class_name};
}

/// What members ask is remembered as it leaves, behind all NAT, and its answers get the mark before conntrack knows
/// them for answers: whoever judges by the mark where packets come in has it then. Nothing else does.
void add_early_answers(Structure& to, const NftTable& table) {
    using namespace std::chrono_literals;
    constexpr std::int32_t kBehindSourceNat = 101;
    to.chains.push_back({"asked", Hook{"filter", "postrouting", NF_INET_POST_ROUTING, kBehindSourceNat}});
    to.chains.push_back({"early", Hook{"filter", "prerouting", NF_INET_PRE_ROUTING, kEarlyPriority}});
    add_by_mark(to, table, "asked", "questions of", {leaves_by_other_than_loopback(), ct_direction_is_original()},
                MarkOf::packet, NFT_GOTO, kAskedChain);
    for (const ClassMarking& c : table.classes) {
        const std::string asked_by = kAskedChain + c.name;
        to.chains.push_back({asked_by, std::nullopt});
        for (const Family family : kFamilies) {
            const auto [asked, pinged] = asked_sets(c.name, family);
            const auto remember = [&](const std::string& what, const Part& which, const Part& what_of_it) {
                to.rules.push_back(rule(asked_by, what, {which, what_of_it}));
            };
            const Part leaving = ends_of(family, Way::out, true);
            // Longer than an idle connection takes to ask whether the other end lives (tcp_keepalive_time).
            remember("asked by TCP of " + c.name, protocol_is("tcp", IPPROTO_TCP),
                     remember_in(asked, leaving, 135min, "2h15m"));
            // And than conntrack waits (nf_conntrack_udp_timeout_stream).
            remember("asked by UDP of " + c.name, protocol_is("udp", IPPROTO_UDP),
                     remember_in(asked, leaving, 3min, "3m"));
            remember("pinged by " + c.name, icmp_type_is(family, "echo-request", 8, 128),
                     remember_in(pinged, ends_of(family, Way::out, false), 30s, "30s"));
            to.rules.push_back(rule("early", "answers to " + c.name,
                                    {is_remembered_in(asked, ends_of(family, Way::in, true)), set_mark(c.mark)}));
            to.rules.push_back(rule("early", "answers to pings of " + c.name,
                                    {icmp_type_is(family, "echo-reply", 0, 129),
                                     is_remembered_in(pinged, ends_of(family, Way::in, false)), set_mark(c.mark)}));
        }
        for (const auto& [name, number] : {std::pair{"icmp", kIcmp}, std::pair{"ipv6-icmp", kIcmpv6}})
            to.rules.push_back(rule("early", "errors for " + c.name,
                                    {protocol_is(name, number), is_about_socket_of(c.mark), set_mark(c.mark)}));
    }
}

} // namespace

Structure structure(const NftTable& table) {
    Structure made;
    Levels levels(table.levels.begin(), table.levels.end());
    for (const ClassMarking& c : table.classes) {
        made.counters.push_back(kMarkedCounter + c.name);
        made.counters.push_back(kMasqueradedCounter + c.name);
        made.counters.push_back(kSentCounter + c.name);
        made.counters.push_back(kArrivedCounter + c.name);
        if (c.guarded) {
            made.counters.push_back(kDroppedCounter + c.name);
            made.sets.push_back({kLinkSet + c.name, Set::Kind::links});
        }
        if (!c.destinations.empty()) {
            made.sets.push_back({destination_set(c.name, Family::ipv4), Set::Kind::destinations4});
            made.sets.push_back({destination_set(c.name, Family::ipv6), Set::Kind::destinations6});
        }
        if (table.answers_early) {
            made.sets.push_back({kAskedSet4 + c.name, Set::Kind::asked4});
            made.sets.push_back({kAskedSet6 + c.name, Set::Kind::asked6});
            made.sets.push_back({kPingedSet4 + c.name, Set::Kind::pinged4});
            made.sets.push_back({kPingedSet6 + c.name, Set::Kind::pinged6});
        }
        for (const std::string& path : c.cgroups) levels.insert(cgroup_level(path));
        for (const auto& [path, _] : c.others) levels.insert(cgroup_level(path));
    }
    for (const unsigned level : levels)
        made.sets.push_back({fmt::format("{}{}", kLevelMap, level), Set::Kind::chain_by_cgroup});
    if (has_users(table)) made.sets.push_back({kUserMap, Set::Kind::chain_by_user});
    for (const ClassMarking& c : table.classes) {
        if (!table.idle) add_class_chains(made, c);
        add_guard_chain(made, c, !table.idle);
    }
    if (table.idle) {
        add_guard(made, table);
        return made;
    }
    add_output(made, table, levels);
    add_sent(made, table);
    add_prerouting(made, table);
    add_guard(made, table);
    add_postrouting(made, table);
    if (table.answers_early) add_early_answers(made, table);
    return made;
}

std::string destination_set(const std::string& class_name, Family family) {
    return (family == Family::ipv4 ? kDestinationSet4 : kDestinationSet6) + class_name;
}

std::string_view word(Set::Kind kind) {
    switch (kind) {
    case Set::Kind::chain_by_cgroup: return "cgroups";
    case Set::Kind::chain_by_user: return "users";
    case Set::Kind::destinations4: return "destinations4";
    case Set::Kind::destinations6: return "destinations6";
    case Set::Kind::links: return "links";
    case Set::Kind::asked4: return "asked4";
    case Set::Kind::asked6: return "asked6";
    case Set::Kind::pinged4: return "pinged4";
    case Set::Kind::pinged6: return "pinged6";
    }
    return {};
}

bool is_of_packets(Set::Kind kind) {
    return kind == Set::Kind::asked4 || kind == Set::Kind::asked6 || kind == Set::Kind::pinged4 ||
           kind == Set::Kind::pinged6;
}

bool is_of_packets(const std::string& set) {
    return set.starts_with(kAskedSet4) || set.starts_with(kAskedSet6) || set.starts_with(kPingedSet4) ||
           set.starts_with(kPingedSet6);
}

std::string_view type_text(Set::Kind kind) {
    switch (kind) {
    case Set::Kind::chain_by_cgroup: return "type cgroupsv2 : verdict";
    case Set::Kind::chain_by_user: return "type uid : verdict";
    case Set::Kind::destinations4: return "type ipv4_addr\n\t\tflags interval";
    case Set::Kind::destinations6: return "type ipv6_addr\n\t\tflags interval";
    case Set::Kind::links: return "type iface_index";
    case Set::Kind::asked4:
        return "type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto\n\t\tsize 65536\n\t\tflags "
               "dynamic,timeout";
    case Set::Kind::asked6:
        return "type ipv6_addr . inet_service . ipv6_addr . inet_service . inet_proto\n\t\tsize 65536\n\t\tflags "
               "dynamic,timeout";
    case Set::Kind::pinged4: return "type ipv4_addr . ipv4_addr\n\t\tsize 65536\n\t\tflags dynamic,timeout";
    case Set::Kind::pinged6: return "type ipv6_addr . ipv6_addr\n\t\tsize 65536\n\t\tflags dynamic,timeout";
    }
    return {};
}

bool is_map(Set::Kind kind) { return kind == Set::Kind::chain_by_cgroup || kind == Set::Kind::chain_by_user; }

std::string item(const Chain& chain) {
    if (!chain.hook) return "chain " + chain.name;
    return fmt::format("chain {} {} {} {}", chain.name, chain.hook->type, chain.hook->number, chain.hook->priority);
}

std::string rule_item(const std::string& chain, std::size_t position, const std::string& comment) {
    return fmt::format("rule {} {} {}", chain, position, comment);
}

bool follows_connections(const Inventory& inventory) {
    return std::ranges::find(inventory, item(output())) != inventory.end();
}

std::string set_item(const std::string& name) { return "set " + name; }
std::string counter_item(const std::string& name) { return "counter " + name; }

Inventory inventory(const Structure& structure) {
    Inventory all;
    std::map<std::string, std::size_t> rules_in;
    for (const std::string& counter : structure.counters) all.push_back(counter_item(counter));
    for (const Set& set : structure.sets) all.push_back(set_item(set.name));
    for (const Chain& chain : structure.chains) all.push_back(item(chain));
    for (const Rule& r : structure.rules) all.push_back(rule_item(r.chain, rules_in[r.chain]++, r.comment));
    return all;
}

} // namespace novpn::nft
