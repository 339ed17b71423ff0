// Nft against the kernel, with real packets, in network namespaces of its own. Needs root.
#include "rules/cgroup.h"
#include "rules/nft.h"
#include "rules/nft_probe.h"
#include "tests/netns/two_networks.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <memory>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace novpn {
namespace {

using test::run;
using test::Socket;

constexpr Mark kMark{.value = 0x4e000000, .mask = 0xff000000};

class NftTest : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        networks = std::make_unique<test::TwoNetworks>();
        tree = std::make_unique<CgroupTree>(CgroupTree::find().value());
        // The nft tool looks for cgroups here, whatever the mount; this mount namespace is the test's own.
        if (tree->mount() != "/sys/fs/cgroup") {
            ASSERT_EQ(mount(tree->mount().c_str(), "/sys/fs/cgroup", nullptr, MS_BIND, nullptr), 0);
            tree = std::make_unique<CgroupTree>("/sys/fs/cgroup");
        }
        root = cgroup_root_of_this_netns().value();
        members = root + "/novpn";
        ASSERT_TRUE(tree->create(members));
        home = CgroupTree::of(getpid()).value();
    }

    static void TearDownTestSuite() {
        if (tree) {
            EXPECT_TRUE(tree->remove(members));
        }
        tree.reset();
        networks.reset();
    }

    void SetUp() override {
        ASSERT_TRUE(nft.remove());
        // Counts marked packets beside the agent's table.
        run("nft -f - <<'EOF'\n"
            "table inet test { }\n"
            "delete table inet test\n"
            "table inet test {\n"
            "  counter marked_in { }\n"
            "  counter marked_out { }\n"
            "  counter marked_service { }\n"
            "  counter with_other_bits { }\n"
            "  counter without_other_bits { }\n"
            "  chain before { type filter hook output priority -160;\n"
            "    meta mark 0x123 ct mark 0 ct mark set 0x5; }\n"
            "  chain in { type filter hook prerouting priority 0;\n"
            "    meta mark & 0xff000000 == 0x4e000000 counter name marked_in\n"
            "    th dport 4000 meta mark != 0 counter name marked_service\n"
            "    th dport 4000 ct mark != 0 counter name marked_service; }\n"
            "  chain out { type filter hook postrouting priority 0;\n"
            "    meta mark & 0xff000000 == 0x4e000000 counter name marked_out\n"
            "    th sport 4000 meta mark != 0 counter name marked_service\n"
            "    th sport 4000 ct mark != 0 counter name marked_service\n"
            "    meta mark 0x4e000123 ct mark 0x4e000005 counter name with_other_bits return\n"
            "    meta mark & 0x123 == 0x123 counter name without_other_bits; }\n"
            "}\n"
            "EOF");
    }

    static IfIndex uplink() { return {if_nametoindex(test::kUplinkName)}; }

    static NftTable table() {
        return {.classes = {ClassMarking{.name = "novpn",
                                         .mark = kMark,
                                         .dns_by_vpn = true,
                                         .guarded = true,
                                         .cgroups = {members},
                                         .links = {uplink()}}}};
    }

    static MemberElement member(const std::string& path, const std::string& class_name = "novpn") {
        return {.class_name = class_name, .level = cgroup_level(path), .cgroup_id = tree->id(path).value()};
    }

    void replace(const NftTable& with) {
        std::set<MemberElement> all;
        for (const ClassMarking& c : with.classes)
            for (const std::string& path : c.cgroups) all.insert(member(path, c.name));
        const auto done = nft.replace(with, all);
        ASSERT_TRUE(done) << to_string(done.error());
    }

    /// A socket keeps the cgroup that it is born in.
    static Socket member_socket(const std::string& address, int type, const std::string& cgroup = members) {
        EXPECT_TRUE(tree->move(cgroup, getpid()));
        Socket made(address, type);
        EXPECT_TRUE(tree->move(home, getpid()));
        return made;
    }

    /// The address by which the server sees `socket`; empty when no answer came.
    static std::string seen(const Socket& socket, const std::string& server, std::uint16_t port = test::kEchoPort) {
        return socket.connect(server, port) == 0 ? socket.ask() : std::string();
    }

    PacketCounts counts(const std::string& class_name = "novpn") { return nft.counters().value()[class_name]; }

    static unsigned long test_counter(const std::string& name) {
        const std::string listed = run("nft list counter inet test " + name);
        return std::stoul(listed.substr(listed.find("packets ") + 8));
    }

    ObservedNft observed() { return nft.observe().value(); }

    /// What is there is what the nft tool makes of the text of `table`.
    static void expect_the_same_by_text(const NftTable& table) {
        const std::string made = run("nft list table inet novpn");
        const std::vector<Link> links{{.index = uplink(), .name = test::kUplinkName, .kind = {}, .master = {}}};
        char file[] = "/tmp/novpn-nft-test-XXXXXX";
        close(mkstemp(file));
        std::ofstream(file) << to_nft(table, LinkNames{&links});
        run(std::string("nft -f ") + file);
        unlink(file);
        // The tool lists objects in the order of their making, which is not the text's.
        const auto lines = [](const std::string& text) {
            std::istringstream all(text);
            std::multiset<std::string> set;
            for (std::string line; std::getline(all, line);) set.insert(line);
            return set;
        };
        EXPECT_EQ(lines(made), lines(run("nft list table inet novpn")));
    }

    Nft nft = Nft::open().value();

    static inline std::unique_ptr<test::TwoNetworks> networks;
    static inline std::unique_ptr<CgroupTree> tree;
    static inline std::string root;
    static inline std::string members;
    static inline std::string home;
};

TEST_F(NftTest, ObservesNothingWhereThereIsNoTable) { EXPECT_EQ(observed(), ObservedNft{}); }

TEST_F(NftTest, ObservesWhatItReplaced) {
    replace(table());
    const ObservedNft want{.present = true,
                           .intact = true,
                           .structure = structure_of(table()),
                           .follows = true,
                           .members = {member(members)},
                           .links = {{.class_name = "novpn", .link = uplink()}}};
    EXPECT_EQ(observed(), want);
    EXPECT_EQ(Nft::open().value().observe().value(), want) << "another agent adopts it";
}

TEST_F(NftTest, ReplaceMakesWhatItsTextSays) {
    // Two of one mask, which a map tells apart, and one of another.
    NftTable three = table();
    three.classes.push_back({.name = "games",
                             .mark = {.value = 0x12, .mask = 0xffffff},
                             .dns_by_vpn = false,
                             .guarded = false,
                             .cgroups = {root},
                             .links = {}});
    three.classes.push_back({.name = "work", .mark = {.value = 0x01000000, .mask = kMark.mask}});
    three.answers_early = true;
    replace(three);
    expect_the_same_by_text(three);
    const ObservedNft by_text = observed();
    EXPECT_TRUE(by_text.intact);
    EXPECT_EQ(by_text.structure, structure_of(three));
    EXPECT_EQ(by_text.members, (std::set{member(members), member(root, "games")}));
}

TEST_F(NftTest, AnIdleTableFollowsNoConnection) {
    NftTable idle = table();
    idle.classes.front().cgroups.clear();
    idle.idle = true;
    ASSERT_TRUE(nft.replace(idle, {}));
    const std::string made = run("nft list table inet novpn");
    for (const char* word : {"ct ", "nat hook"}) EXPECT_EQ(made.find(word), std::string::npos) << made;
    expect_the_same_by_text(idle);
    EXPECT_TRUE(observed().intact);
    EXPECT_FALSE(observed().follows);
    EXPECT_EQ(observed().structure, structure_of(idle));
}

TEST_F(NftTest, IsNotIntactAfterAnyForeignChange) {
    for (const std::string& change : std::vector<std::string>{
             "flush chain inet novpn output",
             "add rule inet novpn output accept",
             "insert rule inet novpn output accept comment '\"a flow keeps the path it began on\"'",
             "add chain inet novpn other",
             "add chain inet novpn output '{ policy drop; }'",
             "add set inet novpn other '{ type iface_index; }'",
             "add counter inet novpn other",
             "add table inet novpn '{ flags dormant; }'",
             "add element inet novpn cgroup_level_2 '{ \"" + root + "\" : accept }'",
         }) {
        ASSERT_TRUE(nft.remove());
        replace(table());
        ASSERT_TRUE(observed().intact);
        run("nft " + change);
        EXPECT_TRUE(observed().present);
        EXPECT_FALSE(observed().intact) << change;
    }
    run("nft flush ruleset");
    EXPECT_FALSE(observed().present);
}

TEST_F(NftTest, IsNotIntactWithoutOneOfItsRules) {
    replace(table());
    const std::string listed = run("nft -a list chain inet novpn prerouting");
    const std::string handle = listed.substr(listed.find("handle", listed.find("replies to novpn")));
    run("nft delete rule inet novpn prerouting " + handle.substr(0, handle.find('\n')));
    EXPECT_FALSE(observed().intact);
}

TEST_F(NftTest, ATableOfAnotherProgramWithOurNameIsNotIntact) {
    run("nft add table inet novpn");
    EXPECT_EQ(observed(), (ObservedNft{.present = true, .intact = false, .structure = "", .members = {}, .links = {}}));
}

TEST_F(NftTest, AddsAndRemovesElements) {
    replace(table());
    const MemberElement other = {.class_name = "novpn", .level = 2, .cgroup_id = 123456789};
    const LinkElement link = {.class_name = "novpn", .link = IfIndex{77}};
    for (int twice = 0; twice < 2; ++twice) {
        ASSERT_TRUE(nft.add(other));
        ASSERT_TRUE(nft.add(link));
        EXPECT_EQ(observed().members, (std::set{member(members), other}));
        EXPECT_TRUE(observed().links.contains(link));
    }
    for (int twice = 0; twice < 2; ++twice) {
        ASSERT_TRUE(nft.remove(other));
        ASSERT_TRUE(nft.remove(link));
    }
    EXPECT_EQ(observed().members, std::set{member(members)});
    EXPECT_EQ(observed().links, (std::set{LinkElement{.class_name = "novpn", .link = uplink()}}));
    EXPECT_TRUE(observed().intact);
}

TEST_F(NftTest, AddingToALevelWithoutAMapSaysWhatItWasDoing) {
    replace(table());
    const auto done = nft.add(MemberElement{.class_name = "novpn", .level = 5, .cgroup_id = 7});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, std::errc::no_such_file_or_directory);
    EXPECT_EQ(done.error().doing, "adding cgroup 7 of map cgroup_level_5");
}

TEST_F(NftTest, HoldsAThousandMembers) {
    std::set<MemberElement> many;
    for (std::uint64_t id = 1; id <= 1000; ++id) many.insert({.class_name = "novpn", .level = 2, .cgroup_id = id});
    ASSERT_TRUE(nft.replace(table(), many));
    EXPECT_EQ(observed().members, many);
}

TEST_F(NftTest, ARefusedReplaceLeavesTheTableAsItWas) {
    replace(table());
    const ObservedNft before = observed();
    NftTable bad = table();
    bad.classes.push_back(bad.classes.front()); // the same names twice
    const auto done = nft.replace(bad, {});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, std::errc::file_exists);
    EXPECT_EQ(done.error().doing, "replacing nft table inet novpn");
    EXPECT_EQ(observed(), before);
}

TEST_F(NftTest, LeavesOtherTablesAlone) {
    const std::string before = run("nft list table inet test");
    replace(table());
    replace(table());
    ASSERT_TRUE(nft.remove());
    ASSERT_TRUE(nft.remove()) << "an absent table is not an error";
    EXPECT_EQ(run("nft list table inet test"), before);
    EXPECT_FALSE(observed().present);
}

bool readable(const NftMonitor& monitor) {
    pollfd polled{.fd = monitor.fd(), .events = POLLIN, .revents = 0};
    return poll(&polled, 1, 0) == 1;
}

TEST_F(NftTest, ProbeAcceptsThisKernelAndChangesNothing) {
    const std::string before = run("nft list ruleset");
    const NftMonitor monitor = NftMonitor::open().value();
    const auto done = nft.probe();
    EXPECT_TRUE(done) << to_string(done.error());
    EXPECT_FALSE(readable(monitor)) << "nobody is notified";
    EXPECT_EQ(run("nft list ruleset"), before);
}

TEST_F(NftTest, ProbeNamesWhatTheKernelLacks) {
    auto socket = nft::Socket::open().value();
    const auto detail_without = [&](const std::string& chain, std::size_t rule, std::size_t expr) {
        // An expression with a key that no kernel knows fails as the whole expression does where it is not built.
        nft::Structure wanting = nft::everything();
        for (nft::Rule& r : wanting.rules) {
            if (r.chain != chain || rule-- != 0) continue;
            r.exprs[expr].attributes.front().second = std::uint32_t{0x7fff};
        }
        const auto done = nft::probe(socket, wanting);
        return done ? std::string("accepted") : done.error().detail;
    };
    EXPECT_EQ(detail_without("output", 0, 0), "NFT_CT, NF_CONNTRACK_MARK: ct mark");
    EXPECT_EQ(detail_without("output", 5, 0), "NFT_SOCKET, SOCK_CGROUP_DATA: socket cgroupv2, Linux 5.13");
    EXPECT_EQ(detail_without("output", 4, 0), "NFT_FIB_INET: fib");

    EXPECT_EQ(detail_without("guard", 0, 0), "NF_TABLES: meta");
    nft::Structure wanting = nft::everything();
    std::ranges::find(wanting.chains, "guard", &nft::Chain::name)->hook->type = "no_such";
    EXPECT_EQ(nft::probe(socket, wanting).error().detail, "NF_TABLES_INET: no_such chain in an inet table");
}

TEST_F(NftTest, MonitorSeesOthersChangesToOurTableOnly) {
    NftMonitor monitor = NftMonitor::open().value();
    replace(table());
    ASSERT_TRUE(nft.add(LinkElement{.class_name = "novpn", .link = IfIndex{77}}));
    EXPECT_TRUE(readable(monitor));
    EXPECT_FALSE(monitor.drain(nft)) << "our own";
    run("nft add chain inet test other");
    EXPECT_FALSE(monitor.drain(nft)) << "another table";
    run("nft add table ip novpn");
    EXPECT_FALSE(monitor.drain(nft)) << "another family";
    run("nft add rule inet novpn output accept");
    EXPECT_TRUE(monitor.drain(nft));
    EXPECT_FALSE(monitor.drain(nft)) << "nothing new";
    run("nft delete element inet novpn links_novpn '{ 77 }'");
    EXPECT_TRUE(monitor.drain(nft));
    run("nft delete table inet novpn");
    EXPECT_TRUE(monitor.drain(nft));
    replace(table());
    EXPECT_FALSE(monitor.drain(nft));
    run("nft flush ruleset");
    EXPECT_TRUE(monitor.drain(nft));
}

TEST_F(NftTest, MonitorTakesAnOverrunForAChange) {
    NftMonitor monitor = NftMonitor::open().value();
    const int small = 1;
    ASSERT_EQ(setsockopt(monitor.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    std::string storm;
    for (int i = 0; i < 200; ++i) storm += "add chain inet test c" + std::to_string(i) + "; ";
    run("nft '" + storm + "'");
    EXPECT_TRUE(monitor.drain(nft));
    EXPECT_FALSE(monitor.drain(nft));
}

struct Path {
    const char* name;
    const char* server;
    const char* uplink;
    const char* tunnel;
    int type;
};

class NftPath : public NftTest, public testing::WithParamInterface<Path> {};

INSTANTIATE_TEST_SUITE_P(All, NftPath,
                         testing::Values(Path{"tcp4", test::kServer4, test::kUplink4, test::kTunnel4, SOCK_STREAM},
                                         Path{"udp4", test::kServer4, test::kUplink4, test::kTunnel4, SOCK_DGRAM},
                                         Path{"tcp6", test::kServer6, test::kUplink6, test::kTunnel6, SOCK_STREAM},
                                         Path{"udp6", test::kServer6, test::kUplink6, test::kTunnel6, SOCK_DGRAM}),
                         [](const auto& param) { return param.param.name; });

TEST_P(NftPath, MemberLeavesByTheUplinkWithItsAddressAndOthersDoNot) {
    const Path& path = GetParam();
    replace(table());
    run("ip neigh flush dev up0; ip -6 neigh flush dev up0"); // the guard lets neighbour discovery pass
    const Socket socket = member_socket(path.server, path.type);
    EXPECT_EQ(seen(socket, path.server), path.uplink);
    EXPECT_EQ(socket.ask(), path.uplink);
    EXPECT_EQ(counts(), (PacketCounts{.marked = 1, .masqueraded = 1, .dropped = 0})) << "a flow counts once";
    EXPECT_GE(test_counter("marked_in"), 1U) << "replies carry the mark";
    EXPECT_EQ(seen(Socket(path.server, path.type), path.server), path.tunnel);
    EXPECT_EQ(counts().marked, 1U);
}

TEST_P(NftPath, MembersDnsTakesTheOrdinaryPathUnlessItShallNot) {
    const Path& path = GetParam();
    NftTable with = table();
    replace(with);
    EXPECT_EQ(seen(member_socket(path.server, path.type), path.server, test::kDnsPort), path.tunnel);
    EXPECT_EQ(counts(), PacketCounts{});
    with.classes.front().dns_by_vpn = false;
    replace(with);
    EXPECT_EQ(seen(member_socket(path.server, path.type), path.server, test::kDnsPort), path.uplink);
}

TEST_P(NftPath, GuardDropsAndCountsWhatLeavesByAnotherLink) {
    const Path& path = GetParam();
    NftTable with = table();
    with.classes.front().links = {};
    replace(with);
    EXPECT_EQ(seen(member_socket(path.server, path.type), path.server), "");
    EXPECT_GE(counts().dropped, 1U);
    EXPECT_EQ(test_counter("marked_out"), 0U);
    ASSERT_TRUE(nft.add(LinkElement{.class_name = "novpn", .link = uplink()}));
    EXPECT_EQ(seen(member_socket(path.server, path.type), path.server), path.uplink);
}

TEST_P(NftPath, WithoutAGuardNothingIsDropped) {
    const Path& path = GetParam();
    NftTable with = table();
    with.classes.front().guarded = false;
    with.classes.front().links = {};
    replace(with);
    EXPECT_EQ(seen(member_socket(path.server, path.type), path.server), path.uplink);
}

TEST_P(NftPath, AnUnsolicitedPacketAndItsAnswerAreNeverMarked) {
    const Path& path = GetParam();
    replace(table());
    const Socket service = member_socket(path.uplink, path.type);
    service.bind(path.uplink, 4000);
    if (path.type == SOCK_STREAM) service.listen();
    const Socket client = networks->internet_socket(path.uplink, path.type);
    ASSERT_EQ(client.connect(path.uplink, 4000), 0); // a stream's SYN-ACK came back
    if (path.type == SOCK_DGRAM) {
        ASSERT_EQ(send(client.fd(), "hello", 5, 0), 5);
        sockaddr_storage from{};
        socklen_t size = sizeof from;
        char question[8];
        ASSERT_EQ(recvfrom(service.fd(), question, sizeof question, 0, reinterpret_cast<sockaddr*>(&from), &size), 5);
        ASSERT_EQ(sendto(service.fd(), "back", 4, 0, reinterpret_cast<sockaddr*>(&from), size), 4);
        EXPECT_EQ(recv(client.fd(), question, sizeof question, 0), 4);
    }
    EXPECT_EQ(counts(), PacketCounts{});
    EXPECT_EQ(test_counter("marked_service"), 0U);
}

TEST_P(NftPath, AFlowKeepsThePathItBeganOn) {
    const Path& path = GetParam();
    const Socket before = member_socket(path.server, path.type);
    ASSERT_EQ(seen(before, path.server), path.tunnel);
    replace(table());
    EXPECT_EQ(before.ask(), path.tunnel) << "from before the table";
    const Socket inside = member_socket(path.server, path.type);
    ASSERT_EQ(seen(inside, path.server), path.uplink);
    replace(table());
    EXPECT_EQ(inside.ask(), path.uplink) << "through a new table";
    ASSERT_TRUE(nft.remove(member(members)));
    EXPECT_EQ(inside.ask(), path.uplink) << "after its cgroup left the class";
}

TEST_P(NftPath, OtherBitsOfMarkAndCtMarkSurvive) {
    const Path& path = GetParam();
    replace(table());
    const Socket socket = member_socket(path.server, path.type);
    socket.set_mark(0x123);
    EXPECT_EQ(seen(socket, path.server), path.uplink);
    EXPECT_EQ(socket.ask(), path.uplink);
    EXPECT_GE(test_counter("with_other_bits"), 2U);
    EXPECT_EQ(test_counter("without_other_bits"), 0U);
}

TEST_P(NftPath, AMemberReachesThisMachineUnmarked) {
    const Path& path = GetParam();
    NftTable with = table();
    with.classes.front().links = {}; // the guard would drop it
    replace(with);
    for (const std::string address :
         {std::string(path.server) == test::kServer4 ? "127.0.0.1" : "::1", path.tunnel, path.uplink}) {
        const Socket service(address, path.type);
        service.bind(address, 4001);
        if (path.type == SOCK_STREAM) service.listen();
        const Socket client = member_socket(address, path.type);
        ASSERT_EQ(client.connect(address, 4001), 0) << address;
        if (path.type == SOCK_STREAM) continue;
        ASSERT_EQ(send(client.fd(), "hello", 5, 0), 5);
        char question[8];
        EXPECT_EQ(recv(service.fd(), question, sizeof question, 0), 5) << address;
    }
    EXPECT_EQ(counts(), PacketCounts{});
}

TEST_F(NftTest, AStreamThatConnectionTrackingForgotIsDropped) {
    // Nothing else tracks connections here: to the kernel the stream's next packet begins a flow
    // (nf_conntrack_tcp_loose).
    run("nft delete table inet test");
    const Socket stream4 = member_socket(test::kServer4, SOCK_STREAM);
    const Socket stream6 = member_socket(test::kServer6, SOCK_STREAM);
    ASSERT_EQ(seen(stream4, test::kServer4), test::kTunnel4);
    ASSERT_EQ(seen(stream6, test::kServer6), test::kTunnel6);
    replace(table());
    EXPECT_NE(stream4.ask(), test::kTunnel4);
    EXPECT_NE(stream6.ask(), test::kTunnel6);
    EXPECT_EQ(counts().marked, 0u);
    EXPECT_GE(counts().dropped, 2u);
}

TEST_F(NftTest, TheEndOfAStreamThatConnectionTrackingForgotIsDropped) {
    run("nft delete table inet test");
    std::vector<Socket> streams;
    for (const auto& [server, tunnel] :
         {std::pair{test::kServer4, test::kTunnel4}, std::pair{test::kServer6, test::kTunnel6}}) {
        for (int i = 0; i < 2; ++i) {
            streams.push_back(member_socket(server, SOCK_STREAM));
            ASSERT_EQ(seen(streams.back(), server), tunnel);
        }
    }
    replace(table());
    for (unsigned done = 0; !streams.empty(); done += 2) {
        const linger at_once{.l_onoff = 1, .l_linger = 0};
        ASSERT_EQ(setsockopt(streams.back().fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
        streams.pop_back();
        EXPECT_GE(counts().dropped, done + 1) << "RST";
        ASSERT_EQ(shutdown(streams.back().fd(), SHUT_WR), 0);
        EXPECT_GE(counts().dropped, done + 2) << "FIN";
        streams.pop_back();
    }
    EXPECT_EQ(counts().marked, 0U);
}

TEST_F(NftTest, AnUntrackedFlowIsNotMarked) {
    // It could not be masqueraded either.
    run("nft 'add chain inet test raw { type filter hook output priority -300; }; add rule inet test raw udp dport 7 "
        "notrack'");
    replace(table());
    EXPECT_EQ(seen(member_socket(test::kServer4, SOCK_DGRAM), test::kServer4), test::kTunnel4);
    EXPECT_EQ(test_counter("marked_out"), 0U);
    EXPECT_EQ(counts(), PacketCounts{});
}

TEST_F(NftTest, AnUnansweredFlowIsNotMarkedLater) {
    NftTable with = table();
    with.classes.front().dns_by_vpn = false;
    ASSERT_TRUE(nft.replace(with, {}));
    const Socket before = member_socket(test::kServer4, SOCK_DGRAM);
    before.send_to(test::kServer4, test::kSilentPort);
    ASSERT_TRUE(nft.add(member(members)));
    before.send_to(test::kServer4, test::kSilentPort);
    EXPECT_EQ(counts(), PacketCounts{});
    member_socket(test::kServer4, SOCK_DGRAM).send_to(test::kServer4, test::kSilentPort);
    EXPECT_EQ(counts(), (PacketCounts{.marked = 1, .masqueraded = 1, .dropped = 0}));
}

TEST_P(NftPath, AFlowWithTheUplinksAddressIsNotMasqueraded) {
    const Path& path = GetParam();
    replace(table());
    const Socket socket = member_socket(path.server, path.type);
    socket.bind(path.uplink, 0);
    EXPECT_EQ(seen(socket, path.server), path.uplink);
    EXPECT_EQ(counts(), (PacketCounts{.marked = 1, .masqueraded = 0, .dropped = 0}));
}

TEST_F(NftTest, WithoutThePrivilegeOpenSaysSo) {
    const pid_t child = fork();
    if (child == 0) {
        if (setuid(65534) != 0) _exit(2);
        const auto opened = Nft::open();
        _exit(!opened && opened.error().code == std::errc::operation_not_permitted ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST_F(NftTest, CountersGoOnThroughAReplace) {
    replace(table());
    member_socket(test::kServer4, SOCK_DGRAM).send_to(test::kServer4, test::kSilentPort);
    ASSERT_EQ(counts().marked, 1U);
    NftTable other = table();
    other.classes.front().dns_by_vpn = false;
    replace(other);
    EXPECT_EQ(counts(), (PacketCounts{.marked = 1, .masqueraded = 1, .dropped = 0}));
}

TEST_F(NftTest, AnEchoRequestOfAMemberLeavesByTheUplink) {
    replace(table());
    const std::string as_member = "echo $$ > " + tree->mount() + "/" + members + "/cgroup.procs; ";
    for (const char* server : {test::kServer4, test::kServer6}) {
        EXPECT_TRUE(test::succeeds(as_member + "ping -n -c 1 -W 2 " + server)) << server;
    }
    EXPECT_EQ(counts(), (PacketCounts{.marked = 2, .masqueraded = 2, .dropped = 0}));
}

TEST_F(NftTest, TheNearestCgroupDecidesTheClass) {
    const std::string nested = members + "/games";
    ASSERT_TRUE(tree->create(nested));
    NftTable with = table();
    with.classes.push_back({.name = "games",
                            .mark = {.value = 0x4d000000, .mask = 0xff000000},
                            .dns_by_vpn = true,
                            .guarded = false,
                            .cgroups = {nested},
                            .links = {}});
    replace(with);
    member_socket(test::kServer4, SOCK_DGRAM, nested).send_to(test::kServer4, test::kSilentPort);
    EXPECT_EQ(counts("games").marked, 1U);
    EXPECT_EQ(counts("novpn").marked, 0U);
    member_socket(test::kServer4, SOCK_DGRAM).send_to(test::kServer4, test::kSilentPort);
    EXPECT_EQ(counts("novpn").marked, 1U);
    ASSERT_EQ(rmdir((tree->mount() + "/" + nested).c_str()), 0);
}

} // namespace
} // namespace novpn
