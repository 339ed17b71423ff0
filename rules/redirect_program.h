// The BPF programs that redirect a class's DNS, as instructions. Pure. Internal to rules/.
#pragma once

#include "rules/steering.h"

#include <array>
#include <linux/bpf.h>
#include <string_view>
#include <vector>

namespace novpn {

/// Of BPF_PROG_TYPE_CGROUP_SOCK_ADDR. `asks`: the socket names whom it asks; else it is told who answered.
struct RedirectHook {
    std::string_view word; ///< as bpftool has it
    bpf_attach_type type;
    bool ipv6;
    bool asks;
};

/// sendmsg: sendto() of a socket without a peer. recvmsg: whose answer recvfrom() tells. getpeername: of a connected
/// one.
inline constexpr std::array<RedirectHook, 8> kRedirectHooks{{
    {"connect4", BPF_CGROUP_INET4_CONNECT, false, true},
    {"connect6", BPF_CGROUP_INET6_CONNECT, true, true},
    {"sendmsg4", BPF_CGROUP_UDP4_SENDMSG, false, true},
    {"sendmsg6", BPF_CGROUP_UDP6_SENDMSG, true, true},
    {"recvmsg4", BPF_CGROUP_UDP4_RECVMSG, false, false},
    {"recvmsg6", BPF_CGROUP_UDP6_RECVMSG, true, false},
    {"getpeername4", BPF_CGROUP_INET4_GETPEERNAME, false, false},
    {"getpeername6", BPF_CGROUP_INET6_GETPEERNAME, true, false},
}};

/// IPv6, or mapped IPv4.
using AddressBytes = std::array<std::uint8_t, 16>;

/// What was asked by which socket of a resolver.
struct AnswerKey {
    std::uint64_t socket = 0; ///< its cookie
    AddressBytes resolver{};
};

/// `resolvers_map`: from the name server that is asked to the resolver in its place, both AddressBytes; `::` refuses.
/// `answers_map`: from AnswerKey to the name server. File descriptors.
std::vector<bpf_insn> instructions_of(const RedirectHook& hook, Mark mark, int resolvers_map, int answers_map);

} // namespace novpn
