#include "config/text.h"

#include <algorithm>
#include <cstdint>
#include <fmt/format.h>
#include <numeric>

namespace novpn {
namespace {

constexpr std::size_t kQuoteMax = 60;
constexpr std::size_t kWordMax = 40; ///< longer ones are nobody's typing error
constexpr std::size_t kAbbreviationMin = 3;

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U; }

/// `text` begins with a well-formed character of `length` bytes.
char32_t code_point(std::string_view text, std::size_t length) {
    const auto first = static_cast<unsigned char>(text.front());
    if (length == 1) return first;
    char32_t value = first & (0xffU >> (length + 1));
    for (const char c : text.substr(1, length - 1)) value = value << 6U | (static_cast<unsigned char>(c) & 0x3fU);
    return value;
}

/// C1 controls, line and paragraph separators, direction marks, embeddings, overrides and isolates.
bool obeyed_by_terminals(char32_t c) {
    return (c >= 0x80 && c <= 0x9f) || c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069);
}

/// Insertions, deletions, replacements and swaps of neighbours between the two (optimal string alignment).
std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> before(b.size() + 1);
    std::vector<std::size_t> previous(b.size() + 1);
    std::vector<std::size_t> current(b.size() + 1);
    std::iota(previous.begin(), previous.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        current[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t replaced = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replaced});
            const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) current[j] = std::min(current[j], before[j - 2] + 1);
        }
        std::swap(before, previous);
        std::swap(previous, current);
    }
    return previous[b.size()];
}

} // namespace

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

std::size_t utf8_length(std::string_view text) {
    if (text.empty()) return 0;
    const auto first = static_cast<unsigned char>(text.front());
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
    if (!std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(length), is_continuation)) return 0;
    const char32_t value = code_point(text, length);
    const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
    const bool surrogate = value >= 0xd800 && value <= 0xdfff;
    return overlong || surrogate || value > 0x10ffff ? 0 : length;
}

std::string printable(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const auto byte = static_cast<unsigned char>(text.front());
        if (length == 0 || is_control(text.front())) {
            out += fmt::format("\\x{:02x}", byte);
            text.remove_prefix(1);
            continue;
        }
        const char32_t value = code_point(text, length);
        if (obeyed_by_terminals(value)) {
            out += fmt::format("\\u{{{:x}}}", static_cast<std::uint32_t>(value));
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(length);
    }
    return out;
}

std::string quote(std::string_view text) {
    std::string_view rest = text;
    for (std::size_t characters = 0; characters < kQuoteMax && !rest.empty(); ++characters) {
        rest.remove_prefix(std::max<std::size_t>(utf8_length(rest), 1));
    }
    const std::string_view shown = text.substr(0, text.size() - rest.size());
    return fmt::format("'{}{}'", printable(shown), rest.empty() ? "" : "…");
}

std::string_view nearest(std::string_view typed, const std::vector<std::string_view>& words) {
    if (typed.size() > kWordMax) return {};
    std::string_view best;
    std::size_t best_distance = std::max<std::size_t>(1, typed.size() / 3) + 1;
    for (const std::string_view word : words) {
        const std::size_t distance = edit_distance(typed, word);
        if (distance < best_distance) {
            best_distance = distance;
            best = word;
        }
    }
    if (!best.empty() || typed.size() < kAbbreviationMin) return best;
    const auto longer =
        std::find_if(words.begin(), words.end(), [&](std::string_view word) { return word.starts_with(typed); });
    return longer != words.end() ? *longer : best;
}

} // namespace novpn
