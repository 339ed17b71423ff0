#include "rules/connections.h"

#include "rules/nft_socket.h"

#include <arpa/inet.h>
#include <cstring>
#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <map>
#include <netinet/in.h>
#include <optional>
#include <string>
#include <sys/socket.h>

namespace novpn {
namespace {

/// Attributes by their type, of those that are whole.
using Found = std::map<std::uint16_t, const nlattr*>;

Found attributes_in(const void* first, std::size_t size) {
    Found found;
    const auto* attribute = static_cast<const nlattr*>(first);
    auto left = static_cast<int>(size);
    while (mnl_attr_ok(attribute, left)) {
        found[mnl_attr_get_type(attribute)] = attribute;
        left -= MNL_ALIGN(attribute->nla_len);
        attribute = mnl_attr_next(attribute);
    }
    return found;
}

Found nested_in(const Found& in, std::uint16_t type) {
    const auto nest = in.find(type);
    if (nest == in.end()) return {};
    return attributes_in(mnl_attr_get_payload(nest->second), mnl_attr_get_payload_len(nest->second));
}

template<typename T>
std::optional<T> value_in(const Found& in, std::uint16_t type) {
    const auto found = in.find(type);
    if (found == in.end() || mnl_attr_get_payload_len(found->second) < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, mnl_attr_get_payload(found->second), sizeof value);
    return value;
}

std::optional<address> address_in(const Found& in, std::uint16_t ipv4, std::uint16_t ipv6) {
    if (const auto bytes = value_in<boost::asio::ip::address_v4::bytes_type>(in, ipv4))
        return boost::asio::ip::address_v4(*bytes);
    if (const auto bytes = value_in<boost::asio::ip::address_v6::bytes_type>(in, ipv6))
        return boost::asio::ip::address_v6(*bytes);
    return std::nullopt;
}

struct Tuple {
    address source;
    address destination;
    std::uint8_t ip_protocol = 0;
    std::uint16_t source_port = 0;
    std::uint16_t destination_port = 0;
};

std::optional<Tuple> tuple_in(const Found& in, std::uint16_t type) {
    const Found tuple = nested_in(in, type);
    const Found ip = nested_in(tuple, CTA_TUPLE_IP);
    const Found protocol = nested_in(tuple, CTA_TUPLE_PROTO);
    const auto source = address_in(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
    const auto destination = address_in(ip, CTA_IP_V4_DST, CTA_IP_V6_DST);
    const auto number = value_in<std::uint8_t>(protocol, CTA_PROTO_NUM);
    if (!source || !destination || !number) return std::nullopt;
    return Tuple{*source, *destination, *number,
                 ntohs(value_in<std::uint16_t>(protocol, CTA_PROTO_SRC_PORT).value_or(0)),
                 ntohs(value_in<std::uint16_t>(protocol, CTA_PROTO_DST_PORT).value_or(0))};
}

/// A request to ctnetlink in the place of one to nf_tables: the socket is one for all of nfnetlink.
void address_to_conntrack(nlmsghdr* message, std::uint16_t type, std::uint8_t family) {
    message->nlmsg_type = static_cast<std::uint16_t>(NFNL_SUBSYS_CTNETLINK << 8 | type);
    static_cast<nfgenmsg*>(mnl_nlmsg_get_payload(message))->nfgen_family = family;
}

using End = std::pair<address, std::uint16_t>; ///< with its port

void put_tuple(nlmsghdr& message, std::uint16_t type, const End& source, const End& destination,
               std::uint8_t ip_protocol) {
    nlattr* tuple = mnl_attr_nest_start(&message, type);
    nlattr* ip = mnl_attr_nest_start(&message, CTA_TUPLE_IP);
    const auto put_address = [&](const address& a, std::uint16_t ipv4, std::uint16_t ipv6) {
        if (a.is_v4()) return mnl_attr_put(&message, ipv4, 4, a.to_v4().to_bytes().data());
        mnl_attr_put(&message, ipv6, 16, a.to_v6().to_bytes().data());
    };
    put_address(source.first, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
    put_address(destination.first, CTA_IP_V4_DST, CTA_IP_V6_DST);
    mnl_attr_nest_end(&message, ip);
    nlattr* protocol = mnl_attr_nest_start(&message, CTA_TUPLE_PROTO);
    mnl_attr_put_u8(&message, CTA_PROTO_NUM, ip_protocol);
    mnl_attr_put_u16(&message, CTA_PROTO_SRC_PORT, htons(source.second));
    mnl_attr_put_u16(&message, CTA_PROTO_DST_PORT, htons(destination.second));
    mnl_attr_nest_end(&message, protocol);
    mnl_attr_nest_end(&message, tuple);
}

std::string name_of_protocol(std::uint8_t number) {
    switch (number) {
    case IPPROTO_TCP: return "tcp";
    case IPPROTO_UDP: return "udp";
    case IPPROTO_ICMP: return "icmp";
    case IPPROTO_ICMPV6: return "icmpv6";
    default: return fmt::format("{}", number);
    }
}

} // namespace

struct Connections::Impl {
    nft::Socket socket;
};

Connections::Connections(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
Connections::Connections(Connections&&) noexcept = default;
Connections& Connections::operator=(Connections&&) noexcept = default;
Connections::~Connections() = default;

std::optional<Connection> to_connection(const nlmsghdr* message) {
    const std::size_t size = mnl_nlmsg_get_payload_len(message);
    if (size < sizeof(nfgenmsg)) return std::nullopt;
    const auto* first = static_cast<const char*>(mnl_nlmsg_get_payload_offset(message, sizeof(nfgenmsg)));
    const Found found = attributes_in(first, size - sizeof(nfgenmsg));
    const auto original = tuple_in(found, CTA_TUPLE_ORIG);
    const auto reply = tuple_in(found, CTA_TUPLE_REPLY);
    if (!original || !reply) return std::nullopt;
    const nlattr* tuple = found.at(CTA_TUPLE_ORIG);
    const auto* bytes = static_cast<const std::uint8_t*>(mnl_attr_get_payload(tuple));
    return Connection{.ip_protocol = original->ip_protocol,
                      .source = original->source,
                      .source_port = original->source_port,
                      .destination = original->destination,
                      .destination_port = original->destination_port,
                      .translated = reply->destination,
                      .mark = ntohl(value_in<std::uint32_t>(found, CTA_MARK).value_or(0)),
                      .id = value_in<std::uint32_t>(found, CTA_ID).value_or(0),
                      .tuple = {bytes, bytes + mnl_attr_get_payload_len(tuple)}};
}

std::string to_string(const Connection& connection) {
    std::string text = fmt::format("-p {} -s {} -d {}", name_of_protocol(connection.ip_protocol),
                                   connection.source.to_string(), connection.destination.to_string());
    if (connection.source_port)
        text += fmt::format(" --sport {} --dport {}", connection.source_port, connection.destination_port);
    return text;
}

Expected<Connections> Connections::open() {
    auto socket = nft::Socket::open();
    if (!socket) return tl::make_unexpected(socket.error());
    return Connections(std::make_unique<Impl>(Impl{std::move(*socket)}));
}

Expected<std::vector<Connection>> Connections::dump(const std::optional<Mark>& with) {
    const auto fill = [&](nlmsghdr* message) {
        address_to_conntrack(message, IPCTNL_MSG_CT_GET, AF_UNSPEC);
        if (!with) return;
        mnl_attr_put_u32(message, CTA_MARK, htonl(with->value));
        mnl_attr_put_u32(message, CTA_MARK_MASK, htonl(with->mask));
    };
    const auto answer = impl_->socket.dump(IPCTNL_MSG_CT_GET, fill, "reading connections");
    if (!answer) return tl::make_unexpected(answer.error());
    std::vector<Connection> all;
    answer->for_each([&](const nlmsghdr* message) {
        if (auto connection = to_connection(message)) all.push_back(std::move(*connection));
    });
    return all;
}

namespace {

Connection as_connection(const OpenSocket& socket) {
    return {.ip_protocol = socket.ip_protocol,
            .source = socket.local,
            .source_port = socket.local_port,
            .destination = *socket.remote,
            .destination_port = socket.remote_port,
            .translated = socket.local};
}

/// What conntrack says of a flow that goes on like this one.
struct Entry {
    std::uint32_t seconds;    ///< without a packet; the next gives it what is set for the protocol
    std::uint32_t status;     ///< IPS_*, each of them
    std::uint8_t tcp_state;   ///< TCP_CONNTRACK_*
    std::string_view options; ///< of conntrack(8)
};

Entry entry_of(const OpenSocket& socket) {
    constexpr std::uint32_t kAnswered = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED;
    // As nf_conntrack_tcp_timeout_syn_sent, _established and nf_conntrack_udp_timeout_stream are by themselves.
    if (socket.connecting) return {120, IPS_CONFIRMED, TCP_CONNTRACK_SYN_SENT, " --state SYN_SENT"};
    if (socket.ip_protocol == IPPROTO_TCP)
        return {432'000, kAnswered, TCP_CONNTRACK_ESTABLISHED, " --state ESTABLISHED -u ASSURED,SEEN_REPLY"};
    return {120, kAnswered, 0, " -u ASSURED,SEEN_REPLY"};
}

void put_tcp_state(nlmsghdr& message, std::uint8_t state) {
    // Without the flag what follows a window that nobody saw would be invalid.
    constexpr nf_ct_tcp_flags kAnyWindow{IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL};
    nlattr* info = mnl_attr_nest_start(&message, CTA_PROTOINFO);
    nlattr* tcp = mnl_attr_nest_start(&message, CTA_PROTOINFO_TCP);
    mnl_attr_put_u8(&message, CTA_PROTOINFO_TCP_STATE, state);
    mnl_attr_put(&message, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, sizeof kAnyWindow, &kAnyWindow);
    mnl_attr_put(&message, CTA_PROTOINFO_TCP_FLAGS_REPLY, sizeof kAnyWindow, &kAnyWindow);
    mnl_attr_nest_end(&message, tcp);
    mnl_attr_nest_end(&message, info);
}

Expected<void> add(nft::Socket& socket, const OpenSocket& added) {
    const End local{added.local, added.local_port};
    const End remote{*added.remote, added.remote_port};
    const Entry entry = entry_of(added);
    const auto fill = [&](nlmsghdr* message) {
        address_to_conntrack(message, IPCTNL_MSG_CT_NEW, added.local.is_v4() ? AF_INET : AF_INET6);
        message->nlmsg_flags |= NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        put_tuple(*message, CTA_TUPLE_ORIG, local, remote, added.ip_protocol);
        put_tuple(*message, CTA_TUPLE_REPLY, remote, local, added.ip_protocol);
        mnl_attr_put_u32(message, CTA_STATUS, htonl(entry.status));
        mnl_attr_put_u32(message, CTA_TIMEOUT, htonl(entry.seconds));
        if (added.ip_protocol == IPPROTO_TCP) put_tcp_state(*message, entry.tcp_state);
    };
    const auto answer = socket.get(IPCTNL_MSG_CT_NEW, fill, "adding connection " + to_string(as_connection(added)));
    if (answer || answer.error().code == std::errc::file_exists) return {};
    return tl::make_unexpected(answer.error());
}

} // namespace

std::string text_of_adding(const OpenSocket& socket) {
    const Entry entry = entry_of(socket);
    return fmt::format("conntrack -I {}{} -t {}", to_string(as_connection(socket)), entry.options, entry.seconds);
}

Expected<void> Connections::add(const std::vector<OpenSocket>& sockets) {
    Expected<void> all;
    for (const OpenSocket& socket : sockets)
        if (auto added = novpn::add(impl_->socket, socket); !added && all) all = added;
    return all;
}

Expected<void> Connections::drop(const Connection& connection) {
    const auto fill = [&](nlmsghdr* message) {
        address_to_conntrack(message, IPCTNL_MSG_CT_DELETE, connection.source.is_v4() ? AF_INET : AF_INET6);
        message->nlmsg_flags |= NLM_F_ACK;
        mnl_attr_put(message, CTA_TUPLE_ORIG | NLA_F_NESTED, connection.tuple.size(), connection.tuple.data());
        mnl_attr_put_u32(message, CTA_ID, connection.id);
    };
    const auto answer = impl_->socket.get(IPCTNL_MSG_CT_DELETE, fill, "dropping connection " + to_string(connection));
    if (answer || answer.error().code == std::errc::no_such_file_or_directory) return {};
    return tl::make_unexpected(answer.error());
}

} // namespace novpn
