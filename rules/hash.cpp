#include "rules/hash.h"

#include <cstdint>
#include <fmt/format.h>

namespace novpn {

/// FNV-1a (RFC draft-eastlake-fnv): the value must be the same in every build, which std::hash does not promise.
std::string hash(std::string_view text) {
    std::uint64_t value = 0xcbf29ce484222325;
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return fmt::format("{:016x}", value);
}

} // namespace novpn
