// The contract: a plan of the agent leaves nothing to do, and takes nothing of others away.
#include "tests/contract/contract.h"

namespace novpn::test {

namespace {

using testing::IsEmpty;

class WholeAgent : public Contract {
  protected:
    /// A look, a decision and the operations that it asks for, each of which the kernel takes.
    Plan pass() {
        Observed observed = *world->kernel().observe(scope());
        Desired desired = decide(observed, config, memory, world->cgroup_root());
        memory = desired.memory;
        Plan plan = diff(observed, desired);
        for (const Operation& operation : plan) {
            auto done = apply(operation);
            EXPECT_TRUE(done) << to_string(operation, observed) << ": " << to_string(done.error());
        }
        return plan;
    }
    void settles() {
        EXPECT_FALSE(pass().empty());
        EXPECT_THAT(pass(), IsEmpty());
    }
    void release() {
        Observed observed = *world->kernel().observe(scope());
        for (const Operation& operation : diff(observed, Desired{})) EXPECT_TRUE(apply(operation));
    }
    Scope scope() const { return {.tables = {kTable}, .strays = true, .cgroup_root = world->cgroup_root()}; }

    Config config;
    Memory memory;
};

INSTANTIATE_TEST_SUITE_P(On, WholeAgent, both_sides(), name_of);

TEST_P(WholeAgent, APlanAppliedLeavesNothingToDo) {
    // The stand-ins for physical links are of kind veth, which is no tunnel.
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    IfIndex tun0 = world->add_tunnel("tun0");
    world->add_address("eth0", ip("fe80::50"), 64);
    world->add_address("wlan0", ip("fe80::51"), 64);
    world->add_address("wlan0", ip("10.0.0.5"), 24);
    world->add_address("tun0", ip("10.8.0.2"), 24);
    world->add_address("tun0", ip("2001:db8:8::2"), 64);
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(any_prefix(Family::ipv4), wlan0, ip("10.0.0.1"), 700));
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("fe80::1"), 1024));
    world->add_route(foreign(prefix("172.16.0.0", 12), eth0, ip("192.168.10.254"), 600));
    auto main_before = routes(kMainTable, Family::ipv4);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "eth0");

    // Take-overs: both halves, then the physical default deleted, and both back.
    for (const char* half : {"0.0.0.0", "128.0.0.0"}) world->add_route(foreign(prefix(half, 1), tun0, std::nullopt, 0));
    EXPECT_THAT(pass(), IsEmpty()) << "a split takeover needs no change";
    world->add_route(foreign(any_prefix(Family::ipv6), tun0, std::nullopt, 50));
    world->delete_route(foreign(any_prefix(Family::ipv6), eth0, ip("fe80::1"), 1024));
    EXPECT_THAT(pass(), IsEmpty()) << "the uplink is remembered";
    EXPECT_EQ(leaves_by(kInternet4), "tun0");
    EXPECT_EQ(leaves_by(kInternet6), "tun0");
    EXPECT_EQ(leaves_by(kInternet4, kMember), "eth0");
    EXPECT_EQ(leaves_by(kInternet6, kMember), "eth0");

    // The uplink goes: the other one, then none.
    world->set_up("eth0", false);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "wlan0");
    EXPECT_EQ(leaves_by(kInternet6, kMember), "refused");
    world->set_up("wlan0", false);
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "refused");
    EXPECT_EQ(leaves_by(kInternet4), "tun0");

    world->set_up("wlan0", true);
    world->add_route(foreign(any_prefix(Family::ipv4), wlan0, ip("10.0.0.1"), 700));
    settles();
    EXPECT_EQ(leaves_by(kInternet4, kMember), "wlan0");

    release();
    Observed left = *world->kernel().observe(scope());
    EXPECT_TRUE(std::ranges::none_of(left.routes, [](const Route& r) { return r.protocol == kNovpnProtocol; }));
    EXPECT_TRUE(std::ranges::none_of(left.rules, [](const Rule& r) { return r.protocol == kNovpnProtocol; }));
    EXPECT_FALSE(left.nft.present);
    EXPECT_THAT(left.cgroups, IsEmpty());
}

TEST_P(WholeAgent, AChangedIpv6RouteOfTheLanIsReplaced) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("2001:db8:a::1"), 1024));
    Route lan = foreign(prefix("2001:db8:77::", 48), eth0, ip("2001:db8:a::7"), 1024);
    world->add_route(lan);
    settles();
    world->delete_route(lan);
    lan.source = ip("2001:db8:a::50");
    world->add_route(lan);
    settles();
}

} // namespace

} // namespace novpn::test
