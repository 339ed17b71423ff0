// From the bytes of a netlink message to values: the fixed header, the attributes behind it, addresses in them. Bytes
// that are too short give nothing. Private to this folder.
#pragma once

#include "netlink/values.h"

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <span>
#include <sys/socket.h>

namespace novpn {

/// The attributes of one message, by type; every accessor checks the length before it reads.
template<int Max>
class Attributes {
  public:
    static std::optional<Attributes> parse(std::span<const std::byte> message, int header_size) {
        // nlmsg_parse() takes no const but does not write.
        auto* header = reinterpret_cast<nlmsghdr*>(const_cast<std::byte*>(message.data()));
        Attributes attributes;
        if (nlmsg_parse(header, header_size, attributes.table_, Max, nullptr) < 0) return std::nullopt;
        return attributes;
    }
    static std::optional<Attributes> parse_nested(const nlattr* nested) {
        Attributes attributes;
        if (nla_parse_nested(attributes.table_, Max, const_cast<nlattr*>(nested), nullptr) < 0) return std::nullopt;
        return attributes;
    }
    static std::optional<Attributes> parse_bytes(void* head, int length) {
        Attributes attributes;
        if (nla_parse(attributes.table_, Max, static_cast<nlattr*>(head), length, nullptr) < 0) return std::nullopt;
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
    nlattr* table_[Max + 1] = {};
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
