// Text from a file made fit for a message: no control characters, bounded length; and the nearest of some words.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// C0 or DEL.
bool is_control(char c);

/// Bytes of the UTF-8 character that `text` begins with; 0 where it is malformed (RFC 3629) or `text` is empty.
std::size_t utf8_length(std::string_view text);

/// `text` with control, line-separating and direction-changing characters (a terminal would obey them) and malformed
/// bytes as \x1b or \u{202e}.
std::string printable(std::string_view text);

/// 'text', printable, and cut after 60 characters.
std::string quote(std::string_view text);

/// The word that `typed` is probably meant to be, mistyped or cut short, or an empty string.
std::string_view nearest(std::string_view typed, const std::vector<std::string_view>& words);

} // namespace novpn
