// Connections as conntrack has them, adding and dropping one: ctnetlink (linux/netfilter/nfnetlink_conntrack.h,
// libmnl). Synchronous; owns its socket; not thread-safe. Which of them are stale is decided elsewhere.
#pragma once

#include "netlink/sockets.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct nlmsghdr;

namespace novpn {

/// As its first packet was; ports of TCP, UDP and what has them too, else 0.
struct Connection {
    std::uint8_t ip_protocol = 0; ///< IPPROTO_*
    address source;
    std::uint16_t source_port = 0;
    address destination;
    std::uint16_t destination_port = 0;
    address translated;     ///< the source that its packets leave with; `source` where nothing is translated
    std::uint32_t mark = 0; ///< the ct mark
    // What the kernel finds it by.
    std::uint32_t id = 0;            ///< another connection of the same addresses has another
    std::vector<std::uint8_t> tuple; ///< CTA_TUPLE_ORIG as the kernel told it
    bool operator==(const Connection&) const = default;
};

/// One answer of ctnetlink, header included; nothing when it is malformed or of another family than IPv4 and IPv6.
std::optional<Connection> to_connection(const nlmsghdr* message);

/// "conntrack -I -p tcp -s 10.8.0.2 -d 203.0.113.1 --sport 40112 --dport 443 --state ESTABLISHED -u ... -t 432000"
std::string text_of_adding(const OpenSocket& socket);
/// "-p tcp -s 10.8.0.2 -d 203.0.113.1 --sport 40112 --dport 443", as conntrack(8) takes it.
std::string to_string(const Connection& connection);

class Connections {
  public:
    static Expected<Connections> open();
    Connections(Connections&&) noexcept;
    Connections& operator=(Connections&&) noexcept;
    ~Connections();

    /// conntrack -L, both families, of this network namespace, or what of it has that ct mark. In no order.
    /// invalid_argument: a kernel without CONFIG_NF_CT_NETLINK.
    Expected<std::vector<Connection>> dump(const std::optional<Mark>& with);
    /// conntrack -I of the flows of sockets that are connected to another host, with no mark. One that is known already
    /// stays as it is. Those behind one that the kernel refuses are added too; the first error is told.
    Expected<void> add(const std::vector<OpenSocket>& sockets);
    /// conntrack -D of this one. One that is gone already is done.
    Expected<void> drop(const Connection& connection);

  private:
    struct Impl;
    explicit Connections(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace novpn
