#include "agent/setup.h"

#include <filesystem>

namespace novpn {

tl::expected<Config, ConfigError> load_config_or_default(const std::string& file, const std::string& runtime_dir) {
    auto config = file.empty() ? load_config(kDefaultConfigFile, Missing::is_empty) : load_config(file);
    if (config && config->net_cls_mount == kNetClsMount)
        config->net_cls_mount = std::filesystem::absolute(runtime_dir) / "net_cls";
    return config;
}

} // namespace novpn
