// The tests' side of the port: links, addresses, routes, rules, cgroups and the nft table as values, with the kernel's
// semantics as KERNEL-FACTS has them. The contract tests hold it equal to Linux; where they differ, this is wrong.
#pragma once

#include "agent/kernel.h"

#include <functional>

namespace novpn::test {

/// What the FIB says of a packet.
struct Packet {
    address destination;
    std::uint32_t mark = 0;
    std::uint8_t ip_protocol = 0;
    std::uint16_t destination_port = 0;
    std::optional<IfIndex> link;   ///< that it is bound to
    std::optional<address> source; ///< that its socket has already
    std::uint32_t uid = 0;         ///< of the socket's owner
};

class FakeKernel : public Kernel {
  public:
    FakeKernel(); ///< lo, and the kernel's own rules

    // What the world does to a laptop; each as the ip command of that name, with what the kernel does of its own.
    IfIndex add_link(Link link); ///< gets the next index; an IfIndex given is kept
    void delete_link(const std::string& name);
    void rename_link(const std::string& name, const std::string& to);
    void set_master(const std::string& name, std::optional<IfIndex> master);
    void set_up(const std::string& name, bool up);
    void set_carrier(const std::string& name, bool carrier);
    /// Of `all` too, which is no link.
    Ipv4Settings& settings_of(const std::string& link) { return link == "all" ? ipv4_of_all_ : link_ref(link).ipv4; }
    void add_address(const std::string& link, const address& local, unsigned prefix_length,
                     std::optional<address> peer = std::nullopt);
    void delete_address(const std::string& link, const address& local);
    void add_route(Route route);               ///< whatever `refusal` says
    Expected<void> replace_route(Route route); ///< as the agent does, ip route replace
    /// What the kernel says to `ip route add`; nothing: it takes the route.
    std::optional<Error> refusal(const Route& route) const;
    bool delete_route(const Route& route); ///< the first of what is named, by metric; false: there was none
    void add_rule(Rule rule);
    bool delete_rule(const Rule& rule);
    /// Of a rule that is added without one: before the second rule.
    Preference free_preference(Family family) const;
    void flush_nft() { nft_ = {}; }
    /// A cgroup of somebody else; its id. Another one where there is one of that path.
    std::uint64_t add_other(const std::string& path, uid_t owner = 0);
    void remove_other(const std::string& path);   ///< with all below it
    Expected<void> add_policy(XfrmPolicy policy); ///< gets an index where it asks for none, or for one in use
    bool delete_policy(const XfrmPolicy& policy); ///< by its key, as without an index

    // The port.
    Expected<Observed> observe(const Scope& scope) override;
    Expected<void> apply(const Operation& operation) override;
    Expected<Lookup> lookup(const address& destination, std::optional<Mark> mark) override;
    Expected<std::vector<OpenSocket>> sockets() override { return open_sockets; }
    Expected<std::vector<Connection>> connections(const std::optional<Mark>& with) override;
    std::optional<std::string> cgroup_of(pid_t pid) override;
    std::set<std::uint64_t> cgroup_ids(const std::string& cgroup) override;
    Expected<std::map<std::string, PacketCounts>> packets() override { return std::map<std::string, PacketCounts>{}; }
    Expected<std::map<std::string, FlowCounts>> flow_counts() override { return flow_counters; }
    Expected<std::vector<Firewall>> firewalls() override { return others_firewalls; }
    Expected<void> place(const std::string& cgroup, pid_t pid) override;
    std::vector<pid_t> processes(const std::string& cgroup) override { return processes_[cgroup]; }
    std::optional<std::string> net_cls_of(pid_t pid) override;
    Expected<void> place_in_net_cls(const std::string& cgroup, pid_t pid) override;
    std::vector<pid_t> net_cls_processes(const std::string& cgroup) override { return net_cls_processes_[cgroup]; }

    /// The route that rules and tables give, like RTM_GETROUTE; none: refused.
    std::optional<Route> lookup(const Packet& packet) const;
    /// The `out` policy that the kernel takes for a packet by that route; none: it leaves as it is.
    const XfrmPolicy* policy_of(const Packet& packet, const Route& route) const;
    const Link* link(const std::string& name) const;
    const ObservedNft& nft() const { return nft_; }
    const std::map<std::string, ObservedBirthMark>& birth_marks() const { return birth_marks_; }
    const std::map<std::string, ObservedRedirect>& redirects() const { return redirects_; }
    /// Whether sockets can be marked at birth; not so in the beginning.
    void allow_bpf(bool allowed) { bpf_ = allowed; }
    const std::vector<Address>& addresses() const { return addresses_; }
    const std::vector<Link>& links() const { return links_; }
    const std::vector<Route>& routes() const { return routes_; }
    const std::vector<Rule>& rules() const { return rules_; }
    const std::vector<XfrmPolicy>& policies() const { return policies_; }
    std::string link_name(IfIndex index) const;

    /// iw dev NAME connect: into a network, or with an empty name out of it.
    void join(const std::string& link, const std::string& ssid, const MacAddress& bssid);
    /// The host answers with that address, from now on; nothing: it does not answer.
    void set_mac(const std::string& link, const address& host, std::optional<MacAddress> mac);

    std::vector<Neighbour> neighbours; ///< as far as the kernel has tried them

    ObservedNetCls net_cls; ///< a test's to change
    std::map<std::string, FlowCounts> flow_counters;
    std::vector<Firewall> others_firewalls;
    std::vector<OpenSocket> open_sockets;     ///< a test's to fill; EndSocket takes them away
    std::vector<Connection> open_connections; ///< likewise; DropConnection, AddConnections

    /// Called before each apply; an error it returns is the kernel's answer. For fault tests.
    std::function<std::optional<Error>(const Operation&)> refuse;

  private:
    Expected<void> replace_nft(const NftTable& table);
    std::optional<Error> unusable(const Route& route) const;
    bool gateway_is_reachable(const Route& route) const;
    bool has_no_carrier(const Route& route) const;
    Link& link_ref(const std::string& name);
    void add_connected_route(const Address& a);
    void drop_routes_of(IfIndex link);
    void forget_neighbours(IfIndex link);

    std::uint32_t next_index_ = 1;
    std::uint64_t next_cgroup_ = 1000;
    std::vector<Link> links_;
    Ipv4Settings ipv4_of_all_;
    std::vector<Address> addresses_;
    std::vector<Route> routes_;
    std::vector<Rule> rules_;
    std::vector<XfrmPolicy> policies_; ///< the oldest first
    std::uint32_t next_policy_ = 8;
    std::map<std::string, std::uint64_t> cgroups_;
    SeenCgroups others_;
    std::map<std::string, std::vector<pid_t>> processes_;
    std::vector<WifiLink> wifi_;
    std::map<std::pair<IfIndex, address>, MacAddress> macs_; ///< of those that answer
    std::map<std::string, std::vector<pid_t>> net_cls_processes_;
    ObservedNft nft_;
    bool bpf_ = false;
    std::map<std::string, ObservedBirthMark> birth_marks_;
    std::map<std::string, ObservedRedirect> redirects_;
};

} // namespace novpn::test
