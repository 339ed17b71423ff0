// From the bytes of a netlink message to values: the fixed header, the attributes behind it, addresses in them. Bytes
// that are too short give nothing. Private to this folder.
#pragma once

#include "netlink/values.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <span>
#include <sys/socket.h>

namespace novpn {

/// The netlink messages in a datagram, header included; one that claims to be longer than the datagram ends it.
template<typename Visit>
void for_each_message(std::span<const std::byte> datagram, Visit visit) {
    auto* header = reinterpret_cast<const nlmsghdr*>(datagram.data());
    auto left = static_cast<unsigned>(datagram.size());
    for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) visit(*header);
}

/// The attributes of one message, by type; every accessor checks the length before it reads.
template<int Max>
class Attributes {
  public:
    static std::optional<Attributes> parse(std::span<const std::byte> message, int header_size) {
        const auto length = reinterpret_cast<const nlmsghdr*>(message.data())->nlmsg_len;
        const auto first = static_cast<std::uint32_t>(NLMSG_LENGTH(NLMSG_ALIGN(header_size)));
        if (length < static_cast<std::uint32_t>(NLMSG_LENGTH(header_size))) return std::nullopt;
        Attributes attributes;
        if (length > first) attributes.take(message.data() + first, length - first);
        return attributes;
    }
    static std::optional<Attributes> parse_nested(const nlattr* nested) {
        Attributes attributes;
        attributes.take(static_cast<const std::byte*>(nla_data(nested)), static_cast<std::size_t>(nla_len(nested)));
        return attributes;
    }
    static std::optional<Attributes> parse_bytes(const void* head, int length) {
        Attributes attributes;
        if (length > 0) attributes.take(static_cast<const std::byte*>(head), static_cast<std::size_t>(length));
        return attributes;
    }

    const nlattr* raw(int type) const { return table_[type]; }

    template<typename T>
    std::optional<T> value(int type) const {
        const nlattr* found = table_[type];
        if (!found || nla_len(found) < static_cast<int>(sizeof(T))) return std::nullopt;
        T result;
        std::memcpy(&result, nla_data(found), sizeof result);
        return result;
    }
    std::string text(int type) const {
        const nlattr* found = table_[type];
        if (!found) return {};
        const char* data = static_cast<const char*>(nla_data(found));
        return {data, strnlen(data, static_cast<std::size_t>(nla_len(found)))};
    }
    std::optional<address> ip(int type, int family) const { return to_ip(table_[type], family); }

    static std::optional<address> to_ip(const nlattr* attribute, int family) {
        if (!attribute) return std::nullopt;
        return to_ip(static_cast<const unsigned char*>(nla_data(attribute)), nla_len(attribute), family);
    }
    static std::optional<address> to_ip(const unsigned char* data, int length, int family) {
        if (family == AF_INET && length >= 4) {
            return boost::asio::ip::address_v4({data[0], data[1], data[2], data[3]});
        }
        if (family == AF_INET6 && length >= 16) {
            boost::asio::ip::address_v6::bytes_type bytes;
            std::memcpy(bytes.data(), data, bytes.size());
            return boost::asio::ip::address_v6(bytes);
        }
        return std::nullopt;
    }

  private:
    /// By hand: a reaction waits for this. The last of a type counts; one that claims to be longer than the rest ends
    /// it.
    void take(const std::byte* at, std::size_t left) {
        while (left >= sizeof(nlattr)) {
            const auto* attribute = reinterpret_cast<const nlattr*>(at);
            if (attribute->nla_len < sizeof(nlattr) || attribute->nla_len > left) return;
            const int type = attribute->nla_type & NLA_TYPE_MASK;
            if (type > 0 && type <= Max) table_[type] = attribute;
            const auto step = std::min<std::size_t>(NLA_ALIGN(attribute->nla_len), left);
            at += step;
            left -= step;
        }
    }

    const nlattr* table_[Max + 1] = {};
};

/// The fixed header behind nlmsghdr, when the message is of `type` and long enough for it.
template<typename Header>
const Header* header_of(std::span<const std::byte> message, std::initializer_list<int> types) {
    if (message.size() < sizeof(nlmsghdr)) return nullptr;
    auto* header = reinterpret_cast<const nlmsghdr*>(message.data());
    if (header->nlmsg_len > message.size() || header->nlmsg_len < NLMSG_LENGTH(sizeof(Header))) return nullptr;
    for (int type : types)
        if (header->nlmsg_type == type) return static_cast<const Header*>(NLMSG_DATA(header));
    return nullptr;
}

inline int to_af(Family family) { return family == Family::ipv4 ? AF_INET : AF_INET6; }

inline std::optional<Family> to_family(int family) {
    if (family == AF_INET) return Family::ipv4;
    if (family == AF_INET6) return Family::ipv6;
    return std::nullopt;
}

} // namespace novpn
