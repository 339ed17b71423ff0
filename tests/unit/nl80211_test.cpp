// Wi-Fi links and networks from the bytes of nl80211.
#include "netlink/nl80211.h"

#include <cstring>
#include <gtest/gtest.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/nl80211.h>

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

} // namespace

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
