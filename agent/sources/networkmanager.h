// The gateways that NetworkManager has for its links, by D-Bus: its files below /run and /var/lib name none. Blocking,
// for as long as it is told; never starts NetworkManager. Knows libsystemd; without it at build there are no answers.
#pragma once

#include "netlink/values.h"

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace novpn {

/// What is of use in the objects of org.freedesktop.NetworkManager: the strings and object paths among the properties,
/// by object path and property name.
using BusObjects = std::map<std::string, std::map<std::string, std::string>>;

struct LinkGateway {
    std::string link; ///< its name
    address gateway;
    bool operator==(const LinkGateway&) const = default;
};

/// Pure: devices refer to an Ip4Config and an Ip6Config, and these have a Gateway where they have a default.
std::vector<LinkGateway> gateways_of(const BusObjects& objects);

/// Asks on the system bus (DBUS_SYSTEM_BUS_ADDRESS where it is set). Empty when nobody answers in that time.
BusObjects ask_networkmanager(std::chrono::microseconds at_most);

} // namespace novpn
