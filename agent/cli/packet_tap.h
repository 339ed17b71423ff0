// The proof by a packet of our own: which link it leaves by, and with what source. It disturbs nobody: its TTL of 1
// ends it at the first router. Blocking; root (CAP_NET_RAW), for the look at all links.
#pragma once

#include "agent/unique_fd.h"
#include "netlink/error.h"

#include <string>

namespace novpn {

struct Departure {
    std::string link;    ///< empty: it did not leave
    std::string source;  ///< its address, when it left
    std::string refused; ///< why the kernel took none from the socket; empty where it took it
    bool operator==(const Departure&) const = default;
};

/// An address that no host has, and that a VPN takes over as it does the rest of the internet (RFC 5737, RFC 3849).
std::string proof_destination(const std::string& family);

class PacketTap {
  public:
    static Expected<PacketTap> open();

    /// Sends a packet from a new socket of this process, and waits until it leaves, two seconds at most.
    Expected<Departure> send(const std::string& family) const;

  private:
    explicit PacketTap(UniqueFd fd)
        : fd_(std::move(fd)) {}

    UniqueFd fd_;
};

} // namespace novpn
