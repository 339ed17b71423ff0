// Errors as values: what the kernel (or a file, or a socket) refused, and while doing what. Used by every folder.
#pragma once

#include <string>
#include <system_error>
#include <tl/expected.hpp>

namespace novpn {

/// "doing: reason". `doing` is a gerund phrase ("replacing default in table 7866"); `detail` is the kernel's extended
/// ACK text, empty when it gave none.
struct Error {
    std::error_code code;
    std::string doing;
    std::string detail;

    bool operator==(const Error&) const = default;
};

/// "replacing default in table 7866: Network is unreachable (Nexthop has invalid gateway)"
std::string to_string(const Error& error);

template<typename T>
using Expected = tl::expected<T, Error>;

/// The error of a system call that set errno to `number` (positive).
tl::unexpected<Error> system_error(int number, std::string doing, std::string detail = {});

} // namespace novpn
