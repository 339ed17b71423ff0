// What carries a class's packets to its table, as values: the nft table `inet novpn`, the cgroups it matches, and the
// mark that their sockets are born with. Nothing here talks to the kernel; nft.h, cgroup.h and birth_mark.h do.
#pragma once

#include "netlink/values.h"

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace novpn {

/// A cgroup v2, by its path below the mount ("novpn-4026531840/novpn", no leading slash).
/// Its level for `socket cgroupv2` is the number of components of the path.
unsigned cgroup_level(const std::string& path);

/// What one class needs in the nft table. name, mark, dns_by_vpn, guarded and classid decide its chains (the
/// structure); whether it has users, and whether destinations, too. Elements of sets, changed without touching the
/// structure, are the cgroups, users, destinations and links, so that counters live on.
struct ClassMarking {
    std::string name;
    Mark mark;
    bool dns_by_vpn = true; ///< port 53 takes the ordinary path
    bool guarded = true;    ///< a member's packet that leaves by a link not in `links` is dropped and counted
    std::set<std::string> cgroups;
    std::map<std::string, std::uint64_t> others; ///< cgroups that are not ours, by path; the id
    std::set<std::uint32_t> users;
    std::set<Prefix> destinations; ///< of both families, none inside another
    std::set<IfIndex> links;
    std::optional<std::uint32_t> classid; ///< of its members' sockets, by net_cls
    bool operator==(const ClassMarking&) const = default;
};

/// The whole `table inet novpn`; classes in the order of the config.
struct NftTable {
    std::vector<ClassMarking> classes;
    std::set<unsigned> levels; ///< of cgroups that may come: their maps are part of the structure already
    /// Answers are told by what was asked, before conntrack knows them: somebody's reverse path filter stands there.
    bool answers_early = false;
    /// No class is on, and no flow of one is left: the guard stands alone, and nothing asks conntrack, whose work on
    /// every packet of this machine is the most of what the table costs.
    bool idle = false;
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

/// One element of the map `users`.
struct UserElement {
    std::string class_name;
    std::uint32_t uid = 0;
    auto operator<=>(const UserElement&) const = default;
};

/// One interval of a set `destinations4_CLASS` or `destinations6_CLASS`.
struct DestinationElement {
    std::string class_name;
    Prefix prefix;
    std::strong_ordering operator<=>(const DestinationElement&) const = default;
};

/// Elements that come and go in one transaction: a prefix can take the place of those inside it, and cgroups of others
/// come and go by the hundred.
struct ElementChange {
    std::set<UserElement> users_to_remove;
    std::set<UserElement> users_to_add;
    std::set<DestinationElement> destinations_to_remove;
    std::set<DestinationElement> destinations_to_add;
    std::set<MemberElement> members_to_remove;
    std::set<MemberElement> members_to_add;
    bool operator==(const ElementChange&) const = default;
};
bool is_empty(const ElementChange& change);

/// How a person calls the cgroup of an element: by its path where that is known, else by its id.
using CgroupNames = std::function<std::string(std::uint64_t id)>;
/// `add element inet novpn users { 1000 : goto mark_novpn }`, one line a set, removals first.
std::vector<std::string> to_nft(const ElementChange& change, const CgroupNames& cgroup_name);

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
    bool follows = false;  ///< it asks conntrack: the kernel knows every flow that had a packet since
    /// Somebody's reverse path filter judges what comes in before `prerouting` restores the mark, and goes by marks.
    bool early_filter = false;
    std::set<MemberElement> members;
    std::set<UserElement> users;
    std::set<DestinationElement> destinations;
    std::set<LinkElement> links;
    bool operator==(const ObservedNft&) const = default;
};

/// The net_cls controller of cgroup v1, which gives a class id to the sockets of the processes in its cgroups.
struct ObservedNetCls {
    std::string unavailable;                     ///< why it cannot be mounted, and the mend; empty: it is, or may be
    std::string mount;                           ///< where it is mounted; empty: nowhere
    bool mounted_by_us = false;                  ///< and by nobody else
    std::map<std::string, std::uint32_t> ours;   ///< cgroups of classes, by path; the class id
    std::map<std::string, std::uint32_t> others; ///< cgroups of others that have a class id, none of theirs among them
    bool has_others = false;                     ///< there are cgroups of others, with a class id or without
    bool operator==(const ObservedNetCls&) const = default;
};

/// As net_cls should be; without cgroups it is not needed.
struct NetClsSteering {
    std::string mount; ///< where it is mounted if nobody did
    std::map<std::string, std::uint32_t> cgroups;
    bool operator==(const NetClsSteering&) const = default;
};

/// What a BPF program on the cgroups of a class gives a socket that is made in them: the class's mark, beside the bits
/// that other programs set. connect() then picks the right source address, with no NAT and no second lookup.
struct BirthMark {
    Mark mark;
    std::uint32_t taken = 0; ///< left alone where it has any of these bits: a class further down the tree was first
    bool operator==(const BirthMark&) const = default;
};

/// All names of our BPF programs begin with this.
inline constexpr char kBirthProgram[] = "novpn";
/// Name of its program in the kernel, another one for each mark.
std::string program_of(const BirthMark& birth);

/// A class's mark at birth as it should be.
struct ClassBirthMark {
    BirthMark birth;
    std::set<std::string> cgroups;
    bool operator==(const ClassBirthMark&) const = default;
};

/// What is pinned for a class.
struct ObservedBirthMark {
    std::string program;           ///< its name; empty where it is no program of ours
    std::set<std::string> cgroups; ///< those it is attached to, of those that were looked at
    bool operator==(const ObservedBirthMark&) const = default;
};

/// The kernel's BPF programs of ours in this network namespace.
struct ObservedBirthMarks {
    std::string unavailable; ///< why no socket can be marked at birth, and the mend; empty: it can
    std::string directory;   ///< of the pins, for the text of operations
    std::map<std::string, ObservedBirthMark> classes;
    bool operator==(const ObservedBirthMarks&) const = default;
};

/// Separates a class's name, which cannot have it, from what else is pinned for the class beside its mark at birth.
inline constexpr char kPinOfOther = '-';

/// Which resolver is asked in the place of which name server; none: the question is refused, so that a program goes on
/// to its next name server at once. Both of one family.
using Resolvers = std::map<address, std::optional<address>>;

/// Where the DNS of a class's sockets goes, by BPF programs that connect() and sendto() run, and those that tell the
/// program whose answer it is: that of the name server that it asked.
struct ClassRedirect {
    Mark mark; ///< only of sockets that have it
    Resolvers resolvers;
    std::set<std::string> cgroups;
    bool operator==(const ClassRedirect&) const = default;
};

/// What the programs are attached to a cgroup as, in bpftool's words.
std::vector<std::string> redirect_hooks();
/// Name of the programs for sockets of this mark.
std::string redirect_program_of(Mark mark);

/// What is pinned for a class.
struct ObservedRedirect {
    std::string program; ///< name of its programs; empty where they are not ours, or not all there
    Resolvers resolvers;
    std::set<std::string> cgroups; ///< those that one of the programs is attached to, of those that were looked at
    bool operator==(const ObservedRedirect&) const = default;
};

/// The kernel's programs for DNS of ours in this network namespace; their directory is that of the birth marks.
struct ObservedRedirects {
    std::string unavailable; ///< why no class's DNS can be redirected, and the mend; empty: it can
    std::map<std::string, ObservedRedirect> classes;
    bool operator==(const ObservedRedirects&) const = default;
};

} // namespace novpn
