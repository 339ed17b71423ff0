// The laws of laws_test.cpp for a state of anybody's making.
#pragma once

#include "tests/support/random_state.h"

#include <optional>
#include <string>

namespace novpn::test {

/// What does not hold, with the state and its plan; nothing where all do, or where the agent would not start.
std::optional<std::string> broken_law(RandomState state);

} // namespace novpn::test
