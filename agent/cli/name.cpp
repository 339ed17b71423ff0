#include "agent/cli/name.h"

#include "config/text.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace novpn {
namespace {

namespace ip = boost::asio::ip;

ip::address address_of(const addrinfo& entry) {
    if (entry.ai_family == AF_INET) {
        sockaddr_in ipv4{};
        std::memcpy(&ipv4, entry.ai_addr, sizeof ipv4);
        return ip::address_v4(ntohl(ipv4.sin_addr.s_addr));
    }
    sockaddr_in6 ipv6{};
    std::memcpy(&ipv6, entry.ai_addr, sizeof ipv6);
    ip::address_v6::bytes_type bytes{};
    std::memcpy(bytes.data(), &ipv6.sin6_addr, bytes.size());
    return ip::address_v6(bytes, ipv6.sin6_scope_id);
}

} // namespace

Expected<Resolved> resolve(const std::string& destination) {
    boost::system::error_code error;
    const auto address = ip::make_address(destination, error);
    if (!error) return Resolved{.address = address};

    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM; // Else each address comes once a protocol.
    addrinfo* list = nullptr;
    const int status = ::getaddrinfo(destination.c_str(), nullptr, &hints, &list);
    const std::string doing = "resolving " + printable(destination);
    if (status == EAI_SYSTEM) return system_error(errno, doing);
    if (status != 0) return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = ::gai_strerror(status)});
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(list, &::freeaddrinfo);
    Resolved resolved{.address = {}, .by_name = true, .addresses = 0};
    for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
        if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
        if (resolved.addresses++ == 0) resolved.address = address_of(*entry);
    }
    if (resolved.addresses == 0)
        return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = "it has no address"});
    return resolved;
}

} // namespace novpn
