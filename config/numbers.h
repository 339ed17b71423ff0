// Numbers of one class against those of another: a table, mark, preference or class id that two of them use would mix
// their traffic.
#pragma once

#include "config/config.h"

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// Two classes have a problem with each other's `key` ("table", "mark", "preference" or "classid"). Indices of the
/// classes.
struct NumberClash {
    std::size_t first = 0;
    std::size_t second = 0; ///< the higher
    std::string_view key;
    bool operator==(const NumberClash&) const = default;
};

/// A packet could match both: their values agree on the bits that both masks have.
bool marks_overlap(Mark a, Mark b);

/// The first clash, in the order of the classes.
std::optional<NumberClash> find_clash(const std::vector<ClassConfig>& classes);

/// "table 100 is the table of class 'novpn'", said of `wrong` beside `other`.
std::string describe_clash(std::string_view key, const ClassConfig& wrong, const ClassConfig& other);
/// What is allowed instead: "another number".
std::string allowed_beside(std::string_view key);

} // namespace novpn
