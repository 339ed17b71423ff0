// `novpn doctor`: what is found wrong, and how to mend it. Judges; the looking is settings.h, packet_tap.h and the
// agent's status. Pure.
#pragma once

#include "agent/cli/packet_tap.h"
#include "agent/cli/settings.h"
#include "netlink/error.h"
#include "rules/firewall.h"

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

namespace novpn {

struct Finding {
    enum class State { ok, note, wrong };
    State state = State::ok;
    std::string check; ///< "agent", "kernel", "rp_filter", …
    std::string text;
    std::string mend; ///< a command or what else to do; empty where there is nothing to mend
    bool operator==(const Finding&) const = default;
};

/// What status says of itself: its sentence and its warnings.
std::vector<Finding> judge_status(const boost::json::object& status);
/// `no_bpf`: why sockets cannot be marked at birth; empty where they can.
Finding judge_kernel(const Expected<std::string>& no_bpf);
/// Of the link by which members leave by IPv4.
Finding judge_reverse_path(const std::string& link, const ReversePath& settings, bool taken_over);
/// Of other programs' rules that no mark of ours gets members' answers past.
std::vector<Finding> judge_filters(const boost::json::object& status, const std::vector<ReversePathFilter>& filters);
/// None where no class's names are its uplink's. `beside_dns`: asked_beside_dns().
std::optional<Finding> judge_names(const boost::json::object& status, const std::string& beside_dns);
/// None where systemd-networkd does not run.
std::optional<Finding> judge_networkd(const NetworkdSettings& settings);

/// Where a class's packets are to leave, as status has it, and where one did.
struct Proof {
    std::string class_name;
    std::string family; ///< "ipv4", "ipv6"
    std::string state;  ///< of the class
    std::string link;   ///< of its uplink or tunnel; empty: none, so that nothing may leave
    Mark mark;          ///< of the class
    std::string source; ///< that the packet should have; empty: not known
    Departure ordinary, member;
};
/// What status expects of a class by a family.
Proof expected_of(const boost::json::object& status, const boost::json::object& of_class, const std::string& family);
Finding judge_packets(const Proof& proof);

/// Where a packet of a class that has a way out did not leave: the firewalls in its way, each with the command that
/// opens it. Nothing where all left.
std::vector<Finding> judge_firewalls(const std::vector<Proof>& proofs, const std::vector<Firewall>& firewalls);

bool is_well(const std::vector<Finding>& findings);
/// The column where a finding's text begins.
inline constexpr std::size_t kDiagnosisHeading = 18;
/// A sentence first, then a line for each, with its mend below.
std::string to_diagnosis(const std::vector<Finding>& findings);
/// {ok, findings: [{check, state: ok|note|wrong, text, mend}]}
boost::json::object to_json(const std::vector<Finding>& findings);

} // namespace novpn
