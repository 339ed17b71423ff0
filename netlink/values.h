// The routing values of the kernel: links, addresses, routes, rules, and what a lookup answered.
// Plain aggregates compared as a whole; nothing here talks to the kernel. `to_string` speaks iproute2.
#pragma once

#include <array>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace novpn {

using boost::asio::ip::address;

enum class Family : std::uint8_t { ipv4, ipv6 };
inline constexpr Family kFamilies[] = {Family::ipv4, Family::ipv6};

/// Index of a link in its network namespace; the kernel never gives 0.
struct IfIndex {
    std::uint32_t value = 0;
    auto operator<=>(const IfIndex&) const = default;
};

struct TableId {
    std::uint32_t value = 0;
    auto operator<=>(const TableId&) const = default;
};
inline constexpr TableId kMainTable{254};
inline constexpr TableId kLocalTable{255};

/// Position of a policy rule; the lowest number is consulted first.
struct Preference {
    std::uint32_t value = 0;
    auto operator<=>(const Preference&) const = default;
};

/// Firewall mark: a packet matches when (packet & mask) == value. `value` has no bit outside `mask`.
struct Mark {
    std::uint32_t value = 0;
    std::uint32_t mask = 0xffffffff;
    auto operator<=>(const Mark&) const = default;
};

/// Who installed a route or rule (rtm_protocol, FRA_PROTOCOL); names in rt_protos.
struct Protocol {
    std::uint8_t value = 0;
    auto operator<=>(const Protocol&) const = default;
};
/// Ours, on every route and rule that the agent installs.
inline constexpr Protocol kNovpnProtocol{78};

/// A prefix whose bits below `length` are zero.
struct Prefix {
    address network;
    unsigned length = 0;
    std::strong_ordering operator<=>(const Prefix&) const = default; // address has < and == only
};
Prefix any_prefix(Family family);
Prefix prefix_of(const address& host, unsigned length);
bool contains(const Prefix& prefix, const address& host);
bool contains(const Prefix& prefix, const Prefix& inner);
/// The address right behind the last of the prefix; none where it is the family's last.
std::optional<address> first_behind(const Prefix& prefix);
Family family_of(const address& a);

/// net.ipv4.conf.LINK.* that say which source addresses the link takes in (ip-sysctl.rst).
struct Ipv4Settings {
    std::uint32_t rp_filter = 0;      ///< 1: strict; the larger one of the link's and of conf.all's counts
    std::uint32_t src_valid_mark = 0; ///< the check goes by the packet's mark; the link's or conf.all's is enough
    std::uint32_t tag = 0;            ///< a number that means nothing to the kernel
    bool operator==(const Ipv4Settings&) const = default;
};
/// `tag` of a link whose `src_valid_mark` is ours: the kernel keeps it for as long as it keeps the other.
inline constexpr std::uint32_t kNovpnTag = kNovpnProtocol.value;

struct Link {
    IfIndex index;
    std::string name;
    std::string kind;              ///< IFLA_INFO_KIND; empty for a real NIC
    std::uint16_t hardware = 1;    ///< ARPHRD_*: 1 Ethernet, 512 PPP, 519 raw IP, 65534 none
    bool up = false;               ///< IFF_UP
    bool carrier = false;          ///< IFF_LOWER_UP
    bool loopback = false;         ///< IFF_LOOPBACK
    bool point_to_point = false;   ///< IFF_POINTOPOINT
    std::optional<IfIndex> master; ///< the bridge, bond or VRF it belongs to
    Ipv4Settings ipv4;
    bool operator==(const Link&) const = default;
};

struct Address {
    IfIndex link;
    address local;
    unsigned prefix_length = 0;
    std::optional<address> peer; ///< of a point-to-point link, when it differs from `local`
    std::uint8_t scope = 0;      ///< RT_SCOPE_*: 0 global, 253 link, 254 host
    bool tentative = false;      ///< IPv6 address that has not passed duplicate detection, or failed it
    bool operator==(const Address&) const = default;
};

enum class RouteType : std::uint8_t { unicast, unreachable, blackhole, prohibit, throw_, local, other };

/// One FIB entry by one next hop. A multipath route is as many of them as it has hops, `next_hops` each; so is what
/// IPv6 calls siblings: routes of the same prefix and metric by several gateways.
struct Route {
    TableId table = kMainTable;
    RouteType type = RouteType::unicast;
    Prefix destination;
    std::uint32_t metric = 0;
    std::optional<address> gateway;
    IfIndex link; ///< 0 where the type has none (unreachable)
    std::optional<address> source;
    std::uint8_t scope = 0; ///< RT_SCOPE_*; always 0 for IPv6
    Protocol protocol;
    bool onlink = false;    ///< RTNH_F_ONLINK: the gateway need not be in an on-link prefix
    bool link_down = false; ///< RTNH_F_LINKDOWN
    unsigned next_hops = 1;
    bool operator==(const Route&) const = default;
};
Family family_of(const Route& route);
bool is_default(const Route& route);

/// What the kernel replaces by: an IPv4 route is replaced when table, destination and metric are the same
/// (ip-route(8)); IPv6 keeps routes of different next hops side by side, and a replace takes the first of them,
/// whichever it is.
struct RouteKey {
    TableId table;
    Prefix destination;
    std::uint32_t metric = 0;
    IfIndex link;                   ///< IPv6 non-default routes only
    std::optional<address> gateway; ///< IPv6 non-default routes only
    std::strong_ordering operator<=>(const RouteKey&) const = default;
};
RouteKey key(const Route& route);

enum class RuleAction : std::uint8_t { to_table, goto_, nop, blackhole, unreachable, prohibit, other };

struct PortRange {
    std::uint16_t first = 0;
    std::uint16_t last = 0;
    auto operator<=>(const PortRange&) const = default;
};

struct UidRange {
    std::uint32_t first = 0;
    std::uint32_t last = 0;
    auto operator<=>(const UidRange&) const = default;
};

/// One policy rule with every selector of ip-rule(8), so that foreign rules are understood and ours are deleted
/// exactly.
struct Rule {
    Family family = Family::ipv4;
    Preference preference;
    RuleAction action = RuleAction::to_table;
    TableId table;                    ///< of to_table
    std::optional<Preference> target; ///< of goto_
    bool invert = false;              ///< "not"
    std::optional<Mark> mark;
    std::optional<Prefix> from;
    std::optional<Prefix> to;
    std::string iif;
    std::string oif;
    std::optional<std::uint8_t> ip_protocol;
    std::optional<PortRange> source_port;
    std::optional<PortRange> destination_port;
    std::optional<UidRange> uids;
    std::optional<unsigned> suppress_prefix_length;
    bool l3mdev = false;
    Protocol protocol;
    bool operator==(const Rule&) const = default;
};

/// What the kernel knows of a neighbour's link-layer address; one of NUD_* (ip-neighbour(8)).
enum class NeighbourState : std::uint8_t { none, incomplete, reachable, stale, delay, probe, failed, noarp, permanent };

/// Link-layer address of Ethernet and Wi-Fi.
struct MacAddress {
    std::array<std::uint8_t, 6> bytes{};
    auto operator<=>(const MacAddress&) const = default;
};

/// A host on a link as the kernel knows it by ARP or neighbour discovery.
struct Neighbour {
    IfIndex link;
    address host;
    NeighbourState state = NeighbourState::none;
    bool router = false;           ///< NTF_ROUTER: it has sent router advertisements (RFC 4861); IPv6 only
    std::optional<MacAddress> mac; ///< may be there in any state, and is old where the host has failed
    bool operator==(const Neighbour&) const = default;
};

/// A link that is a client of a Wi-Fi network, or may become one.
struct WifiLink {
    IfIndex link;
    std::string ssid;                ///< up to 32 arbitrary bytes; empty: in no network, or not known yet
    std::optional<MacAddress> bssid; ///< of the access point; only where it was asked for
    bool operator==(const WifiLink&) const = default;
};

/// The FIB entry that the kernel would use for a packet: RTM_GETROUTE with RTM_F_FIB_MATCH.
struct Lookup {
    address destination;
    std::optional<Mark> mark;    ///< none: an ordinary packet
    std::optional<IfIndex> link; ///< asked for a packet that is bound to this link
    std::optional<Route> answer; ///< none: unreachable, no route; of type local for an address of this machine
    bool operator==(const Lookup&) const = default;
};

/// There is a way, and it ends elsewhere.
bool leaves_this_machine(const Lookup& lookup);

std::string to_string(Family family);         ///< "ipv4"
std::string to_string(const Prefix& prefix);  ///< "default", "192.0.2.0/24", a host without its length
std::string to_string(const MacAddress& mac); ///< "c0:ff:ee:00:11:22"
std::string to_string(Mark mark);             ///< "0x4e000000/0xff000000"
std::string to_string(Protocol protocol);     ///< "kernel", "dhcp", "novpn"; a number where iproute2 has no name

/// Names for the indexes that routes speak of.
struct LinkNames {
    const std::vector<Link>* links = nullptr;
    std::string operator()(IfIndex index) const; ///< "eth0"; "if7" where the link is gone
};
/// "default via 192.168.10.1 dev eth0 table 7866 proto novpn metric 5"
std::string to_string(const Route& route, const LinkNames& name);
/// "preference 64 fwmark 0x4e000000/0xff000000 lookup 7866 protocol novpn"; no "-6": the command has it.
std::string to_string(const Rule& rule);

} // namespace novpn
