#include "config/numbers.h"

#include <fmt/format.h>

namespace novpn {
namespace {

/// The rules of a class stand at preference - 1, preference and preference + 1.
constexpr std::uint32_t kRulesPerClass = 3;

std::uint32_t distance(Preference a, Preference b) { return a.value < b.value ? b.value - a.value : a.value - b.value; }

std::optional<NumberClash> clash_of(const ClassConfig& first, const ClassConfig& second) {
    const auto clash = [&](std::string_view key, std::string what) {
        return NumberClash{.first = first.name, .second = second.name, .key = key, .what = std::move(what)};
    };
    if (first.table == second.table) {
        return clash("table", fmt::format("table {} is the table of class '{}'; allowed: another number",
                                          second.table.value, first.name));
    }
    if (marks_overlap(first.mark, second.mark)) {
        return clash("mark", fmt::format("mark {} and {} of class '{}' can be on the same packet; allowed: values that "
                                         "differ in a bit of both masks",
                                         to_string(second.mark), to_string(first.mark), first.name));
    }
    if (distance(first.preference, second.preference) < kRulesPerClass) {
        return clash("preference",
                     fmt::format("preference {} is too near to {} of class '{}'; allowed: {} or more apart",
                                 second.preference.value, first.preference.value, first.name, kRulesPerClass));
    }
    return std::nullopt;
}

} // namespace

bool marks_overlap(Mark a, Mark b) {
    const std::uint32_t common = a.mask & b.mask;
    return (a.value & common) == (b.value & common);
}

std::optional<NumberClash> find_clash(const std::vector<ClassConfig>& classes) {
    for (auto second = classes.begin(); second != classes.end(); ++second) {
        for (auto first = classes.begin(); first != second; ++first) {
            if (auto clash = clash_of(*first, *second)) return clash;
        }
    }
    return std::nullopt;
}

} // namespace novpn
