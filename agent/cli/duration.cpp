#include "agent/cli/duration.h"

#include <array>
#include <charconv>
#include <fmt/format.h>

namespace novpn {
namespace {

struct Unit {
    char letter;
    std::string_view word;
    std::int64_t seconds;
};

constexpr std::array kUnits{Unit{'d', "d", 86400}, Unit{'h', "h", 3600}, Unit{'m', "min", 60}, Unit{'s', "s", 1}};
constexpr std::int64_t kMax = std::int64_t{365} * 86400;

} // namespace

std::optional<std::chrono::seconds> parse_duration(std::string_view text) {
    std::int64_t total = 0;
    for (const Unit& unit : kUnits) {
        std::int64_t number = 0;
        const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
        if (error != std::errc{} || number < 0 || rest == text.data() + text.size() || *rest != unit.letter) continue;
        if (number > kMax / unit.seconds) return std::nullopt;
        total += number * unit.seconds;
        text.remove_prefix(static_cast<std::size_t>(rest + 1 - text.data()));
    }
    if (!text.empty() || total < 1 || total > kMax) return std::nullopt;
    return std::chrono::seconds(total);
}

std::string to_words(std::chrono::seconds duration) {
    std::string words;
    std::int64_t left = duration.count();
    for (const Unit& unit : kUnits) {
        if (left < unit.seconds) continue;
        words += fmt::format("{}{} {}", words.empty() ? "" : " ", left / unit.seconds, unit.word);
        left %= unit.seconds;
    }
    return words.empty() ? "0 s" : words;
}

} // namespace novpn
