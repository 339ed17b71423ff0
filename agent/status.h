// What `novpn status` tells, from a look and a decision: the JSON of DESIGN section 3. Pure, but for
// visible_processes().
#pragma once

#include "agent/control/service.h"
#include "agent/decide.h"

#include <boost/json/object.hpp>
#include <chrono>
#include <map>

namespace novpn {

/// Processes of a class that the caller may see.
struct Members {
    std::size_t processes = 0;
    std::size_t old_sockets = 0;  ///< open sockets of theirs that were made before: they keep their path
    std::vector<OldSocket> named; ///< of those
};

/// Open sockets of users of a class, or to one of its destinations, that the caller may see.
struct SelectedSockets {
    std::size_t sockets = 0;
    std::size_t old_sockets = 0;  ///< with an address of a tunnel: made before, they keep their path
    std::vector<OldSocket> named; ///< of those
};

/// Code of the warning that members' packets are led astray; its text is the summary then.
inline constexpr const char* kRuleOrderWarning = "rule_order";
/// The same, by another program's firewall.
inline constexpr const char* kFirewallWarning = "firewall";
/// The same, by an IPsec policy that no policy of ours comes before.
inline constexpr const char* kPolicyWarning = "xfrm_priority";

struct StatusFacts {
    Config config;
    std::string cgroup_root;
    Observed observed;
    std::optional<Desired> desired;                     ///< none: the kernel could not be looked at
    std::map<std::string, PacketCounts> packets;        ///< by class
    std::map<std::string, Members> members;             ///< of the classes' own cgroups, by class
    std::map<std::string, std::size_t> net_cls_members; ///< processes in the classes' cgroups of net_cls, by class
    std::map<std::string, Members> matched;             ///< of cgroups of others that the caller may know of, by path
    std::vector<OpenSocket> sockets;                    ///< those that the caller may see
    std::uint64_t repairs = 0;
    std::optional<std::chrono::microseconds> last_reaction;
    std::map<std::string, std::string> warnings; ///< code → text
};

boost::json::object to_status(const StatusFacts& facts);

/// {by: vpn|machine|uplink|none, servers, from, asked: the name servers that the uplink's stand in for}
boost::json::object to_json(const DnsDecision& dns);

/// Those of the processes that the caller may know of: its own, all of them for root.
std::vector<pid_t> visible_processes(std::vector<pid_t> processes, const Caller& caller);

/// One sentence that a person can act on; the first line of `novpn status`.
std::string summary(const Desired& desired, const Config& config);

/// "wlan0 via 192.168.10.1", "none"; for the log and the summary.
std::string describe(const std::optional<Uplink>& uplink);
/// "replaced by tun0, split by tun1", "none"
std::string describe(const std::vector<Takeover>& takeovers);

} // namespace novpn
