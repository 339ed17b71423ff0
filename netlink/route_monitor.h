// Notifications of rtnetlink: when to look again, and the default routes of main. The caller waits for fd(). Owns its
// socket; not thread-safe.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/route_filter.h"
#include "netlink/values.h"

#include <cstddef>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string_view>
#include <vector>

namespace novpn {

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

/// Links by which nothing leads out: that one goes up or down, or has a link-local IPv6 address, can wait to be seen.
using IdleLinks = std::map<IfIndex, Link>;

/// Notifications about links, addresses, routes, rules and gateways of both families, and rp_filter.
class RouteMonitor {
  public:
    static Expected<RouteMonitor> open();
    int fd() const;
    /// Leaves out, from now on, what this does not let through.
    Expected<void> follow(const RouteFilter& filter);

    /// What a drain saw, each the first of its kind ("default route added"), empty when there was none.
    struct Drained {
        std::string_view cause;   ///< to look at once
        std::string_view later;   ///< to look when it is quiet
        std::string_view of_idle; ///< as `later`, of idle links
        bool overrun = false;     ///< ENOBUFS: notifications were lost
        Losses losses;
        std::size_t by_gateway = 0; ///< routes of main that a narrow filter leaves out
        std::size_t others = 0;     ///< that `later` is about, these among them, and are no defaults
        std::size_t idle = 0;       ///< that `of_idle` is about
        bool flooded = false;       ///< by_gateway: more is queued, to be read with a narrow filter
    };
    /// Routes by a gateway that one drain reads at most.
    static constexpr std::size_t kFlood = 256;
    /// Notifications of idle links between two looks from which on a filter had better leave them out: that holds up no
    /// more than an IPv6 route by a link that gets no address, which is copied after the flood.
    static constexpr std::size_t kFloodOfIdle = 64;
    /// Told of defaults of main; says whether what they are about is done, and the look can wait.
    using OnDefault = std::function<bool(const RouteChange&)>;
    /// Reads what is queued; never blocks. Notifications about requests from `own_port` do not matter, nor do the
    /// routes of table local that come with every address, nor other neighbours than these gateways. `macs`: those that
    /// gateways are known by, where another one would matter; null: none does. A look for other routes of main than
    /// defaults, which bring nobody's default down, can wait, and so can one for `idle` links. Ends at kFlood of those.
    Drained drain(std::uint32_t own_port, const std::set<address>& gateways, const std::set<MacAddress>* macs = nullptr,
                  const OnDefault& on_default = {}, const IdleLinks& idle = {});

  private:
    explicit RouteMonitor(NlSocket socket);
    void take(Drained& drained, const nlmsghdr& message, const std::set<address>& gateways,
              const std::set<MacAddress>* macs, const OnDefault& on_default, const IdleLinks& idle);
    NlSocket socket_;
    std::vector<std::byte> buffer_;
};

} // namespace novpn
