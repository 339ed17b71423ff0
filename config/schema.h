// The table of keys: which there are, what each takes, and where its value goes. Applying a document to a configuration
// is merging it: maps by key, lists replaced.
#pragma once

#include "config/config.h"
#include "config/document.h"
#include "config/load.h"

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

struct Origin {
    std::string file;
    Position at;
    std::size_t order = 0; ///< the higher, the later it was read
    bool operator==(const Origin&) const = default;
};
struct Origins {
    /// Where a value was set last ("classes.novpn.table"), or a map named first ("classes.novpn").
    std::map<std::string, Origin, std::less<>> by_path;
    std::size_t read = 0; ///< so many were noted so far

    /// Null: no file names it.
    const Origin* find(std::string_view path) const {
        const auto found = by_path.find(path);
        return found == by_path.end() ? nullptr : &found->second;
    }
};

inline constexpr std::string_view kDefaultClass = "novpn"; ///< exists without being named
inline constexpr std::size_t kMaxClasses = 64;             ///< the default one among them

/// Sets in `config` what the document names; a class that is not there yet is appended. On an error `config` is half
/// changed: throw it away.
std::optional<ConfigError> apply_document(const YamlNode& document, const std::string& file, Config& config,
                                          Origins& origins);

/// The paths of the keys that take a value, with '*' for a name that the user chooses: "classes.*.table".
std::vector<std::string> key_names();

} // namespace novpn
