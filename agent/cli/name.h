// The address that a person means. Blocking: the system's resolver is asked for a name.
#pragma once

#include "netlink/error.h"

#include <boost/asio/ip/address.hpp>
#include <cstddef>
#include <string>

namespace novpn {

struct Resolved {
    boost::asio::ip::address address;
    bool by_name = false;      ///< not by an address
    std::size_t addresses = 1; ///< that the name has; `address` is the one that programs try first
};

/// Of an address, or of a name by getaddrinfo(3).
Expected<Resolved> resolve(const std::string& destination);

} // namespace novpn
