// Requests about routes. Private to this folder.
#pragma once

#include "netlink/error.h"
#include "netlink/values.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <string>

namespace novpn {

/// RTM_NEWROUTE, RTM_DELROUTE or RTM_GETROUTE, built in place: these are what a reaction and a look wait for, and
/// libnl's objects cost more than the kernel's whole answer.
class RouteRequest {
  public:
    RouteRequest(int type, const rtmsg& route, int flags) {
        nlmsghdr& head = header();
        head.nlmsg_len = NLMSG_LENGTH(sizeof route);
        head.nlmsg_type = static_cast<std::uint16_t>(type);
        head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
        std::memcpy(NLMSG_DATA(&head), &route, sizeof route);
    }
    nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }

    void put(unsigned short attribute, const void* data, std::size_t size) {
        nlmsghdr& head = header();
        const rtattr fixed{.rta_len = static_cast<unsigned short>(RTA_LENGTH(size)), .rta_type = attribute};
        std::byte* at = bytes_.data() + NLMSG_ALIGN(head.nlmsg_len);
        std::memcpy(at, &fixed, sizeof fixed);
        std::memcpy(at + RTA_LENGTH(0), data, size);
        head.nlmsg_len = static_cast<std::uint32_t>(NLMSG_ALIGN(head.nlmsg_len) + RTA_ALIGN(fixed.rta_len));
    }
    void put(unsigned short attribute, std::uint32_t value) { put(attribute, &value, sizeof value); }
    void put(unsigned short attribute, const address& a) {
        const auto write = [&](const auto& bytes) { put(attribute, bytes.data(), bytes.size()); };
        a.is_v4() ? write(a.to_v4().to_bytes()) : write(a.to_v6().to_bytes());
    }

  private:
    /// Headers, four numbers, three IPv6 addresses and a via are less.
    alignas(nlmsghdr) std::array<std::byte, 192> bytes_{};
};

struct RouteWrite;

RouteRequest to_request(const RouteWrite& write);
/// What is refused is so already.
bool is_done(const RouteWrite& write, const Error& refusal);
/// "adding route default via 192.168.1.1", for an error.
std::string to_doing(const RouteWrite& write);

} // namespace novpn
