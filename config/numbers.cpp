#include "config/numbers.h"

#include <fmt/format.h>

namespace novpn {
namespace {

/// The rules of a class stand at preference - 1, preference and preference + 1.
constexpr std::uint32_t kRulesPerClass = 3;

std::uint32_t distance(Preference a, Preference b) { return a.value < b.value ? b.value - a.value : a.value - b.value; }

/// Empty where they can live side by side.
std::string_view clashing_key(const ClassConfig& a, const ClassConfig& b) {
    if (a.table == b.table) return "table";
    if (marks_overlap(a.mark, b.mark)) return "mark";
    if (distance(a.preference, b.preference) < kRulesPerClass) return "preference";
    if (a.classid && a.classid == b.classid) return "classid";
    return {};
}

} // namespace

bool marks_overlap(Mark a, Mark b) {
    const std::uint32_t common = a.mask & b.mask;
    return (a.value & common) == (b.value & common);
}

std::optional<NumberClash> find_clash(const std::vector<ClassConfig>& classes) {
    for (std::size_t second = 0; second < classes.size(); ++second) {
        for (std::size_t first = 0; first < second; ++first) {
            const std::string_view key = clashing_key(classes[first], classes[second]);
            if (!key.empty()) return NumberClash{.first = first, .second = second, .key = key};
        }
    }
    return std::nullopt;
}

std::string describe_clash(std::string_view key, const ClassConfig& wrong, const ClassConfig& other) {
    if (key == "table") return fmt::format("table {} is the table of class '{}'", wrong.table.value, other.name);
    if (key == "mark") {
        return fmt::format("mark {} can be on the same packet as {} of class '{}'", to_string(wrong.mark),
                           to_string(other.mark), other.name);
    }
    if (key == "classid") return fmt::format("classid {:#x} is that of class '{}'", *wrong.classid, other.name);
    return fmt::format("preference {} is too near to {} of class '{}'", wrong.preference.value, other.preference.value,
                       other.name);
}

std::string allowed_beside(std::string_view key) {
    if (key == "table" || key == "classid") return "another number";
    if (key == "mark") return "a value that differs in a bit that both masks have";
    return fmt::format("{} or more apart", kRulesPerClass);
}

} // namespace novpn
