// What carries a class's packets to its table, as values: the nft table `inet novpn` and the cgroups it matches.
// Nothing here talks to the kernel; nft.h and cgroup.h do.
#pragma once

#include "netlink/values.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace novpn {

/// A cgroup v2, by its path below the mount ("novpn-4026531840/novpn", no leading slash).
/// Its level for `socket cgroupv2` is the number of components of the path.
unsigned cgroup_level(const std::string& path);

/// What one class needs in the nft table. name, mark, dns_by_vpn and guarded decide its chains (the structure);
/// cgroups and links are set elements, changed without touching the structure, so that counters live on.
struct ClassMarking {
    std::string name;
    Mark mark;
    bool dns_by_vpn = true; ///< port 53 takes the ordinary path
    bool guarded = true;    ///< a member's packet that leaves by a link not in `links` is dropped and counted
    std::set<std::string> cgroups;
    std::set<IfIndex> links;
    bool operator==(const ClassMarking&) const = default;
};

/// The whole `table inet novpn`; classes in the order of the config.
struct NftTable {
    std::vector<ClassMarking> classes;
    bool operator==(const NftTable&) const = default;
};

/// Identifies the chains, rules, sets and counters that `table` asks for, without its elements. Kept in the userdata of
/// the kernel's table, so that a new agent adopts a table of the same structure and replaces any other.
std::string structure_of(const NftTable& table);

/// One element of a map `cgroup_level_N`: the cgroup by its 64-bit id, as the kernel has it.
struct MemberElement {
    std::string class_name;
    unsigned level = 0;
    std::uint64_t cgroup_id = 0;
    auto operator<=>(const MemberElement&) const = default;
};

/// One element of a set `links_CLASS`.
struct LinkElement {
    std::string class_name;
    IfIndex link;
    auto operator<=>(const LinkElement&) const = default;
};

struct PacketCounts {
    std::uint64_t marked = 0;      ///< new flows put in the class
    std::uint64_t masqueraded = 0; ///< flows whose source address was the tunnel's
    std::uint64_t dropped = 0;     ///< packets the guard kept from leaving by a wrong link
    bool operator==(const PacketCounts&) const = default;
};

/// The kernel's `table inet novpn`.
struct ObservedNft {
    bool present = false;
    bool intact = false;   ///< every chain, rule, set and counter of `structure` is still there
    std::string structure; ///< from the table's userdata; empty when it is not ours
    std::set<MemberElement> members;
    std::set<LinkElement> links;
    bool operator==(const ObservedNft&) const = default;
};

} // namespace novpn
