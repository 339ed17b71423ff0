#include "agent/setup.h"

#include <unistd.h>

namespace novpn {

tl::expected<Config, ConfigError> load_config_or_default(const std::string& file) {
    if (!file.empty()) return load_config(file);
    if (access(kDefaultConfigFile, F_OK) != 0) return Config{};
    return load_config(kDefaultConfigFile);
}

} // namespace novpn
