// Which notifications the kernel queues for a socket at all: a classic BPF program on it (socket(7),
// SO_ATTACH_FILTER). What nobody reads costs no wake-up and no room in the buffer. It sees the first message of a
// datagram alone, so it is for notifications, one a datagram, and never for a socket that dumps.
#pragma once

#include "netlink/error.h"
#include "netlink/values.h"

#include <cstdint>
#include <linux/filter.h>
#include <vector>

namespace novpn {

/// What matters beside links, addresses, rules, next hops and the routes that are short enough to be about the
/// internet.
struct RouteFilter {
    /// What requests from this netlink port bring about is of no news to who made them; 0: nobody's.
    std::uint32_t own_port = 0;
    std::vector<TableId> tables; ///< whose routes matter as main's do; none: all
    /// In a flood: of main, only the routes without a gateway and those about the internet.
    bool narrow = false;
    /// In a flood: of these links, that they go up or down, their link-local IPv6 addresses, and their IPv6 routes but
    /// those about the internet. With more than kMaxFilteredLinks all matter.
    std::vector<IfIndex> idle;
    bool operator==(const RouteFilter&) const = default;
};

/// A prefix of at most this length is about the internet: a takeover by finer ones would need hundreds of routes.
inline constexpr unsigned kInternetLength4 = 8;
inline constexpr unsigned kInternetLength6 = 16;
/// Tables that a program names at most; with more, the routes of every table matter.
inline constexpr std::size_t kMaxFilteredTables = 1000;
/// A jump across all of them is one of 255 instructions at most.
inline constexpr std::size_t kMaxFilteredLinks = 32;

std::vector<sock_filter> to_program(const RouteFilter& filter);

/// In the place of the one before, at once.
Expected<void> attach(int fd, const RouteFilter& filter);

} // namespace novpn
