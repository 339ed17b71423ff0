// rtnetlink (rtnetlink(7)): dumps, lookups and changes, synchronous. Owns its socket; not thread-safe. Keeps no cache:
// libnl's go stale on the kernel's silent removals. Notifications are route_monitor.h.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/values.h"

#include <cstddef>
#include <limits>
#include <map>
#include <span>

namespace novpn {

/// One rtnetlink message, header included, as bytes; nothing when it is not of that type or is malformed.
std::optional<Link> to_link(std::span<const std::byte> message);
std::optional<Address> to_address(std::span<const std::byte> message);
std::vector<Route> to_routes(std::span<const std::byte> message); ///< one for each next hop
std::optional<Rule> to_rule(std::span<const std::byte> message);
std::optional<Neighbour> to_neighbour(std::span<const std::byte> message);

/// One of many.
struct RouteWrite {
    const Route* route = nullptr;
    bool removes = false; ///< or replaces
};

class RouteSocket {
  public:
    static Expected<RouteSocket> open();

    /// ip -d link
    Expected<std::vector<Link>> links();
    /// ip addr, both families
    Expected<std::vector<Address>> addresses();
    /// ip -4|-6 route show table T. A table that does not exist is empty. Of each link's routes that are not about the
    /// internet the first `of_a_link` by a gateway, and as many on-link: what they take is bounded, whatever there is.
    Expected<std::vector<Route>> routes(Family family, TableId table,
                                        std::size_t of_a_link = std::numeric_limits<std::size_t>::max());
    /// ip route show table all proto P, both families. The kernel walks every route it has.
    Expected<std::vector<Route>> routes_of(Protocol protocol);
    /// ip -4 rule; ip -6 rule: in the order the kernel consults them
    Expected<std::vector<Rule>> rules();
    /// ip neighbour get HOST dev LINK; nothing where the kernel has not tried to reach it.
    Expected<std::optional<Neighbour>> neighbour(IfIndex link, const address& host);
    /// ip neighbour del HOST dev LINK. One that is not there (any more) is done.
    Expected<void> forget(const Neighbour& neighbour);
    /// sysctl -w net.ipv4.conf.LINK.src_valid_mark=1 net.ipv4.conf.LINK.tag=78, or both 0, in one request: it needs no
    /// /proc/sys that can be written, and names the link by its index. A link that is gone has neither.
    Expected<void> set_src_valid_mark(IfIndex link, bool on);
    /// ip neighbour add HOST dev LINK use: the kernel asks for its link-layer address as if it had a packet for it.
    Expected<void> probe(const Neighbour& neighbour);
    /// ip neighbour show nud all, both families
    Expected<std::vector<Neighbour>> neighbours();
    /// ip route get DESTINATION [mark M] [oif LINK] fibmatch; by a link that is gone there is no answer
    Expected<Lookup> lookup(const address& destination, std::optional<Mark> mark,
                            std::optional<IfIndex> link = std::nullopt);

    /// ip route replace. Idempotent. network_unreachable: the gateway is not on-link (yet).
    /// An IPv6 route that is not a default is appended beside those of other links; it exists already: done.
    Expected<void> replace(const Route& route);
    /// ip route del. A route that is not there (any more) is done.
    Expected<void> remove(const Route& route);
    /// As replace() and remove() of each, many in a datagram. What was refused, by its place: the others are done.
    std::map<std::size_t, Error> write(std::span<const RouteWrite> writes);
    /// ip rule add, exclusive: RTM_NEWRULE with REPLACE would make duplicates. An equal rule that exists is done.
    Expected<void> add(const Rule& rule);
    /// ip rule del, naming every selector: the kernel deletes the first rule that matches what is given.
    Expected<void> remove(const Rule& rule);

    /// Our netlink port: notifications about our own requests carry it.
    std::uint32_t port() const;

  private:
    explicit RouteSocket(RequestSocket requests);
    Expected<std::vector<Route>>
    dump_routes(nl_msg& request, const std::function<std::vector<Route>(std::span<const std::byte>)>& convert,
                const std::string& doing);
    Expected<void> write(const RouteWrite& write);
    Expected<void> acknowledge(nl_msg& request, const std::string& doing);
    RequestSocket requests_;
};

} // namespace novpn
