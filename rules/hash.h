// A short name for a text that is the same in every build. Internal to rules/.
#pragma once

#include <string>
#include <string_view>

namespace novpn {

/// 16 hexadecimal digits.
std::string hash(std::string_view text);

} // namespace novpn
