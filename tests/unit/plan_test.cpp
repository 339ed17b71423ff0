#include "agent/plan.h"

#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;

address ip(const char* text) { return boost::asio::ip::make_address(text); }
const std::string kRoot = "novpn-1";

FakeKernel laptop() {
    FakeKernel kernel;
    IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
    kernel.add_address("wlan0", ip("192.168.10.50"), 24);
    kernel.add_address("wlan0", ip("2001:db8:a::50"), 64);
    kernel.add_route(
        {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
    kernel.add_route(
        {.destination = any_prefix(Family::ipv6), .metric = 1024, .gateway = ip("fe80::1"), .link = wlan0});
    return kernel;
}

Scope scope() { return {.tables = {TableId{7866}}, .cgroups = {kRoot + "/novpn"}}; }

Plan plan_of(FakeKernel& kernel) {
    Observed observed = *kernel.observe(scope());
    return diff(observed, decide(observed, {}, {}, kRoot));
}

void apply_all(FakeKernel& kernel, const Plan& plan) {
    for (const Operation& operation : plan)
        ASSERT_TRUE(kernel.apply(operation)) << to_string(operation, *kernel.observe({}));
}

bool is_marking(const Operation& operation) {
    return std::holds_alternative<ReplaceNft>(operation) || std::holds_alternative<AddMember>(operation);
}

} // namespace

TEST(Diff, OfWhatWasAppliedIsEmpty) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    EXPECT_TRUE(plan_of(kernel).empty());
}

TEST(Diff, BackstopComesFirstAndMarkingLast) {
    FakeKernel kernel = laptop();
    Plan plan = plan_of(kernel);
    std::size_t backstops = 0;
    bool default_seen = false;
    for (const Operation& operation : plan) {
        if (const auto* replace = std::get_if<ReplaceRoute>(&operation)) {
            if (replace->route.type == RouteType::unreachable) {
                EXPECT_FALSE(default_seen);
                ++backstops;
            } else if (is_default(replace->route)) {
                default_seen = true;
            }
        }
    }
    EXPECT_EQ(backstops, 2u);
    ASSERT_FALSE(plan.empty());
    EXPECT_TRUE(is_marking(plan.back()));
    EXPECT_EQ(std::ranges::count_if(plan, is_marking), 1);
}

TEST(Diff, SocketsAreMarkedAtBirthLastOnTheWayUpAndNotAnyMoreFirstOnTheWayDown) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    Plan up = plan_of(kernel);
    ASSERT_GT(up.size(), 2u);
    EXPECT_EQ(up[up.size() - 2], Operation(PinBirthMark{"novpn", {Mark{0x4e000000, 0xff000000}, 0xff000000}}));
    EXPECT_EQ(up.back(), Operation(AttachBirthMark{"novpn", kRoot + "/novpn"}));
    apply_all(kernel, up);
    EXPECT_TRUE(plan_of(kernel).empty());
    Plan down = diff(*kernel.observe(scope()), Desired{});
    ASSERT_GT(down.size(), 2u);
    EXPECT_EQ(down[0], Operation(DetachBirthMark{"novpn", kRoot + "/novpn"}));
    EXPECT_EQ(down[1], Operation(UnpinBirthMark{"novpn"}));
}

TEST(Diff, WhatACrashLeftEmptyIsRemoved) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    ASSERT_TRUE(kernel.apply(CreateCgroup{kRoot}));
    Scope everything = scope();
    everything.cgroup_root = kRoot;
    Observed observed = *kernel.observe(everything);
    ASSERT_TRUE(observed.cgroups.contains(kRoot));
    observed.birth_marks.classes[""] = {};
    const Plan down = diff(observed, Desired{});
    EXPECT_THAT(down, ElementsAre(Operation(UnpinBirthMark{""}), Operation(RemoveCgroup{kRoot})));
    EXPECT_EQ(to_string(down[0], observed), "rmdir /sys/fs/bpf/novpn-4026531840");
    // The cgroup is to be filled; the directory is made anew.
    const Plan up = diff(observed, decide(observed, Config{}, {}, kRoot));
    EXPECT_EQ(up[0], Operation(UnpinBirthMark{""}));
    EXPECT_THAT(up, Contains(Operation(CreateCgroup{kRoot + "/novpn"})));
    EXPECT_THAT(up, Not(Contains(Operation(RemoveCgroup{kRoot}))));
}

TEST(Diff, AnotherMarkIsAnotherProgram) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    Config config;
    config.classes.front().mark.value = 0x4f000000;
    Desired desired = decide(observed, config, {}, kRoot);
    Plan plan = diff(observed, desired);
    ASSERT_GT(plan.size(), 4u);
    EXPECT_EQ(plan[0], Operation(DetachBirthMark{"novpn", kRoot + "/novpn"}));
    EXPECT_EQ(plan[1], Operation(UnpinBirthMark{"novpn"}));
    apply_all(kernel, plan);
    EXPECT_EQ(kernel.birth_marks().at("novpn").program, program_of(desired.birth_marks.at("novpn").birth));
    EXPECT_EQ(kernel.birth_marks().at("novpn").cgroups, std::set{kRoot + "/novpn"});
}

TEST(Diff, AProgramThatAnotherTookOffIsPutBackByItself) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    apply_all(kernel, plan_of(kernel));
    ASSERT_TRUE(kernel.apply(DetachBirthMark{"novpn", kRoot + "/novpn"}));
    EXPECT_EQ(plan_of(kernel), Plan{(AttachBirthMark{"novpn", kRoot + "/novpn"})});
}

TEST(Decide, AClassThatIsOffMarksNoSocketAtBirth) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    Config config;
    config.classes.front().enabled = false;
    EXPECT_TRUE(decide(*kernel.observe(scope()), config, {}, kRoot).birth_marks.empty());
}

TEST(Decide, ASocketOfAnyClassIsTakenForAll) {
    FakeKernel kernel = laptop();
    kernel.allow_bpf(true);
    Config config;
    config.classes.push_back({.name = "games", .mark = Mark{0x00020000, 0x00ff0000}});
    for (const auto& [name, wanted] : decide(*kernel.observe(scope()), config, {}, kRoot).birth_marks)
        EXPECT_EQ(wanted.birth.taken, 0xffff0000u) << name;
}

TEST(Decide, MarkingByBpfThatCannotBeIsAConflictAndByItselfIsNone) {
    FakeKernel kernel = laptop();
    Observed observed = *kernel.observe(scope());
    EXPECT_TRUE(conflicts(observed, Config{}).empty());
    EXPECT_TRUE(decide(observed, Config{}, {}, kRoot).birth_marks.empty());
    ASSERT_EQ(conflicts(observed, Config{.marking = Marking::bpf}).size(), 1u);
    EXPECT_NE(conflicts(observed, Config{.marking = Marking::bpf})[0].find(observed.birth_marks.unavailable),
              std::string::npos);
    kernel.allow_bpf(true);
    EXPECT_TRUE(conflicts(*kernel.observe(scope()), Config{.marking = Marking::bpf}).empty());
    EXPECT_TRUE(decide(*kernel.observe(scope()), Config{.marking = Marking::nft}, {}, kRoot).birth_marks.empty());
}

TEST(Diff, OnTheWayDownMarkingGoesFirstAndBackstopLast) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    Plan down = diff(observed, Desired{});
    ASSERT_GE(down.size(), 3u);
    EXPECT_TRUE(std::holds_alternative<DeleteNft>(down.front()));
    EXPECT_TRUE(std::holds_alternative<RemoveCgroup>(down.back()));
    const auto& last_route = std::get<DeleteRoute>(down[down.size() - 2]);
    EXPECT_EQ(last_route.route.type, RouteType::unreachable);
    apply_all(kernel, down);
    EXPECT_TRUE(diff(*kernel.observe(scope()), Desired{}).empty());
}

TEST(Diff, NeverNamesWhatIsNotOurs) {
    FakeKernel kernel = laptop();
    kernel.add_rule({.preference = Preference{64}, .table = TableId{100}, .mark = Mark{1, 1}});
    kernel.add_route({.table = TableId{7866}, .destination = prefix_of(ip("10.1.0.0"), 16), .link = IfIndex{2}});
    Observed observed = *kernel.observe(scope());
    for (const Desired& desired : {decide(observed, {}, {}, kRoot), Desired{}}) {
        for (const Operation& operation : diff(observed, desired)) {
            if (const auto* op = std::get_if<DeleteRoute>(&operation)) {
                EXPECT_EQ(op->route.protocol, kNovpnProtocol);
            }
            if (const auto* op = std::get_if<DeleteRule>(&operation)) {
                EXPECT_EQ(op->rule.protocol, kNovpnProtocol);
            }
        }
    }
}

TEST(Diff, PutsBackARuleThatSomeoneDeleted) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    auto lookup = std::ranges::find(observed.rules, TableId{7866}, &Rule::table);
    ASSERT_NE(lookup, observed.rules.end());
    ASSERT_TRUE(kernel.delete_rule(*lookup));
    EXPECT_EQ(plan_of(kernel), (Plan{AddRule{*lookup}}));
}

TEST(Diff, ACgroupThatWasMadeAgainIsANewMember) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    auto old_id = kernel.observe(scope())->cgroups.at(kRoot + "/novpn");
    ASSERT_TRUE(kernel.apply(RemoveCgroup{kRoot + "/novpn"}));
    Plan expected{CreateCgroup{kRoot + "/novpn"}, AddMember{"novpn", kRoot + "/novpn"},
                  RemoveMember{{"novpn", 2, old_id}}};
    EXPECT_EQ(plan_of(kernel), expected);
}

TEST(Diff, AStructureOfAnotherKindIsReplacedWhole) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    observed.nft.structure = "of another version";
    Plan plan = diff(observed, decide(observed, {}, {}, kRoot));
    ASSERT_EQ(plan.size(), 1u);
    EXPECT_TRUE(std::holds_alternative<ReplaceNft>(plan[0]));
}

TEST(Diff, AnIpv6GatewayThatFailedIsForgotten) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    Neighbour failed{.link = IfIndex{2}, .host = ip("fe80::1"), .state = NeighbourState::failed};
    observed.gateways = {
        failed,
        {.link = IfIndex{2}, .host = ip("fe80::2"), .state = NeighbourState::failed},       // of nobody's route
        {.link = IfIndex{2}, .host = ip("192.168.10.1"), .state = NeighbourState::failed}}; // IPv4 asks again itself
    Plan plan = diff(observed, decide(observed, {}, {}, kRoot));
    EXPECT_EQ(plan, (Plan{ForgetNeighbour{failed}}));
    ASSERT_FALSE(plan.empty());
    EXPECT_EQ(to_string(plan[0], observed), "ip neighbour del fe80::1 dev wlan0");
    EXPECT_TRUE(is_dispensable(plan[0]));

    observed.gateways = {{.link = IfIndex{2}, .host = ip("fe80::1"), .state = NeighbourState::incomplete}};
    EXPECT_TRUE(diff(observed, decide(observed, {}, {}, kRoot)).empty());
}

TEST(Decide, CopiesOfAFloodOfRoutesWhatIsOnLinkFirst) {
    FakeKernel kernel = laptop();
    Observed observed = *kernel.observe(scope());
    for (std::uint32_t i = 0; i < kMaxCopiedRoutes + 10; ++i)
        observed.routes.push_back({.destination = {boost::asio::ip::address_v4(0x0a000000 + 256 * i), 24},
                                   .gateway = ip("192.168.10.1"),
                                   .link = IfIndex{2}});
    const Route lan{.destination = {ip("192.168.10.0"), 24}, .link = IfIndex{2}};
    observed.routes.push_back(lan);
    const Desired desired = decide(observed, {}, {}, kRoot);
    std::size_t copies = 0;
    bool has_lan = false;
    for (const Route& route : desired.routes) {
        if (family_of(route) != Family::ipv4 || is_default(route)) continue;
        ++copies;
        has_lan = has_lan || route.destination == lan.destination;
    }
    EXPECT_EQ(copies, kMaxCopiedRoutes);
    EXPECT_TRUE(has_lan);
}

TEST(Decide, CopiesNoRouteOfALinkThatIsDownOrGoneNorOneThatLeadsNowhere) {
    FakeKernel kernel = laptop();
    Observed observed = *kernel.observe(scope());
    observed.links.push_back({.index = IfIndex{8}, .name = "eth1"});
    observed.links.push_back({.index = IfIndex{9}, .name = "dummy", .up = true, .carrier = true, .loopback = true});
    std::vector<Route> routes(4, {.destination = {ip("10.1.0.0"), 16}, .link = IfIndex{2}});
    routes[0].link = IfIndex{8};
    routes[1].link = IfIndex{9};
    routes[2].link = IfIndex{99};
    routes[3].type = RouteType::blackhole;
    const auto copies = [&] {
        const Desired desired = decide(observed, {}, {}, kRoot);
        return std::ranges::count(desired.routes, routes[0].destination, &Route::destination);
    };
    observed.routes.insert(observed.routes.end(), routes.begin(), routes.end());
    EXPECT_EQ(copies(), 0);
    observed.routes.back().type = RouteType::unicast;
    EXPECT_EQ(copies(), 1);
}

TEST(Decide, AClassHasAClassidWhereItIsNamedAndMarksByItWhereItIsOn) {
    FakeKernel kernel = laptop();
    const Observed observed = *kernel.observe(scope());
    Config config{.marking = Marking::net_cls};
    EXPECT_TRUE(decide(observed, config, {}, kRoot).net_cls.cgroups.empty());
    config.classes[0].classid = 0x4e0001;
    Desired desired = decide(observed, config, {}, kRoot);
    EXPECT_EQ(desired.net_cls.cgroups, (std::map<std::string, std::uint32_t>{{kRoot + "/novpn", 0x4e0001u}}));
    EXPECT_EQ(desired.nft.classes[0].classid, 0x4e0001u);
    config.classes[0].enabled = false;
    desired = decide(observed, config, {}, kRoot);
    EXPECT_EQ(desired.net_cls.cgroups.size(), 1u) << "its processes stay where they are";
    EXPECT_EQ(desired.nft.classes[0].classid, std::nullopt);
}

TEST(Decide, ADestinationThatIsNamedTwiceIsOne) {
    ClassConfig novpn;
    novpn.destinations = {{ip("203.0.113.0"), 24}, {ip("203.0.113.0"), 24}, {ip("203.0.113.8"), 32}};
    EXPECT_EQ(outermost_destinations(novpn), (std::vector<Prefix>{{ip("203.0.113.0"), 24}}));
}

TEST(Decide, CgroupsOfOthersAreLookedAtWhereAClassOrASiteSelectsSome) {
    const auto selects = [](auto change) {
        Config config;
        change(config);
        return selects_cgroups(config);
    };
    EXPECT_FALSE(selects([](Config&) {}));
    EXPECT_TRUE(selects([](Config& config) { config.classes[0].apps = {"firefox"}; }));
    EXPECT_TRUE(selects([](Config& config) { config.classes[0].units = {"a.service"}; }));
    EXPECT_TRUE(selects([](Config& config) { config.classes[0].slices = {"a.slice"}; }));
    EXPECT_TRUE(selects([](Config& config) { config.classes[0].cgroups = {"a/b"}; }));
    Config config{.sites = {{.name = "office"}}};
    EXPECT_FALSE(selects_cgroups(config));
    config.sites[0].classes["novpn"] = {.replace = {.apps = std::vector<std::string>{"firefox"}}};
    EXPECT_TRUE(selects_cgroups(config));
}

TEST(Diff, OfTwoRoutesOfOursThatAreOneForTheKernelTheSecondGoes) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    const auto is_default6 = [](const Route& route) {
        return route.table == TableId{7866} && is_default(route) && family_of(route) == Family::ipv6 &&
               route.type == RouteType::unicast;
    };
    Route second = *std::ranges::find_if(observed.routes, is_default6);
    second.gateway = ip("fe80::2");
    observed.routes.push_back(second);
    EXPECT_EQ(diff(observed, decide(observed, {}, {}, kRoot)), (Plan{DeleteRoute{second}}));
}

TEST(Diff, DeletesTheRouteThatTheKernelPrefersLast) {
    FakeKernel kernel = laptop();
    apply_all(kernel, plan_of(kernel));
    Observed observed = *kernel.observe(scope());
    Route preferred{.table = TableId{7866},
                    .destination = prefix_of(ip("fd77:1::"), 64),
                    .metric = 77,
                    .link = IfIndex{2},
                    .protocol = kNovpnProtocol};
    Route worse = preferred;
    worse.metric = 78;
    Route wider = preferred;
    wider.destination = prefix_of(ip("fd77::"), 16);
    for (const Route& route : {preferred, worse, wider}) observed.routes.push_back(route);
    EXPECT_EQ(diff(observed, decide(observed, {}, {}, kRoot)),
              (Plan{DeleteRoute{wider}, DeleteRoute{worse}, DeleteRoute{preferred}}));
}

TEST(IsDispensable, WithoutWhatTheRestOfAPlanIsStillDone) {
    const Plan dispensable{EndSocket{},
                           DropConnection{},
                           AddConnections{{{.remote = ip("203.0.113.1")}}},
                           ForgetNeighbour{},
                           ProbeNeighbour{},
                           PinBirthMark{},
                           AttachBirthMark{},
                           PinRedirect{},
                           SetResolvers{},
                           AttachRedirect{},
                           ReplaceRoute{{.destination = {ip("10.0.0.0"), 8}}}};
    for (const Operation& operation : dispensable) EXPECT_TRUE(is_dispensable(operation)) << to_string(operation, {});
    const Plan needed{ReplaceRoute{{.destination = any_prefix(Family::ipv4)}}, AddRule{}, ReplaceNft{}, AddMember{}};
    for (const Operation& operation : needed) EXPECT_FALSE(is_dispensable(operation)) << to_string(operation, {});
}

TEST(OperationText, OfAFlowIsWhatOneWouldTypeToEndIt) {
    EXPECT_EQ(to_string(EndSocket{{.ip_protocol = 17, .local = ip("10.8.0.2"), .local_port = 5353}}, {}),
              "ss --kill --udp src 10.8.0.2 sport = 5353");
    const Connection connection{.ip_protocol = 6,
                                .source = ip("10.8.0.2"),
                                .source_port = 40000,
                                .destination = ip("203.0.113.1"),
                                .destination_port = 443,
                                .translated = ip("192.168.10.50")};
    EXPECT_EQ(to_string(DropConnection{connection}, {}), "conntrack -D " + to_string(connection));
}

TEST(OperationText, OfFlowsFromBeforeNamesTheFirst) {
    OpenSocket socket{.ip_protocol = 6,
                      .local = ip("10.8.0.2"),
                      .local_port = 40000,
                      .remote = ip("203.0.113.1"),
                      .remote_port = 443};
    const std::string tcp = "conntrack -I -p tcp -s 10.8.0.2 -d 203.0.113.1 --sport 40000 --dport 443 --state ";
    EXPECT_EQ(to_string(AddConnections{{socket}}, {}), tcp + "ESTABLISHED -u ASSURED,SEEN_REPLY -t 432000");
    EXPECT_EQ(to_string(AddConnections{{socket, socket, socket}}, {}),
              tcp + "ESTABLISHED -u ASSURED,SEEN_REPLY -t 432000 # and 2 more");
    socket.connecting = true;
    EXPECT_EQ(to_string(AddConnections{{socket}}, {}), tcp + "SYN_SENT -t 120");
    socket = {.ip_protocol = 17, .local = ip("::2"), .local_port = 1, .remote = ip("::3"), .remote_port = 2};
    EXPECT_EQ(to_string(AddConnections{{socket}}, {}),
              "conntrack -I -p udp -s ::2 -d ::3 --sport 1 --dport 2 -u ASSURED,SEEN_REPLY -t 120");
}

TEST(Conflicts, NameACgroupWithTheSameClassid) {
    Observed observed = *laptop().observe(scope());
    observed.net_cls.mount = "/net_cls";
    observed.net_cls.others = {{"docker/a", 0x10001}, {"docker/b", 0x4e0001}};
    Config config;
    EXPECT_TRUE(conflicts(observed, config).empty());
    config.classes[0].classid = 0x4e0001;
    EXPECT_THAT(conflicts(observed, config),
                ElementsAre("classid 0x4e0001 of class novpn is that of the cgroup /net_cls/docker/b; choose another "
                            "classid, or remove that cgroup"));
}

TEST(Conflicts, NameTheOwnerOfATableAndOfAMark) {
    FakeKernel kernel = laptop();
    kernel.add_route({.table = TableId{7866},
                      .destination = any_prefix(Family::ipv4),
                      .gateway = ip("192.168.10.1"),
                      .link = IfIndex{2},
                      .protocol = Protocol{12}});
    kernel.add_rule({.preference = Preference{100}, .table = TableId{52}, .mark = Mark{0x4e000000, 0xff000000}});
    kernel.add_rule(
        {.preference = Preference{101}, .table = TableId{52}, .invert = true, .mark = Mark{0xca6c, 0xffffffff}});
    auto found = conflicts(*kernel.observe(scope()), {});
    ASSERT_EQ(found.size(), 2u);
    EXPECT_EQ(found[0],
              "table 7866 of class novpn holds a route of bird: default via 192.168.10.1 dev wlan0 table 7866 "
              "proto bird; choose another table");
    EXPECT_EQ(found[1],
              "mark 0x4e000000/0xff000000 of class novpn meets the ipv4 rule of Tailscale: preference 100 fwmark "
              "0x4e000000/0xff000000 lookup 52; choose another mark");
}

} // namespace novpn::test
