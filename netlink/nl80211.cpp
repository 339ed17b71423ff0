#include "netlink/nl80211.h"
#include "netlink/attributes.h"

#include <algorithm>
#include <cerrno>
#include <linux/genetlink.h>
#include <linux/nl80211.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

namespace novpn {

namespace {

constexpr std::size_t kMaxSsid = 32; // IEEE80211_MAX_SSID_LEN

const genlmsghdr* header_of_command(std::span<const std::byte> message, std::initializer_list<int> commands) {
    if (message.size() < sizeof(nlmsghdr)) return nullptr;
    auto* header = reinterpret_cast<const nlmsghdr*>(message.data());
    if (header->nlmsg_len > message.size() || header->nlmsg_len < NLMSG_LENGTH(sizeof(genlmsghdr))) return nullptr;
    auto* generic = static_cast<const genlmsghdr*>(NLMSG_DATA(header));
    return std::ranges::find(commands, generic->cmd) == commands.end() ? nullptr : generic;
}

std::string to_ssid(const unsigned char* data, std::size_t size) {
    if (size > kMaxSsid) return {};
    // A network that hides its name tells bytes of 0 in its place.
    if (std::all_of(data, data + size, [](unsigned char byte) { return byte == 0; })) return {};
    return {reinterpret_cast<const char*>(data), size};
}

std::span<const unsigned char> bytes_of(const nlattr* attribute) {
    if (!attribute) return {};
    return {static_cast<const unsigned char*>(nla_data(attribute)), static_cast<std::size_t>(nla_len(attribute))};
}

/// Elements of a beacon, each an id, a length and its data (IEEE 802.11, 9.4.2); the SSID is number 0.
std::string ssid_among(std::span<const unsigned char> elements) {
    while (elements.size() >= 2 && elements.size() >= 2u + elements[1]) {
        const std::size_t size = elements[1];
        if (elements[0] == 0) return to_ssid(elements.data() + 2, size);
        elements = elements.subspan(2 + size);
    }
    return {};
}

NlMessage make_command(int family, std::uint8_t command) {
    NlMessage message(nlmsg_alloc());
    if (!message || !genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, NLM_F_REQUEST, command, 1))
        throw std::bad_alloc();
    return message;
}

/// By a list of them all: to ask for one by its name has the kernel look for a module (genl_ctrl_getfamily).
Expected<std::optional<GenericFamily>> find_nl80211(RequestSocket& requests) {
    auto request = make_command(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    auto families = requests.dump<GenericFamily>(*request, to_generic_family, "looking for nl80211");
    if (!families) return tl::make_unexpected(families.error());
    const auto found = std::ranges::find(*families, NL80211_GENL_NAME, &GenericFamily::name);
    return found == families->end() ? std::nullopt : std::optional(*found);
}

Expected<RequestSocket> open_requests() { return RequestSocket::open(NETLINK_GENERIC, "generic netlink"); }

} // namespace

std::optional<WifiLink> to_wifi_link(std::span<const std::byte> message) {
    if (!header_of_command(message, {NL80211_CMD_NEW_INTERFACE})) return std::nullopt;
    auto attributes = Attributes<NL80211_ATTR_MAX>::parse(message, sizeof(genlmsghdr));
    if (!attributes) return std::nullopt;
    const auto index = attributes->value<std::uint32_t>(NL80211_ATTR_IFINDEX);
    const auto type = attributes->value<std::uint32_t>(NL80211_ATTR_IFTYPE);
    const bool is_client = type == NL80211_IFTYPE_STATION || type == NL80211_IFTYPE_P2P_CLIENT;
    if (!index || !*index || !is_client) return std::nullopt; // without an index: no link but a P2P device
    const auto ssid = bytes_of(attributes->raw(NL80211_ATTR_SSID));
    return WifiLink{.link = IfIndex{*index}, .ssid = to_ssid(ssid.data(), ssid.size())};
}

std::optional<WifiLink> to_network_in_use(std::span<const std::byte> message) {
    if (!header_of_command(message, {NL80211_CMD_NEW_SCAN_RESULTS})) return std::nullopt;
    auto attributes = Attributes<NL80211_ATTR_MAX>::parse(message, sizeof(genlmsghdr));
    if (!attributes || !attributes->raw(NL80211_ATTR_BSS)) return std::nullopt;
    const auto index = attributes->value<std::uint32_t>(NL80211_ATTR_IFINDEX);
    auto network = Attributes<NL80211_BSS_MAX>::parse_nested(attributes->raw(NL80211_ATTR_BSS));
    if (!index || !*index || !network) return std::nullopt;
    const auto status = network->value<std::uint32_t>(NL80211_BSS_STATUS);
    if (status != NL80211_BSS_STATUS_ASSOCIATED) return std::nullopt;
    WifiLink found{.link = IfIndex{*index}, .bssid = network->value<MacAddress>(NL80211_BSS_BSSID)};
    for (int elements : {NL80211_BSS_INFORMATION_ELEMENTS, NL80211_BSS_BEACON_IES})
        if (found.ssid.empty()) found.ssid = ssid_among(bytes_of(network->raw(elements)));
    return found;
}

std::string_view to_wifi_cause(std::span<const std::byte> message) {
    if (header_of_command(message, {NL80211_CMD_CONNECT})) return "Wi-Fi connected";
    if (header_of_command(message, {NL80211_CMD_ROAM})) return "Wi-Fi roamed";
    if (header_of_command(message, {NL80211_CMD_DISCONNECT})) return "Wi-Fi disconnected";
    return {};
}

std::optional<GenericFamily> to_generic_family(std::span<const std::byte> message) {
    if (!header_of_command(message, {CTRL_CMD_NEWFAMILY})) return std::nullopt;
    auto attributes = Attributes<CTRL_ATTR_MAX>::parse(message, sizeof(genlmsghdr));
    if (!attributes) return std::nullopt;
    const auto id = attributes->value<std::uint16_t>(CTRL_ATTR_FAMILY_ID);
    if (!id) return std::nullopt;
    GenericFamily family{.id = *id, .name = attributes->text(CTRL_ATTR_FAMILY_NAME)};
    const nlattr* groups = attributes->raw(CTRL_ATTR_MCAST_GROUPS);
    if (!groups) return family;
    nlattr* entry = nullptr;
    int left = 0;
    nla_for_each_nested(entry, const_cast<nlattr*>(groups), left) {
        auto group = Attributes<CTRL_ATTR_MCAST_GRP_MAX>::parse_nested(entry);
        if (!group) continue;
        if (auto number = group->value<std::uint32_t>(CTRL_ATTR_MCAST_GRP_ID))
            family.groups[group->text(CTRL_ATTR_MCAST_GRP_NAME)] = *number;
    }
    return family;
}

Expected<WifiSocket> WifiSocket::open() {
    auto requests = open_requests();
    if (!requests) return tl::make_unexpected(requests.error());
    return WifiSocket(std::move(*requests));
}

WifiSocket::WifiSocket(RequestSocket requests)
    : requests_(std::move(requests)) {}

Expected<std::vector<WifiLink>> WifiSocket::links(bool with_bssid) {
    if (!family_) {
        auto found = find_nl80211(requests_);
        if (!found) return tl::make_unexpected(found.error());
        if (!*found) return std::vector<WifiLink>{};
        family_ = (*found)->id;
    }
    auto request = make_command(*family_, NL80211_CMD_GET_INTERFACE);
    auto links = requests_.dump<WifiLink>(*request, to_wifi_link, "reading Wi-Fi links");
    if (!links) {
        family_.reset(); // the module is gone, or has come back under another number
        if (links.error().code == std::errc::no_such_file_or_directory) return std::vector<WifiLink>{};
        return links;
    }
    for (WifiLink& link : *links) {
        // Some drivers and kernels tell a client's network among those that it hears alone.
        if (!with_bssid && !link.ssid.empty()) continue;
        auto scan = make_command(*family_, NL80211_CMD_GET_SCAN);
        nla_put_u32(scan.get(), NL80211_ATTR_IFINDEX, link.link.value);
        auto in_use = requests_.dump<WifiLink>(*scan, to_network_in_use, "reading the networks that Wi-Fi hears");
        if (!in_use || in_use->empty()) continue; // the link has gone meanwhile, or is in none
        if (link.ssid.empty()) link.ssid = in_use->front().ssid;
        link.bssid = in_use->front().bssid;
    }
    return links;
}

Expected<WifiMonitor> WifiMonitor::open() {
    // What families come is told in a group whose number is fixed (genl_validate_assign_mc_groups).
    auto socket = open_netlink(NETLINK_GENERIC, "generic netlink", {GENL_ID_CTRL});
    if (!socket) return tl::make_unexpected(socket.error());
    WifiMonitor monitor(std::move(*socket));
    auto requests = open_requests();
    if (!requests) return tl::make_unexpected(requests.error());
    auto family = find_nl80211(*requests);
    if (!family) return tl::make_unexpected(family.error());
    if (*family) monitor.join(**family);
    return monitor;
}

WifiMonitor::WifiMonitor(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kNetlinkDatagram) {}

int WifiMonitor::fd() const { return nl_socket_get_fd(socket_.get()); }

void WifiMonitor::join(const GenericFamily& family) {
    const auto group = family.groups.find(NL80211_MULTICAST_GROUP_MLME);
    if (group == family.groups.end()) return;
    const int number = static_cast<int>(group->second);
    // A family that has gone again meanwhile has no group; it will be told of when it comes.
    if (setsockopt(fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &number, sizeof number) == 0) family_ = family.id;
}

std::string_view WifiMonitor::drain() {
    std::string_view cause;
    for (;;) {
        const ssize_t received = receive(socket_.get(), buffer_, MSG_DONTWAIT);
        if (received < 0 && errno == ENOBUFS) {
            cause = "notifications lost";
            continue;
        }
        if (received <= 0) return cause;
        for_each_message({buffer_.data(), static_cast<std::size_t>(received)}, [&](const nlmsghdr& message) {
            const std::span bytes(reinterpret_cast<const std::byte*>(&message), message.nlmsg_len);
            if (message.nlmsg_type == GENL_ID_CTRL) {
                const auto family = to_generic_family(bytes);
                if (!family || family->name != NL80211_GENL_NAME) return;
                join(*family);
                cause = "Wi-Fi came";
            } else if (message.nlmsg_type == family_) {
                if (const auto told = to_wifi_cause(bytes); !told.empty()) cause = told;
            }
        });
    }
}

} // namespace novpn
