#include "agent/stale.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <memory>
#include <netinet/in.h>

namespace novpn {

void PrintTo(const Operation& operation, std::ostream* stream) { *stream << to_string(operation, {}); }

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Mark kMark{0x4e000000, 0xff000000};
constexpr TableId kTable{7866};
constexpr IfIndex kWlan0{2}, kTun0{3};
constexpr std::uint64_t kCgroup = 77;

address ip(const char* text) { return boost::asio::ip::make_address(text); }

/// wlan0 has 10.20.0.50 and is the uplink, tun0 has 10.8.0.2; before the roam wlan0 had 192.168.10.50.
struct Stale : testing::Test {
    Stale() {
        observed.addresses = {{.link = kWlan0, .local = ip("10.20.0.50"), .prefix_length = 24},
                              {.link = kTun0, .local = ip("10.8.0.2"), .prefix_length = 24}};
        desired.routes = {{.table = kTable, .destination = any_prefix(Family::ipv4), .link = kWlan0}};
        desired.rules = {{.table = kTable, .mark = kMark, .protocol = kNovpnProtocol}};
        ClassDecision decision{.state = ClassState::steering, .mark = kMark};
        decision.ways_out[Family::ipv4].uplink = Uplink{.family = Family::ipv4, .link = kWlan0};
        decision.ways_out[Family::ipv6] = {};
        desired.classes["novpn"] = decision;
        flows.cgroups["novpn"] = {kCgroup};
        flows.connections.emplace();
    }

    static OpenSocket tcp(const char* local, std::uint32_t mark, std::uint64_t cgroup = kCgroup) {
        return {.family = family_of(ip(local)),
                .ip_protocol = IPPROTO_TCP,
                .local = ip(local),
                .local_port = 40000,
                .remote = ip(local).is_v4() ? ip("203.0.113.1") : ip("2001:db8::1"),
                .remote_port = 443,
                .cgroup_id = cgroup,
                .mark = mark};
    }
    /// Of that very socket.
    static Connection entry(const char* local, std::uint32_t mark, const char* translated) {
        return {.ip_protocol = IPPROTO_TCP,
                .source = ip(local),
                .source_port = 40000,
                .destination = ip("203.0.113.1"),
                .destination_port = 443,
                .translated = ip(translated),
                .mark = mark};
    }
    Plan stale() const { return stale_flows(flows, observed, desired); }

    Observed observed;
    Desired desired;
    OpenFlows flows;
};

TEST_F(Stale, EndsMembersSocketsWhoseAddressIsGoneByMarkOrCgroup) {
    const OpenSocket marked = tcp("192.168.10.50", 0x4e000012, 1);
    const OpenSocket born_in = tcp("192.168.10.50", 0);
    const OpenSocket of_nobody = tcp("192.168.10.50", 0x4f000000, 1);
    flows.sockets = {marked, born_in, of_nobody};
    EXPECT_THAT(stale(), ElementsAre(EndSocket{marked}, EndSocket{born_in}));
}

TEST_F(Stale, LeavesAnAddressThatIsThereAlone) {
    flows.sockets = {tcp("10.20.0.50", kMark.value)};
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, DoesNotWaitForAWayOut) {
    flows.sockets = {tcp("192.168.10.50", kMark.value), tcp("2001:db8:a::50", kMark.value)};
    flows.connections = {entry("10.8.0.2", kMark.value, "192.168.10.50")};
    desired.classes["novpn"].ways_out[Family::ipv4].uplink.reset();
    desired.routes.clear();
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.front()}, EndSocket{flows.sockets.back()},
                                     DropConnection{flows.connections->front()}));
}

TEST_F(Stale, AMasqueradeWaitsForAWayOut) {
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    desired.routes.clear();
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, EndsUdpSocketsOfAnAddressThatWentWithAPeerOrWithout) {
    OpenSocket connected = tcp("192.168.10.50", kMark.value);
    connected.ip_protocol = IPPROTO_UDP;
    OpenSocket bound = connected;
    bound.remote.reset();
    OpenSocket of_nobody = bound;
    of_nobody.mark = 0;
    of_nobody.cgroup_id = 1;
    flows.sockets = {connected, bound, of_nobody};
    EXPECT_THAT(stale(), IsEmpty()) << "nobody knows that it was an address of this machine";
    flows.gone = {ip("192.168.10.50")};
    EXPECT_THAT(stale(), ElementsAre(EndSocket{connected}, EndSocket{bound}));
}

TEST_F(Stale, LeavesUdpSocketsOfGroupsBroadcastAndAnyAddressAlone) {
    flows.gone = {ip("192.168.10.50")};
    for (const char* local : {"224.0.0.251", "192.168.10.255", "0.0.0.0", "10.20.0.50"}) {
        OpenSocket socket = tcp(local, kMark.value);
        socket.ip_protocol = IPPROTO_UDP;
        socket.remote.reset();
        flows.sockets.push_back(socket);
    }
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, LeavesWhatStaysOnThisMachineAlone) {
    OpenSocket local = tcp("192.168.10.50", kMark.value);
    local.remote = ip("127.0.0.1");
    flows.sockets = {local};
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, EndsAMasqueradedFlowThatTheKernelHasForgotten) {
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.front()}));
    flows.sockets.front().connecting = true;
    EXPECT_THAT(stale(), IsEmpty()) << "its next SYN is a new flow";
}

TEST_F(Stale, LeavesAMasqueradedFlowAloneAsLongAsItsEntryHolds) {
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    flows.connections->push_back(entry("10.8.0.2", kMark.value, "10.20.0.50"));
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, EndsAFlowThatIsTranslatedToAnAddressThatIsGoneAndDropsItsEntry) {
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    flows.connections->push_back(entry("10.8.0.2", kMark.value, "192.168.10.50"));
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.front()}, DropConnection{flows.connections->front()}));
}

TEST_F(Stale, AMasqueradeIsOfTheLinkThatTheClasssTableLeadsTo) {
    constexpr IfIndex kEth0{4};
    observed.addresses.push_back({.link = kEth0, .local = ip("172.16.0.50"), .prefix_length = 24});
    const Prefix server{ip("203.0.113.0"), 24};
    desired.routes.insert(desired.routes.begin(),
                          {{.table = kTable, .destination = server, .link = kEth0},
                           {.table = TableId{7867}, .destination = {ip("203.0.113.1"), 32}, .link = kTun0},
                           {.table = kTable, .type = RouteType::unreachable, .destination = server, .metric = 9},
                           {.table = kTable, .destination = {ip("198.51.100.0"), 24}, .link = kTun0}});
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    flows.connections = {entry("10.8.0.2", kMark.value, "172.16.0.50")};
    EXPECT_THAT(stale(), IsEmpty());
    flows.connections = {entry("10.8.0.2", kMark.value, "10.20.0.50")};
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.front()})) << "it leaves by eth0 from now on";
}

TEST_F(Stale, AnEntryOfAnotherFlowIsNoMasquerade) {
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    const Connection own = entry("10.8.0.2", kMark.value, "10.20.0.50");
    std::vector<Connection> others(5, own);
    others[0].ip_protocol = IPPROTO_UDP;
    others[1].source_port = 40001;
    others[2].destination_port = 80;
    others[3].source = own.destination;
    others[3].source_port = own.destination_port;
    others[4].destination = own.source;
    others[4].destination_port = own.source_port;
    flows.connections = others;
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.front()}));
    flows.connections->push_back(own);
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, LeavesAnEntryAloneThatIsNotTranslated) {
    // Of a member with a route of its own to a network behind the tunnel: no masquerade, none to lose.
    flows.sockets = {tcp("10.8.0.2", kMark.value)};
    flows.connections = {entry("10.8.0.2", kMark.value, "10.8.0.2"),
                         entry("192.168.10.50", kMark.value, "192.168.10.50")};
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, WhatUsersAndDestinationsSelectIsAMembersAlsoWithoutAMark) {
    OpenSocket of_user = tcp("192.168.10.50", 0, 1), to_listed = of_user, listens = of_user;
    of_user.uid = 1000;
    to_listed.remote = ip("198.51.100.7");
    listens.remote.reset();
    flows.cgroups.clear(); // nor a cgroup
    flows.sockets = {of_user, to_listed, listens};
    EXPECT_THAT(stale(), IsEmpty());
    EXPECT_FALSE(has_flows_of_members(flows, desired));
    ClassDecision& novpn = desired.classes["novpn"];
    novpn.users = {1000};
    novpn.destinations = {{ip("198.51.100.0"), 24}};
    EXPECT_THAT(stale(), ElementsAre(EndSocket{of_user}, EndSocket{to_listed}));
    flows.sockets = {listens};
    EXPECT_FALSE(has_flows_of_members(flows, desired));
    flows.sockets = {to_listed};
    EXPECT_TRUE(has_flows_of_members(flows, desired));
}

TEST_F(Stale, AFamilyThatNobodyHasDecidedHasNoWayOut) {
    EXPECT_TRUE(has_way_out(desired.classes["novpn"], Family::ipv4));
    EXPECT_FALSE(has_way_out(desired.classes["novpn"], Family::ipv6));
    EXPECT_FALSE(has_way_out({}, Family::ipv4));
}

TEST_F(Stale, AClassThatIsNewMovesItsFamily) {
    EXPECT_EQ(families_moved(observed, desired, {}, &desired), std::set<Family>{});
    EXPECT_EQ(families_moved(observed, desired, {}, std::make_unique<Desired>().get()), std::set{Family::ipv4});
}

TEST_F(Stale, LeavesAloneWhatHasAPathOfItsOwnInTheTunnel) {
    // Made while the class was off, and an answer to who asked for the tunnel's address.
    flows.sockets = {tcp("10.8.0.2", 0), tcp("10.8.0.2", kMark.value)};
    flows.sockets.back().local_port = 443;
    Connection asked = entry("203.0.113.1", 0, "203.0.113.1");
    asked.source_port = 443;
    asked.destination = ip("10.8.0.2");
    flows.connections = {entry("10.8.0.2", 0, "10.8.0.2"), asked};
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, DoesNotGuessWhatIsForgottenWhereTheKernelDoesNotTell) {
    flows.sockets = {tcp("10.8.0.2", kMark.value), tcp("192.168.10.50", kMark.value)};
    flows.connections.reset();
    EXPECT_THAT(stale(), ElementsAre(EndSocket{flows.sockets.back()}));
}

TEST_F(Stale, DropsNoEntryOfOthers) {
    flows.connections = {entry("10.8.0.2", 0, "192.168.10.50"), entry("10.8.0.2", 0x4f000000, "192.168.10.50")};
    EXPECT_THAT(stale(), IsEmpty());
}

TEST_F(Stale, LooksAgainWhereAnAddressHasGoneOrAClassGoesAnotherWay) {
    const std::set<address> before{ip("10.20.0.50"), ip("10.8.0.2")};
    EXPECT_EQ(families_moved(observed, desired, before, &desired), std::set<Family>{});
    EXPECT_EQ(families_moved(observed, desired, {ip("2001:db8:a::50")}, &desired), std::set{Family::ipv6});
    EXPECT_EQ(families_moved(observed, desired, before, nullptr), std::set{Family::ipv4});
    Desired other = desired;
    other.classes["novpn"].ways_out[Family::ipv4].uplink->link = kTun0;
    EXPECT_EQ(families_moved(observed, desired, before, &other), std::set{Family::ipv4});
    other.classes["novpn"].ways_out[Family::ipv4].uplink.reset();
    EXPECT_EQ(families_moved(observed, desired, before, &other), std::set{Family::ipv4}) << "what it was is not known";
}

TEST_F(Stale, LeavesFlowsAloneWhoseGatewayAloneIsAnother) {
    Desired other = desired;
    other.classes["novpn"].ways_out[Family::ipv4].uplink->gateway = ip("10.20.0.1");
    EXPECT_EQ(families_moved(observed, desired, {ip("10.20.0.50")}, &other), std::set<Family>{});
}

TEST_F(Stale, CountsWhatMembersBegan) {
    const std::map<std::string, PacketCounts> packets{{"novpn", {.marked = 3, .dropped = 1}}};
    const auto begun = flows_begun(packets, desired);
    ASSERT_TRUE(begun);
    EXPECT_EQ(flows_begun({{"novpn", {.marked = 3, .dropped = 2}}}, desired), begun);
    EXPECT_NE(flows_begun({{"novpn", {.marked = 4}}}, desired), begun);
    EXPECT_EQ(flows_begun({}, desired), std::nullopt) << "nobody counts";
    desired.classes["novpn"].ways_out[Family::ipv4].uplink->link = kTun0;
    EXPECT_EQ(flows_begun(packets, desired), begun) << "the same members";
    desired.classes["novpn"].users.insert(1000);
    EXPECT_NE(flows_begun(packets, desired), begun) << "a user's flows began before they were counted";
}

TEST_F(Stale, KnowsFlowsOfMembersFromOthers) {
    EXPECT_FALSE(has_flows_of_members(flows, desired));
    flows.sockets = {tcp("10.20.0.50", 0, 1)};
    flows.connections = {entry("10.20.0.50", 0, "10.20.0.50")};
    EXPECT_FALSE(has_flows_of_members(flows, desired));
    flows.sockets.push_back(tcp("10.20.0.50", 0));
    EXPECT_TRUE(has_flows_of_members(flows, desired)) << "by its cgroup";
    flows.sockets.clear();
    flows.connections->push_back(entry("10.20.0.50", kMark.value, "10.20.0.50"));
    EXPECT_TRUE(has_flows_of_members(flows, desired)) << "by the mark of its entry";
    flows.connections.reset();
    EXPECT_TRUE(has_flows_of_members(flows, desired)) << "nobody knows";
}

struct FromBefore : Stale {
    static std::vector<OpenSocket> from_before(const std::vector<OpenSocket>& sockets) {
        Config config;
        config.classes.front().mark = kMark;
        return flows_from_before(sockets, config);
    }
};

TEST_F(FromBefore, IsWhatIsConnectedToAnotherHost) {
    OpenSocket udp = tcp("2001:db8:8::2", 0x10);
    udp.ip_protocol = IPPROTO_UDP;
    OpenSocket unconnected = udp;
    unconnected.remote.reset();
    OpenSocket on_this_machine = tcp("127.0.0.1", 0);
    on_this_machine.remote = ip("127.0.0.1");
    EXPECT_THAT(from_before({unconnected, tcp("10.8.0.2", 0), on_this_machine, udp}),
                ElementsAre(tcp("10.8.0.2", 0), udp));
}

TEST_F(FromBefore, IsNoFlowThatIsAboutToEnd) {
    OpenSocket closing = tcp("10.8.0.2", 0);
    closing.closing = true;
    EXPECT_THAT(from_before({closing}), IsEmpty());
}

TEST_F(FromBefore, IsNoFlowOfASocketWithAClasssMark) {
    EXPECT_THAT(from_before({tcp("192.168.10.50", kMark.value | 1)}), IsEmpty());
}

} // namespace
} // namespace novpn
