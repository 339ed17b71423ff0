#include "rules/nft_structure.h"

#include <algorithm>
#include <arpa/inet.h>
#include <chrono>
#include <fmt/format.h>
#include <functional>
#include <libnftnl/expr.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/rtnetlink.h>
#include <map>
#include <netinet/in.h>
#include <set>

namespace novpn::nft {
namespace {

/// A part of a rule: its nft text and the expressions that the nft tool makes of it.
struct Part {
    std::string text;
    std::vector<Expr> exprs;
};

// The kernel gives the loopback link of every network namespace this index (LOOPBACK_IFINDEX).
constexpr std::uint32_t kLoopback = 1;
constexpr std::uint16_t kDnsPort = 53;
constexpr std::uint8_t kIcmp = IPPROTO_ICMP;
constexpr std::uint8_t kIcmpv6 = IPPROTO_ICMPV6;
constexpr std::int32_t kMangle = -150; // NF_IP_PRI_MANGLE

Bytes bytes_of(const void* data, std::size_t size) {
    const auto* first = static_cast<const std::uint8_t*>(data);
    return {first, first + size};
}

Bytes host32(std::uint32_t value) { return bytes_of(&value, sizeof value); }

Expr compare(std::uint32_t op, Bytes data) {
    return {"cmp",
            {{NFTNL_EXPR_CMP_SREG, std::uint32_t{NFT_REG_1}}, {NFTNL_EXPR_CMP_OP, op}, {NFTNL_EXPR_CMP_DATA, data}}};
}

/// reg 1 = (reg 1 & mask) ^ xor_with, the only form of bitwise that Linux 5.15 to 6.18 share.
Expr bitwise(const Bytes& mask, const Bytes& xor_with) {
    return {"bitwise",
            {{NFTNL_EXPR_BITWISE_SREG, std::uint32_t{NFT_REG_1}},
             {NFTNL_EXPR_BITWISE_DREG, std::uint32_t{NFT_REG_1}},
             {NFTNL_EXPR_BITWISE_LEN, static_cast<std::uint32_t>(mask.size())},
             {NFTNL_EXPR_BITWISE_MASK, mask},
             {NFTNL_EXPR_BITWISE_XOR, xor_with}}};
}

Expr load_meta(std::uint32_t key, std::uint32_t into = NFT_REG_1) {
    return {"meta", {{NFTNL_EXPR_META_KEY, key}, {NFTNL_EXPR_META_DREG, into}}};
}

Expr load_ct(std::uint32_t key) {
    return {"ct", {{NFTNL_EXPR_CT_KEY, key}, {NFTNL_EXPR_CT_DREG, std::uint32_t{NFT_REG_1}}}};
}

Expr load_transport(std::uint32_t offset, std::uint32_t length, std::uint32_t into = NFT_REG_1) {
    return {"payload",
            {{NFTNL_EXPR_PAYLOAD_DREG, into},
             {NFTNL_EXPR_PAYLOAD_BASE, std::uint32_t{NFT_PAYLOAD_TRANSPORT_HEADER}},
             {NFTNL_EXPR_PAYLOAD_OFFSET, offset},
             {NFTNL_EXPR_PAYLOAD_LEN, length}}};
}

Expr load_network(std::uint32_t offset, std::uint32_t length, std::uint32_t into = NFT_REG_1) {
    return {"payload",
            {{NFTNL_EXPR_PAYLOAD_DREG, into},
             {NFTNL_EXPR_PAYLOAD_BASE, std::uint32_t{NFT_PAYLOAD_NETWORK_HEADER}},
             {NFTNL_EXPR_PAYLOAD_OFFSET, offset},
             {NFTNL_EXPR_PAYLOAD_LEN, length}}};
}

Expr load_fib_type(std::uint32_t flags) {
    return {"fib",
            {{NFTNL_EXPR_FIB_DREG, std::uint32_t{NFT_REG_1}},
             {NFTNL_EXPR_FIB_RESULT, std::uint32_t{NFT_FIB_RESULT_ADDRTYPE}},
             {NFTNL_EXPR_FIB_FLAGS, flags}}};
}

Expr lookup(const std::string& set) {
    return {"lookup", {{NFTNL_EXPR_LOOKUP_SREG, std::uint32_t{NFT_REG_1}}, {NFTNL_EXPR_LOOKUP_SET, set}}};
}

Part verdict(std::string text, int code, const std::string& chain = {}) {
    Expr immediate{"immediate",
                   {{NFTNL_EXPR_IMM_DREG, std::uint32_t{NFT_REG_VERDICT}},
                    {NFTNL_EXPR_IMM_VERDICT, static_cast<std::uint32_t>(code)}}};
    if (!chain.empty()) immediate.attributes.emplace_back(NFTNL_EXPR_IMM_CHAIN, chain);
    return {std::move(text), {immediate}};
}

Part accept() { return verdict("accept", NF_ACCEPT); }
Part drop() { return verdict("drop", NF_DROP); }
Part return_() { return verdict("return", NFT_RETURN); }
Part goto_(const std::string& chain) { return verdict("goto " + chain, NFT_GOTO, chain); }
Part jump(const std::string& chain) { return verdict("jump " + chain, NFT_JUMP, chain); }

Part mark_is(Mark mark) {
    return {fmt::format("meta mark & {:#010x} == {:#010x}", mark.mask, mark.value),
            {load_meta(NFT_META_MARK), bitwise(host32(mark.mask), host32(0)), compare(NFT_CMP_EQ, host32(mark.value))}};
}

Part ct_mark_is(Mark mark) {
    return {fmt::format("ct mark & {:#010x} == {:#010x}", mark.mask, mark.value),
            {load_ct(NFT_CT_MARK), bitwise(host32(mark.mask), host32(0)), compare(NFT_CMP_EQ, host32(mark.value))}};
}

/// Other bits of the mark are other programs' and survive.
Part set_mark(Mark mark) {
    return {
        fmt::format("meta mark set meta mark & {:#010x} | {:#010x}", ~mark.mask, mark.value),
        {load_meta(NFT_META_MARK),
         bitwise(host32(~mark.mask), host32(mark.value)),
         {"meta",
          {{NFTNL_EXPR_META_KEY, std::uint32_t{NFT_META_MARK}}, {NFTNL_EXPR_META_SREG, std::uint32_t{NFT_REG_1}}}}}};
}

/// The packet is an ordinary one from here on; where it was marked, the kernel looks its route up again.
Part clear_mark(Mark mark) {
    return {
        fmt::format("meta mark set meta mark & {:#010x}", ~mark.mask),
        {load_meta(NFT_META_MARK),
         bitwise(host32(~mark.mask), host32(0)),
         {"meta",
          {{NFTNL_EXPR_META_KEY, std::uint32_t{NFT_META_MARK}}, {NFTNL_EXPR_META_SREG, std::uint32_t{NFT_REG_1}}}}}};
}

Part set_ct_mark(Mark mark) {
    return {
        fmt::format("ct mark set ct mark & {:#010x} | {:#010x}", ~mark.mask, mark.value),
        {load_ct(NFT_CT_MARK),
         bitwise(host32(~mark.mask), host32(mark.value)),
         {"ct", {{NFTNL_EXPR_CT_KEY, std::uint32_t{NFT_CT_MARK}}, {NFTNL_EXPR_CT_SREG, std::uint32_t{NFT_REG_1}}}}}};
}

Part ct_state_is_known_or_untracked() {
    // In nft's ct state: 1 invalid, 2 established, 4 related, 8 new, 64 untracked.
    constexpr std::uint32_t kBits = 2 | 4 | 64;
    return {"ct state established,related,untracked",
            {load_ct(NFT_CT_STATE), bitwise(host32(kBits), host32(0)), compare(NFT_CMP_NEQ, host32(0))}};
}

Part ct_is_confirmed() {
    return {"ct status confirmed",
            {load_ct(NFT_CT_STATUS), bitwise(host32(IPS_CONFIRMED), host32(0)), compare(NFT_CMP_NEQ, host32(0))}};
}

/// Its connection is not confirmed before it leaves: the first packet of a flow, or that one once more.
Part is_first_of_flow() {
    return {"ct status & confirmed == 0",
            {load_ct(NFT_CT_STATUS), bitwise(host32(IPS_CONFIRMED), host32(0)), compare(NFT_CMP_EQ, host32(0))}};
}

Part ct_direction_is_reply() {
    constexpr std::uint8_t kReply = 1; // IP_CT_DIR_REPLY, in no header that stands alone
    return {"ct direction reply", {load_ct(NFT_CT_DIRECTION), compare(NFT_CMP_EQ, {kReply})}};
}

Part ct_direction_is_original() {
    constexpr std::uint8_t kOriginal = 0; // IP_CT_DIR_ORIGINAL
    return {"ct direction original", {load_ct(NFT_CT_DIRECTION), compare(NFT_CMP_EQ, {kOriginal})}};
}

Part protocol_is(const std::string& name, std::uint8_t number) {
    return {"meta l4proto " + name, {load_meta(NFT_META_L4PROTO), compare(NFT_CMP_EQ, {number})}};
}

Part tcp_is_not_syn() {
    constexpr std::uint8_t kFinSynRstAck = 0x17;
    constexpr std::uint8_t kSyn = 0x02;
    constexpr std::uint32_t kFlagsOffset = 13;
    return {"tcp flags & (fin | syn | rst | ack) != syn",
            {load_transport(kFlagsOffset, 1), bitwise({kFinSynRstAck}, {0}), compare(NFT_CMP_NEQ, {kSyn})}};
}

Part destination_port_is(const std::string& protocol, std::uint8_t number, std::uint16_t port) {
    constexpr std::uint32_t kPortOffset = 2;
    const std::uint16_t network = htons(port);
    Part part = protocol_is(protocol, number);
    part.text = fmt::format("{} dport {}", protocol, port);
    part.exprs.push_back(load_transport(kPortOffset, sizeof network));
    part.exprs.push_back(compare(NFT_CMP_EQ, bytes_of(&network, sizeof network)));
    return part;
}

Part destination_is_local() {
    return {"fib daddr type local", {load_fib_type(NFTA_FIB_F_DADDR), compare(NFT_CMP_EQ, host32(RTN_LOCAL))}};
}

Part source_is_not_of_outgoing_link() {
    return {"fib saddr . oif type != local",
            {load_fib_type(NFTA_FIB_F_SADDR | NFTA_FIB_F_OIF), compare(NFT_CMP_NEQ, host32(RTN_LOCAL))}};
}

Part source_is_of_outgoing_link() {
    return {"fib saddr . oif type local",
            {load_fib_type(NFTA_FIB_F_SADDR | NFTA_FIB_F_OIF), compare(NFT_CMP_EQ, host32(RTN_LOCAL))}};
}

Part leaves_by_loopback() { return {"oif \"lo\"", {load_meta(NFT_META_OIF), compare(NFT_CMP_EQ, host32(kLoopback))}}; }

Part leaves_by_other_than_loopback() {
    return {"oif != \"lo\"", {load_meta(NFT_META_OIF), compare(NFT_CMP_NEQ, host32(kLoopback))}};
}

Part leaves_by_link_in(const std::string& set) { return {"oif @" + set, {load_meta(NFT_META_OIF), lookup(set)}}; }

Part go_by_cgroup(unsigned level, const std::string& map) {
    Expr verdict_of = lookup(map);
    verdict_of.attributes.emplace_back(NFTNL_EXPR_LOOKUP_DREG, std::uint32_t{NFT_REG_VERDICT});
    return {fmt::format("socket cgroupv2 level {} vmap @{}", level, map),
            {{"socket",
              {{NFTNL_EXPR_SOCKET_KEY, std::uint32_t{NFT_SOCKET_CGROUPV2}},
               {NFTNL_EXPR_SOCKET_DREG, std::uint32_t{NFT_REG_1}},
               {NFTNL_EXPR_SOCKET_LEVEL, std::uint32_t{level}}}},
             verdict_of}};
}

Part classid_is(std::uint32_t classid) {
    return {fmt::format("meta cgroup {:#x}", classid),
            {load_meta(NFT_META_CGROUP), compare(NFT_CMP_EQ, host32(classid))}};
}

Part go_by_user() {
    Expr verdict_of = lookup(kUserMap);
    verdict_of.attributes.emplace_back(NFTNL_EXPR_LOOKUP_DREG, std::uint32_t{NFT_REG_VERDICT});
    return {fmt::format("meta skuid vmap @{}", kUserMap), {load_meta(NFT_META_SKUID), verdict_of}};
}

/// The destination address, where it is in an IPv4 (RFC 791) or an IPv6 header (RFC 8200).
Part destination_is_in(const std::string& set, Family family) {
    const bool ipv4 = family == Family::ipv4;
    const std::uint8_t protocol = ipv4 ? NFPROTO_IPV4 : NFPROTO_IPV6;
    return {fmt::format("{} daddr @{}", ipv4 ? "ip" : "ip6", set),
            {load_meta(NFT_META_NFPROTO), compare(NFT_CMP_EQ, {protocol}),
             ipv4 ? load_network(16, 4) : load_network(24, 16), lookup(set)}};
}

/// Where the header of a family has its addresses (RFC 791, RFC 8200).
struct Addresses {
    std::string text;
    std::uint8_t family;
    std::uint32_t source, destination, length;
};
Addresses addresses_of(Family family) {
    if (family == Family::ipv4) return {"ip", NFPROTO_IPV4, 12, 16, 4};
    return {"ip6", NFPROTO_IPV6, 8, 24, 16};
}

/// Which way a packet goes: the far end of one that leaves is its destination.
enum class Way { out, in };

/// Both ends of a packet, the far one first, and with ports the protocol too: as a set has them.
Part ends_of(Family family, Way way, bool with_ports) {
    constexpr std::uint32_t kRegister = 4; // a register of 32 bits
    const Addresses at = addresses_of(family);
    const bool out = way == Way::out;
    Part part{.text = {}, .exprs = {load_meta(NFT_META_NFPROTO), compare(NFT_CMP_EQ, {at.family})}};
    std::uint32_t into = NFT_REG32_00;
    for (const bool is_destination : {out, !out}) {
        const char* side = is_destination ? "d" : "s";
        part.exprs.push_back(load_network(is_destination ? at.destination : at.source, at.length, into));
        into += at.length / kRegister;
        part.text += fmt::format("{}{} {}addr", part.text.empty() ? "" : " . ", at.text, side);
        if (!with_ports) continue;
        part.exprs.push_back(load_transport(is_destination ? 2 : 0, 2, into++));
        part.text += fmt::format(" . th {}port", side);
    }
    if (with_ports) {
        part.exprs.push_back(load_meta(NFT_META_L4PROTO, into));
        part.text += " . meta l4proto";
    }
    return part;
}

Part remember_in(const std::string& set, const Part& ends, std::chrono::seconds how_long,
                 const std::string& how_long_text) {
    const std::uint64_t timeout = std::chrono::milliseconds(how_long).count();
    Part part{.text = fmt::format("update @{} {{ {} timeout {} }}", set, ends.text, how_long_text),
              .exprs = ends.exprs};
    part.exprs.push_back({"dynset",
                          {{NFTNL_EXPR_DYNSET_SREG_KEY, std::uint32_t{NFT_REG32_00}},
                           {NFTNL_EXPR_DYNSET_OP, std::uint32_t{NFT_DYNSET_OP_UPDATE}},
                           {NFTNL_EXPR_DYNSET_TIMEOUT, bytes_of(&timeout, sizeof timeout)},
                           {NFTNL_EXPR_DYNSET_SET_NAME, set}}});
    return part;
}

Part is_remembered_in(const std::string& set, const Part& ends) {
    Part part{.text = ends.text + " @" + set, .exprs = ends.exprs};
    part.exprs.push_back(
        {"lookup", {{NFTNL_EXPR_LOOKUP_SREG, std::uint32_t{NFT_REG32_00}}, {NFTNL_EXPR_LOOKUP_SET, set}}});
    return part;
}

/// ICMP of a family, of one type.
Part icmp_type_is(Family family, const std::string& name, std::uint8_t ipv4, std::uint8_t ipv6) {
    const bool is_ipv4 = family == Family::ipv4;
    return {fmt::format("{} type {}", is_ipv4 ? "icmp" : "icmpv6", name),
            {load_meta(NFT_META_L4PROTO), compare(NFT_CMP_EQ, {is_ipv4 ? kIcmp : kIcmpv6}), load_transport(0, 1),
             compare(NFT_CMP_EQ, {is_ipv4 ? ipv4 : ipv6})}};
}

Expr load_socket(std::uint32_t key) {
    return {"socket", {{NFTNL_EXPR_SOCKET_KEY, key}, {NFTNL_EXPR_SOCKET_DREG, std::uint32_t{NFT_REG_1}}}};
}

/// Of an ICMP error: the socket that sent what it is about (nf_sk_lookup_slow_v6), not one that takes from anybody.
Part is_about_socket_of(Mark mark) {
    return {fmt::format("socket wildcard 0 socket mark & {:#010x} == {:#010x}", mark.mask, mark.value),
            {load_socket(NFT_SOCKET_WILDCARD), compare(NFT_CMP_EQ, {0}), load_socket(NFT_SOCKET_MARK),
             bitwise(host32(mark.mask), host32(0)), compare(NFT_CMP_EQ, host32(mark.value))}};
}

Part count_in(const std::string& counter) {
    return {
        fmt::format("counter name \"{}\"", counter),
        {{"objref",
          {{NFTNL_EXPR_OBJREF_IMM_TYPE, std::uint32_t{NFT_OBJECT_COUNTER}}, {NFTNL_EXPR_OBJREF_IMM_NAME, counter}}}}};
}

Part masquerade() { return {"masquerade", {{"masq", {}}}}; }

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

enum class MarkOf { packet, connection };

/// To the chain `prefix`C of the class whose mark it is; `code` is NFT_JUMP or NFT_GOTO.
Part go_by_mark(MarkOf of, std::uint32_t mask, const std::vector<const ClassMarking*>& classes, int code,
                const std::string& prefix) {
    const bool of_packet = of == MarkOf::packet;
    Expr map{
        "lookup",
        {{NFTNL_EXPR_LOOKUP_SREG, std::uint32_t{NFT_REG_1}}, {NFTNL_EXPR_LOOKUP_DREG, std::uint32_t{NFT_REG_VERDICT}}}};
    map.verdict = code;
    std::string elements;
    for (const ClassMarking* c : classes) {
        map.chain_by_mark.emplace_back(c->mark.value, prefix + c->name);
        elements += fmt::format("{}{:#010x} : {} {}{}", elements.empty() ? "" : ", ", c->mark.value,
                                code == NFT_GOTO ? "goto" : "jump", prefix, c->name);
    }
    return {fmt::format("{} & {:#010x} vmap {{ {} }}", of_packet ? "meta mark" : "ct mark", mask, elements),
            {of_packet ? load_meta(NFT_META_MARK) : load_ct(NFT_CT_MARK), bitwise(host32(mask), host32(0)), map}};
}

/// Rules of `chain` that send what `which` says, and has a class's mark, to the chain `prefix`C.
void add_by_mark(Structure& to, const NftTable& table, const std::string& chain, const std::string& comment,
                 const std::vector<Part>& which, MarkOf of, int code, const std::string& prefix) {
    for (const auto& [mask, classes] : by_mask(table)) {
        std::vector<Part> parts = which;
        std::string whose = "a class";
        if (classes.size() > 1) {
            parts.push_back(go_by_mark(of, mask, classes, code, prefix));
        } else {
            const ClassMarking& c = *classes.front();
            whose = c.name;
            parts.push_back(of == MarkOf::packet ? mark_is(c.mark) : ct_mark_is(c.mark));
            parts.push_back(code == NFT_GOTO ? goto_(prefix + c.name) : jump(prefix + c.name));
        }
        to.rules.push_back(rule(chain, comment + " " + whose, parts));
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

/// Chains of one class: `restore_C`, `born_C`, then `mark_C`, where its members' new flows go, and `guard_C`, where its
/// packets leave.
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

    const std::string guard = kGuardChain + c.name;
    const std::string links = kLinkSet + c.name;
    to.chains.push_back({guard, std::nullopt});
    to.rules.push_back(rule(guard, "no firewall of another program dropped it",
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

void add_output(Structure& to, const NftTable& table, const Levels& levels) {
    to.chains.push_back({"output", Hook{"route", "output", NF_INET_LOCAL_OUT, kMangle}});
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
    for (const ClassMarking& c : table.classes) add_class_chains(made, c);
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
