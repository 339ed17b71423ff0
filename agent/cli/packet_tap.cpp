#include "agent/cli/packet_tap.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <boost/asio/ip/address.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <optional>
#include <poll.h>
#include <span>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace novpn {
namespace {

using Clock = std::chrono::steady_clock;
using Payload = std::array<std::byte, 16>;

constexpr auto kLongest = std::chrono::seconds(2); // a neighbour that does not answer is given up by then
constexpr std::uint16_t kPort = 33434;             // traceroute(8): nobody wonders about it

/// UDP to kPort over IPv4 or IPv6; the rest of the traffic does not reach us. Offsets are from the IP header on.
constexpr std::array<sock_filter, 15> kToOurPort{{
    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0),
    BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x40, 0, 5),
    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 9), // protocol
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 8),
    BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0),
    BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kPort, 6, 5),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x60, 0, 4),
    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 6), // next header
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 2),
    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 42),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kPort, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, 0),
    BPF_STMT(BPF_RET | BPF_K, 0xffff),
}};

/// Empty where it was taken, else why not.
std::string send_from_new_socket(const boost::asio::ip::address& destination, const Payload& payload) {
    const bool v6 = destination.is_v6();
    const UniqueFd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd) return std::strerror(errno);
    const int hops = 1;
    ::setsockopt(fd.get(), v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_UNICAST_HOPS : IP_TTL, &hops, sizeof hops);
    sockaddr_storage to{};
    socklen_t size = 0;
    if (v6) {
        auto* address = reinterpret_cast<sockaddr_in6*>(&to);
        *address = {.sin6_family = AF_INET6, .sin6_port = htons(kPort)};
        std::ranges::copy(destination.to_v6().to_bytes(), address->sin6_addr.s6_addr);
        size = sizeof *address;
    } else {
        auto* address = reinterpret_cast<sockaddr_in*>(&to);
        *address = {.sin_family = AF_INET, .sin_port = htons(kPort)};
        address->sin_addr.s_addr = htonl(destination.to_v4().to_uint());
        size = sizeof *address;
    }
    // connect() first, as programs do: it chooses the source address.
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), size) != 0 ||
        ::send(fd.get(), payload.data(), payload.size(), MSG_NOSIGNAL) < 0)
        return std::strerror(errno);
    return {};
}

/// The source address of an IP packet that is long enough to carry one.
std::string source_of(std::span<const std::byte> packet) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const bool v6 = std::to_integer<int>(packet[0]) >> 4 == 6;
    const auto address = packet.subspan(v6 ? 8 : 12);
    return ::inet_ntop(v6 ? AF_INET6 : AF_INET, address.data(), text.data(), text.size());
}

/// The packet with this payload, if the next one is it and on its way out.
std::optional<Departure> next_departure(int tap, const Payload& payload) {
    std::array<std::byte, 256> bytes{};
    sockaddr_ll from{};
    socklen_t length = sizeof from;
    const ssize_t size =
        ::recvfrom(tap, bytes.data(), bytes.size(), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
    constexpr ssize_t kShortest = 40; // an IPv6 header
    if (size < kShortest || from.sll_pkttype != PACKET_OUTGOING) return std::nullopt;
    const auto packet = std::span<const std::byte>(bytes).first(static_cast<std::size_t>(size));
    if (std::ranges::search(packet, payload).empty()) return std::nullopt;
    std::array<char, IF_NAMESIZE> name{};
    if (::if_indextoname(static_cast<unsigned>(from.sll_ifindex), name.data()) == nullptr) return std::nullopt;
    return Departure{.link = name.data(), .source = source_of(packet)};
}

} // namespace

std::string proof_destination(const std::string& family) { return family == "ipv6" ? "2001:db8::1" : "192.0.2.1"; }

Expected<PacketTap> PacketTap::open() {
    const std::string doing = "looking at packets on all links";
    // The protocol comes with bind(), after the filter: nothing else ever reaches the socket.
    UniqueFd fd(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd) return system_error(errno, doing);
    const sock_fprog filter{.len = kToOurPort.size(), .filter = const_cast<sock_filter*>(kToOurPort.data())};
    sockaddr_ll every_link{};
    every_link.sll_family = AF_PACKET;
    every_link.sll_protocol = htons(ETH_P_ALL);
    if (::setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
        ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&every_link), sizeof every_link) != 0)
        return system_error(errno, doing);
    return PacketTap(std::move(fd));
}

Expected<Departure> PacketTap::send(const std::string& family) const {
    Payload payload{};
    if (::getrandom(payload.data(), payload.size(), 0) != static_cast<ssize_t>(payload.size()))
        return system_error(errno, "making a packet");
    const auto deadline = Clock::now() + kLongest;
    std::string refused = send_from_new_socket(boost::asio::ip::make_address(proof_destination(family)), payload);
    if (!refused.empty()) return Departure{.link = {}, .source = {}, .refused = std::move(refused)};
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        if (left <= 0) return Departure{};
        pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
        if (::poll(&ready, 1, static_cast<int>(left)) < 0 && errno != EINTR)
            return system_error(errno, "waiting for a packet to leave");
        if (auto seen = next_departure(fd_.get(), payload)) return *seen;
    }
}

} // namespace novpn
