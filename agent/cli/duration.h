// How long, as people type and read it. Pure.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace novpn {

/// "30s", "10m", "1h", "1h30m", "2d": numbers with units, the larger first. At least a second, at most a year.
std::optional<std::chrono::seconds> parse_duration(std::string_view text);

/// "30 s", "1 h 30 min", "2 d"
std::string to_words(std::chrono::seconds duration);

} // namespace novpn
