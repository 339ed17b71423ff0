// Neighbours from the bytes of rtnetlink(7).
#include "netlink/rtnetlink.h"

#include <cstring>
#include <gtest/gtest.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

namespace novpn {
namespace {

using boost::asio::ip::make_address;

/// RTM_NEWNEIGH with a NDA_DST of that many bytes.
std::vector<std::byte> message(ndmsg neighbour, const address& host, std::size_t address_size) {
    std::vector<std::byte> bytes(NLMSG_LENGTH(sizeof neighbour) + RTA_LENGTH(address_size));
    nlmsghdr header{.nlmsg_len = static_cast<__u32>(bytes.size()), .nlmsg_type = RTM_NEWNEIGH};
    rtattr attribute{.rta_len = static_cast<unsigned short>(RTA_LENGTH(address_size)), .rta_type = NDA_DST};
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + NLMSG_HDRLEN, &neighbour, sizeof neighbour);
    std::memcpy(bytes.data() + NLMSG_LENGTH(sizeof neighbour), &attribute, sizeof attribute);
    std::byte* data = bytes.data() + NLMSG_LENGTH(sizeof neighbour) + RTA_LENGTH(0);
    if (host.is_v4()) {
        auto raw = host.to_v4().to_bytes();
        std::memcpy(data, raw.data(), std::min(address_size, raw.size()));
    } else {
        auto raw = host.to_v6().to_bytes();
        std::memcpy(data, raw.data(), std::min(address_size, raw.size()));
    }
    return bytes;
}

constexpr ndmsg kRouter{
    .ndm_family = AF_INET6, .ndm_ifindex = 2, .ndm_state = NUD_STALE, .ndm_flags = NTF_ROUTER, .ndm_type = 1};

} // namespace

TEST(ToNeighbour, TellsARouter) {
    EXPECT_EQ(
        to_neighbour(message(kRouter, make_address("fe80::1"), 16)),
        (Neighbour{
            .link = IfIndex{2}, .host = make_address("fe80::1"), .state = NeighbourState::stale, .router = true}));
}

TEST(ToNeighbour, TellsAHostThatDoesNotAnswer) {
    ndmsg host{.ndm_family = AF_INET, .ndm_ifindex = 3, .ndm_state = NUD_FAILED};
    EXPECT_EQ(to_neighbour(message(host, make_address("192.168.10.1"), 4)),
              (Neighbour{.link = IfIndex{3}, .host = make_address("192.168.10.1"), .state = NeighbourState::failed}));
}

TEST(ToNeighbour, LeavesOutProxiesBridgesAndShortMessages) {
    ndmsg proxy = kRouter, bridge = kRouter;
    proxy.ndm_flags |= NTF_PROXY;
    bridge.ndm_family = AF_BRIDGE;
    EXPECT_EQ(to_neighbour(message(proxy, make_address("fe80::1"), 16)), std::nullopt);
    EXPECT_EQ(to_neighbour(message(bridge, make_address("fe80::1"), 16)), std::nullopt);
    EXPECT_EQ(to_neighbour(message(kRouter, make_address("fe80::1"), 8)), std::nullopt);
    auto whole = message(kRouter, make_address("fe80::1"), 16);
    for (std::size_t size = 0; size < whole.size(); ++size)
        EXPECT_EQ(to_neighbour(std::span(whole).first(size)), std::nullopt) << size;
}

} // namespace novpn
