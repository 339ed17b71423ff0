// The words of which the rules of `table inet novpn` are made: matches, statements and verdicts of nft(8), each with
// its text and its expressions. Internal to rules/.
#pragma once

#include "rules/nft_structure.h"

#include <chrono>
#include <cstdint>
#include <netinet/in.h>
#include <string>
#include <utility>
#include <vector>

namespace novpn::nft {

/// A part of a rule: its nft text and the expressions that the nft tool makes of it.
struct Part {
    std::string text;
    std::vector<Expr> exprs;
};

inline constexpr std::uint8_t kIcmp = IPPROTO_ICMP;
inline constexpr std::uint8_t kIcmpv6 = IPPROTO_ICMPV6;

enum class MarkOf { packet, connection };
/// Which way a packet goes: the far end of one that leaves is its destination.
enum class Way { out, in };

Part accept();
Part drop();
Part return_();
Part goto_(const std::string& chain);
Part jump(const std::string& chain);
Part mark_is(Mark mark);
Part ct_mark_is(Mark mark);
/// Other bits of the mark are other programs' and survive.
Part set_mark(Mark mark);
/// The packet is an ordinary one from here on; where it was marked, the kernel looks its route up again.
Part clear_mark(Mark mark);
Part set_ct_mark(Mark mark);
Part ct_state_is_known_or_untracked();
Part ct_is_confirmed();
/// Its connection is not confirmed before it leaves: the first packet of a flow, or that one once more.
Part is_first_of_flow();
Part ct_direction_is_reply();
Part ct_direction_is_original();
Part protocol_is(const std::string& name, std::uint8_t number);
Part tcp_is_not_syn();
Part destination_port_is(const std::string& protocol, std::uint8_t number, std::uint16_t port);
Part destination_is_local();
Part source_is_not_of_outgoing_link();
Part source_is_of_outgoing_link();
Part leaves_by_loopback();
Part leaves_by_other_than_loopback();
Part leaves_by_link_in(const std::string& set);
Part go_by_cgroup(unsigned level, const std::string& map);
Part classid_is(std::uint32_t classid);
Part go_by_user();
/// The destination address, where it is in an IPv4 (RFC 791) or an IPv6 header (RFC 8200).
Part destination_is_in(const std::string& set, Family family);
/// Both ends of a packet, the far one first, and with ports the protocol too: as a set has them.
Part ends_of(Family family, Way way, bool with_ports);
Part remember_in(const std::string& set, const Part& ends, std::chrono::seconds how_long,
                 const std::string& how_long_text);
Part is_remembered_in(const std::string& set, const Part& ends);
/// ICMP of a family, of one type.
Part icmp_type_is(Family family, const std::string& name, std::uint8_t ipv4, std::uint8_t ipv6);
/// Of an ICMP error: the socket that sent what it is about (nf_sk_lookup_slow_v6), not one that takes from anybody.
Part is_about_socket_of(Mark mark);
Part count_in(const std::string& counter);
Part masquerade();
/// To the chain of a mark, which is compared under `mask`; `code` is NFT_JUMP or NFT_GOTO.
Part go_by_mark(MarkOf of, std::uint32_t mask, const std::vector<std::pair<std::uint32_t, std::string>>& chains,
                int code);

} // namespace novpn::nft
