// Reads a scenario: what happens to a laptop and what the agent makes of it, line by line, in iproute2's words.
// The lines are described in tests/scenarios/README.md.
#pragma once

#include <string>
#include <vector>

namespace novpn::test {

/// Plays the scenario on a fake kernel. Every expectation that does not hold is one entry, with its line:
/// "replaced.txt:12: expected …; got …". Empty: all hold.
std::vector<std::string> play_scenario(const std::string& file);

} // namespace novpn::test
