// A netlink message for a fuzz target: the bytes aligned as recv(2) has them, and saying their true length, which
// libFuzzer would not often find.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <linux/netlink.h>
#include <span>
#include <vector>

namespace novpn::fuzz {

inline std::vector<std::byte> with_true_length(std::span<const std::byte> message) {
    std::vector<std::byte> bytes(message.begin(), message.end());
    const auto length = static_cast<std::uint32_t>(bytes.size());
    if (bytes.size() >= sizeof(nlmsghdr)) std::memcpy(bytes.data(), &length, sizeof length);
    return bytes;
}

} // namespace novpn::fuzz
