// packaging/examples: each is read, and an agent at home under a VPN does with it what its first line says.
#include "tests/support/scenario.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace novpn::test {
namespace {

const std::filesystem::path kExamples = std::filesystem::path(NOVPN_SOURCE_DIR) / "packaging/examples";

struct Expected {
    std::string file;
    std::vector<std::string> at_home;
    std::vector<std::string> in_the_office; ///< 10.20.0.0/16, by cable
    std::vector<std::string> on_its_wifi;   ///< Corp-5G, in a network of its own
};

const std::vector<Expected>& expectations() {
    static const std::vector<Expected> kAll{
        {"backup-always-direct",
         {"class novpn steering", "ordinary ipv4 to 203.0.113.77 leaves by wlan0", "ordinary ipv4 leaves by tun0"},
         {"ordinary ipv4 to 203.0.113.77 leaves by eth0"},
         {"ordinary ipv4 to 203.0.113.77 leaves by wlan0"}},
        {"by-hand-numbers", {"marked ipv4 leaves by wlan0", "ordinary ipv4 mark 0x2 leaves by wlan0"}, {}, {}},
        {"forced-through-the-vpn", {"marked ipv4 class ledger leaves by tun0", "marked ipv4 leaves by wlan0"}, {}, {}},
        {"gaming-ethernet-preferred",
         {"uplink ipv4 wlan0 via 192.168.10.1 from main"},
         {"uplink ipv4 eth0 via 10.20.0.1 from main"},
         {}},
        {"office-forbids-bypass",
         {"site none", "verdict office-wifi no ssid domain", "class novpn steering"},
         {"site office", "class novpn off"},
         {"site office-wifi", "class novpn off"}},
        {"roaming-consultant", {"site none", "class novpn steering"}, {"site customers", "class novpn off"}, {}},
        {"streaming-at-home",
         {"site home", "class novpn steering"},
         {"site none", "class novpn off"},
         {"site none", "class novpn off"}},
    };
    return kAll;
}

class Examples : public testing::TestWithParam<Expected> {};

TEST_P(Examples, DoWhatTheySay) {
    Player player;
    std::ifstream stream(kExamples / (GetParam().file + ".yaml"));
    ASSERT_TRUE(stream);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    player.play("config", lines);
    const auto happen = [&](const std::vector<std::string>& events) {
        for (const std::string& line : events) player.play(line);
    };
    happen({"link add wlan0", "wifi wlan0 joins HomeNet", "mac 192.168.10.1 dev wlan0 c0:ff:ee:00:11:22",
            "address add 192.168.10.50/24 dev wlan0",
            "route add default via 192.168.10.1 dev wlan0 proto dhcp metric 600", "link add tun0 kind tun",
            "address add 10.8.0.2/24 dev tun0", "route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0",
            "agent runs"});
    EXPECT_FALSE(player.plan().empty());
    player.play("agent runs"); // what was not known at once has come
    for (const std::string& claim : GetParam().at_home) EXPECT_NO_THROW(player.play(claim)) << claim;
    player.play("agent runs");
    EXPECT_EQ(player.plan(), std::vector<std::string>{}) << "another pass";

    happen({"link del wlan0", "link add eth0", "mac 10.20.0.1 dev eth0 c0:ff:ee:00:11:33",
            "address add 10.20.0.50/24 dev eth0", "route add default via 10.20.0.1 dev eth0 proto dhcp metric 100",
            "agent runs", "agent runs"});
    for (const std::string& claim : GetParam().in_the_office) EXPECT_NO_THROW(player.play(claim)) << claim;

    happen({"link del eth0", "link add wlan0", "wifi wlan0 joins Corp-5G", "mac 10.99.0.1 dev wlan0 c0:ff:ee:00:11:44",
            "address add 10.99.0.50/24 dev wlan0", "route add default via 10.99.0.1 dev wlan0 proto dhcp metric 600",
            "domain lease dev wlan0 eu.corp.example", "agent runs", "agent runs"});
    for (const std::string& claim : GetParam().on_its_wifi) EXPECT_NO_THROW(player.play(claim)) << claim;
}

INSTANTIATE_TEST_SUITE_P(Shipped, Examples, testing::ValuesIn(expectations()), [](const auto& example) {
    std::string name = example.param.file;
    std::erase(name, '-');
    return name;
});

TEST(ExampleFiles, AreAllExpectedSomething) {
    std::vector<std::string> files, expected;
    for (const auto& entry : std::filesystem::directory_iterator(kExamples))
        files.push_back(entry.path().stem().native());
    std::sort(files.begin(), files.end());
    for (const Expected& example : expectations()) expected.push_back(example.file);
    EXPECT_EQ(files, expected);
}

} // namespace
} // namespace novpn::test
