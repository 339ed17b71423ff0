// DHCP leases as DHCP clients leave them on disk, or NetworkManager on the bus. Pure: text or bytes in, leases out.
// What is garbage, cut short or says no router gives none.
#pragma once

#include "netlink/values.h"

#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

using WallClock = std::chrono::system_clock;

struct Lease {
    address local;
    address gateway;
    WallClock::time_point expires = WallClock::time_point::max(); ///< max: never
    std::vector<address> resolvers;                               ///< option 6
    std::vector<std::string> domains;                             ///< options 15 and 119, lower case
    bool operator==(const Lease&) const = default;
};

struct LinkLease {
    std::string link; ///< its name
    Lease lease;
    bool operator==(const LinkLease&) const = default;
};

/// /run/systemd/netif/leases/IFINDEX. systemd calls it private; it has had these keys since 2014, and where it loses
/// them the file is no lease. `written`: the file is written anew at each renewal, and its LIFETIME counts from there.
std::optional<Lease> parse_networkd_lease(std::string_view text, WallClock::time_point written);

/// dhclient.leases(5): of each interface the last lease that is whole.
std::vector<LinkLease> parse_dhclient_leases(std::string_view text);

/// dhcpcd(8) keeps the server's DHCPACK (RFC 2131) as it came; its lease time counts from when the file was written.
std::optional<Lease> parse_dhcpcd_lease(std::span<const std::byte> message, WallClock::time_point written);

/// The Options of NetworkManager's DHCP4Config, by name (see dhcp-options(5)); its own client and dhclient write the
/// classless routes each in their way. Never expires: NetworkManager takes a lease away that has ended.
std::optional<Lease> parse_networkmanager_lease(const std::map<std::string, std::string>& options);

} // namespace novpn
