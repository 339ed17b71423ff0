#include "rules/nft_parts.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <libnftnl/expr.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>

namespace novpn::nft {
namespace {

// The kernel gives the loopback link of every network namespace this index (LOOPBACK_IFINDEX).
constexpr std::uint32_t kLoopback = 1;

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

Expr load_socket(std::uint32_t key) {
    return {"socket", {{NFTNL_EXPR_SOCKET_KEY, key}, {NFTNL_EXPR_SOCKET_DREG, std::uint32_t{NFT_REG_1}}}};
}

} // namespace

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

Part set_mark(Mark mark) {
    return {
        fmt::format("meta mark set meta mark & {:#010x} | {:#010x}", ~mark.mask, mark.value),
        {load_meta(NFT_META_MARK),
         bitwise(host32(~mark.mask), host32(mark.value)),
         {"meta",
          {{NFTNL_EXPR_META_KEY, std::uint32_t{NFT_META_MARK}}, {NFTNL_EXPR_META_SREG, std::uint32_t{NFT_REG_1}}}}}};
}

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

Part destination_is_in(const std::string& set, Family family) {
    const bool ipv4 = family == Family::ipv4;
    const std::uint8_t protocol = ipv4 ? NFPROTO_IPV4 : NFPROTO_IPV6;
    return {fmt::format("{} daddr @{}", ipv4 ? "ip" : "ip6", set),
            {load_meta(NFT_META_NFPROTO), compare(NFT_CMP_EQ, {protocol}),
             ipv4 ? load_network(16, 4) : load_network(24, 16), lookup(set)}};
}

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

Part icmp_type_is(Family family, const std::string& name, std::uint8_t ipv4, std::uint8_t ipv6) {
    const bool is_ipv4 = family == Family::ipv4;
    return {fmt::format("{} type {}", is_ipv4 ? "icmp" : "icmpv6", name),
            {load_meta(NFT_META_L4PROTO), compare(NFT_CMP_EQ, {is_ipv4 ? kIcmp : kIcmpv6}), load_transport(0, 1),
             compare(NFT_CMP_EQ, {is_ipv4 ? ipv4 : ipv6})}};
}

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

Part go_by_mark(MarkOf of, std::uint32_t mask, const std::vector<std::pair<std::uint32_t, std::string>>& chains,
                int code) {
    Expr map{
        "lookup",
        {{NFTNL_EXPR_LOOKUP_SREG, std::uint32_t{NFT_REG_1}}, {NFTNL_EXPR_LOOKUP_DREG, std::uint32_t{NFT_REG_VERDICT}}}};
    map.chain_by_mark = chains;
    map.verdict = code;
    std::string elements;
    for (const auto& [mark, chain] : chains) {
        elements += fmt::format("{}{:#010x} : {} {}", elements.empty() ? "" : ", ", mark,
                                code == NFT_GOTO ? "goto" : "jump", chain);
    }
    const bool of_packet = of == MarkOf::packet;
    return {fmt::format("{} & {:#010x} vmap {{ {} }}", of_packet ? "meta mark" : "ct mark", mask, elements),
            {of_packet ? load_meta(NFT_META_MARK) : load_ct(NFT_CT_MARK), bitwise(host32(mask), host32(0)), map}};
}

} // namespace novpn::nft
