// IPsec policies: which of them a takeover is, and what the agent answers. The bytes are the contract tests'.
#include "agent/plan.h"
#include "agent/policies.h"
#include "netlink/xfrm.h"
#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace novpn::test {

namespace {

address ip(const char* text) { return boost::asio::ip::make_address(text); }
Prefix prefix(const char* network, unsigned length) { return {ip(network), length}; }
const Prefix kAny4 = any_prefix(Family::ipv4);
const std::string kRoot = "novpn-1";

/// wlan0 with an address of its own, and one of the VPN's on lo, as strongSwan may put it.
FakeKernel laptop() {
    FakeKernel kernel;
    IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
    kernel.add_link({.name = "docker0", .kind = "bridge", .up = true, .carrier = true});
    kernel.add_address("wlan0", ip("192.168.10.50"), 24);
    kernel.add_address("docker0", ip("172.17.0.1"), 16);
    kernel.add_route({.destination = kAny4, .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
    return kernel;
}

XfrmPolicy mandatory(const Prefix& source = kAny4, const Prefix& destination = kAny4) {
    return {.source = source, .destination = destination, .priority = 383616, .templates = 1};
}

Observed observe(FakeKernel& kernel) {
    return *kernel.observe(
        {.tables = {TableId{7866}, TableId{7867}}, .cgroups = {kRoot + "/novpn", kRoot + "/backup"}});
}

bool is_taken_over(FakeKernel kernel, const XfrmPolicy& policy) {
    EXPECT_TRUE(kernel.add_policy(policy));
    Desired desired = decide(observe(kernel), {}, {}, kRoot);
    EXPECT_TRUE(desired.takeovers.at(Family::ipv6).empty());
    const auto& takeovers = desired.takeovers.at(Family::ipv4);
    EXPECT_TRUE(takeovers.empty() || takeovers == std::vector{Takeover{.shape = Shape::xfrm}});
    return !takeovers.empty();
}

Config two_classes() {
    Config config;
    config.classes.push_back(
        {.name = "backup", .table = TableId{7867}, .mark = Mark{0x4f000000, 0xff000000}, .preference = Preference{70}});
    return config;
}

Plan plan_of(FakeKernel& kernel, const Config& config = {}) {
    Observed observed = observe(kernel);
    return diff(observed, decide(observed, config, {}, kRoot));
}

void apply_all(FakeKernel& kernel, const Plan& plan) {
    for (const Operation& operation : plan) ASSERT_TRUE(kernel.apply(operation)) << to_string(operation, {});
}

/// Taken over, with the agent's answer in place.
FakeKernel answered() {
    FakeKernel kernel = laptop();
    EXPECT_TRUE(kernel.add_policy(mandatory()));
    apply_all(kernel, plan_of(kernel));
    return kernel;
}

template<typename Op>
std::ptrdiff_t count(const Plan& plan) {
    return std::ranges::count_if(plan,
                                 [](const Operation& operation) { return std::holds_alternative<Op>(operation); });
}

template<typename Op>
std::ptrdiff_t position(const Plan& plan) {
    auto found =
        std::ranges::find_if(plan, [](const Operation& operation) { return std::holds_alternative<Op>(operation); });
    return found - plan.begin();
}

} // namespace

TEST(XfrmTakeover, IsAPolicyThatTransformsOrBlocksWhatGoesToThePublic) {
    EXPECT_TRUE(is_taken_over(laptop(), mandatory()));
    EXPECT_TRUE(is_taken_over(laptop(), mandatory(prefix("192.168.10.50", 32))));
    EXPECT_TRUE(is_taken_over(laptop(), mandatory(kAny4, prefix("128.0.0.0", 1)))) << "a half";
    XfrmPolicy policy = mandatory();
    policy.ip_protocol = std::uint8_t{IPPROTO_TCP};
    EXPECT_TRUE(is_taken_over(laptop(), policy)) << "TCP alone";
    policy = mandatory();
    policy.templates = 0;
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "it allows";
    policy.block = true;
    EXPECT_TRUE(is_taken_over(laptop(), policy));
}

TEST(XfrmTakeover, IsNoPolicyThatOrdinaryPacketsMiss) {
    EXPECT_FALSE(is_taken_over(laptop(), mandatory(kAny4, prefix("10.0.0.0", 8)))) << "a private network";
    EXPECT_FALSE(is_taken_over(laptop(), mandatory(prefix("172.17.0.0", 16)))) << "from containers";
    XfrmPolicy policy = mandatory();
    policy.mark = Mark{0x10, 0xff};
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "marked";
    policy = mandatory();
    policy.if_id = 42;
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "of an xfrm link";
    policy = mandatory();
    policy.direction = XfrmDirection::in;
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "in";
    policy = mandatory();
    policy.destination_port = {1701, 0xffff};
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "one port";
    policy = mandatory();
    policy.link = laptop().link("docker0")->index;
    EXPECT_FALSE(is_taken_over(laptop(), policy)) << "another link";
}

TEST(XfrmTakeover, IsNoPolicyThatAnotherOneLetsPassFirst) {
    FakeKernel kernel = laptop();
    XfrmPolicy bypass = mandatory();
    bypass.templates = 0;
    bypass.priority = 1000;
    bypass.source = prefix("192.168.0.0", 16);
    ASSERT_TRUE(kernel.add_policy(bypass));
    EXPECT_FALSE(is_taken_over(kernel, mandatory()));
    XfrmPolicy stronger = mandatory();
    stronger.priority = 999;
    EXPECT_TRUE(is_taken_over(kernel, stronger));
    stronger.priority = 1000;
    EXPECT_TRUE(is_taken_over(kernel, stronger)) << "which of the two is older is not told";
}

TEST(XfrmTakeover, IsSeenBySourceOfTheVpnOnAnyLink) {
    FakeKernel kernel = laptop();
    kernel.add_address("lo", ip("10.20.0.9"), 32);
    EXPECT_FALSE(is_taken_over(kernel, mandatory(prefix("10.20.0.9", 32))));
    kernel.add_route({.table = TableId{220},
                      .destination = kAny4,
                      .gateway = ip("192.168.10.1"),
                      .link = kernel.link("wlan0")->index,
                      .source = ip("10.20.0.9")});
    kernel.add_rule({.preference = Preference{220}, .table = TableId{220}});
    EXPECT_TRUE(is_taken_over(kernel, mandatory(prefix("10.20.0.9", 32))));
}

TEST(XfrmTakeover, IsNoneOfOursNorDisplacesADefault) {
    FakeKernel kernel = answered();
    XfrmPolicy ours = kernel.policies().back();
    ASSERT_TRUE(owned_by_us(ours));
    EXPECT_EQ(taking_policies(Family::ipv4, observe(kernel), std::nullopt).size(), 1u);
    Desired desired = decide(observe(kernel), {}, {}, kRoot);
    EXPECT_EQ(desired.uplinks.at(Family::ipv4).from, UplinkSource::main);
}

TEST(XfrmAnswer, StandsBeforeTheirsAndBeforeTheMarking) {
    FakeKernel kernel = laptop();
    ASSERT_TRUE(kernel.add_policy(mandatory()));
    Plan up = plan_of(kernel, two_classes());
    EXPECT_EQ(count<AddXfrmPolicy>(up), 6) << "a set for each class, in the family that is taken over";
    EXPECT_LT(position<AddXfrmPolicy>(up), position<ReplaceNft>(up));
    apply_all(kernel, up);
    Packet member{.destination = ip("16.0.0.1"), .mark = 0x4e000000};
    EXPECT_TRUE(owned_by_us(*kernel.policy_of(member, *kernel.lookup(member))));
    EXPECT_TRUE(plan_of(kernel, two_classes()).empty());
    Plan down = diff(observe(kernel), {});
    EXPECT_EQ(count<DeleteXfrmPolicy>(down), 6);
    EXPECT_GT(position<DeleteXfrmPolicy>(down), position<DeleteNft>(down));
    apply_all(kernel, down);
    EXPECT_EQ(kernel.policies().size(), 1u);
}

TEST(XfrmAnswer, GoesWithTheTakeover) {
    FakeKernel kernel = answered();
    ASSERT_TRUE(kernel.delete_policy(mandatory()));
    Plan plan = plan_of(kernel);
    EXPECT_EQ(count<DeleteXfrmPolicy>(plan), 3);
    EXPECT_EQ(plan.size(), 3u);
}

TEST(XfrmAnswer, IsNotForAClassThatIsOff) {
    FakeKernel kernel = answered();
    Config config;
    config.classes.front().enabled = false;
    EXPECT_EQ(count<DeleteXfrmPolicy>(plan_of(kernel, config)), 3);
    config.classes.front().on_leave = OnLeave::keep;
    EXPECT_EQ(count<DeleteXfrmPolicy>(plan_of(kernel, config)), 0) << "its open flows go on";
}

TEST(XfrmAnswer, IsNotForAClassThatMayUseTheVpnAndHasNoOtherWay) {
    FakeKernel kernel = laptop();
    ASSERT_TRUE(kernel.add_policy(mandatory()));
    Config config;
    config.classes.front().when_no_uplink = WhenNoUplink::tunnel;
    EXPECT_EQ(count<AddXfrmPolicy>(plan_of(kernel, config)), 3);
    config.uplinks.ignore = {"wlan0"};
    EXPECT_EQ(count<AddXfrmPolicy>(plan_of(kernel, config)), 0);
}

TEST(XfrmAnswer, TakesAFreeIndexAndKeepsThoseInPlace) {
    FakeKernel kernel = answered();
    XfrmPolicy squatter = mandatory(prefix("10.0.0.0", 8));
    squatter.index = kNovpnPolicyIndex + 8 + XFRM_POLICY_OUT;
    ASSERT_TRUE(kernel.add_policy(squatter));
    EXPECT_FALSE(owned_by_us(squatter)) << "it transforms";
    apply_all(kernel, plan_of(kernel, two_classes()));
    EXPECT_TRUE(plan_of(kernel, two_classes()).empty());
    std::ptrdiff_t ours = std::ranges::count_if(kernel.policies(), owned_by_us);
    EXPECT_EQ(ours, 6);
}

TEST(XfrmAnswer, ReplacesOneOfOursThatIsNotAsDesired) {
    FakeKernel kernel = laptop();
    ASSERT_TRUE(kernel.add_policy(mandatory()));
    XfrmPolicy old{.source = kAny4,
                   .destination = kAny4,
                   .mark = Mark{0x4e000000, 0xff000000},
                   .priority = 78,
                   .index = kNovpnPolicyIndex + XFRM_POLICY_OUT};
    ASSERT_TRUE(kernel.add_policy(old));
    apply_all(kernel, plan_of(kernel));
    EXPECT_TRUE(plan_of(kernel).empty());
    EXPECT_FALSE(std::ranges::count(kernel.policies(), old));
}

TEST(XfrmAnswer, LeavesOneOfSomebodyElseInItsPlace) {
    FakeKernel kernel = laptop();
    ASSERT_TRUE(kernel.add_policy(mandatory()));
    XfrmPolicy by_hand{.source = kAny4, .destination = kAny4, .mark = Mark{0x4e000000, 0xff000000}, .priority = 1};
    ASSERT_TRUE(kernel.add_policy(by_hand));
    Plan plan = plan_of(kernel);
    EXPECT_EQ(count<AddXfrmPolicy>(plan), 2) << "in and fwd";
    EXPECT_EQ(count<DeleteXfrmPolicy>(plan), 0);
    apply_all(kernel, plan);
    EXPECT_EQ(count<DeleteXfrmPolicy>(diff(observe(kernel), {})), 2);
}

TEST(XfrmAnswer, IsRefusedToAMarkThatSomebodyElsesPoliciesHave) {
    FakeKernel kernel = laptop();
    EXPECT_TRUE(conflicts(observe(kernel), {}).empty());
    ASSERT_TRUE(kernel.add_policy({.source = kAny4, .destination = kAny4, .mark = Mark{0x4e000001, 0xffffffff}}));
    auto found = conflicts(observe(kernel), {});
    ASSERT_EQ(found.size(), 1u);
    EXPECT_NE(found.front().find("IPsec policy 'src 0.0.0.0/0"), std::string::npos) << found.front();
    FakeKernel with_ours = answered();
    EXPECT_TRUE(conflicts(observe(with_ours), {}).empty());
}

TEST(XfrmPolicy, OnlyThoseAfterOursArePassable) {
    XfrmPolicy policy = mandatory();
    EXPECT_TRUE(is_passable(policy));
    policy.sub = true;
    EXPECT_FALSE(is_passable(policy)) << "ptype sub is applied besides those of main";
    policy.sub = false;
    policy.priority = 0;
    EXPECT_FALSE(is_passable(policy));
}

TEST(XfrmPolicy, ReadsATemplatedPolicyAndNoSocketsOwn) {
    struct {
        nlmsghdr header{};
        xfrm_userpolicy_info info{};
        nlattr templates_header{};
        xfrm_user_tmpl templates[2]{};
    } message;
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = XFRM_MSG_NEWPOLICY;
    message.info.sel.family = AF_INET;
    message.info.sel.prefixlen_s = 24;
    std::memcpy(&message.info.sel.saddr, "\xc0\xa8\x0a\x32", 4);
    message.info.dir = XFRM_POLICY_OUT;
    message.info.priority = 383616;
    message.info.index = 9;
    message.templates_header.nla_len = sizeof message.templates_header + sizeof message.templates;
    message.templates_header.nla_type = XFRMA_TMPL;
    auto bytes = std::as_bytes(std::span(&message, 1));
    EXPECT_EQ(to_policy(bytes), (XfrmPolicy{.source = prefix("192.168.10.0", 24),
                                            .destination = kAny4,
                                            .priority = 383616,
                                            .index = 9,
                                            .templates = 2}));
    EXPECT_FALSE(to_policy(bytes.first(NLMSG_LENGTH(8))));
    message.info.sel.prefixlen_d = 33;
    EXPECT_FALSE(to_policy(bytes)) << "longer than an address";
    message.info.sel.prefixlen_d = 0;
    message.info.dir = XFRM_POLICY_OUT + 3; // XFRM_POLICY_MAX: of a socket (net/xfrm/xfrm_policy.c)
    EXPECT_FALSE(to_policy(bytes));
    message.info.dir = XFRM_POLICY_OUT;
    message.header.nlmsg_type = XFRM_MSG_DELPOLICY;
    EXPECT_FALSE(to_policy(bytes));
}

} // namespace novpn::test
