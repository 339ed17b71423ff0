// The law of the mirror: after any sequence of news it is what a dump says, or in doubt. On the kernel itself, as no
// fake tells what it leaves unsaid. Needs root: every test has a network namespace of its own.
#include "agent/mirror.h"
#include "netlink/rtnetlink.h"
#include "tests/netns/two_networks.h"

#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <random>
#include <sched.h>
#include <unistd.h>

namespace novpn::test {

namespace {

constexpr int kSequences = 12;
constexpr int kSteps = 40;

/// `ip` as a person would type it, whether or not the kernel takes it.
void try_ip(const std::string& command) { (void)std::system(("ip " + command + " 2>/dev/null").c_str()); }

/// NOVPN_SEED=N: other sequences.
unsigned seed() {
    const char* given = std::getenv("NOVPN_SEED");
    return given ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : 20;
}

class MirrorLaw : public testing::Test {
  protected:
    MirrorLaw() {
        if (unshare(CLONE_NEWNET) != 0) throw std::runtime_error("run the contract tests as root");
        for (const char* name : {"eth0", "wlan0"}) {
            run(fmt::format("ip link add {0} type veth peer name {0}-far", name));
            for (const char* end : {"", "-far"}) run(fmt::format("ip link set {}{} addrgenmode none up", name, end));
        }
        run("ip addr add 192.168.10.50/24 dev eth0; ip addr add 192.168.20.50/24 dev wlan0");
        run("ip addr add 2001:db8:a::50/64 dev eth0 nodad; ip addr add 2001:db8:b::50/64 dev wlan0 nodad");
        routing.emplace(RouteSocket::open().value());
        // The kernel's workers take IPv6 addresses into use and tell of it, on a busy machine long after the command.
        while (std::ranges::any_of(routing->addresses().value(), &Address::tentative)) ::usleep(10'000);
        ::usleep(50'000);
        monitor.emplace(RouteMonitor::open().value());
    }

    Observed look() {
        Observed observed;
        observed.links = routing->links().value();
        observed.addresses = routing->addresses().value();
        for (Family family : kFamilies) {
            const auto routes = routing->routes(family, kMainTable).value();
            observed.routes.insert(observed.routes.end(), routes.begin(), routes.end());
        }
        return observed;
    }
    /// As the agent does: what is queued is in the look.
    void reflect() {
        (void)drain();
        mirror.reflect(look(), {}, false);
        mirror.trust();
    }
    RouteMonitor::Drained drain() {
        return drain([&](const RouteChange& change) { return mirror.take(change); });
    }
    RouteMonitor::Drained drain(const RouteMonitor::OnDefault& take) {
        auto drained = monitor->drain(routing->port(), {}, nullptr, take);
        if (!drained.cause.empty()) mirror.doubt();
        return drained;
    }
    static std::vector<Route> defaults(std::vector<Route> routes) {
        std::erase_if(routes, [](const Route& route) { return route.table != kMainTable || !is_default(route); });
        std::ranges::sort(routes, {}, [](const Route& route) {
            return std::tuple(family_of(route), route.metric, route.link, route.gateway, route.source);
        });
        return routes;
    }
    /// Whether it could be compared: the kernel's workers may do something meanwhile.
    bool compare(const std::string& done) {
        const Mirror before = mirror;
        const auto seen = defaults(look().routes);
        const auto news = drain();
        if (!news.cause.empty() || !news.later.empty()) return false;
        expect_same(defaults(before.observed().routes), seen, done);
        return true;
    }
    static void expect_same(const std::vector<Route>& mirrored, const std::vector<Route>& seen,
                            const std::string& done) {
        ASSERT_EQ(to_text(mirrored), to_text(seen)) << done;
        ASSERT_TRUE(mirrored == seen) << done;
    }
    static std::string to_text(const std::vector<Route>& routes) {
        std::string lines;
        for (const Route& route : routes) lines += to_string(route, {}) + "\n";
        return lines;
    }
    std::string random_step() {
        const auto any = [&](int below) { return std::uniform_int_distribution(0, below - 1)(random); };
        const char* links[] = {"eth0", "wlan0"};
        if (any(12) == 0) return fmt::format("link set {} {}", links[any(2)], any(3) ? "up" : "down");
        if (any(12) == 0) return "addr " + std::string(any(2) ? "add" : "del") + " 192.168.20.51/24 dev wlan0";
        const char* verbs[] = {"add", "replace", "replace", "replace", "change", "append", "prepend", "del", "del"};
        const bool ipv6 = any(2);
        const int link = any(2);
        const int host = 1 + any(3);
        const std::string gateway = ipv6 ? fmt::format("2001:db8:{}::{}", link ? "b" : "a", host)
                                         : fmt::format("192.168.{}0.{}", link + 1, host);
        const int metric = 100 * any(3);
        return fmt::format("{}route {} default via {} dev {} metric {}{}", ipv6 ? "-6 " : "", verbs[any(9)], gateway,
                           links[link], metric, any(4) ? "" : " proto dhcp");
    }

    std::optional<RouteSocket> routing;
    std::optional<RouteMonitor> monitor;
    Mirror mirror;
    std::mt19937 random{seed()};
};

} // namespace

TEST_F(MirrorLaw, IsWhatADumpSaysOrInDoubt) {
    int compared = 0;
    for (int sequence = 0; sequence < kSequences; ++sequence) {
        reflect();
        std::string done;
        for (int step = 0; step < kSteps; ++step) {
            const std::string command = random_step();
            done += "ip " + command + "\n";
            try_ip(command);
            (void)drain();
            if (!mirror.is_trusted()) {
                reflect();
                continue;
            }
            compared += compare(done);
            if (HasFatalFailure()) return;
        }
    }
    EXPECT_GT(compared, kSequences * kSteps / 4) << "a mirror that is always in doubt is of no use";
}

/// What comes while a look reads is in it, or not.
TEST_F(MirrorLaw, IsWhatADumpSaysWhereTheLookSawSomeOfTheNews) {
    int compared = 0;
    for (int sequence = 0; sequence < kSequences * kSteps; ++sequence) {
        (void)drain();
        std::string done;
        const auto some_steps = [&] {
            for (int step = std::uniform_int_distribution(0, 3)(random); step > 0; --step) {
                const std::string command = random_step();
                done += "ip " + command + "\n";
                try_ip(command);
            }
        };
        some_steps();
        mirror.reflect(look(), {}, false);
        mirror.trust();
        done += "(a look)\n";
        some_steps();
        (void)drain([&](const RouteChange& change) { return mirror.take_again(change); });
        if (!mirror.is_trusted()) continue;
        compared += compare(done);
        if (HasFatalFailure()) return;
    }
    EXPECT_GT(compared, kSequences * kSteps / 4) << "a mirror that is always in doubt is of no use";
}

TEST_F(MirrorLaw, FollowsWhatLaptopsDoWithoutDoubt) {
    reflect();
    for (const char* command : {
             "route add default via 192.168.10.1 dev eth0 metric 100",
             "route replace default via 192.168.10.2 dev eth0 metric 100",
             "route add default via 192.168.20.1 dev wlan0 metric 600",
             "route del default via 192.168.10.2 dev eth0 metric 100",
             "-6 route add default via 2001:db8:a::1 dev eth0 metric 100",
             "-6 route replace default via 2001:db8:a::2 dev eth0 metric 100",
             "-6 route del default via 2001:db8:a::2 dev eth0 metric 100",
             "route add 203.0.113.0/24 via 192.168.20.1 dev wlan0",
             "route add 0.0.0.0/1 dev eth0",
         }) {
        run(std::string("ip ") + command);
        EXPECT_EQ(drain().cause, "") << command;
        EXPECT_TRUE(mirror.is_trusted()) << command;
        EXPECT_TRUE(defaults(mirror.observed().routes) == defaults(look().routes)) << command;
    }
}

TEST_F(MirrorLaw, ADumpIsBoundedButForWhatMatters) {
    for (int i = 0; i < 20; ++i) {
        run(fmt::format("ip route add 203.0.113.{}/32 via 192.168.10.9", i));
        run(fmt::format("ip route add 203.0.113.{}/32 via 192.168.20.9 metric 7", i));
    }
    run("ip route add 198.51.100.0/24 dev eth0; ip route add default via 192.168.10.1; ip route add 128.0.0.0/1 dev "
        "eth0");
    const auto all = routing->routes(Family::ipv4, kMainTable);
    const auto some = routing->routes(Family::ipv4, kMainTable, 5);
    ASSERT_TRUE(all && some);
    EXPECT_EQ(some->size() + 2 * 15, all->size()) << "five of each link";
}

TEST_F(MirrorLaw, ADumpIsBoundedForOnLinkRoutesToo) {
    for (int i = 0; i < 20; ++i) run(fmt::format("ip route add 198.18.{}.0/24 dev wlan0", i));
    run("ip route add 128.0.0.0/1 dev wlan0");
    const auto all = routing->routes(Family::ipv4, kMainTable);
    const auto some = routing->routes(Family::ipv4, kMainTable, 5);
    ASSERT_TRUE(all && some);
    const auto on_link = [](const std::vector<Route>& routes) {
        return std::ranges::count_if(
            routes, [](const Route& route) { return route.destination.network.to_string().starts_with("198.18."); });
    };
    EXPECT_EQ(on_link(*all), 20);
    EXPECT_LE(on_link(*some), 5);
    EXPECT_EQ(all->size() - some->size(), static_cast<std::size_t>(on_link(*all) - on_link(*some)))
        << "nothing else is left out";
}

TEST_F(MirrorLaw, AFloodIsNotReadToItsEnd) {
    ASSERT_TRUE(monitor->follow({.tables = {TableId{7866}}}));
    (void)drain();
    std::string flood;
    for (int i = 0; i < 600; ++i) flood += fmt::format("route add 203.0.{}.{}/32 via 192.168.10.9\n", i / 256, i % 256);
    run("ip -batch - <<'EOF'\n" + flood + "EOF");
    const auto first = drain();
    EXPECT_TRUE(first.flooded);
    EXPECT_EQ(first.by_gateway, RouteMonitor::kFlood);
    const auto second = drain();
    EXPECT_TRUE(second.flooded);
    EXPECT_FALSE(drain().flooded);
}

TEST_F(MirrorLaw, AFilterLeavesOutWhatDoesNotMatter) {
    ASSERT_TRUE(monitor->follow({.tables = {TableId{7866}}}));
    (void)drain();
    const auto kinds = [&](const std::string& command) {
        run("ip " + command);
        const auto drained = monitor->drain(0, {});
        return std::string(drained.cause) + "|" + std::string(drained.later);
    };
    EXPECT_EQ(kinds("route add 203.0.113.0/24 via 192.168.10.1 table 100"), "|");
    EXPECT_EQ(kinds("-6 route add 2001:db8:ff::/48 via 2001:db8:a::1 table 70000"), "|");
    EXPECT_EQ(kinds("route add default via 192.168.10.1 table 70000"), "default route added|");
    EXPECT_EQ(kinds("route add 203.0.113.0/24 via 192.168.10.1 table 7866"), "route added|");
    EXPECT_EQ(kinds("-6 route add 2001:db8:ff::/48 via 2001:db8:a::1 table 7866"), "route added|");
    EXPECT_EQ(kinds("route add 203.0.113.0/24 via 192.168.10.1"), "|route added");
    EXPECT_EQ(kinds("-6 route add 2001:db8:ff::/48 via 2001:db8:a::1"), "|route added");
    EXPECT_EQ(kinds("addr add 192.168.20.60/32 dev wlan0"), "address added|") << "and no route of table local";

    ASSERT_TRUE(monitor->follow({.tables = {TableId{7866}}, .narrow = true}));
    EXPECT_EQ(kinds("route del 203.0.113.0/24 via 192.168.10.1"), "|");
    EXPECT_EQ(kinds("-6 route del 2001:db8:ff::/48 via 2001:db8:a::1"), "|");
    EXPECT_EQ(kinds("route add 198.51.100.0/24 dev eth0"), "|route added");
    EXPECT_EQ(kinds("-6 route add 2001:db8:fe::/64 dev eth0"), "|route added");
    EXPECT_EQ(kinds("route add 128.0.0.0/1 via 192.168.10.1"), "|route added");
    EXPECT_EQ(kinds("-6 route add 2000::/3 via 2001:db8:a::1"), "|route added");
    EXPECT_EQ(kinds("route add default via 192.168.10.1"), "default route added|");
    EXPECT_EQ(kinds("route del 203.0.113.0/24 via 192.168.10.1 table 7866"), "route deleted|");
}

TEST_F(MirrorLaw, AFilterLeavesOutTheStatesOfIdleLinksInAFlood) {
    run("ip link add idle0 type veth peer name idle1; ip link set idle1 up");
    std::vector<IfIndex> idle;
    const std::vector<Link> links = routing->links().value();
    for (const Link& link : links)
        if (link.name.starts_with("idle")) idle.push_back(link.index);
    ASSERT_EQ(idle.size(), 2u);
    ASSERT_TRUE(monitor->follow({.tables = {TableId{7866}}}));
    (void)drain();
    const auto kinds = [&](const std::string& command) {
        run("ip " + command);
        ::usleep(20'000); // the kernel's workers tell of carriers
        const auto drained = monitor->drain(routing->port(), {});
        return std::string(drained.cause) + "|" + std::string(drained.later);
    };
    EXPECT_NE(kinds("link set idle0 up"), "|");
    EXPECT_NE(kinds("link set idle0 down"), "|");
    ASSERT_TRUE(monitor->follow({.tables = {TableId{7866}}, .idle = idle}));
    EXPECT_EQ(kinds("link set idle0 up"), "|") << "with a link-local address, and the route to it";
    EXPECT_EQ(kinds("link set idle0 down"), "|");
    EXPECT_EQ(kinds("link set idle0 up"), "|");
    EXPECT_EQ(kinds("-6 route add 2001:db8:dd::/64 dev idle0"), "|");
    EXPECT_EQ(kinds("-6 route add default via fe80::99 dev idle0"), "default route added|");
    EXPECT_EQ(kinds("-6 addr add 2001:db8:c::1/64 dev idle0 nodad"), "address added|");
    EXPECT_EQ(kinds("addr add 10.1.0.1/24 dev idle0"), "address added|route added");
    EXPECT_EQ(kinds("addr add 169.254.7.7/16 dev idle0 scope link"), "address added|route added");
    EXPECT_EQ(kinds("-6 route add 2001:db8:ee::/64 dev eth0"), "|route added");
    EXPECT_EQ(kinds("link set eth0 mtu 1400"), "link changed|");
    EXPECT_NE(kinds("link del idle0").front(), '|') << "some of it matters";
    std::vector<IfIndex> many(kMaxFilteredLinks, idle.front());
    EXPECT_TRUE(monitor->follow({.tables = {TableId{7866}}, .narrow = true, .idle = many})) << "the kernel takes it";
    many.push_back(idle.front());
    EXPECT_TRUE(monitor->follow({.tables = {TableId{7866}}, .narrow = true, .idle = many}));
}

} // namespace novpn::test
