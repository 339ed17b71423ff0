// The agent on the fake kernel: who its members are, and which of their sockets end.
#include "tests/unit/agent_fixture.h"

#include <netinet/in.h>

namespace novpn::test {

namespace {

constexpr auto is_that_one = [] { return true; };

} // namespace

TEST_F(AgentTest, OffEndsTheSocketsOfTheClassOnly) {
    ASSERT_TRUE(agent.start());
    std::uint64_t inside = *kernel.cgroup_ids("novpn-1/novpn").begin();
    OpenSocket member{.ip_protocol = IPPROTO_TCP,
                      .local = ip("192.168.10.50"),
                      .local_port = 4000,
                      .remote = ip("203.0.113.10"),
                      .remote_port = 443,
                      .cgroup_id = inside};
    OpenSocket on_this_machine = member;
    on_this_machine.local = ip("127.0.0.1");
    on_this_machine.remote = ip("127.0.0.1");
    OpenSocket stranger = member;
    stranger.cgroup_id = inside + 1;
    kernel.open_sockets = {member, on_this_machine, stranger};
    ASSERT_TRUE(agent.set_enabled("novpn", false, std::nullopt));
    EXPECT_EQ(kernel.open_sockets, (std::vector{on_this_machine, stranger}));
    EXPECT_FALSE(agent.is_steered("novpn"));
    EXPECT_TRUE(kernel.observe({})->nft.members.empty()) << "new sockets are not marked";
    EXPECT_TRUE(kernel.observe({})->nft.present) << "what is left of old flows is dropped and counted";
    ASSERT_TRUE(agent.set_enabled("novpn", true, std::nullopt));
    EXPECT_TRUE(agent.is_steered("novpn"));
}

/// An agent whose class is off.
class AgentThatIsOff : public AgentTest {
  protected:
    AgentThatIsOff() {
        EXPECT_TRUE(agent.start());
        kernel.open_connections = {{.ip_protocol = IPPROTO_UDP, .mark = Config{}.classes.front().mark.value | 1}};
        EXPECT_TRUE(agent.set_enabled("novpn", false, std::nullopt));
    }
    bool follows() { return kernel.observe({})->nft.follows; }
    Pass pass_after(Clock::duration time) { return agent.reconcile("test", Clock::now() + time, Depth::usual); }
};

TEST_F(AgentThatIsOff, FollowsConnectionsAsLongAsOneIsLeft) {
    EXPECT_TRUE(follows());
    EXPECT_EQ(pass_after(std::chrono::seconds(1)).operations, 0u);
    kernel.open_connections = {{.ip_protocol = IPPROTO_UDP, .mark = 1}};
    EXPECT_EQ(pass_after(std::chrono::seconds(2)).operations, 0u) << "it has asked just now";
    EXPECT_EQ(pass_after(std::chrono::seconds(12)).operations, 1u);
    EXPECT_FALSE(follows());
    EXPECT_TRUE(kernel.observe({})->nft.intact) << "the guard stands";
    EXPECT_EQ(pass_after(std::chrono::seconds(30)).operations, 0u);
}

TEST_F(AgentThatIsOff, KnowsTheFlowsOfItsMembersWhenItIsOn) {
    kernel.open_connections.clear();
    EXPECT_EQ(pass_after(std::chrono::seconds(1)).operations, 1u);
    kernel.open_sockets = {{.ip_protocol = IPPROTO_TCP,
                            .local = ip("10.8.0.2"),
                            .local_port = 4000,
                            .remote = ip("203.0.113.10"),
                            .remote_port = 443,
                            .cgroup_id = *kernel.cgroup_ids("novpn-1/novpn").begin()}};
    ASSERT_TRUE(agent.set_enabled("novpn", true, std::nullopt));
    EXPECT_TRUE(follows());
    ASSERT_EQ(kernel.open_connections.size(), 1u);
    EXPECT_EQ(kernel.open_connections.front().source_port, 4000);
    EXPECT_EQ(kernel.open_connections.front().mark, 0u) << "it keeps the path it began on";
}

namespace {

/// A desktop with a user's manager, and an agent that selects what it runs.
class AgentApps : public AgentTest {
  protected:
    AgentApps() {
        for (const char* slice : {"system.slice", "user.slice", "user.slice/user-1000.slice"}) kernel.add_other(slice);
        for (const std::string& path : {kManager, kManager + "/app.slice"}) kernel.add_other(path, 1000);
    }
    static Config selecting(const std::string& keys) {
        return *parse_config("classes: {novpn: {" + keys + "}}", "novpn.yaml");
    }
    AgentSetup setup() {
        return {.cgroup_root = "novpn-1",
                .load = [&] { return parse_config(yaml, "novpn.yaml"); },
                .is_allowed =
                    [&](uid_t uid, const Allow&) {
                        asked.push_back(uid);
                        return answer;
                    }};
    }
    std::vector<std::string> matched(const Agent& of) {
        std::vector<std::string> paths;
        for (const auto& [path, _] : of.desired()->classes.at("novpn").matched) paths.push_back(path);
        return paths;
    }
    /// As the watch does.
    bool tell(Agent& of) {
        const bool due = of.heard_of_cgroups(kernel.observe({.others = true})->others, "test");
        const Pass done = due ? of.reconcile("test", Clock::now(), Depth::usual) : Pass{};
        EXPECT_FALSE(done.failure);
        return due;
    }
    std::size_t elements() { return kernel.observe({})->nft.members.size() - 1; }

    const std::string kManager = "user.slice/user-1000.slice/user@1000.service";
    const std::string kScope = kManager + "/app.slice/app-gnome-spotify-1.scope";
    std::optional<bool> answer = true;
    std::vector<uid_t> asked;
    std::string yaml;
};

} // namespace

TEST_F(AgentApps, AScopeIsInItsClassFromItsCreationToItsEnd) {
    kernel.allow_bpf(true);
    Agent selects(kernel, selecting("apps: [spotify]"), setup());
    ASSERT_TRUE(selects.start());
    EXPECT_EQ(elements(), 0u);
    kernel.add_other(kManager + "/app.slice/app-gnome-firefox-1.scope", 1000);
    EXPECT_FALSE(tell(selects)) << "no member";
    const std::uint64_t id = kernel.add_other(kScope, 1000);
    EXPECT_TRUE(tell(selects));
    EXPECT_TRUE(kernel.nft().members.contains(MemberElement{"novpn", 5, id}));
    EXPECT_TRUE(kernel.birth_marks().at("novpn").cgroups.contains(kScope));
    EXPECT_FALSE(tell(selects));
    const std::uint64_t next = kernel.add_other(kScope, 1000);
    EXPECT_TRUE(tell(selects)) << "another one of that name";
    EXPECT_TRUE(kernel.nft().members.contains(MemberElement{"novpn", 5, next}));
    EXPECT_FALSE(kernel.nft().members.contains(MemberElement{"novpn", 5, id}));
    kernel.remove_other(kScope);
    EXPECT_TRUE(tell(selects));
    EXPECT_EQ(elements(), 0u);
    const auto status = selects.status({});
    EXPECT_EQ(status.at("repairs"), 0) << "what others end is nothing to mend";
}

TEST_F(AgentApps, AreMembersAheadOfTheLookThatAuditsIt) {
    kernel.allow_bpf(true);
    Agent selects(kernel, selecting("apps: [spotify]"), setup());
    ASSERT_TRUE(selects.start());
    std::vector<std::string> told;
    selects.on_event([&](const boost::json::object& event) {
        for (const auto& operation : event.at("operations").as_array()) told.emplace_back(operation.as_string());
    });
    kernel.add_other(kScope, 1000);
    EXPECT_TRUE(selects.heard_of_cgroups(kernel.observe({.others = true})->others, "test"));
    EXPECT_EQ(elements(), 1u);
    EXPECT_TRUE(kernel.birth_marks().at("novpn").cgroups.contains(kScope));
    EXPECT_EQ(selects.reconcile("test", Clock::now(), Depth::usual).operations, 2u) << "are counted and told with it";
    EXPECT_EQ(told, (std::vector<std::string>{"nft 'add element inet novpn cgroup_level_5 { \"" + kScope +
                                                  "\" : goto mark_novpn }'",
                                              "bpftool cgroup attach /sys/fs/cgroup/" + kScope +
                                                  " sock_create pinned /sys/fs/bpf/novpn-4026531840/novpn multi"}));
    EXPECT_EQ(selects.reconcile("test", Clock::now(), Depth::usual).operations, 0u);

    kernel.flush_nft(); // which the agent has not heard of
    kernel.add_other(kManager + "/app.slice/app-gnome-spotify-2.scope", 1000);
    EXPECT_TRUE(selects.heard_of_cgroups(kernel.observe({.others = true})->others, "test"));
    EXPECT_FALSE(selects.reconcile("test", Clock::now(), Depth::usual).failure);
    EXPECT_EQ(elements(), 2u) << "the look mends what came in between";
}

TEST_F(AgentApps, AreMatchedOnceTheirUserIsKnownToBeAllowed) {
    answer.reset();
    kernel.add_other(kScope, 1000);
    Agent selects(kernel, selecting("apps: [spotify]"), setup());
    ASSERT_TRUE(selects.start());
    EXPECT_EQ(asked, std::vector<uid_t>{1000});
    EXPECT_EQ(elements(), 0u);
    EXPECT_FALSE(selects.heard_of_user(1000, false));
    EXPECT_FALSE(selects.heard_of_user(1001, true)) << "has no manager";
    EXPECT_TRUE(selects.heard_of_user(1000, true));
    selects.reconcile("test", Clock::now(), Depth::usual);
    EXPECT_EQ(matched(selects), std::vector{kScope});
    EXPECT_EQ(asked.size(), 1u) << "once";
    kernel.remove_other(kManager);
    EXPECT_TRUE(tell(selects));
    EXPECT_EQ(elements(), 0u);
}

TEST_F(AgentApps, OfAUserWhoIsRefusedAreAskedForAgain) {
    answer = false;
    kernel.add_other(kScope, 1000);
    Agent selects(kernel, selecting("apps: [spotify]"), setup());
    ASSERT_TRUE(selects.start());
    EXPECT_EQ(elements(), 0u);
    answer = true;
    selects.forget_refused_users();
    selects.reconcile("resync", Clock::now(), Depth::usual);
    EXPECT_EQ(matched(selects), std::vector{kScope});
}

TEST_F(AgentApps, WhatLeavesItsClassByReloadLosesItsSocketsAndNoOther) {
    yaml = "classes: {novpn: {apps: [spotify], slices: [user-1000.slice]}}";
    const std::uint64_t id = kernel.add_other(kScope, 1000);
    const std::uint64_t other = kernel.add_other(kManager + "/app.slice/app-gnome-firefox-1.scope", 1000);
    Agent selects(kernel, *parse_config(yaml, "novpn.yaml"), setup());
    ASSERT_TRUE(selects.start());
    OpenSocket of_app{.ip_protocol = IPPROTO_TCP,
                      .local = ip("192.168.10.50"),
                      .local_port = 4000,
                      .remote = ip("203.0.113.10"),
                      .remote_port = 443,
                      .cgroup_id = id};
    OpenSocket of_other = of_app;
    of_other.local_port = 4001;
    of_other.cgroup_id = other;
    kernel.open_sockets = {of_app, of_other};
    yaml = "classes: {novpn: {apps: [spotify]}}";
    ASSERT_TRUE(selects.reload());
    EXPECT_EQ(kernel.open_sockets, std::vector{of_app}) << "the app is a member of its own";
    yaml = "classes: {novpn: {}}";
    ASSERT_TRUE(selects.reload());
    EXPECT_TRUE(kernel.open_sockets.empty());
    EXPECT_EQ(kernel.observe({.others = true})->others.count(kScope), 1u) << "nothing is removed";
}

TEST_F(AgentApps, OffEndsTheirSocketsToo) {
    const std::uint64_t id = kernel.add_other(kScope, 1000);
    Agent selects(kernel, selecting("apps: [spotify]"), setup());
    ASSERT_TRUE(selects.start());
    kernel.open_sockets = {
        {.ip_protocol = IPPROTO_TCP, .local = ip("192.168.10.50"), .remote = ip("203.0.113.10"), .cgroup_id = id}};
    ASSERT_TRUE(selects.set_enabled("novpn", false, std::nullopt));
    EXPECT_TRUE(kernel.open_sockets.empty());
    EXPECT_TRUE(kernel.nft().members.empty());
    kernel.add_other(kManager + "/app.slice/app-gnome-spotify-2.scope", 1000);
    EXPECT_FALSE(tell(selects)) << "of a class that is off";
    ASSERT_TRUE(selects.set_enabled("novpn", true, std::nullopt));
    EXPECT_EQ(elements(), 2u);
}

TEST_F(AgentApps, AProcessIsInTheNearestClassAndStaysWhereItIs) {
    kernel.add_other(kScope, 1000);
    kernel.add_other(kScope + "/inner", 1000);
    Agent selects(kernel, selecting("apps: [spotify], slices: [user-1000.slice]"), setup());
    ASSERT_TRUE(selects.start());
    ASSERT_TRUE(kernel.place(kScope + "/inner", 7));
    EXPECT_EQ(selects.class_of(7), "novpn");
    EXPECT_EQ(selects.selector_of(7), "app spotify");
    const auto refused = selects.release(7, is_that_one);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::invalid_argument);
    EXPECT_EQ(kernel.cgroup_of(7), kScope + "/inner");
    ASSERT_TRUE(kernel.place("user.slice/user-1000.slice", 7));
    EXPECT_EQ(selects.selector_of(7), "slice user-1000.slice");
    ASSERT_TRUE(kernel.place("novpn-1/novpn", 7));
    EXPECT_EQ(selects.selector_of(7), "run");
    EXPECT_TRUE(selects.release(7, is_that_one));
}

TEST_F(AgentApps, StatusTellsAUserOfItsOwnOnlyAndCountsAll) {
    kernel.add_other(kScope, 1000);
    kernel.add_other("system.slice/backup.service");
    Agent selects(kernel, selecting("apps: [spotify], units: [backup.service]"), setup());
    ASSERT_TRUE(selects.start());
    auto selectors = [&](uid_t uid) {
        const auto status = selects.status({.uid = uid, .gid = uid});
        const auto& of_class = status.at("classes").at(0);
        EXPECT_EQ(of_class.at("matched"), 2);
        std::vector<std::string> found;
        for (const auto& member : of_class.at("members").as_array())
            found.emplace_back(member.at("selector").as_string());
        return found;
    };
    EXPECT_EQ(selectors(1000), (std::vector<std::string>{"run", "unit backup.service", "app spotify"}));
    EXPECT_EQ(selectors(1001), (std::vector<std::string>{"run", "unit backup.service"}));
    EXPECT_EQ(selectors(0).size(), 3u);
}

TEST_F(AgentTest, AddressesThatAreBackInAMomentNeedNoLookThen) {
    std::vector<Clock::time_point> asked;
    Agent moving(kernel, Config{},
                 {.cgroup_root = "novpn-1", .wake_at = [&](Clock::time_point when) { asked.push_back(when); }});
    ASSERT_TRUE(moving.start());
    const auto now = Clock::now();
    for (int flap = 0; flap < 2; ++flap) {
        kernel.delete_address("wlan0", ip("192.168.10.50"));
        moving.reconcile("address gone", now + std::chrono::milliseconds(flap), Depth::usual);
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        moving.reconcile("address back", now + std::chrono::milliseconds(flap), Depth::usual);
    }
    kernel.delete_address("wlan0", ip("192.168.10.50"));
    moving.reconcile("address gone", now + std::chrono::milliseconds(2), Depth::usual);
    ASSERT_EQ(asked.size(), 3u);
    EXPECT_TRUE(moving.is_overtaken(asked[0]));
    EXPECT_TRUE(moving.is_overtaken(asked[1]));
    EXPECT_FALSE(moving.is_overtaken(asked[2]));
    moving.reconcile("time is up", asked[2], Depth::usual);
    EXPECT_FALSE(moving.is_overtaken(asked[2])) << "it was of use";
}

TEST_F(AgentTest, ALinkLocalAddressThatGoesWithALinkThatLeadsNowhereIsNoReasonToLookForFlows) {
    const auto asks = [&](const char* link, const char* address) {
        bool asked = false;
        Agent watching(kernel, Config{},
                       {.cgroup_root = "novpn-1", .wake_at = [&](Clock::time_point) { asked = true; }});
        kernel.add_address(link, ip(address), 64);
        EXPECT_TRUE(watching.start());
        kernel.delete_address(link, ip(address));
        watching.reconcile("address gone", Clock::now(), Depth::usual);
        return asked;
    };
    kernel.add_link({.name = "veth0", .kind = "veth", .up = true, .carrier = true});
    EXPECT_FALSE(asks("veth0", "fe80::7"));
    EXPECT_TRUE(asks("wlan0", "fe80::8"));
    kernel.add_address("veth0", ip("10.1.0.1"), 24);
    EXPECT_TRUE(asks("veth0", "fe80::7")) << "it leads somewhere";
}

TEST_F(AgentTest, EndsSocketsWhoseAddressHasGoneAMomentLaterWhereNoWayOutIsLeft) {
    std::optional<Clock::time_point> asked;
    Agent moving(kernel, Config{},
                 {.cgroup_root = "novpn-1", .wake_at = [&](Clock::time_point when) { asked = when; }});
    ASSERT_TRUE(moving.start());
    const std::uint64_t inside = *kernel.cgroup_ids("novpn-1/novpn").begin();
    const OpenSocket member{
        .ip_protocol = IPPROTO_UDP, .local = ip("192.168.10.50"), .local_port = 4000, .cgroup_id = inside};
    OpenSocket of_any = member;
    of_any.local = ip("0.0.0.0");
    kernel.open_sockets = {member, of_any};
    kernel.delete_address("wlan0", ip("192.168.10.50"));
    const auto now = Clock::now();
    moving.reconcile("address gone", now, Depth::usual);
    EXPECT_EQ(kernel.open_sockets.size(), 2u) << "what comes next is answered first";
    ASSERT_TRUE(asked);
    EXPECT_GT(*asked, now);
    moving.reconcile("time is up", *asked, Depth::usual);
    EXPECT_EQ(kernel.open_sockets, std::vector{of_any});
    asked.reset();
    kernel.open_sockets = {member};
    moving.reconcile("later", now + std::chrono::seconds(1), Depth::usual);
    EXPECT_FALSE(asked);
    EXPECT_EQ(kernel.open_sockets.size(), 1u) << "once";
}

TEST_F(AgentTest, OnLeaveKeepLetsOpenFlowsGoOn) {
    Config config;
    config.classes[0].on_leave = OnLeave::keep;
    Agent keeping(kernel, config, {.cgroup_root = "novpn-1"});
    ASSERT_TRUE(keeping.start());
    std::uint64_t inside = *kernel.cgroup_ids("novpn-1/novpn").begin();
    kernel.open_sockets = {
        {.ip_protocol = IPPROTO_TCP, .local = ip("192.168.10.50"), .remote = ip("203.0.113.10"), .cgroup_id = inside}};
    ASSERT_TRUE(keeping.set_enabled("novpn", false, std::nullopt));
    EXPECT_EQ(kernel.open_sockets.size(), 1u);
    auto route = kernel.lookup({.destination = ip("203.0.113.10"), .mark = 0x4e000000});
    ASSERT_TRUE(route);
    EXPECT_EQ(route->table, TableId{7866}) << "marked packets of open flows still have their table";
    EXPECT_TRUE(kernel.observe({})->nft.members.empty());
}

TEST_F(AgentTest, PlaceAndReleaseMoveTheProcess) {
    ASSERT_TRUE(agent.start());
    ASSERT_TRUE(agent.place("novpn", 4711));
    EXPECT_EQ(agent.class_of(4711), "novpn");
    auto released = agent.release(4711, is_that_one);
    ASSERT_TRUE(released);
    EXPECT_EQ(released->class_name, "novpn");
    EXPECT_FALSE(agent.class_of(4711));
    auto again = agent.release(4711, is_that_one);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, std::errc::invalid_argument);
    ASSERT_TRUE(agent.place("novpn", 4711));
    auto another = agent.release(4711, [] { return false; });
    ASSERT_FALSE(another);
    EXPECT_EQ(another.error().code, std::errc::no_such_process);
}

TEST_F(AgentTest, WithNetClsPlaceAndReleaseMoveTheProcessThereAndNotInCgroup2) {
    std::string yaml = "marking: net_cls";
    Agent tagging(kernel, *parse_config(yaml, "f"),
                  {.cgroup_root = "novpn-1", .load = [&] { return parse_config(yaml, "f"); }, .class_slices = true});
    ASSERT_TRUE(tagging.start());
    EXPECT_EQ(kernel.net_cls.mount, kNetClsMount);
    EXPECT_EQ(kernel.net_cls.ours, (std::map<std::string, std::uint32_t>{{"novpn-1/novpn", 0x100001}}));
    EXPECT_EQ(tagging.reconcile("again", Clock::now(), Depth::everything).operations, 0u);
    ASSERT_TRUE(tagging.place("novpn", 7));
    EXPECT_EQ(kernel.net_cls_of(7), "novpn-1/novpn");
    EXPECT_NE(kernel.cgroup_of(7), "novpn-1/novpn");
    EXPECT_EQ(tagging.class_of(7), "novpn");
    EXPECT_EQ(tagging.selector_of(7), "run");
    ASSERT_TRUE(tagging.release(7, is_that_one));
    EXPECT_EQ(kernel.net_cls_of(7), "");
    EXPECT_FALSE(tagging.class_of(7));

    // A class id that the config gives anew is the kernel's to give to the members; without net_cls their sockets end.
    yaml = "{marking: net_cls, classes: {novpn: {classid: 5}}}";
    kernel.open_sockets = {
        {.local = ip("192.168.10.50"), .remote = ip("203.0.113.10"), .classid = 0x100001, .cookie = 1}};
    ASSERT_TRUE(tagging.reload());
    EXPECT_EQ(kernel.net_cls.ours.at("novpn-1/novpn"), 5u);
    EXPECT_EQ(kernel.open_sockets.size(), 1u);
    kernel.open_sockets.front().classid = 5;
    yaml = "marking: auto";
    ASSERT_TRUE(tagging.reload());
    EXPECT_EQ(kernel.open_sockets.size(), 0u);
    EXPECT_EQ(kernel.net_cls, ObservedNetCls{}) << "no cgroup and no mount is left";
}

TEST_F(AgentTest, NetClsThatSomebodyElseMountedOrUsesStays) {
    kernel.net_cls.mount = "/sys/fs/cgroup/net_cls";
    kernel.net_cls.others = {{"theirs", 0x100001}};
    Agent refused(kernel, *parse_config("marking: net_cls", "f"), {.cgroup_root = "novpn-1"});
    const auto started = refused.start();
    ASSERT_FALSE(started);
    EXPECT_NE(to_string(started.error()).find("/sys/fs/cgroup/net_cls/theirs"), std::string::npos);
    kernel.net_cls.others.clear();
    kernel.net_cls.has_others = true;
    Agent tagging(kernel, *parse_config("marking: net_cls", "f"), {.cgroup_root = "novpn-1"});
    ASSERT_TRUE(tagging.start());
    ASSERT_TRUE(tagging.release());
    EXPECT_EQ(kernel.net_cls.mount, "/sys/fs/cgroup/net_cls");
    kernel.net_cls = {.unavailable = "this kernel has none"};
    Agent without(kernel, *parse_config("marking: net_cls", "f"), {.cgroup_root = "novpn-1"});
    EXPECT_FALSE(without.start());
}

class AgentClassSlices : public AgentTest {
  protected:
    const std::string slice_ = "novpn.slice/novpn-novpn.slice";
    const std::string scope_ = slice_ + "/novpn-7-1.scope";
    Agent agent_{kernel, Config{}, {.cgroup_root = "novpn-1", .class_slices = true}};

    void start_with_a_process_in(const std::string& unit) {
        ASSERT_TRUE(agent_.start());
        kernel.add_other("novpn.slice", 0);
        kernel.add_other(slice_, 0);
        kernel.add_other(unit, 0);
        ASSERT_TRUE(kernel.place(unit, 7));
    }
};

TEST_F(AgentClassSlices, PlaceLeavesAProcessInTheClasssSliceAndTakesThatIn) {
    start_with_a_process_in(scope_);
    EXPECT_FALSE(agent_.class_of(7)) << "nobody has looked yet";
    ASSERT_TRUE(agent_.place("novpn", 7));
    EXPECT_EQ(kernel.cgroup_of(7), scope_);
    EXPECT_EQ(agent_.class_of(7), "novpn");
    EXPECT_EQ(agent_.selector_of(7), "run");
    const auto members = kernel.observe({})->nft.members;
    const MemberElement slice{"novpn", 2, *kernel.cgroup_ids(slice_).begin()};
    EXPECT_TRUE(members.contains(slice));
    // Another one of the same name is not the one that was taken in.
    kernel.remove_other("novpn.slice");
    kernel.add_other("novpn.slice", 0);
    kernel.add_other(slice_, 0);
    kernel.add_other(scope_, 0);
    ASSERT_TRUE(kernel.place(scope_, 8));
    ASSERT_TRUE(agent_.place("novpn", 8));
    EXPECT_EQ(kernel.cgroup_of(8), scope_);
    EXPECT_NE(kernel.observe({})->nft.members, members);
}

TEST_F(AgentClassSlices, PlaceMovesWhatIsInASliceThatDoesNotCount) {
    ASSERT_TRUE(agent_.start());
    const std::string scope = "user.slice/user-1000.slice/user@1000.service/" + scope_;
    for (auto end = scope.find('/'); end != std::string::npos; end = scope.find('/', end + 1))
        kernel.add_other(scope.substr(0, end), end > 26 ? 1000 : 0);
    kernel.add_other(scope, 1000);
    ASSERT_TRUE(kernel.place(scope, 7));
    ASSERT_TRUE(agent_.place("novpn", 7)) << "root asks, of a user who is not in allow";
    EXPECT_EQ(kernel.cgroup_of(7), "novpn-1/novpn");
    ASSERT_TRUE(kernel.place(scope, 8));
    agent_.heard_of_user(1000, true);
    ASSERT_TRUE(agent_.place("novpn", 8));
    EXPECT_EQ(kernel.cgroup_of(8), scope);
}

TEST_F(AgentClassSlices, ReleaseTakesAProcessOutOfAScopeAndNotOutOfAService) {
    start_with_a_process_in(scope_);
    ASSERT_TRUE(agent_.place("novpn", 7));
    ASSERT_TRUE(agent_.release(7, is_that_one));
    EXPECT_FALSE(agent_.class_of(7));
    kernel.add_other(slice_ + "/backup.service", 0);
    ASSERT_TRUE(kernel.place(slice_ + "/backup.service", 8));
    EXPECT_EQ(agent_.selector_of(8), "slice novpn-novpn.slice");
    const auto refused = agent_.release(8, is_that_one);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().detail,
              "is in class novpn by 'slice novpn-novpn.slice' of its unit, and stays where it is");
    EXPECT_EQ(kernel.cgroup_of(8), slice_ + "/backup.service");
}

TEST_F(AgentClassSlices, AreNobodysWhereAnotherAgentIsTheMachines) {
    ASSERT_TRUE(agent.start());
    for (const std::string& path : {std::string("novpn.slice"), slice_, scope_}) kernel.add_other(path, 0);
    ASSERT_TRUE(kernel.place(scope_, 7));
    EXPECT_FALSE(agent.class_of(7));
    ASSERT_TRUE(agent.place("novpn", 7));
    EXPECT_EQ(kernel.cgroup_of(7), "novpn-1/novpn");
}

} // namespace novpn::test
