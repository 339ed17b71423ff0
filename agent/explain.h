// Why a packet goes where it goes: the kernel's answer, the rule that led there, and whose rule it is. Pure.
#pragma once

#include "agent/observed.h"

#include <boost/json/object.hpp>

namespace novpn {

/// The object of Service::explain(), from the kernel's answers for a packet without and with the class's mark.
boost::json::object explain(const Observed& observed, const std::string& class_name, const Lookup& ordinary,
                            const Lookup& member);

/// The first rule that leads a packet with this mark to the table of the answer; none when it cannot be told, as where
/// rules of users or links decide.
const Rule* leading_rule(const Observed& observed, const Lookup& lookup);

/// The tool that a rule is known by: "novpn", "kernel", "wg-quick", "Tailscale", "strongSwan"; else its protocol.
std::string owner_of(const Rule& rule);

} // namespace novpn
