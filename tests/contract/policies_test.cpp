// The contract: IPsec policies.
#include "tests/contract/contract.h"

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST_P(Contract, PoliciesOfTheAgentComeBackAsTheyWereAddedTheYoungestFirst) {
    std::vector<XfrmPolicy> added;
    std::uint32_t number = 0;
    for (Family family : kFamilies)
        for (XfrmDirection direction : kXfrmDirections) added.push_back(pass(family, direction, number++));
    for (const XfrmPolicy& policy : added) ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    EXPECT_EQ(observe().policies, std::vector(added.rbegin(), added.rend()));
    for (const XfrmPolicy& policy : added) ASSERT_TRUE(apply(DeleteXfrmPolicy{policy}));
    EXPECT_THAT(observe().policies, IsEmpty());
    ASSERT_TRUE(apply(DeleteXfrmPolicy{added.front()})) << "what is not there is deleted";
}

TEST_P(Contract, APolicyOfSomebodyElseComesBackWithWhatItSelects) {
    XfrmPolicy policy{.direction = XfrmDirection::in,
                      .source = prefix("2001:db8:a::", 64),
                      .destination = prefix("2001:db8:b::7", 128),
                      .ip_protocol = std::uint8_t{IPPROTO_UDP},
                      .destination_port = {500, 0xffff},
                      .mark = Mark{0x10, 0xff},
                      .if_id = 42,
                      .priority = 1234,
                      .index = 80,
                      .block = true};
    world->add_policy(policy);
    EXPECT_THAT(observe().policies, ElementsAre(policy));
}

TEST_P(Contract, ASecondPolicyOfTheSameSelectorAndMarkIsRefusedWhateverItsPriority) {
    ASSERT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::out, 0)}));
    XfrmPolicy other = pass(Family::ipv4, XfrmDirection::out, 1);
    other.priority = 7;
    auto refused = apply(AddXfrmPolicy{other});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::file_exists);
    EXPECT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::out, 1, Mark{0x4f000000, 0xff000000})}));
    EXPECT_TRUE(apply(AddXfrmPolicy{pass(Family::ipv4, XfrmDirection::in, 1)}));
}

TEST_P(Contract, AnIndexInUseIsNotGivenTwice) {
    XfrmPolicy first = pass(Family::ipv4, XfrmDirection::out, 0);
    XfrmPolicy second = pass(Family::ipv6, XfrmDirection::out, 0);
    for (const XfrmPolicy& policy : {first, second}) ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    auto policies = observe().policies;
    ASSERT_EQ(policies.size(), 2u);
    EXPECT_EQ(policies[1], first);
    EXPECT_NE(policies[0].index, second.index);
    EXPECT_FALSE(owned_by_us(policies[0]));
}

TEST_P(Contract, DeletingAPolicyNamesItsMarkToo) {
    XfrmPolicy policy = pass(Family::ipv6, XfrmDirection::fwd, 3);
    ASSERT_TRUE(apply(AddXfrmPolicy{policy}));
    XfrmPolicy other = policy;
    other.mark = Mark{0x4f000000, 0xff000000};
    ASSERT_TRUE(apply(DeleteXfrmPolicy{other}));
    EXPECT_THAT(observe().policies, ElementsAre(policy));
}

TEST_P(Contract, TheLowestPriorityIsTakenAndOfTwoTheOlder) {
    IfIndex eth0 = add_eth0();
    world->add_route(foreign(any_prefix(Family::ipv4), eth0, ip("192.168.10.1"), 600));
    world->add_route(foreign(any_prefix(Family::ipv6), eth0, ip("2001:db8:a::1"), 1024));
    for (auto [family, destination] : {std::pair{Family::ipv4, kInternet4}, std::pair{Family::ipv6, kInternet6}}) {
        EXPECT_FALSE(world->is_blocked(destination, 0));
        world->add_policy(block(family, 1));
        EXPECT_TRUE(world->is_blocked(destination, kMember));
        XfrmPolicy ours = pass(family, XfrmDirection::out, family == Family::ipv4 ? 0 : 1);
        ASSERT_TRUE(apply(AddXfrmPolicy{ours}));
        EXPECT_FALSE(world->is_blocked(destination, kMember));
        EXPECT_TRUE(world->is_blocked(destination, 0));
        XfrmPolicy younger = block(family, 0);
        younger.source = prefix_of(destination.is_v4() ? ip("192.168.10.0") : ip("2001:db8:a::"), 24);
        world->add_policy(younger);
        EXPECT_FALSE(world->is_blocked(destination, kMember)) << "of the same priority as ours, and younger";
        ASSERT_TRUE(apply(DeleteXfrmPolicy{ours}));
        ASSERT_TRUE(apply(AddXfrmPolicy{ours}));
        EXPECT_TRUE(world->is_blocked(destination, kMember)) << "of the same priority as ours, and older";
    }
}

} // namespace

} // namespace novpn::test
