// IPsec policies as a takeover: which of them take packets to public destinations, and ours that let members pass. Pure
// functions.
#pragma once

#include "agent/observed.h"
#include "agent/uplink.h"

namespace novpn {

/// The foreign policies that transform or block ordinary packets to public destinations, or members' packets by the
/// uplink: each that the kernel takes first for one of them. In the order of their indexes.
std::vector<XfrmPolicy> taking_policies(Family family, const Observed& observed, const std::optional<Uplink>& uplink);

/// The lowest priority there is, so that ours come before all others but those that have it too: the kernel takes the
/// older of two (xfrm_policy_insert_list() in net/xfrm/xfrm_policy.c), which is theirs, as ours answer them.
inline constexpr std::uint32_t kNovpnPolicyPriority = 0;
/// Whether a policy of ours comes before it. None comes before `ptype sub`.
bool is_passable(const XfrmPolicy& taking);

/// Packets of that mark pass as they are, and so do the answers: they have the mark of their flow by the time the
/// kernel asks its `in` policies. Without those whose place somebody else's policy has, as the kernel takes no second
/// one.
void add_passing(std::vector<XfrmPolicy>& policies, Family family, Mark mark, const Observed& observed);

} // namespace novpn
