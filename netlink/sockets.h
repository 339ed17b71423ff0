// Open TCP and UDP sockets of this network namespace, by cgroup and mark, and ending them: sock_diag(7),
// linux/inet_diag.h. Synchronous; owns its socket; not thread-safe. Keeps no cache: every list is the kernel's answer.
// A socket that has never been bound, connected or sent from is in none of the kernel's tables, and in no list.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/values.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

struct OpenSocket {
    Family family = Family::ipv4; ///< of its packets: an IPv6 socket that speaks IPv4 is ipv4
    std::uint8_t ip_protocol = 0; ///< IPPROTO_TCP, IPPROTO_UDP
    address local;
    std::uint16_t local_port = 0;
    std::optional<address> remote; ///< none: a UDP socket that is not connected
    std::uint16_t remote_port = 0;
    bool connecting = false;     ///< TCP_SYN_SENT: nobody has answered yet
    bool closing = false;        ///< both ends of TCP have said their last
    std::uint64_t cgroup_id = 0; ///< the cgroup v2 it was born in, whose directory may be gone
    std::uint32_t classid = 0;   ///< of net_cls; SO_PRIORITY where it has none
    std::uint32_t mark = 0;      ///< SO_MARK; the kernel tells it with CAP_NET_ADMIN only
    std::uint32_t inode = 0;     ///< what /proc/PID/fd calls it; 0: no process holds it any more
    uid_t uid = 0;
    // With the addresses, what SOCK_DESTROY finds it by.
    std::uint64_t cookie = 0; ///< the kernel never gives it twice: another socket of the same addresses has another
    std::optional<IfIndex> bound_link; ///< SO_BINDTODEVICE, or a link-local address's
    bool ipv4_mapped = false;          ///< an IPv6 socket whose addresses are ::ffff:a.b.c.d
    bool operator==(const OpenSocket&) const = default;
};

/// One answer of sock_diag, header included, as bytes; it does not name the protocol, which the request did. Nothing
/// when it is malformed, or of what is no process's socket and has no cgroup: a connection before accept(2) or in
/// TIME_WAIT.
std::optional<OpenSocket> to_socket(std::span<const std::byte> message, std::uint8_t ip_protocol);

/// Connected to another host, as far as its addresses tell: neither to a loopback address nor to its own.
bool leaves_this_machine(const OpenSocket& socket);

/// "tcp", "udp"
std::string protocol_name(std::uint8_t ip_protocol);
/// "192.0.2.2:40112", "[2001:db8::2]:443"
std::string endpoint(const address& a, std::uint16_t port);
/// "tcp 192.0.2.2:40112 -> 203.0.113.1:443"
std::string to_string(const OpenSocket& socket);

class SocketDiag {
  public:
    static Expected<SocketDiag> open();

    /// ss -tun state connected state unconnected: TCP and UDP of both families in the network namespace that open()
    /// was called in. Not the listening ones, nor those in TIME_WAIT. In no order.
    /// operation_not_supported: a kernel without CONFIG_INET_DIAG or CONFIG_INET_UDP_DIAG.
    Expected<std::vector<OpenSocket>> sockets();

    /// ss --kill: its process has ECONNABORTED from now on; the other end of a TCP connection has an RST. A UDP socket
    /// is disconnected and has the error once; its process can go on to use it. One that is gone already is done.
    /// operation_not_permitted: without CAP_NET_ADMIN. operation_not_supported: a kernel without
    /// CONFIG_INET_DIAG_DESTROY. address_in_use: a UDP socket that shares its addresses with others, of which the
    /// kernel finds one only.
    Expected<void> end(const OpenSocket& socket);

  private:
    explicit SocketDiag(RequestSocket requests);
    Expected<std::vector<OpenSocket>> sockets(int af, std::uint8_t ip_protocol);
    RequestSocket requests_;
};

} // namespace novpn
