// A laptop for the contract tests: what the world does to it, by the same calls on the fake kernel and on Linux. Every
// World is a new laptop; on Linux it is a network namespace that the process moves into.
#pragma once

#include "tests/support/fake_kernel.h"

#include <memory>

namespace novpn::test {

inline constexpr Protocol kStatic{4};

class World {
  public:
    virtual ~World() = default;
    virtual Kernel& kernel() = 0;
    virtual std::string cgroup_root() const = 0;

    /// Ethernet, up, with carrier and without an address.
    virtual IfIndex add_link(const std::string& name) = 0;
    /// The same, of kind tun (layer 3).
    virtual IfIndex add_tunnel(const std::string& name) = 0;
    virtual void delete_link(const std::string& name) = 0;
    virtual void set_up(const std::string& name, bool up) = 0;
    /// Returns when every route of the link says so.
    virtual void set_carrier(const std::string& name, bool carrier) = 0;
    virtual void add_address(const std::string& link, const address& local, unsigned prefix_length) = 0;
    virtual void delete_address(const std::string& link, const address& local, unsigned prefix_length) = 0;
    virtual void add_route(const Route& route) = 0;
    virtual void delete_route(const Route& route) = 0;
    virtual void add_rule(const Rule& rule) = 0;
    virtual void delete_rule(const Rule& rule) = 0;
    /// The link-layer address of a host is known from now on.
    virtual void set_neighbour(const std::string& link, const address& host, const MacAddress& mac) = 0;
    /// One without templates.
    virtual void add_policy(const XfrmPolicy& policy) = 0;

    /// A cgroup of somebody else right below the tree's root; its path. It goes with the World.
    virtual std::string add_other() = 0;
    virtual void remove_other() = 0;

    /// Name of the link that the packet leaves by; "refused".
    virtual std::string leaves_by(const Packet& packet) = 0;
    /// Whether an IPsec policy keeps a UDP packet, which has a route, on this machine.
    virtual bool is_blocked(const address& destination, std::uint32_t mark) = 0;
};

std::unique_ptr<World> make_fake_world();
/// Throws where root or a kernel feature is missing: a skipped contract is none.
std::unique_ptr<World> make_linux_world();

} // namespace novpn::test
