#include "rules/nft.h"
#include "rules/nft_socket.h"
#include "rules/nft_structure.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <string_view>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

constexpr std::size_t kReceive = 64UL * 1024;
constexpr int kSocketBuffer = 1024 * 1024;

// All messages about a table or what is in it carry its name in their first attribute.
static_assert(NFTA_TABLE_NAME == 1 && NFTA_CHAIN_TABLE == 1 && NFTA_RULE_TABLE == 1 && NFTA_SET_TABLE == 1 &&
              NFTA_SET_ELEM_LIST_TABLE == 1 && NFTA_OBJ_TABLE == 1 && NFTA_FLOWTABLE_TABLE == 1);

bool is_about_our_table(const nlmsghdr* message) {
    if (message->nlmsg_type >> 8 != NFNL_SUBSYS_NFTABLES) return false;
    if ((message->nlmsg_type & 0xff) == NFT_MSG_NEWGEN)
        return false; // ends every transaction; its attribute 1 is a number
    if (mnl_nlmsg_get_payload_len(message) < sizeof(nfgenmsg)) return false;
    if (static_cast<const nfgenmsg*>(mnl_nlmsg_get_payload(message))->nfgen_family != NFPROTO_INET) return false;
    bool ours = false;
    const auto look = [](const nlattr* attribute, void* found) -> int {
        if (mnl_attr_get_type(attribute) != NFTA_TABLE_NAME) return MNL_CB_OK;
        *static_cast<bool*>(found) = mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) >= 0 &&
                                     std::strcmp(mnl_attr_get_str(attribute), nft::kTable) == 0;
        return MNL_CB_STOP;
    };
    mnl_attr_parse(message, sizeof(nfgenmsg), look, &ours);
    return ours;
}

/// A rule of another program's that may ask for a packet's way back: the name of its expression, or of its match of
/// iptables, stands in the message with a zero behind it.
bool may_judge_way_back(const nlmsghdr* message) {
    if (message->nlmsg_type >> 8 != NFNL_SUBSYS_NFTABLES) return false;
    const unsigned type = message->nlmsg_type & 0xff;
    if (type != NFT_MSG_NEWRULE && type != NFT_MSG_DELRULE) return false;
    const std::string_view bytes(static_cast<const char*>(mnl_nlmsg_get_payload(message)),
                                 mnl_nlmsg_get_payload_len(message));
    using namespace std::string_view_literals;
    return bytes.find("fib\0"sv) != bytes.npos || bytes.find("rpfilter\0"sv) != bytes.npos;
}

} // namespace

NftMonitor::NftMonitor(int fd)
    : fd_(fd) {}
NftMonitor::NftMonitor(NftMonitor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

NftMonitor& NftMonitor::operator=(NftMonitor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}

NftMonitor::~NftMonitor() {
    if (fd_ >= 0) close(fd_);
}

Expected<NftMonitor> NftMonitor::open() {
    const std::string doing = "watching nf_tables";
    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER);
    if (fd < 0) return system_error(errno, doing);
    NftMonitor monitor(fd);
    // A smaller buffer only means more overruns, and those are reported as a change.
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer);
    sockaddr_nl any{};
    any.nl_family = AF_NETLINK;
    if (bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof any) < 0) return system_error(errno, doing);
    const int group = NFNLGRP_NFTABLES;
    if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
        return system_error(errno, doing);
    return monitor;
}

int NftMonitor::fd() const { return fd_; }

bool NftMonitor::drain(const Nft& ours) {
    alignas(nlmsghdr) std::array<char, kReceive> buffer;
    bool changed = false;
    while (true) {
        const ssize_t size = recv(fd_, buffer.data(), buffer.size(), MSG_TRUNC);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return changed;
        if (size < 0 && errno != ENOBUFS) return true;
        if (size < 0 || static_cast<std::size_t>(size) > buffer.size()) {
            changed = true; // lost events may have been about our table
            continue;
        }
        int left = static_cast<int>(size);
        const auto* message = reinterpret_cast<const nlmsghdr*>(buffer.data());
        for (; nft::is_whole(message, left); message = mnl_nlmsg_next(message, &left)) {
            if (message->nlmsg_pid != ours.port_id() && (is_about_our_table(message) || may_judge_way_back(message)))
                changed = true;
        }
    }
}

} // namespace novpn
