// Numbers of one class against those of another: a table, mark or preference that two of them use would mix their
// traffic.
#pragma once

#include "config/config.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// Both classes have a problem with each other's `key` ("table", "mark" or "preference").
struct NumberClash {
    std::string first;  ///< the class earlier in the configuration
    std::string second; ///< the other
    std::string_view key;
    std::string what; ///< "table 100 is the table of class 'novpn'; allowed: another number"
    bool operator==(const NumberClash&) const = default;
};

/// A packet could match both: their values agree on the bits that both masks have.
bool marks_overlap(Mark a, Mark b);

/// The first clash, in the order of the classes.
std::optional<NumberClash> find_clash(const std::vector<ClassConfig>& classes);

} // namespace novpn
