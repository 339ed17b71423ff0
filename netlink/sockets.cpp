#include "netlink/sockets.h"
#include "netlink/attributes.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cstring>
#include <fmt/format.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

namespace novpn {

namespace {

using boost::asio::ip::v4_mapped;

// UDP has two states: TCP_ESTABLISHED when it is connected, TCP_CLOSE when not (net/ipv4/udp_diag.c).
constexpr unsigned kStates = ~(1U << TCP_LISTEN | 1U << TCP_TIME_WAIT);

address to_ip(const __be32 (&words)[4], int family) {
    return *Attributes<0>::to_ip(reinterpret_cast<const unsigned char*>(words), sizeof words, family);
}

address without_mapping(const address& a) { return boost::asio::ip::make_address_v4(v4_mapped, a.to_v6()); }

/// The addresses as the socket itself has them.
void put_ip(__be32 (&words)[4], const address& a, bool ipv4_mapped) {
    if (a.is_v4() && !ipv4_mapped) {
        auto bytes = a.to_v4().to_bytes();
        std::memcpy(words, bytes.data(), bytes.size());
    } else {
        auto bytes = (a.is_v4() ? boost::asio::ip::make_address_v6(v4_mapped, a.to_v4()) : a.to_v6()).to_bytes();
        std::memcpy(words, bytes.data(), bytes.size());
    }
}

int socket_family(const OpenSocket& socket) { return socket.ipv4_mapped ? AF_INET6 : to_af(socket.family); }

inet_diag_sockid to_id(const OpenSocket& socket) {
    inet_diag_sockid id{};
    put_ip(id.idiag_src, socket.local, socket.ipv4_mapped);
    if (socket.remote) put_ip(id.idiag_dst, *socket.remote, socket.ipv4_mapped);
    id.idiag_sport = htons(socket.local_port);
    id.idiag_dport = htons(socket.remote_port);
    if (socket.bound_link) id.idiag_if = socket.bound_link->value;
    id.idiag_cookie[0] = static_cast<std::uint32_t>(socket.cookie);
    id.idiag_cookie[1] = static_cast<std::uint32_t>(socket.cookie >> 32);
    return id;
}

} // namespace

std::optional<OpenSocket> to_socket(std::span<const std::byte> message, std::uint8_t ip_protocol) {
    auto* info = header_of<inet_diag_msg>(message, {SOCK_DIAG_BY_FAMILY});
    if (!info || !to_family(info->idiag_family)) return std::nullopt;
    auto attributes = Attributes<INET_DIAG_MAX>::parse(message, sizeof *info);
    if (!attributes) return std::nullopt;
    auto cgroup = attributes->value<std::uint64_t>(INET_DIAG_CGROUP_ID);
    if (!cgroup) return std::nullopt;

    const inet_diag_sockid& id = info->id;
    OpenSocket socket;
    socket.family = *to_family(info->idiag_family);
    socket.ip_protocol = ip_protocol;
    socket.local = to_ip(id.idiag_src, info->idiag_family);
    socket.local_port = ntohs(id.idiag_sport);
    if (address remote = to_ip(id.idiag_dst, info->idiag_family); id.idiag_dport || !remote.is_unspecified())
        socket.remote = remote;
    socket.remote_port = ntohs(id.idiag_dport);
    const bool is_tcp = ip_protocol == IPPROTO_TCP;
    socket.connecting = is_tcp && info->idiag_state == TCP_SYN_SENT;
    socket.closing = is_tcp && (info->idiag_state == TCP_LAST_ACK || info->idiag_state == TCP_CLOSING ||
                                info->idiag_state == TCP_CLOSE);
    auto is_mapped = [](const address& a) { return a.is_v6() && a.to_v6().is_v4_mapped(); };
    if (is_mapped(socket.local) && (!socket.remote || is_mapped(*socket.remote))) {
        socket.family = Family::ipv4;
        socket.ipv4_mapped = true;
        socket.local = without_mapping(socket.local);
        if (socket.remote) socket.remote = without_mapping(*socket.remote);
    }
    socket.cgroup_id = *cgroup;
    socket.classid = attributes->value<std::uint32_t>(INET_DIAG_CLASS_ID).value_or(0);
    socket.mark = attributes->value<std::uint32_t>(INET_DIAG_MARK).value_or(0);
    socket.inode = info->idiag_inode;
    socket.uid = info->idiag_uid;
    socket.cookie = std::uint64_t{id.idiag_cookie[1]} << 32 | id.idiag_cookie[0];
    if (id.idiag_if) socket.bound_link = IfIndex{id.idiag_if};
    return socket;
}

bool leaves_this_machine(const OpenSocket& socket) {
    return socket.remote && !socket.remote->is_loopback() && *socket.remote != socket.local;
}

std::string protocol_name(std::uint8_t ip_protocol) { return ip_protocol == IPPROTO_TCP ? "tcp" : "udp"; }

std::string endpoint(const address& a, std::uint16_t port) {
    return a.is_v6() ? fmt::format("[{}]:{}", a.to_string(), port) : fmt::format("{}:{}", a.to_string(), port);
}

std::string to_string(const OpenSocket& socket) {
    std::string text = protocol_name(socket.ip_protocol) + " " + endpoint(socket.local, socket.local_port);
    if (socket.remote) text += " -> " + endpoint(*socket.remote, socket.remote_port);
    return text;
}

Expected<SocketDiag> SocketDiag::open() {
    auto requests = RequestSocket::open(NETLINK_SOCK_DIAG, "sock_diag");
    if (!requests) return tl::make_unexpected(requests.error());
    return SocketDiag(std::move(*requests));
}

SocketDiag::SocketDiag(RequestSocket requests)
    : requests_(std::move(requests)) {}

Expected<std::vector<OpenSocket>> SocketDiag::sockets(int af, std::uint8_t ip_protocol) {
    inet_diag_req_v2 header{};
    header.sdiag_family = static_cast<std::uint8_t>(af);
    header.sdiag_protocol = ip_protocol;
    header.idiag_states = kStates;
    // The class id comes with the traffic class: its own number is beyond the field (inet_diag_msg_attrs_fill()).
    header.idiag_ext = 1U << (INET_DIAG_TCLASS - 1);
    const std::string doing = fmt::format("reading {} sockets", protocol_name(ip_protocol));
    auto found = requests_.dump<OpenSocket>(
        *make_request(SOCK_DIAG_BY_FAMILY, header),
        [ip_protocol](std::span<const std::byte> message) { return to_socket(message, ip_protocol); }, doing);
    // The family or the protocol has no handler, nor a module that brings one (net/ipv4/inet_diag.c).
    if (!found && found.error().code == std::errc::no_such_file_or_directory)
        return system_error(
            EOPNOTSUPP, doing,
            fmt::format("the kernel lacks CONFIG_INET_{}_DIAG", ip_protocol == IPPROTO_TCP ? "TCP" : "UDP"));
    return found;
}

Expected<std::vector<OpenSocket>> SocketDiag::sockets() {
    std::vector<OpenSocket> all;
    for (Family family : kFamilies) {
        for (std::uint8_t ip_protocol : {IPPROTO_TCP, IPPROTO_UDP}) {
            auto found = sockets(to_af(family), ip_protocol);
            if (!found) return found;
            all.insert(all.end(), found->begin(), found->end());
        }
    }
    return all;
}

Expected<void> SocketDiag::end(const OpenSocket& socket) {
    const std::string doing = "ending " + to_string(socket);
    inet_diag_req_v2 header{};
    header.sdiag_family = static_cast<std::uint8_t>(socket_family(socket));
    header.sdiag_protocol = socket.ip_protocol;
    header.idiag_states = kStates;
    header.id = to_id(socket);
    auto ended = requests_.ask(
        *make_request(SOCK_DESTROY, header), [](std::span<const std::byte>) {}, doing);
    if (ended || ended.error().code != std::errc::no_such_file_or_directory) return ended;
    if (socket.ip_protocol == IPPROTO_TCP) return {};
    // ENOENT has two meanings for UDP: the kernel finds the socket that a packet would be delivered to, and only then
    // compares its cookie (udp_diag_destroy() in net/ipv4/udp_diag.c).
    auto left = sockets(socket_family(socket), socket.ip_protocol);
    if (!left) return tl::make_unexpected(left.error());
    if (std::ranges::find(*left, socket.cookie, &OpenSocket::cookie) == left->end()) return {};
    return system_error(EADDRINUSE, doing, "another socket of the same address receives in its place");
}

} // namespace novpn
