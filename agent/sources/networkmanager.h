// The gateways that NetworkManager has for its links, by D-Bus: its files below /run and /var/lib name none. Blocking,
// for as long as it is told; never starts NetworkManager. Knows libsystemd; without it at build there are no answers.
#pragma once

#include "agent/hint.h"
#include "netlink/values.h"

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace novpn {

/// What is of use in the objects of org.freedesktop.NetworkManager: the strings, object paths and booleans ("true",
/// "false") among the properties, by object path and property name. What a property itself names (the Options of a
/// Dhcp4Config) stands beside it; addresses of name servers and domains are one text, with blanks; the settings that
/// are applied to a device are its "ipv4.gateway" and so on.
using BusProperties = std::map<std::string, std::string>;
using BusObjects = std::map<std::string, BusProperties>;

struct LinkGateway {
    std::string link; ///< its name
    address gateway;
    std::optional<address> local; ///< the address that came with it
    bool operator==(const LinkGateway&) const = default;
};

/// Pure. The first of these per device and family: the Gateway of its Ip4Config or Ip6Config, which NetworkManager 1.42
/// empties as soon as somebody deletes the default; the one in the applied settings (a static configuration); the
/// router of its DHCPv4 lease, unless the settings say that the link is never a default.
std::vector<LinkGateway> gateways_of(const BusObjects& objects);

struct LinkNameServers {
    std::string link; ///< its name
    std::vector<address> servers;
    std::vector<std::string> domains; ///< lower case
    bool operator==(const LinkNameServers&) const = default;
};

/// Pure. Per device the NameserverData of its Ip4Config, or else what its DHCPv4 lease names, and the Nameservers of
/// its Ip6Config; and what each calls its domains.
std::vector<LinkNameServers> name_servers_of(const BusObjects& objects);

struct BusAnswer {
    Answer came;
    /// A part may say the contrary of the whole: where not all came there are none. But while NetworkManager starts it
    /// has only begun to know what there is (`Startup` in its D-Bus reference): `lost`, with what it knows.
    BusObjects objects;
};

/// Asks on the system bus (DBUS_SYSTEM_BUS_ADDRESS where it is set).
BusAnswer ask_networkmanager(std::chrono::microseconds at_most);

} // namespace novpn
