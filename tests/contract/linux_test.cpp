// What no fake answers: the kernel's notifications about our own requests, and its answers to lookups with a mark.
// Needs root: every test has a network namespace of its own.
#include "netlink/route_monitor.h"
#include "netlink/rtnetlink.h"
#include "tests/netns/two_networks.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

namespace novpn::test {

namespace {

constexpr TableId kTable{7866};
constexpr Mark kMark{0x4e000000, 0xff000000};

address ip(const char* text) { return boost::asio::ip::make_address(text); }

class RtnetlinkTest : public testing::Test {
  protected:
    RtnetlinkTest() {
        if (unshare(CLONE_NEWNET) != 0) throw std::runtime_error("run the contract tests as root");
        run("ip link set lo up; ip link add eth0 type veth peer name far");
        run("ip link set far addrgenmode none up; ip link set eth0 addrgenmode none up");
        run("ip addr add 192.168.10.50/24 dev eth0");
        ours.emplace(RouteSocket::open().value());
        others.emplace(RouteSocket::open().value());
        monitor.emplace(RouteMonitor::open().value());
        run("ip addr add 2001:db8:a::50/64 dev eth0 nodad");
        // A worker of the kernel tells of it, some time later.
        for (int attempt = 0; attempt < 500 && seen() != "address added"; ++attempt) ::usleep(10'000);
        auto links = ours->links().value();
        auto eth0 = std::ranges::find(links, "eth0", &Link::name)->index;
        default4 = {.table = kTable,
                    .destination = any_prefix(Family::ipv4),
                    .gateway = ip("192.168.10.1"),
                    .link = eth0,
                    .protocol = kNovpnProtocol};
        default6 = {.table = kTable,
                    .destination = any_prefix(Family::ipv6),
                    .metric = 1024,
                    .gateway = ip("2001:db8:a::1"),
                    .link = eth0,
                    .protocol = kNovpnProtocol};
        backstop6 = {.table = kTable,
                     .type = RouteType::unreachable,
                     .destination = any_prefix(Family::ipv6),
                     .metric = 4294967295,
                     .protocol = kNovpnProtocol};
    }
    std::string_view seen() { return monitor->drain(ours->port(), {}).cause; }

    std::optional<RouteSocket> ours, others;
    std::optional<RouteMonitor> monitor;
    Route default4, default6, backstop6;
};

} // namespace

TEST_F(RtnetlinkTest, OurOwnRequestsAreNoReasonToLookAgain) {
    ASSERT_TRUE(ours->replace(default6));
    EXPECT_EQ(seen(), "");
    // The kernel notifies of an identical IPv6 replace, every time: an agent that reacted to it would never rest.
    for (int i = 0; i < 3; ++i) {
        ASSERT_TRUE(ours->replace(default6));
        EXPECT_EQ(seen(), "");
    }
    Rule rule{.family = Family::ipv6, .preference = Preference{64}, .table = kTable, .protocol = kNovpnProtocol};
    ASSERT_TRUE(ours->add(rule));
    ASSERT_TRUE(ours->remove(rule));
    ASSERT_TRUE(ours->remove(default6));
    EXPECT_EQ(seen(), "");
}

TEST_F(RtnetlinkTest, AnothersRequestsAre) {
    ASSERT_TRUE(ours->replace(default6));
    EXPECT_EQ(seen(), "");
    ASSERT_TRUE(others->replace(default6));
    EXPECT_EQ(seen(), "default route added") << "identical to ours, and still notified";
    ASSERT_TRUE(others->replace(default4));
    EXPECT_EQ(seen(), "default route added");
    ASSERT_TRUE(others->replace(default4));
    EXPECT_EQ(seen(), "") << "the kernel is silent about an identical IPv4 replace";
    Rule rule{.preference = Preference{64}, .table = kTable, .mark = kMark, .protocol = kNovpnProtocol};
    ASSERT_TRUE(others->add(rule));
    EXPECT_EQ(seen(), "rule added");
    ASSERT_TRUE(others->remove(default6));
    EXPECT_EQ(seen(), "default route deleted");
}

TEST_F(RtnetlinkTest, TheKernelIsSilentAboutTheIpv4RoutesOfALinkThatGoesDown) {
    ASSERT_TRUE(others->replace(default4));
    run("ip -6 addr flush dev eth0");
    EXPECT_NE(seen(), "");
    run("ip link set eth0 down");
    EXPECT_EQ(seen(), "link changed") << "the one reason there is to look again";
    EXPECT_TRUE(ours->routes(Family::ipv4, kTable)->empty());
}

TEST_F(RtnetlinkTest, TellsOfWhatTookRoutesAlongThoughItIsBack) {
    const auto losses = [&] { return monitor->drain(ours->port(), {}).losses; };
    const IfIndex eth0 = default4.link;
    losses();
    run("ip link set eth0 down; ip link set eth0 up");
    EXPECT_EQ(losses().links_down, std::set{eth0});
    run("ip addr add 192.168.20.50/24 dev eth0; ip link set eth0 mtu 1400; ip route add default via 192.168.10.1");
    EXPECT_TRUE(losses().links_down.empty());
    run("ip addr flush dev eth0; ip addr add 192.168.20.50/24 dev eth0");
    const std::set<std::pair<IfIndex, address>> gone{{eth0, ip("192.168.10.50")}, {eth0, ip("192.168.20.50")}};
    EXPECT_EQ(losses().addresses, gone);
    run("ip link del eth0");
    EXPECT_TRUE(losses().links_down.contains(eth0));
}

TEST_F(RtnetlinkTest, OfAnIdleLinkStatesCanWaitAndNothingElse) {
    run("ip link add idle0 type veth peer name idle1; ip link add br0 type bridge; ip link set idle1 up");
    const auto both_ends = [&] {
        IdleLinks idle;
        const std::vector<Link> links = ours->links().value();
        for (const Link& link : links)
            if (link.name.starts_with("idle")) idle.emplace(link.index, link);
        return idle;
    };
    const auto settled = [&] {
        // The kernel's workers take an IPv6 address into use, and tell of it.
        while (std::ranges::any_of(ours->addresses().value(), &Address::tentative)) ::usleep(10'000);
        ::usleep(50'000);
        (void)monitor->drain(ours->port(), {});
    };
    const auto drained_after = [&](const std::string& command) {
        settled();
        const IdleLinks idle = both_ends();
        run(command);
        RouteMonitor::Drained drained;
        // Of IPv6 addresses a worker of the kernel tells, some time later.
        for (int attempt = 0; attempt < 500 && drained.cause.empty() && drained.of_idle.empty(); ++attempt) {
            drained = monitor->drain(ours->port(), {}, nullptr, {}, idle);
            ::usleep(10'000);
        }
        return drained;
    };
    const auto can_wait = [&](const std::string& command) {
        const auto drained = drained_after(command);
        return drained.cause.empty() && drained.later.empty() && !drained.of_idle.empty() && drained.idle > 0;
    };
    EXPECT_TRUE(can_wait("ip link set idle0 up"));
    EXPECT_TRUE(can_wait("ip link set idle0 down")) << "with its link-local address";
    EXPECT_TRUE(can_wait("ip link set idle0 up"));
    EXPECT_TRUE(can_wait("ip -6 route add fe80::/64 dev idle0 table 7866")) << "a copy of the route to such addresses";
    EXPECT_TRUE(can_wait("ip link set idle0 down")) << "with it";
    run("ip link set idle0 up");
    EXPECT_EQ(drained_after("ip -6 route add 2001:db8:d::/64 dev idle0 table 7866").cause, "route added");
    EXPECT_EQ(drained_after("ip -6 route add default via fe80::99 dev idle0 table 7866").cause, "default route added");
    EXPECT_EQ(drained_after("ip -6 route add fe80:1::/32 dev eth0 table 7866").cause, "route added") << "of the other";
    run("ip link set idle0 down");
    EXPECT_EQ(drained_after("ip link set eth0 down; ip link set idle0 up").cause, "link changed") << "of the other";
    EXPECT_EQ(drained_after("ip link set idle0 master br0").cause, "link changed");
    EXPECT_TRUE(can_wait("ip link set idle0 down")) << "as a port";
    EXPECT_EQ(drained_after("ip link set idle0 name idle2").cause, "link changed");
    run("ip link set idle2 name idle0");
    EXPECT_EQ(drained_after("ip addr add 10.1.0.1/24 dev idle0").cause, "address added");
    EXPECT_EQ(drained_after("ip addr add 2001:db8:c::1/64 dev idle0 nodad").cause, "address added");
    EXPECT_NE(drained_after("ip link del idle0").cause, "");
}

TEST_F(RtnetlinkTest, WritesManyRoutesAndGoesOnBehindTheRefused) {
    std::vector<Route> routes;
    for (unsigned i = 0; i < 300; ++i) {
        const std::string number = std::to_string(i);
        routes.push_back(default4);
        routes.back().destination = prefix_of(ip(("10." + std::to_string(i % 256) + ".0.0").c_str()), 16 + i / 256);
        routes.push_back(default6);
        routes.back().destination = prefix_of(ip(("2001:db8:" + number + "::").c_str()), 48);
    }
    const std::size_t astray = 150;
    routes[astray].gateway = ip("203.0.113.1"); // no link has it
    std::vector<RouteWrite> writes;
    const auto write = [&](bool removes) {
        writes.clear();
        for (const Route& route : routes) writes.push_back({.route = &route, .removes = removes});
        return ours->write(writes);
    };
    const auto there = [&] {
        return ours->routes(Family::ipv4, kTable)->size() + ours->routes(Family::ipv6, kTable)->size();
    };
    for (int again = 0; again < 2; ++again) { // what is there already is done
        const auto refused = write(false);
        ASSERT_EQ(refused.size(), 1u);
        EXPECT_EQ(refused.begin()->first, astray);
        EXPECT_EQ(refused.begin()->second.code, std::errc::network_unreachable);
        EXPECT_EQ(to_string(refused.begin()->second).rfind("adding route 10.75.0.0/16 via 203.0.113.1", 0), 0u)
            << to_string(refused.begin()->second);
        EXPECT_EQ(there(), 599u);
    }
    EXPECT_EQ(seen(), "") << "our own";
    for (int again = 0; again < 2; ++again) {
        EXPECT_TRUE(write(true).empty());
        EXPECT_EQ(there(), 0u);
    }
    EXPECT_TRUE(ours->write(std::span<const RouteWrite>{}).empty());
    EXPECT_TRUE(ours->replace(default4)) << "no answer is left over";
}

TEST_F(RtnetlinkTest, LooksUpWithAMark) {
    run("ip link add tun0 type veth peer name tunnel-far; ip link set tunnel-far up; ip link set tun0 up");
    run("ip route add default dev tun0; ip -6 route add default dev tun0");
    for (const Route& route : {default4, default6, backstop6}) ASSERT_TRUE(ours->replace(route));
    for (Family family : kFamilies) {
        ASSERT_TRUE(ours->add({.family = family,
                               .preference = Preference{64},
                               .table = kTable,
                               .mark = kMark,
                               .protocol = kNovpnProtocol}));
        bool ipv4 = family == Family::ipv4;
        const Route& ours_there = ipv4 ? default4 : default6;
        address internet = ip(ipv4 ? "203.0.113.1" : "2001:db8:ffff::1");
        auto marked = ours->lookup(internet, Mark{kMark.value});
        ASSERT_TRUE(marked);
        EXPECT_EQ(marked->mark, Mark{kMark.value});
        EXPECT_EQ(marked->answer, ours_there);
        auto more_bits = ours->lookup(internet, Mark{kMark.value | 0xca6c});
        ASSERT_TRUE(more_bits);
        EXPECT_EQ(more_bits->answer, ours_there) << "the mask leaves the other bits to others";
        for (auto mark : {std::optional<Mark>(), std::optional(Mark{0x4f000000}), std::optional(Mark{0xca6c})}) {
            auto ordinary = ours->lookup(internet, mark);
            ASSERT_TRUE(ordinary && ordinary->answer);
            EXPECT_EQ(ordinary->answer->table, kMainTable);
        }
    }
    for (const char* own : {"127.0.0.1", "::1"}) {
        auto local = ours->lookup(ip(own), Mark{kMark.value});
        ASSERT_TRUE(local && local->answer) << own;
        EXPECT_EQ(local->answer->type, RouteType::local) << own;
        EXPECT_EQ(local->answer->table, TableId{255}) << own;
        EXPECT_FALSE(leaves_this_machine(*local)) << own;
    }
    ASSERT_TRUE(ours->remove(default6));
    for (const char* destination : {"198.51.100.7", "2001:db8:ffff::1"}) {
        auto by_gone_link = ours->lookup(ip(destination), std::nullopt, IfIndex{9999});
        ASSERT_TRUE(by_gone_link) << to_string(by_gone_link.error());
        EXPECT_FALSE(by_gone_link->answer) << "a link that has gone since it was seen";
    }
    auto stopped = ours->lookup(ip("2001:db8:ffff::1"), Mark{kMark.value});
    ASSERT_TRUE(stopped);
    EXPECT_FALSE(stopped->answer) << "the backstop";
}

} // namespace novpn::test
