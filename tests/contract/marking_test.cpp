// The contract: the nft table, cgroups, net_cls and BPF programs.
#include "tests/contract/contract.h"

#include "rules/cgroup.h"

#include <unistd.h>

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST_P(Contract, TheNftTableAndItsElementsComeBackAsTheyWereWritten) {
    IfIndex eth0 = add_eth0();
    IfIndex wlan0 = world->add_link("wlan0");
    EXPECT_FALSE(observe().nft.present);
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    std::uint64_t id = observe().cgroups.at(cgroup);
    NftTable table = steering(cgroup, {eth0});
    ASSERT_TRUE(apply(ReplaceNft{table}));
    ObservedNft wanted{.present = true,
                       .intact = true,
                       .structure = structure_of(table),
                       .follows = true,
                       .members = {{"novpn", cgroup_level(cgroup), id}},
                       .links = {{"novpn", eth0}}};
    EXPECT_EQ(observe().nft, wanted);

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AddLink{{"novpn", wlan0}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveLink{{"novpn", eth0}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveMember{*wanted.members.begin()}));
    wanted.links = {{"novpn", wlan0}};
    wanted.members.clear();
    EXPECT_EQ(observe().nft, wanted);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AddMember{"novpn", cgroup}));
    wanted.members = {{"novpn", cgroup_level(cgroup), id}};
    EXPECT_EQ(observe().nft, wanted);

    table.classes.front().dns_by_vpn = false;
    ASSERT_TRUE(apply(ReplaceNft{table}));
    wanted.structure = structure_of(table);
    wanted.links = {{"novpn", eth0}};
    EXPECT_EQ(observe().nft, wanted);
    ASSERT_TRUE(apply(DeleteNft{}));
    EXPECT_EQ(observe().nft, ObservedNft{});
}

TEST_P(Contract, TheRedirectsComeBackAsTheyWereWritten) {
    const Mark mark{.value = 0x4e000000, .mask = 0xff000000};
    const Resolvers resolvers{{ip("127.0.0.53"), ip("192.168.10.1")},
                              {ip("10.8.0.1"), std::nullopt},
                              {ip("2001:db8:8::1"), ip("2001:db8:a::1")}};
    const std::string program = redirect_program_of(mark);
    auto classes = [&] { return observe().redirects.classes; };
    using Classes = decltype(classes());
    EXPECT_EQ(observe().redirects.unavailable, "");
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_FALSE(apply(AttachRedirect{"novpn", cgroup})) << "nothing is pinned";
    EXPECT_FALSE(apply(SetResolvers{"novpn", resolvers})) << "nothing is pinned";
    ASSERT_TRUE(apply(PinRedirect{"novpn", mark}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, {}, {}}}}));
    EXPECT_EQ(observe().birth_marks.classes.size(), 0u) << "it is not taken for a mark at birth";

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AttachRedirect{"novpn", cgroup}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(SetResolvers{"novpn", resolvers}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, resolvers, {cgroup}}}}));
    const Resolvers fewer{{ip("127.0.0.53"), ip("10.20.0.1")}};
    ASSERT_TRUE(apply(SetResolvers{"novpn", fewer}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, fewer, {cgroup}}}}));
    ASSERT_TRUE(apply(PinBirthMark{"novpn", {.mark = mark, .taken = 0xff000000}}));
    EXPECT_EQ(classes().size(), 1u) << "nor a mark at birth for it";
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(DetachRedirect{"novpn", cgroup}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program, fewer, {}}}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnpinRedirect{"novpn"}));
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(UnpinBirthMark{"novpn"}));
}

TEST_P(Contract, NetClsComesBackAsItWasWritten) {
    const std::string directory = testing::TempDir() + "novpn-contract-net_cls";
    auto net_cls = [&] { return world->kernel().observe({.net_cls = true})->net_cls; };
    const auto root = cgroup_root_of_this_netns(); // what is below another is another agent's
    ASSERT_TRUE(root);
    const std::string ours = *root + "/novpn";
    using Cgroups = std::map<std::string, std::uint32_t>;
    ASSERT_EQ(net_cls().unavailable, "");
    ASSERT_EQ(net_cls().mount, "");
    EXPECT_FALSE(apply(SetClassid{directory, ours, 0x100001})) << "not mounted";
    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(MountNetCls{directory}));
    EXPECT_EQ(net_cls().mount, directory);
    EXPECT_TRUE(net_cls().mounted_by_us);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(SetClassid{directory, ours, 0x100001}));
    EXPECT_EQ(net_cls().ours, (Cgroups{{ours, 0x100001}}));
    ASSERT_TRUE(apply(SetClassid{directory, ours, 0xffffffff}));
    EXPECT_EQ(net_cls().ours, (Cgroups{{ours, 0xffffffff}}));
    EXPECT_FALSE(world->kernel().place_in_net_cls(ours + "-absent", getpid()));
    ASSERT_TRUE(world->kernel().place_in_net_cls(ours, getpid()));
    EXPECT_EQ(world->kernel().net_cls_of(getpid()), ours);
    EXPECT_EQ(world->kernel().net_cls_processes(ours), std::vector{getpid()});
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(RemoveNetClsCgroup{directory, ours}));
    EXPECT_EQ(net_cls().ours, Cgroups{});
    EXPECT_NE(world->kernel().net_cls_of(getpid()), ours) << "it was moved out";
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnmountNetCls{directory}));
    EXPECT_EQ(net_cls().mount, "");
}

TEST_P(Contract, TheMarkAtBirthComesBackAsItWasWritten) {
    const BirthMark birth{.mark = {.value = 0x4e000000, .mask = 0xff000000}, .taken = 0xff000000};
    const BirthMark other{.mark = {.value = 0x4f000000, .mask = 0xff000000}, .taken = 0xff000000};
    const std::string inner = cgroup + "/inner";
    auto classes = [&] { return observe().birth_marks.classes; };
    using Classes = decltype(classes());
    EXPECT_EQ(observe().birth_marks.unavailable, "");
    EXPECT_EQ(classes(), Classes{});
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_FALSE(apply(AttachBirthMark{"novpn", cgroup})) << "nothing is pinned";
    ASSERT_TRUE(apply(PinBirthMark{"novpn", birth}));
    ASSERT_TRUE(apply(PinBirthMark{"games", other}));
    EXPECT_EQ(classes(), (Classes{{"games", {program_of(other), {}}}, {"novpn", {program_of(birth), {}}}}));
    EXPECT_FALSE(apply(AttachBirthMark{"novpn", inner})) << "no such cgroup";

    // Each twice: what is already so is done.
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(AttachBirthMark{"novpn", cgroup}));
    ASSERT_TRUE(apply(AttachBirthMark{"games", cgroup})) << "beside the other";
    EXPECT_EQ(classes(), (Classes{{"games", {program_of(other), {cgroup}}}, {"novpn", {program_of(birth), {cgroup}}}}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(DetachBirthMark{"games", cgroup}));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(apply(UnpinBirthMark{"games"}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(birth), {cgroup}}}}));
    ASSERT_TRUE(apply(RemoveCgroup{cgroup}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(birth), {}}}})) << "the cgroup took it along";
    ASSERT_TRUE(apply(DetachBirthMark{"novpn", cgroup})) << "the cgroup is gone";
    ASSERT_TRUE(apply(PinBirthMark{"novpn", other}));
    EXPECT_EQ(classes(), (Classes{{"novpn", {program_of(other), {}}}}));
    ASSERT_TRUE(apply(UnpinBirthMark{"novpn"}));
    EXPECT_EQ(classes(), Classes{});
}

TEST_P(Contract, UsersAndDestinationsComeBackAsTheyWereWritten) {
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    NftTable table = steering(cgroup, {});
    ClassMarking& c = table.classes.front();
    c.users = {1, 1000};
    c.destinations = {prefix("0.0.0.0", 8),      prefix("198.18.0.0", 16),   prefix("198.19.0.0", 16),
                      prefix("203.0.113.7", 32), prefix("255.0.0.0", 8),     prefix("2001:db8::", 32),
                      prefix("2001:db9::", 127), prefix("2001:db9::2", 128), prefix("ff00::", 8)};
    ASSERT_TRUE(apply(ReplaceNft{table}));
    ObservedNft wanted = observe().nft;
    EXPECT_TRUE(wanted.intact);
    EXPECT_THAT(wanted.users, ElementsAre(UserElement{"novpn", 1}, UserElement{"novpn", 1000}));
    std::set<Prefix> found;
    for (const DestinationElement& element : wanted.destinations) found.insert(element.prefix);
    EXPECT_EQ(found, c.destinations);

    // One in place of two neighbours, and a part in place of the whole.
    ElementChange change{.users_to_remove = {{"novpn", 1}},
                         .users_to_add = {{"novpn", 2}},
                         .destinations_to_remove = {{"novpn", prefix("198.18.0.0", 16)},
                                                    {"novpn", prefix("198.19.0.0", 16)},
                                                    {"novpn", prefix("ff00::", 8)},
                                                    {"novpn", prefix("255.0.0.0", 8)}},
                         .destinations_to_add = {{"novpn", prefix("198.18.0.0", 15)},
                                                 {"novpn", prefix("ff02::", 16)},
                                                 {"novpn", prefix("255.255.255.255", 32)}}};
    ASSERT_TRUE(apply(ChangeElements{change}));
    for (const auto& user : change.users_to_remove) wanted.users.erase(user);
    for (const auto& destination : change.destinations_to_remove) wanted.destinations.erase(destination);
    wanted.users.merge(change.users_to_add);
    wanted.destinations.merge(change.destinations_to_add);
    EXPECT_EQ(observe().nft, wanted);
}

TEST_P(Contract, CgroupsOfOthersComeAndGoByTheirIds) {
    auto seen = [&] { return world->kernel().observe({.strays = true, .others = true})->others; };
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    const std::string other = world->add_other();
    ASSERT_TRUE(seen().contains(other));
    const SeenCgroup first = seen().at(other);
    EXPECT_EQ(first.owner, 0u);
    EXPECT_EQ(world->kernel().cgroup_ids(other), std::set{first.id});
    EXPECT_TRUE(world->kernel().observe({})->others.empty()) << "nobody selects any";

    NftTable table = steering(cgroup, {});
    table.levels = {1, 2, 3};
    table.classes.front().others = {{other, first.id}};
    ASSERT_TRUE(apply(ReplaceNft{table}));
    const std::set<MemberElement> own{{"novpn", cgroup_level(cgroup), observe().cgroups.at(cgroup)}};
    const MemberElement element{"novpn", 1, first.id};
    std::set<MemberElement> wanted = own;
    wanted.insert(element);
    EXPECT_EQ(observe().nft.members, wanted);
    EXPECT_EQ(observe().nft.structure, structure_of(table));

    world->remove_other();
    EXPECT_FALSE(seen().contains(other));
    (void)world->add_other();
    const MemberElement next{"novpn", 1, seen().at(other).id};
    EXPECT_NE(next, element) << "another one of that path has another id";
    ASSERT_TRUE(apply(ChangeElements{{.members_to_remove = {element}, .members_to_add = {next}}}));
    wanted = own;
    wanted.insert(next);
    EXPECT_EQ(observe().nft.members, wanted) << "also of a cgroup that is gone";
    EXPECT_FALSE(apply(ChangeElements{{.members_to_remove = {element}}})) << "all or nothing";
    EXPECT_EQ(observe().nft.members, wanted);
}

TEST_P(Contract, AClassWithoutAGuardHasNoSetOfLinks) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    NftTable table = steering(cgroup, {eth0});
    table.classes.front().guarded = false;
    ASSERT_TRUE(apply(ReplaceNft{table}));
    EXPECT_TRUE(observe().nft.intact);
    EXPECT_TRUE(observe().nft.links.empty());
    EXPECT_EQ(observe().nft.members.size(), 1u);
}

TEST_P(Contract, ElementsNeedTheirTable) {
    IfIndex eth0 = add_eth0();
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    for (const Operation& operation : {Operation(AddMember{"novpn", cgroup}), Operation(AddLink{{"novpn", eth0}})}) {
        auto refused = apply(operation);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, std::errc::no_such_file_or_directory);
    }
    EXPECT_TRUE(apply(RemoveMember{{"novpn", 2, 42}}));
    EXPECT_TRUE(apply(RemoveLink{{"novpn", eth0}}));
}

TEST_P(Contract, MarkingNeedsItsCgroup) {
    auto refused = apply(ReplaceNft{steering(cgroup, {})});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::no_such_file_or_directory);
    EXPECT_FALSE(observe().nft.present);
}

TEST_P(Contract, ACgroupThatIsMadeAgainHasAnotherId) {
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    std::uint64_t id = observe().cgroups.at(cgroup);
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_EQ(observe().cgroups.at(cgroup), id) << "one that exists is left alone";
    ASSERT_TRUE(apply(RemoveCgroup{cgroup}));
    EXPECT_THAT(observe().cgroups, IsEmpty());
    ASSERT_TRUE(apply(CreateCgroup{cgroup}));
    EXPECT_NE(observe().cgroups.at(cgroup), id);
}

} // namespace

} // namespace novpn::test
