// The table of keys: which there are, what each takes, and where its value goes. Applying a document to a configuration
// is merging it: maps by key, lists replaced.
#pragma once

#include "config/config.h"
#include "config/document.h"
#include "config/load.h"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// Where a value was set, or a map named, last.
struct Origin {
    std::string file;
    Position at;
    bool operator==(const Origin&) const = default;
};
/// By path ("classes.novpn", "classes.novpn.table"); what no file names is missing.
using Origins = std::map<std::string, Origin, std::less<>>;

/// Sets in `config` what the document names. On an error `config` is half changed: throw it away.
std::optional<ConfigError> apply_document(const YamlNode& document, const std::string& file, Config& config,
                                          Origins& origins);

/// A key that takes a value. Its path has '*' for a name that the user chooses: "classes.*.table".
struct KeyName {
    std::string path;
    bool built = false; ///< false: refused as not supported yet
    bool operator==(const KeyName&) const = default;
};
std::vector<KeyName> key_names();

} // namespace novpn
