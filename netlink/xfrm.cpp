#include "netlink/xfrm.h"
#include "netlink/attributes.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

namespace novpn {

namespace {

constexpr std::uint32_t kDirectionBits = 7; // xfrm_policy_id2dir() in net/xfrm/xfrm_policy.c

bool matches(const MaskedPort& wanted, std::uint16_t port) { return (port & wanted.mask) == wanted.value; }

address to_ip(const xfrm_address_t& a, int family) {
    unsigned char bytes[sizeof a];
    std::memcpy(bytes, &a, sizeof a);
    return *Attributes<0>::to_ip(bytes, sizeof bytes, family);
}

xfrm_address_t from_ip(const address& a) {
    xfrm_address_t result{};
    auto put = [&](const auto& bytes) { std::memcpy(&result, bytes.data(), bytes.size()); };
    if (a.is_v4())
        put(a.to_v4().to_bytes());
    else
        put(a.to_v6().to_bytes());
    return result;
}

MaskedPort to_port(__be16 value, __be16 mask) {
    return {.value = static_cast<std::uint16_t>(ntohs(value) & ntohs(mask)), .mask = ntohs(mask)};
}

xfrm_selector to_selector(const XfrmPolicy& policy) {
    xfrm_selector selector{};
    selector.family = static_cast<std::uint16_t>(to_af(family_of(policy)));
    selector.saddr = from_ip(policy.source.network);
    selector.prefixlen_s = static_cast<std::uint8_t>(policy.source.length);
    selector.daddr = from_ip(policy.destination.network);
    selector.prefixlen_d = static_cast<std::uint8_t>(policy.destination.length);
    selector.proto = policy.ip_protocol.value_or(0);
    selector.sport = htons(policy.source_port.value);
    selector.sport_mask = htons(policy.source_port.mask);
    selector.dport = htons(policy.destination_port.value);
    selector.dport_mask = htons(policy.destination_port.mask);
    if (policy.link) selector.ifindex = static_cast<int>(policy.link->value);
    return selector;
}

template<typename T>
void put(nl_msg& message, int type, const T& value) {
    if (nla_put(&message, type, sizeof value, &value) < 0) throw std::bad_alloc();
}

void put_mark(nl_msg& message, const XfrmPolicy& policy) {
    if (policy.mark) put(message, XFRMA_MARK, xfrm_mark{.v = policy.mark->value, .m = policy.mark->mask});
}

std::string to_string(XfrmDirection direction) {
    switch (direction) {
    case XfrmDirection::in: return "in";
    case XfrmDirection::out: return "out";
    case XfrmDirection::fwd: return "fwd";
    }
    return {};
}

std::string mark_text(const XfrmPolicy& policy) {
    return policy.mark ? fmt::format(" mark 0x{:x} mask 0x{:x}", policy.mark->value, policy.mark->mask) : "";
}

bool lacks_xfrm(const Error& error) { return error.code == std::errc::protocol_not_supported; }

} // namespace

bool selects(const XfrmPolicy& policy, const XfrmFlow& flow) {
    return (!policy.mark || (flow.mark & policy.mark->mask) == policy.mark->value) && policy.if_id == 0 &&
           contains(policy.source, flow.source) && contains(policy.destination, flow.destination) &&
           (!policy.ip_protocol || *policy.ip_protocol == flow.ip_protocol) &&
           matches(policy.source_port, flow.source_port) && matches(policy.destination_port, flow.destination_port) &&
           (!policy.link || *policy.link == flow.link);
}

bool same_key(const XfrmPolicy& a, const XfrmPolicy& b) {
    auto key = [](XfrmPolicy policy) {
        policy.priority = 0;
        policy.index = 0;
        policy.block = false;
        policy.templates = 0;
        return policy;
    };
    return key(a) == key(b);
}

bool owned_by_us(const XfrmPolicy& policy) {
    return (policy.index & kNovpnPolicyIndexMask) == kNovpnPolicyIndex && policy.mark && !policy.block &&
           !policy.templates && !policy.sub;
}

std::string to_string(const XfrmPolicy& policy) {
    auto prefix = [](const Prefix& p) { return fmt::format("{}/{}", p.network.to_string(), p.length); };
    std::string text = fmt::format("src {} dst {}", prefix(policy.source), prefix(policy.destination));
    if (policy.ip_protocol) text += fmt::format(" proto {}", *policy.ip_protocol);
    if (policy.source_port.mask) text += fmt::format(" sport {}", policy.source_port.value);
    if (policy.destination_port.mask) text += fmt::format(" dport {}", policy.destination_port.value);
    if (policy.link) text += fmt::format(" dev {}", LinkNames{}(*policy.link));
    text += fmt::format(" dir {}{}", to_string(policy.direction), mark_text(policy));
    if (policy.index) text += fmt::format(" index {}", policy.index);
    if (policy.sub) text += " ptype sub";
    text += fmt::format(" action {} priority {}", policy.block ? "block" : "allow", policy.priority);
    if (policy.if_id) text += fmt::format(" if_id {}", policy.if_id);
    if (policy.templates) text += fmt::format(" ({} templates)", policy.templates);
    return text;
}

std::string identity(const XfrmPolicy& policy) {
    return fmt::format("dir {} index {}{}", to_string(policy.direction), policy.index, mark_text(policy));
}

std::optional<XfrmPolicy> to_policy(std::span<const std::byte> message) {
    const void* header = header_of<xfrm_userpolicy_info>(message, {XFRM_MSG_NEWPOLICY});
    if (!header) return std::nullopt;
    xfrm_userpolicy_info info; // wants 8 bytes of alignment; netlink gives 4
    std::memcpy(&info, header, sizeof info);
    if (!to_family(info.sel.family) || info.dir > XFRM_POLICY_FWD) return std::nullopt;
    auto attributes = Attributes<XFRMA_MAX>::parse(message, sizeof info);
    if (!attributes) return std::nullopt;
    const xfrm_selector& selector = info.sel;
    unsigned bits = selector.family == AF_INET ? 32 : 128;
    if (selector.prefixlen_s > bits || selector.prefixlen_d > bits) return std::nullopt;

    XfrmPolicy policy{.direction = static_cast<XfrmDirection>(info.dir),
                      .source = prefix_of(to_ip(selector.saddr, selector.family), selector.prefixlen_s),
                      .destination = prefix_of(to_ip(selector.daddr, selector.family), selector.prefixlen_d),
                      .source_port = to_port(selector.sport, selector.sport_mask),
                      .destination_port = to_port(selector.dport, selector.dport_mask),
                      .if_id = attributes->value<std::uint32_t>(XFRMA_IF_ID).value_or(0),
                      .priority = info.priority,
                      .index = info.index,
                      .block = info.action == XFRM_POLICY_BLOCK};
    if (selector.proto) policy.ip_protocol = selector.proto;
    if (selector.ifindex) policy.link = IfIndex{static_cast<std::uint32_t>(selector.ifindex)};
    if (auto mark = attributes->value<xfrm_mark>(XFRMA_MARK)) policy.mark = Mark{mark->v, mark->m};
    auto type = attributes->value<xfrm_userpolicy_type>(XFRMA_POLICY_TYPE);
    policy.sub = type && type->type == XFRM_POLICY_TYPE_SUB;
    if (const nlattr* templates = attributes->raw(XFRMA_TMPL))
        policy.templates = static_cast<unsigned>(nla_len(templates)) / unsigned{sizeof(xfrm_user_tmpl)};
    return policy;
}

Expected<XfrmSocket> XfrmSocket::open() {
    auto requests = RequestSocket::open(NETLINK_XFRM, "xfrm");
    if (!requests && !lacks_xfrm(requests.error())) return tl::make_unexpected(requests.error());
    return XfrmSocket(requests ? std::optional(std::move(*requests)) : std::nullopt);
}

XfrmSocket::XfrmSocket(std::optional<RequestSocket> requests)
    : requests_(std::move(requests)) {}

std::uint32_t XfrmSocket::port() const { return requests_ ? requests_->port() : 0; }

Expected<std::vector<XfrmPolicy>> XfrmSocket::policies() {
    if (!requests_) return std::vector<XfrmPolicy>{};
    return requests_->dump<XfrmPolicy>(*make_request(XFRM_MSG_GETPOLICY, xfrm_userpolicy_id{}), to_policy,
                                       "reading IPsec policies");
}

Expected<void> XfrmSocket::acknowledge(nl_msg& request, const std::string& doing) {
    if (!requests_) return system_error(EPROTONOSUPPORT, doing);
    return requests_->ask(
        request, [](std::span<const std::byte>) {}, doing);
}

Expected<void> XfrmSocket::add(const XfrmPolicy& policy) {
    xfrm_userpolicy_info info{};
    info.sel = to_selector(policy);
    // Without an end, as iproute2 has it.
    info.lft = {.soft_byte_limit = XFRM_INF,
                .hard_byte_limit = XFRM_INF,
                .soft_packet_limit = XFRM_INF,
                .hard_packet_limit = XFRM_INF};
    info.priority = policy.priority;
    info.index = policy.index;
    info.dir = static_cast<std::uint8_t>(policy.direction);
    info.action = policy.block ? XFRM_POLICY_BLOCK : XFRM_POLICY_ALLOW;
    info.share = XFRM_SHARE_ANY;
    NlMessage request = make_request(XFRM_MSG_NEWPOLICY, info);
    put_mark(*request, policy);
    return acknowledge(*request, "adding IPsec policy " + to_string(policy));
}

Expected<void> XfrmSocket::remove(const XfrmPolicy& policy) {
    // With an index the kernel compares no selector, but the mark and if_id (xfrm_policy_byid()).
    xfrm_userpolicy_id id{};
    id.sel.family = static_cast<std::uint16_t>(to_af(family_of(policy)));
    id.index = policy.index;
    id.dir = static_cast<std::uint8_t>(policy.direction);
    NlMessage request = make_request(XFRM_MSG_DELPOLICY, id);
    put_mark(*request, policy);
    auto done = acknowledge(*request, "deleting IPsec policy " + to_string(policy));
    if (!done && done.error().code == std::errc::no_such_file_or_directory) return {};
    return done;
}

Expected<XfrmMonitor> XfrmMonitor::open() {
    // A policy whose lifetime ends goes with a notification of the other group.
    auto socket = open_netlink(NETLINK_XFRM, "xfrm", {XFRMNLGRP_POLICY, XFRMNLGRP_EXPIRE});
    if (!socket && !lacks_xfrm(socket.error())) return tl::make_unexpected(socket.error());
    return XfrmMonitor(socket ? std::move(*socket) : NlSocket{});
}

XfrmMonitor::XfrmMonitor(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kNetlinkDatagram) {}

std::optional<int> XfrmMonitor::fd() const {
    return socket_ ? std::optional(nl_socket_get_fd(socket_.get())) : std::nullopt;
}

bool XfrmMonitor::drain(std::uint32_t own_port) {
    bool matters = false;
    while (socket_) {
        ssize_t received = receive(socket_.get(), buffer_, MSG_DONTWAIT);
        if (received < 0 && errno == ENOBUFS) {
            matters = true;
            continue;
        }
        if (received <= 0) break;
        for_each_message({buffer_.data(), static_cast<std::size_t>(received)}, [&](const nlmsghdr& message) {
            bool of_policy = message.nlmsg_type == XFRM_MSG_NEWPOLICY || message.nlmsg_type == XFRM_MSG_UPDPOLICY ||
                             message.nlmsg_type == XFRM_MSG_DELPOLICY || message.nlmsg_type == XFRM_MSG_FLUSHPOLICY ||
                             message.nlmsg_type == XFRM_MSG_POLEXPIRE;
            if (of_policy && message.nlmsg_pid != own_port) matters = true;
        });
    }
    return matters;
}

} // namespace novpn
