// Wi-Fi links and networks from the bytes of nl80211, and what the agent tells of them.
#include "agent/agent.h"
#include "agent/cli/status.h"
#include "agent/site.h"
#include "config/load.h"
#include "netlink/nl80211.h"
#include "tests/support/fake_kernel.h"

#include <boost/json/serialize.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/nl80211.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sstream>

namespace novpn {
namespace {

using Bytes = std::vector<std::byte>;

template<typename T>
Bytes bytes_of(const T& value) {
    Bytes bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

Bytes bytes_of(const std::string& text) {
    Bytes bytes(text.size());
    std::memcpy(bytes.data(), text.data(), text.size());
    return bytes;
}

Bytes operator+(Bytes first, const Bytes& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

Bytes attribute(int type, const Bytes& data) {
    const nlattr header{.nla_len = static_cast<__u16>(NLA_HDRLEN + data.size()), .nla_type = static_cast<__u16>(type)};
    Bytes bytes = bytes_of(header) + data;
    bytes.resize(NLA_ALIGN(bytes.size()));
    return bytes;
}

Bytes message(std::uint8_t command, const Bytes& attributes) {
    const genlmsghdr generic{.cmd = command, .version = 1, .reserved = 0};
    const auto length = static_cast<__u32>(NLMSG_LENGTH(sizeof generic) + attributes.size());
    return bytes_of(nlmsghdr{.nlmsg_len = length, .nlmsg_type = 28}) + bytes_of(generic) + attributes;
}

Bytes interface(std::uint32_t type, const std::string& ssid) {
    Bytes attributes = attribute(NL80211_ATTR_IFINDEX, bytes_of(std::uint32_t{3})) +
                       attribute(NL80211_ATTR_IFTYPE, bytes_of(type)) +
                       attribute(NL80211_ATTR_MAC, bytes_of(std::string("\x02\0\0\0\0\1", 6)));
    if (!ssid.empty()) attributes = attributes + attribute(NL80211_ATTR_SSID, bytes_of(ssid));
    return message(NL80211_CMD_NEW_INTERFACE, attributes);
}

const std::string kBssid("\xc0\xff\xee\x00\x11\x22", 6);
const MacAddress kAccessPoint{{0xc0, 0xff, 0xee, 0x00, 0x11, 0x22}};

Bytes network(std::uint32_t status, const std::string& elements) {
    const Bytes bss = attribute(NL80211_BSS_BSSID, bytes_of(kBssid)) + attribute(NL80211_BSS_STATUS, bytes_of(status)) +
                      attribute(NL80211_BSS_INFORMATION_ELEMENTS, bytes_of(elements));
    return message(NL80211_CMD_NEW_SCAN_RESULTS, attribute(NL80211_ATTR_IFINDEX, bytes_of(std::uint32_t{3})) +
                                                     attribute(NL80211_ATTR_BSS | NLA_F_NESTED, bss));
}

/// Of a stock kernel with simulated Wi-Fi, by packaging/check-vm: all whose names begin so, in the order of their
/// names.
std::vector<Bytes> recorded(const std::string& beginning) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(NOVPN_SOURCE_DIR "/tests/unit/nl80211_examples"))
        if (entry.path().filename().string().starts_with(beginning)) files.push_back(entry.path());
    std::ranges::sort(files);
    std::vector<Bytes> messages;
    for (const auto& path : files) {
        std::stringstream text;
        text << std::ifstream(path, std::ios::binary).rdbuf();
        messages.push_back(bytes_of(text.str()));
    }
    if (messages.empty()) throw std::invalid_argument("nothing is recorded of " + beginning);
    return messages;
}

/// Of the links, P2P devices and idle radios among them, the one that is in a network, as is said of what it hears:
/// Linux 6.1 names a client's network there alone. Else the first that may be in one.
std::optional<WifiLink> recorded_link(const std::string& place) {
    std::vector<WifiLink> links;
    for (const Bytes& message : recorded(place + "_interface"))
        if (const auto link = to_wifi_link(message)) links.push_back(*link);
    std::optional<WifiLink> found;
    for (const Bytes& heard : recorded(place + "_scan")) {
        const auto in_use = to_network_in_use(heard);
        if (!in_use) continue;
        EXPECT_EQ(found, std::nullopt) << "one is in use";
        EXPECT_NE(std::ranges::find(links, in_use->link, &WifiLink::link), links.end());
        found = in_use;
    }
    return found ? found : links.at(0);
}

/// 32 bytes; tests/vm/test has them.
const std::string kOddName("\x00\x1b[2J\n\r\t\"\\'\\x0\x07\x00\xe2\x80\xae\xff\x80\xc3(\x7f{}$~*?]]", 32);

} // namespace

TEST(RecordedWifi, IsInTheNetworkAndAtTheAccessPoint) {
    const auto place = [](const std::string& name) {
        const auto link = recorded_link(name);
        return std::pair(link->ssid, link->bssid);
    };
    const auto radio = [](std::uint8_t number) { return MacAddress{{2, 0, 0, 0, number, 0}}; };
    EXPECT_EQ(place("home"), std::pair(std::string("HomeNet"), std::optional(radio(1))));
    EXPECT_EQ(place("office"), std::pair(std::string("OfficeNet"), std::optional(radio(2))));
    EXPECT_EQ(place("desk"), std::pair(std::string("OfficeNet"), std::optional(radio(3)))) << "after a roam";
    EXPECT_EQ(place("disconnected"), std::pair(std::string(), std::optional<MacAddress>()));
    EXPECT_EQ(place("odd"), std::pair(kOddName, std::optional(radio(4)))) << "hidden, and of any bytes";
}

TEST(RecordedWifi, HasTheFamilyWithItsGroups) {
    const auto family = to_generic_family(recorded("family").front());
    ASSERT_TRUE(family);
    EXPECT_EQ(family->name, "nl80211");
    EXPECT_TRUE(family->groups.contains("mlme"));
}

TEST(RecordedWifi, IsACauseToLookWhereTheNetworkChanges) {
    std::map<std::string_view, int> causes;
    for (const Bytes& event : recorded("event")) ++causes[to_wifi_cause(event)];
    EXPECT_GT(causes["Wi-Fi connected"], 0);
    EXPECT_GT(causes["Wi-Fi disconnected"], 0);
    EXPECT_GT(causes[""], 0) << "frames, and attempts";
    for (const Bytes& link : recorded("home_interface")) EXPECT_EQ(to_wifi_cause(link), "");
}

TEST(RecordedWifi, CutShortIsNothing) {
    for (const Bytes& message : recorded(""))
        for (std::size_t size = 0; size < message.size(); ++size) {
            const auto part = std::span(message).first(size);
            EXPECT_EQ(to_wifi_link(part), std::nullopt);
            EXPECT_EQ(to_network_in_use(part), std::nullopt);
            EXPECT_EQ(to_generic_family(part), std::nullopt);
            EXPECT_EQ(to_wifi_cause(part), "");
        }
}

TEST(RecordedWifi, IsToldWithoutControlCharacters) {
    const auto link = recorded_link("odd");
    test::FakeKernel kernel;
    kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
    kernel.join("wlan0", link->ssid, *link->bssid);
    auto config = parse_config(R"(sites: [{name: odd, match: {ssid: '\x00\x1b?2J*'}, classes: {novpn: off}}])", "f");
    ASSERT_TRUE(config);

    std::ostringstream log;
    const auto before = spdlog::default_logger();
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
    Agent agent{kernel, *config, {.cgroup_root = "novpn-1"}};
    agent.reconcile("test", Clock::now(), Depth::everything);
    spdlog::set_default_logger(before);

    const auto status = agent.status({});
    EXPECT_EQ(status.at("site"), "odd");
    EXPECT_EQ(status.at("summary"), "Class novpn is off at site odd: its programs go where everything else goes.");
    const std::string json = boost::json::serialize(status);
    EXPECT_THAT(
        json,
        testing::HasSubstr(
            R"("value":"\\x00\\x1b[2J\\x0a\\x0d\\x09\"\\\\'\\\\x0\\x07\\x00\\u{202e}\\xff\\x80\\xc3(\\x7f{}$~*?]]")"));
    EXPECT_THAT(log.str(), testing::HasSubstr("site odd"));
    for (const std::string& told : {json, log.str(), to_text(status)})
        for (const char c : told) EXPECT_TRUE(c == '\n' || (c >= ' ' && c != '\x7f') || c < 0) << told;
}

TEST(WifiLinks, AreOfClientsWithOrWithoutANetwork) {
    EXPECT_EQ(to_wifi_link(interface(NL80211_IFTYPE_STATION, "Corp")), (WifiLink{.link = IfIndex{3}, .ssid = "Corp"}));
    EXPECT_EQ(to_wifi_link(interface(NL80211_IFTYPE_STATION, "")), (WifiLink{.link = IfIndex{3}}));
    EXPECT_EQ(to_wifi_link(interface(NL80211_IFTYPE_AP, "Corp")), std::nullopt) << "this machine's own network";
}

TEST(WifiLinks, TakeAnyBytesForAName) {
    std::string all;
    for (int i = 0; i < 32; ++i) all += static_cast<char>(7 * i);
    EXPECT_EQ(to_wifi_link(interface(NL80211_IFTYPE_STATION, all))->ssid, all);
    EXPECT_EQ(to_wifi_link(interface(NL80211_IFTYPE_STATION, all + "x"))->ssid, "") << "no name has 33";
}

TEST(WifiLinks, AreNoneInAMessageThatIsCutShort) {
    const Bytes whole = interface(NL80211_IFTYPE_STATION, "Corp");
    for (std::size_t size = 0; size < whole.size(); ++size)
        EXPECT_EQ(to_wifi_link(std::span(whole).first(size)), std::nullopt) << size;
}

TEST(NetworksInUse, AreTheAssociatedOnes) {
    const std::string elements("\x01\x02\x82\x84\x00\x04"
                               "Corp\x03\x01\x06",
                               13);
    EXPECT_EQ(to_network_in_use(network(NL80211_BSS_STATUS_ASSOCIATED, elements)),
              (WifiLink{.link = IfIndex{3}, .ssid = "Corp", .bssid = kAccessPoint}));
    EXPECT_EQ(to_network_in_use(network(NL80211_BSS_STATUS_AUTHENTICATED, elements)), std::nullopt);
}

TEST(NetworksInUse, TakeNoNameThatIsTooLong) {
    const auto name_of = [](const std::string& elements) {
        return to_network_in_use(network(NL80211_BSS_STATUS_ASSOCIATED, elements))->ssid;
    };
    EXPECT_EQ(name_of(std::string("\0\x21", 2) + std::string(33, 'x')), "");
    EXPECT_EQ(name_of(std::string("\0\x20", 2) + std::string(31, 'x')), "") << "longer than what is there";
    EXPECT_EQ(name_of(std::string("\0\x04\0\0\0\0", 6)), "") << "a hidden name";
    EXPECT_EQ(name_of(std::string("\0", 1)), "");
}

TEST(GenericFamilies, HaveTheirGroups) {
    const auto group = [](const char* name, std::uint32_t id) {
        return attribute(1, attribute(CTRL_ATTR_MCAST_GRP_NAME, bytes_of(std::string(name) + '\0')) +
                                attribute(CTRL_ATTR_MCAST_GRP_ID, bytes_of(id)));
    };
    const Bytes family =
        message(CTRL_CMD_NEWFAMILY, attribute(CTRL_ATTR_FAMILY_NAME, bytes_of(std::string("nl80211") + '\0')) +
                                        attribute(CTRL_ATTR_FAMILY_ID, bytes_of(std::uint16_t{28})) +
                                        attribute(CTRL_ATTR_MCAST_GROUPS, group("scan", 6) + group("mlme", 8)));
    EXPECT_EQ(to_generic_family(family),
              (GenericFamily{.id = 28, .name = "nl80211", .groups = {{"scan", 6}, {"mlme", 8}}}));
    EXPECT_EQ(to_generic_family(interface(NL80211_IFTYPE_STATION, "")), std::nullopt);
}

TEST(WifiSocket, FindsNoLinksOnAKernelOrInANamespaceWithoutWifi) {
    auto socket = WifiSocket::open();
    ASSERT_TRUE(socket);
    EXPECT_TRUE(socket->links(true)); // whatever this machine has
    EXPECT_TRUE(WifiMonitor::open());
}

} // namespace novpn
