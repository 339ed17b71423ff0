// IPsec policies (the kernel's xfrm, ip-xfrm(8)): values, and reading, adding and deleting them over NETLINK_XFRM;
// notifications on another socket. Not the associations: whether a policy finds one is no business of ours.
// Synchronous; owns its sockets; not thread-safe. A kernel without xfrm has no policies.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/values.h"

#include <cstddef>
#include <span>
#include <string_view>

namespace novpn {

/// The kernel's numbers (XFRM_POLICY_IN …): `fwd` is for packets that pass through.
enum class XfrmDirection : std::uint8_t { in, out, fwd };
inline constexpr XfrmDirection kXfrmDirections[] = {XfrmDirection::out, XfrmDirection::in, XfrmDirection::fwd};

/// Matches when (port & mask) == value; a mask of 0 matches any.
struct MaskedPort {
    std::uint16_t value = 0;
    std::uint16_t mask = 0;
    auto operator<=>(const MaskedPort&) const = default;
};

/// What a policy is looked up by.
struct XfrmFlow {
    address source;
    address destination;
    std::uint8_t ip_protocol = 0;
    std::uint16_t source_port = 0;
    std::uint16_t destination_port = 0;
    IfIndex link; ///< that a packet comes in or leaves by
    std::uint32_t mark = 0;
};

/// One policy, but for what only its owner cares about: lifetimes, and what its templates say.
struct XfrmPolicy {
    XfrmDirection direction = XfrmDirection::out;
    Prefix source;
    Prefix destination;
    std::optional<std::uint8_t> ip_protocol;
    MaskedPort source_port;
    MaskedPort destination_port;
    std::optional<IfIndex> link;
    std::optional<Mark> mark;
    std::uint32_t if_id = 0;    ///< other than 0: of packets that go through an xfrm link of that number only
    std::uint32_t priority = 0; ///< the lowest is taken; of two with the same, the one added first
    std::uint32_t index = 0;    ///< unique in the network namespace; the kernel asks for the direction in bits 0 to 2
    bool block = false;         ///< else allow: as it is, or transformed where there are templates
    bool sub = false;           ///< `ptype sub`, which is applied before and besides those of `main`
    unsigned templates = 0;
    bool operator==(const XfrmPolicy&) const = default;
};

inline Family family_of(const XfrmPolicy& policy) { return family_of(policy.destination.network); }

/// Whether the kernel would take this policy for the flow, if no other came first (xfrm_policy_match() and
/// xfrm_selector_match() in net/xfrm/xfrm_policy.c).
bool selects(const XfrmPolicy& policy, const XfrmFlow& flow);

/// The kernel has one policy of a direction with the same selector, mark and if_id, whatever its priority
/// (xfrm_policy_insert_list()): another one is refused with EEXIST.
bool same_key(const XfrmPolicy& a, const XfrmPolicy& b);

/// Policies have no protocol number to tell their owner by; what nobody else chooses is the index. The kernel takes the
/// one that is asked for, unless a policy has it (xfrm_gen_index()), and counts up from 8 for the others, which ask for
/// none. Bits 3 to 15 number ours.
inline constexpr std::uint32_t kNovpnPolicyIndex = 0x4e560000;
inline constexpr std::uint32_t kNovpnPolicyIndexMask = 0xffff0000;

/// Ours lets packets of a mark pass as they are: a policy that does anything else is not, whatever its index.
bool owned_by_us(const XfrmPolicy& policy);

/// "src 0.0.0.0/0 dst 0.0.0.0/0 dir out mark 0x4e000000 mask 0xff000000 index 1314258945 action allow priority 0"
std::string to_string(const XfrmPolicy& policy);
/// What names it to `ip xfrm policy delete`: direction, index and mark.
std::string identity(const XfrmPolicy& policy);

/// A XFRM_MSG_NEWPOLICY message, header included, as bytes; nothing when it is malformed, or a socket's own policy.
std::optional<XfrmPolicy> to_policy(std::span<const std::byte> message);

class XfrmSocket {
  public:
    static Expected<XfrmSocket> open();

    /// ip xfrm policy, of both families
    Expected<std::vector<XfrmPolicy>> policies();
    /// ip xfrm policy add, without templates. file_exists: there is one of that key.
    /// protocol_not_supported: a kernel without xfrm.
    Expected<void> add(const XfrmPolicy& policy);
    /// ip xfrm policy delete, by index and mark. One that is not there (any more) is done.
    Expected<void> remove(const XfrmPolicy& policy);

    /// Our netlink port: notifications about our own requests carry it. 0 on a kernel without xfrm.
    std::uint32_t port() const;

  private:
    explicit XfrmSocket(std::optional<RequestSocket> requests);
    Expected<void> acknowledge(nl_msg& request, const std::string& doing);
    std::optional<RequestSocket> requests_; ///< none: the kernel has no xfrm
};

/// Notifications about policies, of both families.
class XfrmMonitor {
  public:
    static Expected<XfrmMonitor> open();
    /// None on a kernel without xfrm.
    std::optional<int> fd() const;
    /// Reads what is queued, or that notifications were lost; never blocks. Whether to look: notifications about
    /// requests from `own_port` do not matter.
    bool drain(std::uint32_t own_port);

  private:
    explicit XfrmMonitor(NlSocket socket);
    NlSocket socket_; ///< null on a kernel without xfrm
    std::vector<std::byte> buffer_;
};

} // namespace novpn
