// What others say of the physical way out: filled by agent/sources/, judged by select_uplink(). Values.
#pragma once

#include "netlink/values.h"

#include <optional>
#include <string>
#include <vector>

namespace novpn {

/// Where the knowledge of an uplink comes from; the words of `status`, and the order of a cold start.
enum class UplinkSource { main, table, host_route, networkd, networkmanager, lease, ra, memory };
std::string to_string(UplinkSource source);

/// "By this link that gateway is reached." Its family is the gateway's.
struct Hint {
    UplinkSource from = UplinkSource::lease;
    IfIndex link;
    address gateway;
    std::optional<address> local; ///< the address that came with it: holds while the link has it
    bool operator==(const Hint&) const = default;
};

/// The answer of all sources at one moment.
struct Hints {
    std::vector<Hint> given;
    std::vector<Neighbour> neighbours; ///< to tell gateways that do not answer
    bool operator==(const Hints&) const = default;
};

} // namespace novpn
