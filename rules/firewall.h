// Firewalls of others that may drop what leaves this machine, as far as their rules tell, and how to have a class's
// packets pass: values and text. Reading them is Nft::firewalls() in nft.h; that one drops is told by counters.
#pragma once

#include "netlink/values.h"

#include <cstdint>
#include <string>
#include <vector>

namespace novpn {

/// A base chain of another program's, where packets leave.
struct Firewall {
    enum class Drops {
        by_policy, ///< what no rule of it accepts
        all,       ///< what comes to a rule without a condition
        some,      ///< what comes to a rule with one
        unread,    ///< of iptables-legacy, whose rules nf_tables does not show
    };
    std::string family; ///< as nft has it: "inet", "ip", "ip6"
    std::string table;
    std::string chain;
    Drops drops = Drops::some;
    bool operator==(const Firewall&) const = default;
};

/// A base chain of another program's that drops what comes in by another link than an answer to it would leave by.
struct ReversePathFilter {
    std::string family; ///< as nft has it: "inet", "ip", "ip6"
    std::string table;
    std::string chain;
    std::int32_t priority = 0;
    bool goes_by_mark = false; ///< where not, members' answers are lost under a VPN, whatever mark they have
    bool of_iptables = false;  ///< its match `rpfilter`; else nft's `fib`
    bool operator==(const ReversePathFilter&) const = default;
};

/// It goes by marks, and stands where answers have one only if they are told by what was asked.
bool is_early(const ReversePathFilter& filter);
/// Members' answers have no mark yet there, or it does not matter.
bool drops_answers(const ReversePathFilter& filter);
/// "table ip6 raw, chain PREROUTING"
std::string to_string(const ReversePathFilter& filter);
/// What has to be changed so that it lets members' answers pass; in words, as its rules are another program's.
std::string to_let_pass(const ReversePathFilter& filter);

/// What became of the first packets of a class's flows.
struct FlowCounts {
    std::uint64_t sent = 0;    ///< came out of our marking
    std::uint64_t arrived = 0; ///< came to our last chain: what is missing here was dropped in between, by another
    bool operator==(const FlowCounts&) const = default;
};

/// Those that drop most; only where there are none, the ones that drop less.
std::vector<Firewall> likeliest(std::vector<Firewall> firewalls);

/// "table inet killswitch, chain output (policy drop)"
std::string to_string(const Firewall& firewall);

/// The command that has packets with the mark pass, until the firewall is loaded anew.
std::string to_let_pass(const Firewall& firewall, Mark mark);

/// Tables of iptables-legacy in this network namespace that may drop what leaves, from /proc/net.
std::vector<Firewall> legacy_firewalls();
/// Whether iptables-legacy has tables here that may filter before `prerouting` of ours; nobody tells when they come.
bool legacy_may_filter_early();

} // namespace novpn
