#include "tests/contract/world.h"

#include <netinet/in.h>
#include <stdexcept>

namespace novpn::test {

namespace {

class FakeWorld : public World {
  public:
    FakeWorld() { kernel_.allow_bpf(true); }
    Kernel& kernel() override { return kernel_; }
    std::string cgroup_root() const override { return "novpn-1"; }

    IfIndex add_link(const std::string& name) override {
        return kernel_.add_link({.name = name, .up = true, .carrier = true});
    }
    IfIndex add_tunnel(const std::string& name) override {
        constexpr std::uint16_t kNoHardware = 65534; // ARPHRD_NONE
        return kernel_.add_link({.name = name,
                                 .kind = "tun",
                                 .hardware = kNoHardware,
                                 .up = true,
                                 .carrier = true,
                                 .point_to_point = true});
    }
    void delete_link(const std::string& name) override { kernel_.delete_link(name); }
    void set_up(const std::string& name, bool up) override { kernel_.set_up(name, up); }
    void set_carrier(const std::string& name, bool carrier) override { kernel_.set_carrier(name, carrier); }
    void add_address(const std::string& link, const address& local, unsigned prefix_length) override {
        kernel_.add_address(link, local, prefix_length);
    }
    void delete_address(const std::string& link, const address& local, unsigned) override {
        kernel_.delete_address(link, local);
    }
    void add_route(const Route& route) override { kernel_.add_route(route); }
    void delete_route(const Route& route) override { kernel_.delete_route(route); }
    void add_rule(const Rule& rule) override { kernel_.add_rule(rule); }
    void delete_rule(const Rule& rule) override { kernel_.delete_rule(rule); }
    void set_neighbour(const std::string& link, const address& host, const MacAddress& mac) override {
        const IfIndex index = kernel_.link(link)->index;
        std::erase_if(kernel_.neighbours, [&](const Neighbour& n) { return n.link == index && n.host == host; });
        kernel_.neighbours.push_back({.link = index, .host = host, .state = NeighbourState::reachable, .mac = mac});
    }
    void add_policy(const XfrmPolicy& policy) override {
        if (auto done = kernel_.add_policy(policy); !done) throw std::runtime_error(to_string(done.error()));
    }
    std::string add_other() override {
        (void)kernel_.add_other("novpncontract.slice");
        return "novpncontract.slice";
    }
    void remove_other() override { kernel_.remove_other("novpncontract.slice"); }
    bool is_blocked(const address& destination, std::uint32_t mark) override {
        Packet packet{.destination = destination, .mark = mark, .ip_protocol = IPPROTO_UDP, .destination_port = 7};
        auto route = kernel_.lookup(packet);
        const XfrmPolicy* policy = route ? kernel_.policy_of(packet, *route) : nullptr;
        return policy && policy->block;
    }
    std::string leaves_by(const Packet& packet) override {
        auto route = kernel_.lookup(packet);
        return route ? kernel_.link_name(route->link) : "refused";
    }

  private:
    FakeKernel kernel_;
};

} // namespace

std::unique_ptr<World> make_fake_world() { return std::make_unique<FakeWorld>(); }

} // namespace novpn::test
