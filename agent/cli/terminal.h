// What a terminal makes of a text: lines that fit, and colour. Pure, but for terminal_of_stdout().
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace novpn {

struct Terminal {
    std::optional<std::size_t> columns; ///< none: lines are as long as they are, for programs that read them
    bool colour = false;
    bool operator==(const Terminal&) const = default;
};

/// Nothing of both where stdout is no terminal. No colour with NO_COLOR (https://no-color.org) or on a dumb terminal.
/// Lines are never made shorter than 60 columns.
Terminal terminal_of_stdout();

/// In columns; each character of UTF-8 is taken to be one wide.
std::size_t width_of(std::string_view text);
/// Lines that are too long go on below the text that follows their heading, which begins at column `indent`; a line
/// without a heading goes on at the margin.
std::string fit(std::string_view text, std::optional<std::size_t> columns, std::size_t indent);
/// One line, cut where it does not fit.
std::string cut(std::string_view line, std::optional<std::size_t> columns);

enum class Colour : std::uint8_t { green, yellow, red };
/// The first paragraph in `first`, and the headings ok, note, warning and wrong each in their own.
std::string coloured(std::string_view text, Colour first);

} // namespace novpn
