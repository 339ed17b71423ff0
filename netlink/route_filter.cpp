#include "netlink/route_filter.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstddef>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <optional>
#include <set>
#include <sys/socket.h>

namespace novpn {

namespace {

constexpr std::uint32_t kPass = 0xffffffff;
constexpr std::uint32_t kDrop = 0;

template<typename Header>
constexpr std::uint32_t behind_nlmsghdr(std::size_t offset) {
    return static_cast<std::uint32_t>(NLMSG_HDRLEN + offset);
}
constexpr std::uint32_t kType = offsetof(nlmsghdr, nlmsg_type);
constexpr std::uint32_t kPort = offsetof(nlmsghdr, nlmsg_pid);
constexpr std::uint32_t kNeighbourState = NLMSG_HDRLEN + offsetof(ndmsg, ndm_state);
constexpr std::uint32_t kLink = NLMSG_HDRLEN + offsetof(ifinfomsg, ifi_index);
constexpr std::uint32_t kLinkOfAddress = NLMSG_HDRLEN + offsetof(ifaddrmsg, ifa_index);
constexpr std::uint32_t kFamilyOfAddress = NLMSG_HDRLEN + offsetof(ifaddrmsg, ifa_family);
constexpr std::uint32_t kScopeOfAddress = NLMSG_HDRLEN + offsetof(ifaddrmsg, ifa_scope);
static_assert(kLink == kLinkOfAddress, "looked at in one place");
constexpr std::uint32_t kFamily = NLMSG_HDRLEN + offsetof(rtmsg, rtm_family);
constexpr std::uint32_t kLength = NLMSG_HDRLEN + offsetof(rtmsg, rtm_dst_len);
constexpr std::uint32_t kTable = NLMSG_HDRLEN + offsetof(rtmsg, rtm_table);
constexpr std::uint32_t kScope = NLMSG_HDRLEN + offsetof(rtmsg, rtm_scope);
constexpr std::uint32_t kFlags = NLMSG_HDRLEN + offsetof(rtmsg, rtm_flags);
constexpr std::uint32_t kAttributes = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(rtmsg));

/// Writes instructions one after another; a condition skips the `ret` right behind it.
class Program {
  public:
    // Loads are in network byte order (net/core/filter.c); fields of netlink are in the host's.
    void load8(std::uint32_t offset) { add(BPF_LD | BPF_B | BPF_ABS, offset); }
    void load16(std::uint32_t offset) { add(BPF_LD | BPF_H | BPF_ABS, offset); }
    void load32(std::uint32_t offset) { add(BPF_LD | BPF_W | BPF_ABS, offset); }
    /// The offset of the message's attribute of this type; 0 where there is none.
    void find_attribute(std::uint32_t type) {
        // NOLINTBEGIN(misc-redundant-expression): most are 0, and each says something
        add(BPF_LD | BPF_W | BPF_IMM, kAttributes);
        add(BPF_LDX | BPF_W | BPF_IMM, type);
        // NOLINTEND(misc-redundant-expression)
        add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_NLATTR));
    }
    /// The 32 bits of the attribute whose offset is loaded.
    void load_attribute() {
        add(BPF_MISC | BPF_TAX, 0);
        add(BPF_LD | BPF_W | BPF_IND, NLA_HDRLEN);
    }
    void end(std::uint32_t verdict) { add(BPF_RET | BPF_K, verdict); }
    void if_equal(std::uint32_t value, std::uint32_t verdict) { end_if(BPF_JEQ, value, verdict, true); }
    void if_other(std::uint32_t value, std::uint32_t verdict) { end_if(BPF_JEQ, value, verdict, false); }
    void if_any_bit(std::uint32_t bits, std::uint32_t verdict) { end_if(BPF_JSET, bits, verdict, true); }
    void if_at_most(std::uint32_t value, std::uint32_t verdict) { end_if(BPF_JGT, value, verdict, false); }
    /// Leads on to where land() is called for it.
    std::size_t jump_if(std::uint32_t value) {
        add(BPF_JMP | BPF_JEQ | BPF_K, value);
        return code_.size() - 1;
    }
    std::size_t jump_unless(std::uint32_t value) {
        const std::size_t jump = jump_if(value);
        negated_.insert(jump);
        return jump;
    }
    void land(std::size_t jump) {
        sock_filter& from = code_[jump];
        (negated_.contains(jump) ? from.jf : from.jt) = static_cast<std::uint8_t>(code_.size() - jump - 1);
    }
    std::vector<sock_filter> take() { return std::move(code_); }

  private:
    void add(int code, std::uint32_t k) { code_.push_back({static_cast<std::uint16_t>(code), 0, 0, k}); }
    void end_if(int test, std::uint32_t value, std::uint32_t verdict, bool holds) {
        add(BPF_JMP | test | BPF_K, value);
        (holds ? code_.back().jf : code_.back().jt) = 1;
        end(verdict);
    }
    std::vector<sock_filter> code_;
    std::set<std::size_t> negated_;
};

std::uint16_t type(int message) { return htons(static_cast<std::uint16_t>(message)); }

} // namespace

std::vector<sock_filter> to_program(const RouteFilter& filter) {
    Program program;
    if (filter.own_port) {
        program.load32(kPort);
        program.if_equal(htonl(filter.own_port), kDrop);
    }
    program.load16(kType);
    const std::size_t to_added = program.jump_if(type(RTM_NEWROUTE));
    const std::size_t to_deleted = program.jump_if(type(RTM_DELROUTE));
    const auto drop_idle = [&] {
        for (const IfIndex link : filter.idle) program.if_equal(htonl(link.value), kDrop);
    };
    const bool knows_idle = !filter.idle.empty() && filter.idle.size() <= kMaxFilteredLinks;
    std::vector<std::size_t> to_addresses;
    std::optional<std::size_t> to_link;
    if (knows_idle) {
        for (const int message : {RTM_NEWADDR, RTM_DELADDR}) to_addresses.push_back(program.jump_if(type(message)));
        to_link = program.jump_if(type(RTM_NEWLINK));
    }
    program.if_other(type(RTM_NEWNEIGH), kPass);
    // The states in between say nothing of whether a gateway answers.
    program.load16(kNeighbourState);
    program.if_any_bit(htons(NUD_REACHABLE | NUD_FAILED), kPass);
    program.end(kDrop);

    if (knows_idle) {
        for (const std::size_t jump : to_addresses) program.land(jump);
        program.load8(kFamilyOfAddress);
        program.if_other(AF_INET6, kPass);
        program.load8(kScopeOfAddress);
        program.if_other(RT_SCOPE_LINK, kPass);
        program.land(*to_link);
        program.load32(kLink);
        drop_idle();
        program.end(kPass);
    }
    program.land(to_added);
    program.land(to_deleted);
    program.load32(kFlags);
    program.if_any_bit(htonl(RTM_F_CLONED), kDrop);
    program.load8(kTable);
    program.if_equal(RT_TABLE_LOCAL, kDrop);
    program.load8(kFamily);
    const std::size_t to_ipv4 = program.jump_if(AF_INET);
    program.if_other(AF_INET6, kDrop);

    // Ends what is main's; where it leads other tables' routes is landed below.
    const auto of_main = [&](Family family) {
        program.load8(kLength);
        program.if_at_most(family == Family::ipv4 ? kInternetLength4 : kInternetLength6, kPass);
        program.load8(kTable);
        const std::size_t to_others = program.jump_unless(RT_TABLE_MAIN);
        if (knows_idle && family == Family::ipv6) {
            program.find_attribute(RTA_OIF);
            program.if_equal(0, kPass);
            program.load_attribute();
            drop_idle();
        }
        if (filter.narrow && family == Family::ipv4) {
            program.load8(kScope);
            program.if_equal(RT_SCOPE_UNIVERSE, kDrop);
        } else if (filter.narrow) { // IPv6 routes have no scope
            program.find_attribute(RTA_GATEWAY);
            program.if_other(0, kDrop);
        }
        program.end(kPass);
        return to_others;
    };
    const std::size_t others6 = of_main(Family::ipv6);
    program.land(to_ipv4);
    const std::size_t others4 = of_main(Family::ipv4);
    program.land(others6);
    program.land(others4);
    if (!filter.tables.empty() && filter.tables.size() <= kMaxFilteredTables) {
        // The header has no room for numbers above 255 (RT_TABLE_COMPAT).
        program.find_attribute(RTA_TABLE);
        program.if_equal(0, kPass);
        program.load_attribute();
        for (TableId table : filter.tables) program.if_equal(htonl(table.value), kPass);
        program.end(kDrop);
    }
    program.end(kPass);
    return program.take();
}

Expected<void> attach(int fd, const RouteFilter& filter) {
    auto code = to_program(filter);
    const sock_fprog program{.len = static_cast<unsigned short>(code.size()), .filter = code.data()};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
        return system_error(errno, "attaching the filter of routes");
    return {};
}

} // namespace novpn
