// The configuration from YAML: the file with its drop-ins, or one document. Blocking file reads; nothing is logged.
// The keys are the table in schema.cpp; reading YAML within bounds is document.h. Only this folder knows yaml-cpp.
#pragma once

#include "config/config.h"

#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace novpn {

struct ConfigError {
    std::string file;
    int line = 0;   ///< from 1; 0 where the file as a whole is meant (it cannot be read)
    int column = 0; ///< from 1, in characters
    std::string message;
    bool operator==(const ConfigError&) const = default;
};

/// "FILE:LINE:COL", or "FILE" where the line is 0; printable.
std::string location(const std::string& file, int line, int column);

/// "FILE:LINE:COL: what is wrong; what is allowed", or "FILE: reason". One line, without raw control characters.
std::string to_string(const ConfigError& error);

struct ConfigSource {
    std::string main_file;
    std::string drop_in_directory;
    bool operator==(const ConfigSource&) const = default;
};

/// Drop-ins are `conf.d/*.yaml` beside the file: /etc/novpn/novpn.yaml has /etc/novpn/conf.d/.
ConfigSource config_source(const std::string& file);

/// What it means that the main file is not there. One that cannot be read is an error always.
enum class Missing { is_error, is_empty };

/// `file`, then its drop-ins in lexical order of their names: maps merge by key, lists replace, the later wins. The
/// first error is returned. A missing drop-in directory is none. Hidden files are no drop-ins.
tl::expected<Config, ConfigError> load_config(const std::string& file, Missing main_file = Missing::is_error);

/// What a config that load_config() takes asks of a machine that cannot redirect DNS (`why_not`): where the first
/// `dns: uplink` of a class that is on stands. Nothing: it asks for none.
std::optional<ConfigError> find_dns_by_uplink(const std::string& file, std::string_view why_not);

/// What is worth a second thought in a config that load_config() takes: sites that open something, and are told by what
/// anybody can pretend.
std::vector<ConfigError> find_doubts(const std::string& file);

/// One document of at most 1 MiB; `name` stands for the file in errors. An empty one is the default configuration.
tl::expected<Config, ConfigError> parse_config(std::string_view text, const std::string& name);

} // namespace novpn
