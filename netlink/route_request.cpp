#include "netlink/route_request.h"

#include "netlink/attributes.h"
#include "netlink/rtnetlink.h"

#include <fmt/format.h>

namespace novpn {

namespace {

std::uint8_t to_rtn(RouteType type) {
    switch (type) {
    case RouteType::unreachable: return RTN_UNREACHABLE;
    case RouteType::blackhole: return RTN_BLACKHOLE;
    case RouteType::prohibit: return RTN_PROHIBIT;
    case RouteType::throw_: return RTN_THROW;
    case RouteType::local: return RTN_LOCAL;
    case RouteType::unicast:
    case RouteType::other: break;
    }
    return RTN_UNICAST;
}

/// RTA_VIA: a gateway of the other family (RFC 5549), struct rtvia {family, address}.
void put_via(RouteRequest& message, const address& gateway) {
    std::array<unsigned char, sizeof(std::uint16_t) + 16> via{};
    const auto family = static_cast<std::uint16_t>(to_af(family_of(gateway)));
    std::memcpy(via.data(), &family, sizeof family);
    const auto write = [&](const auto& bytes) {
        std::memcpy(via.data() + sizeof family, bytes.data(), bytes.size());
        return sizeof family + bytes.size();
    };
    const std::size_t size = gateway.is_v4() ? write(gateway.to_v4().to_bytes()) : write(gateway.to_v6().to_bytes());
    message.put(RTA_VIA, via.data(), size);
}

RouteRequest to_request(int type, const Route& route, int flags) {
    const unsigned length = route.destination.length;
    rtmsg header{};
    header.rtm_family = static_cast<unsigned char>(to_af(family_of(route)));
    header.rtm_dst_len = static_cast<unsigned char>(length);
    header.rtm_table = RT_TABLE_UNSPEC; // RTA_TABLE has it, which has room for all numbers
    header.rtm_protocol = route.protocol.value;
    header.rtm_scope = route.scope;
    header.rtm_type = to_rtn(route.type);
    if (route.onlink) header.rtm_flags = RTNH_F_ONLINK;
    RouteRequest request(type, header, flags);
    request.put(RTA_TABLE, route.table.value);
    if (length) request.put(RTA_DST, route.destination.network);
    if (route.metric) request.put(RTA_PRIORITY, route.metric);
    if (route.source) request.put(RTA_PREFSRC, *route.source);
    if (route.type != RouteType::unicast) return request;
    request.put(RTA_OIF, route.link.value);
    if (route.gateway && family_of(*route.gateway) == family_of(route))
        request.put(RTA_GATEWAY, *route.gateway);
    else if (route.gateway)
        put_via(request, *route.gateway);
    return request;
}

/// IPv6 has routes of one prefix and metric beside each other, where they are not defaults.
bool is_beside_others(const Route& route) { return family_of(route) == Family::ipv6 && !is_default(route); }

} // namespace

RouteRequest to_request(const RouteWrite& write) {
    if (write.removes) return to_request(RTM_DELROUTE, *write.route, 0);
    // With EXCL the kernel refuses a second link's route of the same prefix and metric; without it, an equal one only.
    const int how = is_beside_others(*write.route) ? NLM_F_APPEND : NLM_F_REPLACE;
    return to_request(RTM_NEWROUTE, *write.route, NLM_F_CREATE | how);
}

bool is_done(const RouteWrite& write, const Error& refusal) {
    if (write.removes) return refusal.code == std::errc::no_such_process || refusal.code == std::errc::no_such_device;
    return is_beside_others(*write.route) && refusal.code == std::errc::file_exists;
}

std::string to_doing(const RouteWrite& write) {
    return fmt::format("{} route {}", write.removes ? "deleting" : "adding", to_string(*write.route, {}));
}

} // namespace novpn
