// What the command line does where no agent runs: the same look, decide, diff, apply, once, in this process.
#pragma once

#include "netlink/error.h"

#include <string>
#include <vector>

namespace novpn {

/// What an agent with this config would change now, one ip or nft command each. Changes nothing.
/// An empty name: the file where novpnd looks by default, and its defaults where there is none.
Expected<std::vector<std::string>> plan_without_agent(const std::string& config_file);

/// Removes all that is ours in this network namespace. device_or_resource_busy: a live agent holds the lock.
Expected<void> force_down(const std::string& runtime_dir);

} // namespace novpn
