// Which flows of members cannot go on, once the network is another: the address that they leave with is gone. And which
// are older than what tells flows. Pure.
#pragma once

#include "agent/decide.h"
#include "agent/plan.h"

#include <set>

namespace novpn {

/// What there is to choose from.
struct OpenFlows {
    std::vector<OpenSocket> sockets;
    std::optional<std::vector<Connection>> connections;     ///< none: the kernel does not tell
    std::map<std::string, std::set<std::uint64_t>> cgroups; ///< by class: ids of its members' cgroups
    std::set<address> gone;                                 ///< addresses that this machine had until now
};

bool has_way_out(const ClassDecision& decision, Family family);

std::set<address> addresses_gone(const Observed& observed, const std::set<address>& before);

/// Families in which an address has gone, or a class goes out by another link than before, or goes out again. Another
/// gateway of the same link leaves flows their address.
std::set<Family> families_moved(const Observed& observed, const Desired& desired, const std::set<address>& before,
                                const Desired* decided_before);

/// By which it is told, without reading a single flow, that members can have begun none since then.
struct FlowsBegun {
    std::map<std::string, std::uint64_t> counted; ///< flows of each class that nft has seen begin
    std::map<std::string, ClassDecision> classes; ///< what selects members, and nothing else of them
    bool operator==(const FlowsBegun&) const = default;
};

/// Nothing where the kernel does not count for every class.
std::optional<FlowsBegun> flows_begun(const std::map<std::string, PacketCounts>& packets, const Desired& desired);

/// Whether any of these is a member's, stale or not.
bool has_flows_of_members(const OpenFlows& flows, const Desired& desired);

/// EndSocket of members' TCP connections whose own address is gone, and UDP sockets whose address went just now, also
/// where there is no way out: their programs need not wait for it to know. And of TCP connections whose masquerade the
/// kernel has forgotten or bound to an address that is gone, once there is a way out, which tells by what address it
/// would be. DropConnection of members' entries that are translated to such an address. Flows whose address survives
/// are left alone, and so are sockets from before their process joined.
Plan stale_flows(const OpenFlows& flows, const Observed& observed, const Desired& desired);

/// Whose flows the kernel does not know where nobody followed connections until now, but for those that are steered by
/// their mark. A packet in one that a class selects, now or later, would be taken for one amid a forgotten flow and be
/// dropped, or by UDP begin a new one. Not those that are about to end: no packet would end their entries, which
/// another flow of the same ports could meet.
std::vector<OpenSocket> flows_from_before(std::vector<OpenSocket> sockets, const Config& config);

} // namespace novpn
