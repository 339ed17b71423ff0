// sock_diag's answers as bytes, made up as the kernel lays them out (linux/inet_diag.h).
#include "netlink/sockets.h"

#include <arpa/inet.h>
#include <cstring>
#include <gtest/gtest.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <random>

namespace novpn {
namespace {

using boost::asio::ip::make_address;
using Bytes = std::vector<std::byte>;

struct Answer {
    inet_diag_msg info{};
    std::vector<std::pair<std::uint16_t, Bytes>> attributes;
};

template<typename T>
Bytes bytes_of(const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return {bytes.begin(), bytes.end()};
}

Bytes to_bytes(const Answer& answer) {
    Bytes message(NLMSG_HDRLEN);
    auto append = [&message](const Bytes& bytes) {
        message.insert(message.end(), bytes.begin(), bytes.end());
        message.resize(NLMSG_ALIGN(message.size()));
    };
    append(bytes_of(answer.info));
    for (const auto& [type, value] : answer.attributes) {
        append(bytes_of(nlattr{.nla_len = static_cast<std::uint16_t>(NLA_HDRLEN + value.size()), .nla_type = type}));
        append(value);
    }
    const nlmsghdr header{.nlmsg_len = static_cast<std::uint32_t>(message.size()), .nlmsg_type = SOCK_DIAG_BY_FAMILY};
    std::memcpy(message.data(), &header, sizeof header);
    return message;
}

Answer answer(int family, const char* local, std::uint16_t local_port, const char* remote, std::uint16_t remote_port) {
    Answer made;
    made.info.idiag_family = static_cast<std::uint8_t>(family);
    inet_pton(family, local, made.info.id.idiag_src);
    inet_pton(family, remote, made.info.id.idiag_dst);
    made.info.id.idiag_sport = htons(local_port);
    made.info.id.idiag_dport = htons(remote_port);
    made.info.id.idiag_cookie[0] = 0x2a;
    made.info.id.idiag_cookie[1] = 1;
    made.info.idiag_uid = 1000;
    made.info.idiag_inode = 4711;
    made.attributes = {{INET_DIAG_SHUTDOWN, bytes_of(std::uint8_t{0})},
                       {INET_DIAG_MARK, bytes_of(std::uint32_t{0x4e000000})},
                       {INET_DIAG_CGROUP_ID, bytes_of(std::uint64_t{0x100000123})}};
    return made;
}

OpenSocket tcp4() {
    return {.family = Family::ipv4,
            .ip_protocol = IPPROTO_TCP,
            .local = make_address("192.0.2.2"),
            .local_port = 40112,
            .remote = make_address("203.0.113.1"),
            .remote_port = 443,
            .cgroup_id = 0x100000123,
            .mark = 0x4e000000,
            .inode = 4711,
            .uid = 1000,
            .cookie = 0x10000002a};
}

TEST(ToSocket, ConnectedIpv4) {
    EXPECT_EQ(to_socket(to_bytes(answer(AF_INET, "192.0.2.2", 40112, "203.0.113.1", 443)), IPPROTO_TCP), tcp4());
}

TEST(ToSocket, ConnectedIpv6OfALink) {
    Answer made = answer(AF_INET6, "fe80::2", 5000, "fe80::1", 53);
    made.info.id.idiag_if = 7;
    OpenSocket expected = tcp4();
    expected.family = Family::ipv6;
    expected.ip_protocol = IPPROTO_UDP;
    expected.local = make_address("fe80::2");
    expected.local_port = 5000;
    expected.remote = make_address("fe80::1");
    expected.remote_port = 53;
    expected.bound_link = IfIndex{7};
    EXPECT_EQ(to_socket(to_bytes(made), IPPROTO_UDP), expected);
}

TEST(ToSocket, AnIpv6SocketThatSpeaksIpv4IsIpv4) {
    OpenSocket expected = tcp4();
    expected.ipv4_mapped = true;
    EXPECT_EQ(to_socket(to_bytes(answer(AF_INET6, "::ffff:192.0.2.2", 40112, "::ffff:203.0.113.1", 443)), IPPROTO_TCP),
              expected);
}

TEST(ToSocket, UnconnectedHasNoRemote) {
    for (auto [family, any] : {std::pair{AF_INET, "0.0.0.0"}, std::pair{AF_INET6, "::"}}) {
        const auto socket = to_socket(to_bytes(answer(family, any, 5353, any, 0)), IPPROTO_UDP);
        ASSERT_TRUE(socket);
        EXPECT_EQ(socket->local, make_address(any));
        EXPECT_EQ(socket->remote, std::nullopt);
        EXPECT_FALSE(leaves_this_machine(*socket));
    }
}

TEST(ToSocket, WithoutACgroupItIsNoProcesssSocket) {
    Answer time_wait = answer(AF_INET, "192.0.2.2", 40112, "203.0.113.1", 443);
    time_wait.attributes.pop_back();
    EXPECT_EQ(to_socket(to_bytes(time_wait), IPPROTO_TCP), std::nullopt);
    time_wait.attributes.emplace_back(INET_DIAG_CGROUP_ID, bytes_of(std::uint32_t{5}));
    EXPECT_EQ(to_socket(to_bytes(time_wait), IPPROTO_TCP), std::nullopt) << "four bytes are no cgroup id";
}

TEST(ToSocket, AnotherFamilyOrMessageIsNone) {
    Answer made = answer(AF_INET, "192.0.2.2", 40112, "203.0.113.1", 443);
    made.info.idiag_family = AF_UNIX;
    EXPECT_EQ(to_socket(to_bytes(made), IPPROTO_TCP), std::nullopt);
    made.info.idiag_family = AF_INET;
    Bytes message = to_bytes(made);
    ASSERT_TRUE(to_socket(message, IPPROTO_TCP));
    const std::uint16_t error = NLMSG_ERROR;
    std::memcpy(message.data() + offsetof(nlmsghdr, nlmsg_type), &error, sizeof error);
    EXPECT_EQ(to_socket(message, IPPROTO_TCP), std::nullopt);
}

TEST(ToSocket, ATruncatedMessageIsNone) {
    const Bytes whole = to_bytes(answer(AF_INET6, "2001:db8:1::2", 40112, "2001:db8:ff::1", 443));
    ASSERT_TRUE(to_socket(whole, IPPROTO_TCP));
    for (std::size_t size = 0; size < whole.size(); ++size) {
        // Bytes of their own, so that a read past their end is one for the sanitizer to see.
        Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
        EXPECT_EQ(to_socket(cut, IPPROTO_TCP), std::nullopt) << size;
        if (size < sizeof(nlmsghdr)) continue;
        const auto length = static_cast<std::uint32_t>(size);
        std::memcpy(cut.data(), &length, sizeof length);
        EXPECT_EQ(to_socket(cut, IPPROTO_TCP), std::nullopt) << size << ", and says so";
    }
}

TEST(ToSocket, AnyBytesGiveASocketOrNone) {
    std::mt19937 random(1);
    const Bytes whole = to_bytes(answer(AF_INET, "192.0.2.2", 40112, "203.0.113.1", 443));
    int sockets = 0;
    int none = 0;
    for (int round = 0; round < 20'000; ++round) {
        Bytes bytes = whole;
        for (unsigned flips = 1 + random() % 4; flips > 0; --flips)
            bytes[random() % bytes.size()] = static_cast<std::byte>(random());
        bytes.resize(random() % 4 ? bytes.size() : random() % bytes.size());
        const auto socket = to_socket(bytes, IPPROTO_TCP);
        ++(socket ? sockets : none);
        EXPECT_TRUE(!socket || !to_string(*socket).empty());
    }
    EXPECT_GT(sockets, 1000);
    EXPECT_GT(none, 1000);
}

TEST(OpenSocket, LeavesThisMachineWhenConnectedToAnotherHost) {
    OpenSocket socket = tcp4();
    EXPECT_TRUE(leaves_this_machine(socket));
    socket.remote = socket.local;
    EXPECT_FALSE(leaves_this_machine(socket));
    socket.remote = make_address("127.0.0.53");
    EXPECT_FALSE(leaves_this_machine(socket));
    socket.remote = make_address("::1");
    EXPECT_FALSE(leaves_this_machine(socket));
    socket.remote = make_address("fe80::1");
    EXPECT_TRUE(leaves_this_machine(socket));
    socket.remote = std::nullopt;
    EXPECT_FALSE(leaves_this_machine(socket));
}

TEST(OpenSocket, IsNamedByItsAddresses) {
    EXPECT_EQ(to_string(tcp4()), "tcp 192.0.2.2:40112 -> 203.0.113.1:443");
    EXPECT_EQ(to_string(OpenSocket{.ip_protocol = IPPROTO_UDP, .local = make_address("::"), .local_port = 5353}),
              "udp [::]:5353");
}

} // namespace
} // namespace novpn
