// `novpn doctor`: what is judged wrong, of which facts.
#include "agent/cli/doctor.h"

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace novpn {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using State = Finding::State;

json::object object(const char* text) { return json::parse(text).as_object(); }

TEST(JudgeStatus, SaysTheSummaryOnceAndEachWarning) {
    EXPECT_EQ(judge_status(object(R"({"summary": "All well.", "health": "ok", "warnings": []})")),
              (std::vector<Finding>{{State::ok, "agent", "All well.", ""}}));
    EXPECT_EQ(judge_status(object(R"({"summary": "Astray.", "health": "degraded",
                                      "warnings": [{"code": "a", "text": "Astray."}, {"code": "b", "text": "More."}]})")),
              (std::vector<Finding>{{State::wrong, "agent", "Astray.", "journalctl -u novpnd says more"},
                                    {State::wrong, "agent", "More.", "journalctl -u novpnd says more"}}));
}

TEST(JudgeStatus, HasAMendForEachWarning) {
    for (const char* code : {"pending", "look", "cgroups", "rule_order", "dns", "policy", "rule_ahead", "rival_rule",
                             "config", "sockets", "of another version"})
        for (const char* health : {"degraded", "blocked"}) {
            boost::json::object status{{"summary", "No."}, {"health", health}};
            status["warnings"] = boost::json::array{{{"code", code}, {"text", "Why."}}};
            for (const Finding& finding : judge_status(status)) EXPECT_NE(finding.mend, "") << code;
        }
}

TEST(JudgeKernel, TellsARightThatIsMissingFromAFeatureThatIs) {
    EXPECT_EQ(judge_kernel(std::string()).state, State::ok);
    EXPECT_EQ(judge_kernel(std::string("no bpffs")).state, State::note);
    EXPECT_EQ(judge_kernel(system_error(EPERM, "opening")).state, State::note);
    EXPECT_EQ(judge_kernel(system_error(EOPNOTSUPP, "probing nft")).state, State::wrong);
}

TEST(JudgeReversePath, FearsTheStrictOneWithoutTheMark) {
    EXPECT_EQ(judge_reverse_path("wlan0", {.rp_filter = 0}, true).state, State::ok);
    EXPECT_EQ(judge_reverse_path("wlan0", {.rp_filter = 2}, true).state, State::ok);
    EXPECT_EQ(judge_reverse_path("wlan0", {.rp_filter = 1, .src_valid_mark = true}, true).state, State::ok);
    EXPECT_EQ(judge_reverse_path("wlan0", {.rp_filter = 1}, false).state, State::note);
    const Finding wrong = judge_reverse_path("wlan0", {.rp_filter = 1}, true);
    EXPECT_EQ((std::pair{wrong.state, wrong.mend}),
              (std::pair{State::wrong, std::string("sudo sysctl net.ipv4.conf.wlan0.src_valid_mark=1")}));
}

TEST(JudgeFilters, AreOfThoseThatNoMarkGetsPast) {
    const auto status =
        boost::json::parse(R"({"families": {"ipv4": {"takeovers": [{}]}, "ipv6": {"takeovers": []}}})").as_object();
    const ReversePathFilter by_mark{
        .family = "inet", .table = "f", .chain = "pre", .priority = -290, .goes_by_mark = true};
    ReversePathFilter first = by_mark;
    first.priority = -450;
    const ReversePathFilter nft{.family = "ip", .table = "f", .chain = "pre", .priority = -140};
    const ReversePathFilter ipv6{
        .family = "ip6", .table = "raw", .chain = "PREROUTING", .priority = -300, .of_iptables = true};
    EXPECT_EQ(judge_filters(status, {by_mark}), std::vector<Finding>{});
    const auto found = judge_filters(status, {first, nft, ipv6});
    ASSERT_EQ(found.size(), 3u);
    EXPECT_EQ(found[0].mend, "give its chain a priority above -399");
    EXPECT_EQ(found[1].mend, "have its rule say `fib saddr . mark . iif` in the place of `fib saddr . iif`");
    EXPECT_EQ(found[2].mend, "have its rule say `-m rpfilter --validmark`");
    EXPECT_EQ((std::array{found[0].state, found[1].state, found[2].state}),
              (std::array{State::wrong, State::wrong, State::note}))
        << "no VPN has IPv6";
    EXPECT_TRUE(is_early(by_mark));
    EXPECT_FALSE(is_early(first) || is_early(nft) || is_early(ipv6));
}

TEST(JudgeFirewalls, NameWhatMayHaveDroppedAPacketAndTheCommandThatOpensIt) {
    const Firewall nft{"inet", "killswitch", "output", Firewall::Drops::by_policy};
    const Firewall ipv6{"ip6", "filter", "OUTPUT", Firewall::Drops::by_policy};
    const Firewall less{"inet", "tidy", "out", Firewall::Drops::some};
    Proof proof{.class_name = "novpn", .family = "ipv4", .state = "steering", .link = "wlan0", .mark = {2, 0xff}};
    EXPECT_EQ(
        judge_firewalls({proof}, {less, nft, ipv6}),
        (std::vector<Finding>{
            {State::wrong, "firewall",
             "ipv4: table inet killswitch, chain output (policy drop) may be what dropped the packet of class novpn",
             "sudo nft insert rule inet killswitch output meta mark and 0x000000ff == 0x00000002 accept"}}));
    Proof other = proof;
    other.family = "ipv6";
    EXPECT_EQ(judge_firewalls({proof, other}, {nft}).size(), 1U) << "one command opens it for both";
    EXPECT_EQ(judge_firewalls({proof}, {}), std::vector<Finding>{});
    other.link.clear();
    EXPECT_EQ(judge_firewalls({other}, {nft}), std::vector<Finding>{}) << "nothing should have left";
    proof.member.link = "wlan0";
    EXPECT_EQ(judge_firewalls({proof}, {nft}), std::vector<Finding>{}) << "it left";
}

TEST(JudgeNames, WhatAsksBesideDnsIsNotRedirected) {
    const auto by = [](const char* who) {
        json::object status = object(R"({"classes": [{"name": "novpn", "dns": {"by": "vpn"}},
            {"name": "games", "dns": {"servers": ["192.168.10.1"], "from": "lease"}}]})");
        status["classes"].as_array()[1].as_object()["dns"].as_object()["by"] = who;
        return status;
    };
    EXPECT_EQ(judge_names(by("vpn"), "nss-resolve"), std::nullopt);
    EXPECT_EQ(judge_names(by("uplink"), ""),
              (Finding{State::ok, "names",
                       "names of class games are resolved by 192.168.10.1 of the uplink (from the DHCP lease)", ""}));
    EXPECT_EQ(judge_names(by("uplink"), "nss-resolve")->state, State::wrong);
    EXPECT_NE(judge_names(by("uplink"), "nss-resolve")->mend.find("/etc/nsswitch.conf"), std::string::npos);
    EXPECT_NE(judge_names(by("uplink"), "nscd")->mend.find("nscd"), std::string::npos);
}

class Files : public testing::Test {
  protected:
    void SetUp() override { fs::create_directories(root_); }
    void TearDown() override { fs::remove_all(root_); }
    void write(const std::string& path, const std::string& text) {
        fs::create_directories((root_ / path).parent_path());
        std::ofstream(root_ / path) << text;
    }
    fs::path root_ = fs::temp_directory_path() / ("novpn-doctor-" + std::to_string(::getpid()));
};

TEST_F(Files, NsswitchSaysWhoIsAskedBesideDns) {
    EXPECT_EQ(asked_beside_dns(root_), "");
    write("etc/nsswitch.conf", "passwd: files resolve\nhosts: files mdns4_minimal [NOTFOUND=return] dns # resolve\n");
    EXPECT_EQ(asked_beside_dns(root_), "");
    write("etc/nsswitch.conf", " hosts:\tfiles resolve [!UNAVAIL=return] dns\n");
    EXPECT_EQ(asked_beside_dns(root_), "nss-resolve");
    write("run/nscd/socket", "");
    EXPECT_EQ(asked_beside_dns(root_), "nscd");
}

TEST_F(Files, NetworkdIsReadAsItReadsItself) {
    EXPECT_EQ(networkd_settings(root_), NetworkdSettings{});
    EXPECT_EQ(judge_networkd(networkd_settings(root_)), std::nullopt);
    fs::create_directories(root_ / "run/systemd/netif");
    EXPECT_EQ(networkd_settings(root_), NetworkdSettings{});
    write("run/systemd/netif/state", "");
    EXPECT_EQ(judge_networkd(networkd_settings(root_))->state, State::wrong);
    const std::string both = "[Network]\nManageForeignRoutingPolicyRules = no\nManageForeignRoutes=False\n";
    write("usr/lib/systemd/networkd.conf.d/50-novpn.conf", both);
    EXPECT_EQ(networkd_settings(root_), (NetworkdSettings{.runs = true, .keeps_rules = true, .keeps_routes = true}));
    EXPECT_EQ(judge_networkd(networkd_settings(root_))->state, State::ok);
    // The later name has the last word, but for another section; a file of the same name in /etc replaces it.
    write("run/systemd/networkd.conf.d/60.conf",
          "[Network]\nManageForeignRoutes=yes\n[DHCPv4]\nManageForeignRoutingPolicyRules=yes\n");
    EXPECT_EQ(networkd_settings(root_), (NetworkdSettings{.runs = true, .keeps_rules = true}));
    write("etc/systemd/networkd.conf.d/50-novpn.conf", "");
    EXPECT_EQ(networkd_settings(root_), NetworkdSettings{.runs = true});
}

TEST_F(Files, TheStricterReversePathCounts) {
    write("proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
    write("proc/sys/net/ipv4/conf/wlan0/rp_filter", "2\n");
    write("proc/sys/net/ipv4/conf/eth0/src_valid_mark", "1\n");
    EXPECT_EQ(reverse_path("wlan0", root_), (ReversePath{.rp_filter = 2}));
    EXPECT_EQ(reverse_path("eth0", root_), (ReversePath{.rp_filter = 1, .src_valid_mark = true}));
}

Proof proof(Departure member, std::string link = "wlan0") {
    return {.class_name = "novpn",
            .family = "ipv4",
            .state = "steering",
            .link = std::move(link),
            .source = "192.168.10.5",
            .ordinary = {.link = "tun0", .source = "10.8.0.2"},
            .member = std::move(member)};
}

TEST(JudgePackets, ExpectsTheUplinkAndItsAddress) {
    const Finding good = judge_packets(proof({.link = "wlan0", .source = "192.168.10.5"}));
    EXPECT_EQ(good,
              (Finding{State::ok, "packets",
                       "ipv4: a packet of class novpn left by wlan0 as 192.168.10.5, an ordinary one left by tun0 as "
                       "10.8.0.2",
                       ""}));
    EXPECT_EQ(judge_packets(proof({.link = "tun0", .source = "10.8.0.2"})).mend,
              "novpn explain --class novpn 192.0.2.1");
    EXPECT_EQ(judge_packets(proof({.link = "wlan0", .source = "10.8.0.2"})).state, State::wrong);
    for (const Departure& held : {Departure{}, Departure{.link = {}, .source = {}, .refused = "No route to host"}})
        EXPECT_NE(judge_packets(proof(held)).mend.find("firewall"), std::string::npos);
}

TEST(JudgePackets, ExpectsNothingToLeaveWithoutAnUplink) {
    EXPECT_EQ(judge_packets(proof({.refused = "No route to host"}, "")).state, State::ok);
    EXPECT_EQ(judge_packets(proof({.link = "tun0", .source = "10.8.0.2"}, "")).state, State::wrong);
    Proof tunnel = proof({.link = "tun0", .source = "10.8.0.2"}, "");
    tunnel.state = "tunnel";
    EXPECT_EQ(judge_packets(tunnel).state, State::ok);
}

TEST(ExpectedOf, ReadsTheLinkOfTheClassAndTheSourceOfItsUplink) {
    const auto status = object(R"({"families": {"ipv4": {"uplink": {"link": "wlan0", "source": "192.168.10.5"}}}})");
    const Proof uplink =
        expected_of(status, object(R"({"name": "a", "state": "steering", "uplinks": {"ipv4": "wlan0"}})"), "ipv4");
    EXPECT_EQ((std::tuple{uplink.class_name, uplink.link, uplink.source}), (std::tuple{"a", "wlan0", "192.168.10.5"}));
    const Proof other = expected_of(status, object(R"({"name": "a", "uplinks": {"ipv4": "wwan0"}})"), "ipv4");
    EXPECT_EQ((std::pair{other.link, other.source}), (std::pair<std::string, std::string>{"wwan0", ""}));
}

TEST(Diagnosis, HasASentenceAndTheMends) {
    const std::vector<Finding> findings{{State::ok, "kernel", "good", ""}, {State::wrong, "agent", "bad", "do this"}};
    EXPECT_EQ(to_diagnosis(findings), "1 thing is wrong.\n\nok     kernel     good\nwrong  agent      bad\n"
                                      "                  mend: do this\n");
    EXPECT_FALSE(is_well(findings));
    EXPECT_TRUE(is_well({findings.front(), {State::note, "kernel", "x", ""}}));
    EXPECT_EQ(json::serialize(to_json({findings.front()})),
              R"({"ok":true,"findings":[{"check":"kernel","state":"ok","text":"good","mend":null}]})");
}

} // namespace
} // namespace novpn
