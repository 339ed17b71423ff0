// What novpnd and the command line's own looks at the kernel have in common: where the config is, and the cgroup root.
#pragma once

#include "agent/agent.h"

namespace novpn {

inline constexpr const char* kDefaultConfigFile = "/etc/novpn/novpn.yaml";
inline constexpr const char* kDefaultRuntimeDir = "/run/novpn";

/// An empty name: kDefaultConfigFile where it exists, the built-in default where it does not. What lies below the
/// runtime directory by default does so there.
tl::expected<Config, ConfigError> load_config_or_default(const std::string& file, const std::string& runtime_dir);

} // namespace novpn
