// Which Wi-Fi network a link is in, by nl80211 (linux/nl80211.h): asked on a request socket, told of by notifications
// on another. Synchronous; owns its sockets; not thread-safe. A kernel without nl80211 has no Wi-Fi links; one that
// gets it later, with the driver of a stick, is noticed.
#pragma once

#include "netlink/nl_socket.h"
#include "netlink/values.h"

#include <map>

namespace novpn {

/// One generic netlink message, header included, as bytes; nothing when it is not of that kind or is malformed.
std::optional<WifiLink> to_wifi_link(std::span<const std::byte> message); ///< of NL80211_CMD_GET_INTERFACE
/// Of NL80211_CMD_GET_SCAN: the network that the link is in; nothing for those that it only hears.
std::optional<WifiLink> to_network_in_use(std::span<const std::byte> message);

/// Why to look after that notification; empty: no reason.
std::string_view to_wifi_cause(std::span<const std::byte> message);

/// What names a generic netlink family (CTRL_CMD_GETFAMILY).
struct GenericFamily {
    std::uint16_t id = 0;
    std::string name;
    std::map<std::string, std::uint32_t> groups; ///< multicast
    bool operator==(const GenericFamily&) const = default;
};
std::optional<GenericFamily> to_generic_family(std::span<const std::byte> message);

class WifiSocket {
  public:
    static Expected<WifiSocket> open();

    /// iw dev; of clients only. `with_bssid`: also which access point, by the list of the networks that are heard.
    Expected<std::vector<WifiLink>> links(bool with_bssid);

  private:
    explicit WifiSocket(RequestSocket requests);
    RequestSocket requests_;
    std::optional<std::uint16_t> family_; ///< none: the kernel has, or had, no nl80211
};

/// Notifications that a link has come into a network, into another one, or out of it.
class WifiMonitor {
  public:
    static Expected<WifiMonitor> open();
    int fd() const;
    /// Reads what is queued; never blocks. Why to look; empty: no reason.
    std::string_view drain();

  private:
    explicit WifiMonitor(NlSocket socket);
    void join(const GenericFamily& family);
    NlSocket socket_;
    std::vector<std::byte> buffer_;
    std::uint16_t family_ = 0; ///< 0: the kernel has no nl80211
};

} // namespace novpn
