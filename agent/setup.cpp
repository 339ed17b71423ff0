#include "agent/setup.h"

namespace novpn {

tl::expected<Config, ConfigError> load_config_or_default(const std::string& file) {
    if (!file.empty()) return load_config(file);
    return load_config(kDefaultConfigFile, Missing::is_empty);
}

} // namespace novpn
