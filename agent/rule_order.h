// Where our policy rules stand: before every foreign rule that could carry a member's packet elsewhere. A rule added
// without a preference lands before the second one (fib_default_rule_pref in net/core/fib_rules.c), so before ours: the
// VPN that starts last would win. Pure functions.
#pragma once

#include "config/config.h"
#include "netlink/values.h"

#include <map>

namespace novpn {

/// At 0 and 1 rules of others that ask for no preference come out in reverse: wg-quick's pair would cut off the LAN.
inline constexpr Preference kLowestPreference{2};

/// Where the rules of every class stand in one family.
struct RuleOrder {
    std::map<std::string, Preference> lookups; ///< by class, of its `fwmark M/K lookup T`; the way around it for port
                                               ///< 53 takes the preference before and the one after
    std::vector<Rule> ahead;                   ///< foreign rules that no room is left to stand before
    bool operator==(const RuleOrder&) const = default;
};

/// Whether a foreign rule could lead a packet with this mark to a route, or away from one.
bool could_carry(const Rule& rule, Mark mark);

/// Whether it leads sockets that have no mark to its table too: those of users, those to destinations.
bool selects_unmarked(const ClassConfig& c);

/// At the config's preferences while nothing stands before; else, all classes together and in their order, right below
/// the lowest foreign rule that leaves room.
RuleOrder order_rules(Family family, const std::vector<Rule>& observed, const std::vector<ClassConfig>& classes);

} // namespace novpn
