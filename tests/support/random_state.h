// Laptops for the laws: a fake kernel in some random state, the config, what the agent remembers, and what a former run
// left behind and somebody else damaged. The same seed gives the same state on every machine.
#pragma once

#include "agent/decide.h"
#include "tests/support/fake_kernel.h"

#include <functional>

namespace novpn::test {

inline constexpr char kRandomRoot[] = "novpn-1"; ///< the cgroup root of random states

struct RandomState {
    FakeKernel kernel;
    Config config;
    Memory memory;
    Scope scope;                  ///< of the agent's look
    Scope everything;             ///< every table and cgroup that the state may have
    std::optional<Config> former; ///< of the run that left something behind
    std::string former_structure; ///< of the nft table, as that run made it
};

/// Rules of others that stand before ours match no member's packet: what becomes of one that does is not the plan's.
RandomState random_state(std::uint32_t seed);
/// The same, by whatever gives numbers.
RandomState random_state(std::function<std::uint32_t()> random);

} // namespace novpn::test
