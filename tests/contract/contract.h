// What the agent leans on in a kernel: one body, run on the fake and on Linux. Where they differ the fake is wrong.
// Needs root for Linux: every test has a network namespace of its own.
#pragma once

#include "agent/decide.h"
#include "tests/contract/world.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace novpn {

// gtest prints with these.
inline void PrintTo(const Route& route, std::ostream* stream) { *stream << to_string(route, {}); }
inline void PrintTo(const Rule& rule, std::ostream* stream) { *stream << to_string(rule); }
inline void PrintTo(const Operation& operation, std::ostream* stream) { *stream << to_string(operation, {}); }

namespace test {

inline constexpr TableId kTable{7866};
inline constexpr Mark kMark{0x4e000000, 0xff000000};
inline constexpr Protocol kKernelProtocol{2};
inline constexpr std::uint8_t kLinkScope = 253;
inline constexpr std::uint32_t kMember = 0x4e000000; ///< the mark of a member's packet

inline address ip(const char* text) { return boost::asio::ip::make_address(text); }
inline Prefix prefix(const char* network, unsigned length) { return {ip(network), length}; }
inline const address kInternet4 = ip("203.0.113.10");
inline const address kInternet6 = ip("2001:db8:ffff::10");

struct Side {
    const char* name;
    std::unique_ptr<World> (*make)();
};
inline void PrintTo(const Side& side, std::ostream* stream) { *stream << side.name; }

class Contract : public testing::TestWithParam<Side> {
  protected:
    void SetUp() override {
        world = GetParam().make();
        cgroup = world->cgroup_root() + "/novpn";
    }

    Expected<void> apply(const Operation& operation) { return world->kernel().apply(operation); }
    /// Of a table, but those of the loopback link.
    std::vector<Route> routes(TableId table, Family family) {
        Observed observed = observe();
        std::erase_if(observed.routes, [&](const Route& route) {
            const Link* link = find_link(observed, route.link);
            return route.table != table || family_of(route) != family || (link && link->loopback);
        });
        return observed.routes;
    }
    std::vector<Rule> rules_at(Preference preference, Family family = Family::ipv4) {
        Observed observed = observe();
        std::erase_if(observed.rules,
                      [&](const Rule& rule) { return rule.preference != preference || rule.family != family; });
        return observed.rules;
    }
    Observed observe() {
        auto observed = world->kernel().observe({.tables = {kTable, TableId{7867}}, .cgroups = {cgroup}});
        if (!observed) throw std::runtime_error(to_string(observed.error()));
        return *observed;
    }
    std::string leaves_by(const address& destination, std::uint32_t mark = 0) {
        return world->leaves_by({.destination = destination, .mark = mark});
    }

    /// eth0 with 192.168.10.50/24 and 2001:db8:a::50/64.
    IfIndex add_eth0() {
        IfIndex eth0 = world->add_link("eth0");
        world->add_address("eth0", ip("192.168.10.50"), 24);
        world->add_address("eth0", ip("2001:db8:a::50"), 64);
        return eth0;
    }
    static Route ours(const Prefix& destination, IfIndex link, std::optional<address> gateway = std::nullopt,
                      std::uint32_t metric = 0) {
        bool ipv4 = destination.network.is_v4();
        return {.table = kTable,
                .destination = destination,
                .metric = ipv4 || metric ? metric : 1024,
                .gateway = gateway,
                .link = link,
                .scope = ipv4 && !gateway ? kLinkScope : std::uint8_t{0},
                .protocol = kNovpnProtocol};
    }
    static Route default4(IfIndex link, const char* gateway, std::uint32_t metric = 0) {
        return ours(any_prefix(Family::ipv4), link, ip(gateway), metric);
    }
    static Route default6(IfIndex link, const char* gateway) {
        return ours(any_prefix(Family::ipv6), link, ip(gateway));
    }
    static Route backstop(Family family, TableId table = kTable) {
        return {.table = table,
                .type = RouteType::unreachable,
                .destination = any_prefix(family),
                .metric = kBackstopMetric,
                .protocol = kNovpnProtocol};
    }
    static Rule lookup_rule(Family family, std::uint32_t preference = 64) {
        return {.family = family,
                .preference = Preference{preference},
                .table = kTable,
                .mark = kMark,
                .protocol = kNovpnProtocol};
    }
    static XfrmPolicy pass(Family family, XfrmDirection direction, std::uint32_t index, Mark mark = kMark) {
        return {.direction = direction,
                .source = any_prefix(family),
                .destination = any_prefix(family),
                .mark = mark,
                .index = kNovpnPolicyIndex + index * 8 + static_cast<std::uint32_t>(direction)};
    }
    static XfrmPolicy block(Family family, std::uint32_t priority) {
        return {.source = any_prefix(family), .destination = any_prefix(family), .priority = priority, .block = true};
    }
    static Route foreign(const Prefix& destination, IfIndex link, std::optional<address> gateway, std::uint32_t metric,
                         TableId table = kMainTable) {
        Route route = ours(destination, link, gateway, metric);
        route.table = table;
        route.protocol = kStatic;
        return route;
    }
    static NftTable steering(const std::string& cgroup, std::set<IfIndex> links) {
        return {{{.name = "novpn", .mark = kMark, .cgroups = {cgroup}, .links = std::move(links)}}};
    }

    std::unique_ptr<World> world;
    std::string cgroup;
};

/// Both sides, for INSTANTIATE_TEST_SUITE_P.
inline auto both_sides() { return testing::Values(Side{"Fake", make_fake_world}, Side{"Linux", make_linux_world}); }
inline std::string name_of(const testing::TestParamInfo<Side>& tested) { return tested.param.name; }

} // namespace test

} // namespace novpn
