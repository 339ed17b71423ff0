// Who resolves the names of a class whose config says `dns: uplink`, and what its programs are made of.
#include "agent/decide.h"
#include "agent/dns.h"
#include "agent/inquiry.h"
#include "agent/plan.h"
#include "rules/redirect_program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

address ip(const char* text) { return boost::asio::ip::make_address(text); }

constexpr IfIndex kWlan{2}, kTunnel{3};
const std::string kRoot = "novpn-4026531840";

/// A laptop at home, with a VPN that has taken over and pushed its name server.
struct Laptop {
    Observed observed;
    Config config;

    Laptop() {
        observed.links = {{.index = kWlan, .name = "wlan0", .up = true, .carrier = true},
                          {.index = kTunnel, .name = "tun0", .kind = "tun", .up = true, .carrier = true}};
        observed.addresses = {{.link = kWlan, .local = ip("192.168.10.50"), .prefix_length = 24},
                              {.link = kTunnel, .local = ip("10.8.0.2"), .prefix_length = 24}};
        observed.routes = {{.table = kMainTable,
                            .destination = any_prefix(Family::ipv4),
                            .metric = 600,
                            .gateway = ip("192.168.10.1"),
                            .link = kWlan},
                           {.table = kMainTable,
                            .destination = {ip("192.168.10.0"), 24},
                            .link = kWlan,
                            .source = ip("192.168.10.50")}};
        observed.name_servers.of_machine = {ip("10.8.0.1")};
        say(ResolverSource::networkd, kWlan, {ip("192.168.10.1")});
        config.classes.front().dns = Dns::uplink;
        take_over();
    }

    void say(ResolverSource from, IfIndex link, std::vector<address> servers) {
        LinkResolvers said{.from = from, .link = link, .servers = std::move(servers)};
        for (const Address& a : observed.addresses)
            if (a.link == link) said.networks.insert(prefix_of(a.local, a.prefix_length));
        observed.name_servers.of_links.push_back(said);
    }
    void forget() { observed.name_servers.of_links.clear(); }
    void take_over(bool taken = true) {
        observed.lookups.clear();
        for (const address& destination : public_destinations()) {
            Route answer{.table = kMainTable, .destination = any_prefix(family_of(destination))};
            answer.link = taken ? kTunnel : kWlan;
            if (destination.is_v4()) observed.lookups.push_back({.destination = destination, .answer = answer});
        }
    }
    void add_ipv6() {
        observed.addresses.push_back({.link = kWlan, .local = ip("2001:db8:a::50"), .prefix_length = 64});
        observed.routes.push_back({.table = kMainTable,
                                   .destination = any_prefix(Family::ipv6),
                                   .metric = 1024,
                                   .gateway = ip("fe80::1"),
                                   .link = kWlan});
    }
    Desired desired() const { return decide(observed, config, {}, kRoot); }
    DnsDecision dns() const { return desired().classes.at("novpn").dns; }
    Resolvers resolvers() const { return desired().redirects.at("novpn").resolvers; }
};

const address kStub = ip("127.0.0.53"), kOtherStub = ip("127.0.0.54");

} // namespace

TEST(DnsByUplink, TheUplinksResolverStandsInForTheMachinesNameServersAndTheStubs) {
    Laptop laptop;
    const Resolvers expected{
        {ip("10.8.0.1"), ip("192.168.10.1")}, {kStub, ip("192.168.10.1")}, {kOtherStub, ip("192.168.10.1")}};
    EXPECT_EQ(laptop.resolvers(), expected);
    EXPECT_EQ(laptop.dns().state, DnsState::uplink);
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.1")));
    EXPECT_EQ(laptop.dns().from, ResolverSource::networkd);
    EXPECT_EQ(laptop.desired().redirects.at("novpn").cgroups, std::set{kRoot + "/novpn"});
    EXPECT_FALSE(laptop.desired().nft.classes.front().dns_by_vpn) << "its own queries leave by the uplink";
    EXPECT_TRUE(laptop.desired().asks_resolvers);
    EXPECT_FALSE(laptop.desired().wants_resolvers);
}

TEST(DnsByUplink, WhatATunnelHasStandsAsideToo) {
    Laptop laptop;
    laptop.say(ResolverSource::resolved, kTunnel, {ip("10.9.0.1")});
    EXPECT_EQ(laptop.resolvers().at(ip("10.9.0.1")), ip("192.168.10.1"));
}

TEST(DnsByUplink, TheBetterSourceIsTaken) {
    Laptop laptop;
    laptop.say(ResolverSource::lease, kWlan, {ip("192.168.10.9")});
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.1")));
    laptop.say(ResolverSource::resolved, kWlan, {ip("fe80::1"), ip("127.0.0.1"), ip("0.0.0.0")});
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.1"))) << "none of those can be redirected to";
    laptop.say(ResolverSource::resolved, kWlan, {ip("fe80::1"), ip("192.168.10.8"), ip("192.168.10.7")});
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.8"), ip("192.168.10.7")));
    EXPECT_EQ(laptop.dns().from, ResolverSource::resolved);
}

TEST(DnsByUplink, SeveralNameServersAreAsManyResolvers) {
    Laptop laptop;
    laptop.forget();
    laptop.say(ResolverSource::lease, kWlan, {ip("192.168.10.1"), ip("192.168.10.2")});
    laptop.observed.name_servers.of_machine = {ip("10.8.0.1"), ip("192.168.10.2"), ip("10.8.0.2"), ip("10.8.0.3")};
    const Resolvers expected{{ip("10.8.0.1"), ip("192.168.10.1")},
                             {ip("10.8.0.2"), ip("192.168.10.2")},
                             {ip("10.8.0.3"), ip("192.168.10.1")},
                             {kStub, ip("192.168.10.1")},
                             {kOtherStub, ip("192.168.10.1")}};
    EXPECT_EQ(laptop.resolvers(), expected) << "and the uplink's own is asked as it is";
}

TEST(DnsByUplink, AResolverHoldsForItsNetworkOnly) {
    Laptop laptop;
    laptop.observed.addresses[0].local = ip("10.20.0.50");
    EXPECT_EQ(laptop.dns().state, DnsState::none) << "the same link in another network";
    laptop = Laptop();
    laptop.observed.name_servers.of_links[0].link = kTunnel;
    EXPECT_EQ(laptop.dns().state, DnsState::none) << "another link";
}

TEST(DnsByUplink, UnderAVpnNobodyIsAskedWhereNobodySaysWho) {
    Laptop laptop;
    laptop.forget();
    const Resolvers refused{{ip("10.8.0.1"), {}}, {kStub, {}}, {kOtherStub, {}}};
    EXPECT_EQ(laptop.resolvers(), refused);
    EXPECT_TRUE(laptop.desired().wants_resolvers);
    laptop.take_over(false);
    EXPECT_EQ(laptop.dns().state, DnsState::machine);
    EXPECT_EQ(laptop.resolvers(), Resolvers{}) << "without a VPN the machine's are the uplink's";
    EXPECT_TRUE(laptop.desired().wants_resolvers);
}

TEST(DnsByUplink, WhatResolvConfNamedBeforeTheVpnIsRemembered) {
    Laptop laptop;
    laptop.forget();
    laptop.take_over(false);
    laptop.observed.links[1].up = false;
    laptop.observed.name_servers.of_machine = {ip("127.0.0.1"), ip("192.168.10.7")};
    const Memory before = laptop.desired().memory;
    EXPECT_EQ(laptop.dns().state, DnsState::uplink);
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.7")));
    EXPECT_EQ(laptop.dns().from, ResolverSource::resolv_conf);

    // The VPN's client names its server before it takes over, and leaves that behind for a moment.
    laptop.observed.links[1].up = true;
    laptop.observed.name_servers.of_machine = {ip("10.8.0.1")};
    const Desired with_vpn = decide(laptop.observed, laptop.config, before, kRoot);
    EXPECT_THAT(with_vpn.classes.at("novpn").dns.servers, ElementsAre(ip("192.168.10.7")));
    laptop.observed.links[1].up = false;
    const Desired after = decide(laptop.observed, laptop.config, with_vpn.memory, kRoot);
    EXPECT_THAT(after.classes.at("novpn").dns.servers, ElementsAre(ip("192.168.10.7")));

    laptop.observed.name_servers.of_machine = {ip("192.168.10.8")};
    const Desired renewed = decide(laptop.observed, laptop.config, after.memory, kRoot);
    EXPECT_THAT(renewed.classes.at("novpn").dns.servers, ElementsAre(ip("192.168.10.8")));
    laptop.observed.addresses[0].local = ip("10.20.0.50");
    laptop.observed.name_servers.of_machine = {ip("10.8.0.1")};
    laptop.observed.links[1].up = true;
    laptop.take_over();
    EXPECT_EQ(decide(laptop.observed, laptop.config, renewed.memory, kRoot).classes.at("novpn").dns.state,
              DnsState::none)
        << "it was another network's";
    laptop = Laptop();
    laptop.say(ResolverSource::lease, kWlan, {ip("192.168.10.1")});
    EXPECT_EQ(decide(laptop.observed, laptop.config, before, kRoot).classes.at("novpn").dns.from,
              ResolverSource::networkd)
        << "a source is better";
}

TEST(DnsByUplink, TheOtherFamilyIsRefusedWhereItHasNoResolver) {
    Laptop laptop;
    laptop.observed.name_servers.of_machine = {ip("2001:db8:8::1"), ip("10.8.0.1")};
    EXPECT_EQ(laptop.resolvers().at(ip("2001:db8:8::1")), std::nullopt);
    EXPECT_EQ(laptop.resolvers().at(ip("10.8.0.1")), ip("192.168.10.1"));
    laptop.observed.name_servers.of_machine = {ip("2001:db8:8::1")};
    EXPECT_EQ(laptop.dns().state, DnsState::none) << "programs ask no other";
    laptop.add_ipv6();
    laptop.forget();
    laptop.say(ResolverSource::networkd, kWlan, {ip("192.168.10.1"), ip("2001:db8:a::1")});
    EXPECT_EQ(laptop.resolvers().at(ip("2001:db8:8::1")), ip("2001:db8:a::1"));
    EXPECT_THAT(laptop.dns().servers, ElementsAre(ip("192.168.10.1"), ip("2001:db8:a::1")));
}

TEST(DnsByUplink, WithoutBpfItIsTheVpns) {
    Laptop laptop;
    laptop.observed.redirects.unavailable = "no BPF";
    EXPECT_THAT(laptop.desired().redirects, IsEmpty());
    EXPECT_EQ(laptop.dns(), DnsDecision{});
    EXPECT_TRUE(laptop.desired().nft.classes.front().dns_by_vpn);
    laptop = Laptop();
    laptop.config.marking = Marking::nft;
    EXPECT_THAT(laptop.desired().redirects, IsEmpty());
    laptop = Laptop();
    laptop.config.classes.front().dns = Dns::vpn;
    EXPECT_THAT(laptop.desired().redirects, IsEmpty());
    EXPECT_FALSE(laptop.desired().asks_resolvers);
    laptop = Laptop();
    laptop.config.classes.front().enabled = false;
    EXPECT_THAT(laptop.desired().redirects, IsEmpty());
}

TEST(DnsByUplink, AClassThatGoesWithTheRestResolvesWithTheRest) {
    Laptop laptop;
    laptop.observed.routes.clear();
    laptop.config.classes.front().when_no_uplink = WhenNoUplink::tunnel;
    EXPECT_EQ(laptop.desired().classes.at("novpn").state, ClassState::tunnel);
    EXPECT_EQ(laptop.resolvers(), Resolvers{});
}

TEST(DnsByUplink, AClassOfATunnelAsksThatTunnels) {
    Laptop laptop;
    laptop.config.classes.front().via = "tun*";
    laptop.say(ResolverSource::resolved, kTunnel, {ip("10.8.0.9")});
    EXPECT_EQ(laptop.resolvers().at(kStub), ip("10.8.0.9"));
}

TEST(DnsByUplink, OfMoreNameServersThanTheMapHoldsTheMachinesOwnAreServed) {
    Laptop laptop;
    laptop.observed.name_servers.of_machine.clear();
    for (int i = 1; i <= 40; ++i)
        laptop.observed.name_servers.of_machine.push_back(ip(("10.8.1." + std::to_string(i)).c_str()));
    const Resolvers resolvers = laptop.resolvers();
    EXPECT_EQ(resolvers.size(), 32u);
    EXPECT_TRUE(resolvers.contains(ip("10.8.1.1")));
    EXPECT_FALSE(resolvers.contains(ip("10.8.1.40")));
}

TEST(DnsByUplink, NobodyIsToldByAServerThatNoneCanBeRedirectedTo) {
    Laptop laptop;
    for (const char* server : {"127.0.0.1", "0.0.0.0", "224.0.0.251", "::1", "fe80::1", "ff02::fb"}) {
        laptop.forget();
        laptop.say(ResolverSource::networkd, kWlan, {ip(server)});
        EXPECT_EQ(laptop.dns().state, DnsState::none) << server;
    }
}

TEST(DnsByUplink, NameServersOfALinkThatIsGoneOrNoTunnelAreNotRedirected) {
    Laptop laptop;
    laptop.say(ResolverSource::resolved, IfIndex{99}, {ip("10.9.0.1")});
    EXPECT_FALSE(laptop.resolvers().contains(ip("10.9.0.1")));
    laptop.observed.links.push_back({.index = IfIndex{99}, .name = "eth9"});
    EXPECT_FALSE(laptop.resolvers().contains(ip("10.9.0.1")));
    laptop.observed.links.back().kind = "tun";
    EXPECT_TRUE(laptop.resolvers().contains(ip("10.9.0.1")));
}

TEST(DnsByUplink, ResolvConfIsRememberedForItsDomainAloneToo) {
    Laptop laptop;
    laptop.forget();
    laptop.take_over(false);
    laptop.observed.links[1].up = false;
    laptop.observed.addresses.push_back({.link = kWlan, .local = ip("fe80::50"), .prefix_length = 64});
    laptop.observed.name_servers.of_machine = {kStub};
    EXPECT_FALSE(laptop.desired().memory.resolvers) << "it says nothing";
    laptop.observed.name_servers.domains_of_machine = {"home.example"};
    const auto remembered = laptop.desired().memory.resolvers;
    ASSERT_TRUE(remembered);
    EXPECT_THAT(remembered->domains, ElementsAre("home.example"));
    EXPECT_EQ(remembered->networks, (std::set<Prefix>{{ip("192.168.10.0"), 24}})) << "every link has fe80::/64";
}

TEST(DnsByUplink, WhatNetworkManagerSaidGoesOnInTheSameNetworks) {
    const auto said = [](ResolverSource from, IfIndex link) {
        return LinkResolvers{
            .from = from, .link = link, .servers = {ip("192.168.10.1")}, .networks = {{ip("192.168.10.0"), 24}}};
    };
    const LinkResolvers networkmanagers = said(ResolverSource::networkmanager, kWlan);
    NameServers before{.of_links = {networkmanagers, said(ResolverSource::resolved, kWlan),
                                    said(ResolverSource::networkmanager, kTunnel)}};
    NameServers now{.networks = {{kWlan, {ip("192.168.10.0"), 24}}, {kWlan, {ip("fe80::"), 64}}}};
    keep_networkmanagers(now, before);
    EXPECT_THAT(now.of_links, ElementsAre(networkmanagers)) << "others have answered for themselves";
    now.of_links.front().servers = {ip("192.168.10.2")};
    const std::vector<LinkResolvers> of_now = now.of_links;
    keep_networkmanagers(now, before);
    EXPECT_EQ(now.of_links, of_now) << "it has spoken of this one";
    before.of_links.front().networks.insert({ip("2001:db8:a::"), 64});
    now.of_links.clear();
    keep_networkmanagers(now, before);
    EXPECT_THAT(now.of_links, IsEmpty()) << "it may be another network with the same addresses";
    before.of_links.front().networks.clear();
    keep_networkmanagers(now, before);
    EXPECT_THAT(now.of_links, IsEmpty()) << "of a link that was in none";
}

TEST(DnsState, HasAWordForEach) {
    EXPECT_EQ(to_string(DnsState::vpn), "vpn");
    EXPECT_EQ(to_string(DnsState::machine), "machine");
    EXPECT_EQ(to_string(DnsState::uplink), "uplink");
    EXPECT_EQ(to_string(DnsState::none), "none");
    EXPECT_EQ(to_string(ResolverSource::networkd), "networkd");
    EXPECT_EQ(to_string(ResolverSource::resolv_conf), "resolv_conf");
}

TEST(DnsByUplink, AnotherResolverIsOneOperation) {
    Laptop laptop;
    Observed there = laptop.observed;
    const Desired before = laptop.desired();
    there.redirects.classes["novpn"] = {.program = redirect_program_of(before.redirects.at("novpn").mark),
                                        .resolvers = before.redirects.at("novpn").resolvers,
                                        .cgroups = before.redirects.at("novpn").cgroups};
    auto operations = [&](const Desired& desired) {
        Plan plan = diff(there, desired);
        std::erase_if(plan, [](const Operation& operation) {
            return !std::holds_alternative<SetResolvers>(operation) &&
                   !std::holds_alternative<PinRedirect>(operation) &&
                   !std::holds_alternative<AttachRedirect>(operation) &&
                   !std::holds_alternative<DetachRedirect>(operation) &&
                   !std::holds_alternative<UnpinRedirect>(operation);
        });
        return plan;
    };
    EXPECT_THAT(operations(before), IsEmpty());
    laptop.forget();
    laptop.say(ResolverSource::networkd, kWlan, {ip("192.168.10.2")});
    const Desired after = laptop.desired();
    EXPECT_THAT(operations(after),
                ElementsAre(Operation(SetResolvers{"novpn", after.redirects.at("novpn").resolvers})));
    EXPECT_EQ(to_string(operations(after)[0], there),
              "bpftool map update pinned /novpn-resolvers # 10.8.0.1 by 192.168.10.2, 127.0.0.53 by 192.168.10.2, "
              "127.0.0.54 by 192.168.10.2");
    there.redirects.classes["novpn"].program.clear(); // something of it is gone
    EXPECT_THAT(operations(after),
                ElementsAre(Operation(DetachRedirect{"novpn", kRoot + "/novpn"}), Operation(UnpinRedirect{"novpn"}),
                            Operation(PinRedirect{"novpn", {0x4e000000, 0xff000000}}),
                            Operation(SetResolvers{"novpn", after.redirects.at("novpn").resolvers}),
                            Operation(AttachRedirect{"novpn", kRoot + "/novpn"})));
}

TEST(DnsByUplink, TheSourcesAreAskedAgainWithEachChange) {
    using namespace std::chrono_literals;
    const Clock::time_point now{1000s};
    Laptop laptop;
    Inquiry inquiry;
    EXPECT_TRUE(inquiry.ask_at(now, laptop.observed, laptop.desired()));
    EXPECT_FALSE(inquiry.ask_at(now + 1h, laptop.observed, laptop.desired())) << "it is known";
    laptop.observed.addresses[0].local = ip("192.168.10.51");
    EXPECT_TRUE(inquiry.ask_at(now + 1h, laptop.observed, laptop.desired()));
    laptop.forget();
    EXPECT_FALSE(inquiry.ask_at(now + 1h, laptop.observed, laptop.desired()));
    EXPECT_TRUE(inquiry.ask_at(now + 1h + 1s, laptop.observed, laptop.desired())) << "nobody has said";
}

TEST(RedirectProgram, IsAnotherForEachMarkAndNoOtherForItsMaps) {
    EXPECT_NE(redirect_program_of({0x4e000000, 0xff000000}), redirect_program_of({0x4f000000, 0xff000000}));
    EXPECT_NE(redirect_program_of({0x4e000000, 0xff000000}), redirect_program_of({0x4e000000, 0xfff00000}));
    EXPECT_EQ(redirect_program_of({0x4e000000, 0xff000000}).size(), 15u) << "what the kernel keeps of a name";
    EXPECT_THAT(redirect_hooks(), ElementsAre("connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6",
                                              "getpeername4", "getpeername6"));
}

/// The kernel takes no jump out of a program, and no program that ends without an exit.
TEST(RedirectProgram, EveryJumpStaysInside) {
    for (const RedirectHook& hook : kRedirectHooks) {
        const auto instructions = instructions_of(hook, {0x4e000000, 0xff000000}, 5, 6);
        for (std::size_t at = 0; at < instructions.size(); ++at) {
            const bpf_insn& one = instructions[at];
            const int kind = BPF_CLASS(one.code);
            if ((kind != BPF_JMP && kind != BPF_JMP32) || BPF_OP(one.code) == BPF_CALL || BPF_OP(one.code) == BPF_EXIT)
                continue;
            const std::size_t to = at + 1 + static_cast<std::size_t>(one.off);
            ASSERT_GT(one.off, 0) << hook.word;
            ASSERT_LT(to, instructions.size()) << hook.word;
            EXPECT_EQ(instructions[to].code, BPF_ALU64 | BPF_MOV | BPF_K) << hook.word << ": to an answer";
        }
        EXPECT_EQ(instructions.back().code, BPF_JMP | BPF_EXIT);
    }
}

} // namespace novpn::test
