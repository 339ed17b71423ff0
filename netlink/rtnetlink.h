// rtnetlink (rtnetlink(7)): dumps, lookups and changes on a request socket; notifications on another. Synchronous; the
// caller waits for RouteMonitor::fd(). Owns its sockets; not thread-safe. Keeps no cache: libnl's go stale on the
// kernel's silent removals.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/route_filter.h"
#include "netlink/values.h"

#include <cstddef>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string_view>

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

/// What a notification says of one route.
struct RouteChange {
    bool added = false;    ///< or replaced; else deleted
    bool replaces = false; ///< NLM_F_REPLACE: the one that the kernel took for it is gone, unnamed
    std::vector<Route> hops;
};
/// Nothing where it is none, or not understood.
std::optional<RouteChange> to_route_change(std::span<const std::byte> message);

/// What the kernel takes routes along with, of every table and IPv4's without a word: fib_disable_ip() and
/// fib_sync_down_addr() in net/ipv4/fib_frontend.c and fib_semantics.c. It may be back by now.
struct Losses {
    std::set<IfIndex> links_down;
    std::set<std::pair<IfIndex, address>> addresses; ///< IPv4's
};

/// Notifications about links, addresses, routes, rules and gateways of both families, and rp_filter.
class RouteMonitor {
  public:
    static Expected<RouteMonitor> open();
    int fd() const;
    /// Leaves out, from now on, what this does not let through.
    Expected<void> follow(const RouteFilter& filter);

    /// What a drain saw, each the first of its kind ("default route added"), empty when there was none.
    struct Drained {
        std::string_view cause; ///< to look at once
        std::string_view later; ///< to look when it is quiet
        bool overrun = false;   ///< ENOBUFS: notifications were lost
        Losses losses;
        std::size_t by_gateway = 0;   ///< routes of main that a narrow filter leaves out
        std::size_t other_routes = 0; ///< that are no defaults, and `later` is about, these among them
        bool flooded = false;         ///< by_gateway: more is queued, to be read with a narrow filter
    };
    /// Routes by a gateway that one drain reads at most.
    static constexpr std::size_t kFlood = 256;
    /// Told of defaults of main; says whether what they are about is done, and the look can wait.
    using OnDefault = std::function<bool(const RouteChange&)>;
    /// Reads what is queued; never blocks. Notifications about requests from `own_port` do not matter, nor do the
    /// routes of table local that come with every address, nor other neighbours than these gateways. `macs`: those that
    /// gateways are known by, where another one would matter; null: none does. A look for other routes of main than
    /// defaults, which bring nobody's default down, can wait. Ends at kFlood of them.
    Drained drain(std::uint32_t own_port, const std::set<address>& gateways, const std::set<MacAddress>* macs = nullptr,
                  const OnDefault& on_default = {});

  private:
    explicit RouteMonitor(NlSocket socket);
    void take(Drained& drained, const nlmsghdr& message, const std::set<address>& gateways,
              const std::set<MacAddress>* macs, const OnDefault& on_default);
    NlSocket socket_;
    std::vector<std::byte> buffer_;
};

} // namespace novpn
