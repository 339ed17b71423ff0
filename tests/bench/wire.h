// rtnetlink by hand, for programs that time others: nothing between them and the kernel. Each fails by ending.
#pragma once

#include <arpa/inet.h>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <linux/filter.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

namespace novpn::bench {

[[noreturn]] inline void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

inline std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

inline int open_rtnetlink() {
    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) fail("socket");
    sockaddr_nl self{};
    self.nl_family = AF_NETLINK;
    if (bind(fd, reinterpret_cast<sockaddr*>(&self), sizeof self) < 0) fail("bind");
    return fd;
}

inline void join(int fd, int group) {
    if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0) fail("joining a group");
}

/// A route as far as the scenarios need it; addresses in network byte order, of 4 or 16 bytes.
struct Way {
    int family = AF_INET;
    std::uint32_t table = RT_TABLE_MAIN;
    unsigned char destination[16] = {};
    unsigned length = 0;
    unsigned char gateway[16] = {};
    bool has_gateway = false;
    std::uint32_t link = 0;
    std::uint32_t metric = 0;
};

inline unsigned width(int family) { return family == AF_INET ? 4 : 16; }

inline void set_gateway(Way& way, const char* text) {
    if (inet_pton(way.family, text, way.gateway) != 1) fail(text);
    way.has_gateway = true;
}
inline void set_destination(Way& way, const char* text, unsigned length) {
    if (inet_pton(way.family, text, way.destination) != 1) fail(text);
    way.length = length;
}

/// Messages for one send: the kernel takes them in this order.
class Batch {
  public:
    void route(int type, int flags, const Way& way) {
        rtmsg header{};
        header.rtm_family = static_cast<unsigned char>(way.family);
        header.rtm_dst_len = static_cast<unsigned char>(way.length);
        const bool deletes = type == RTM_DELROUTE;
        header.rtm_protocol = deletes ? RTPROT_UNSPEC : RTPROT_STATIC; // whoever made it
        header.rtm_scope = deletes ? RT_SCOPE_NOWHERE : way.has_gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
        header.rtm_type = deletes ? RTN_UNSPEC : RTN_UNICAST;
        begin(type, flags, &header, sizeof header);
        put(RTA_TABLE, &way.table, sizeof way.table);
        if (way.length) put(RTA_DST, way.destination, width(way.family));
        if (way.has_gateway) put(RTA_GATEWAY, way.gateway, width(way.family));
        if (way.link) put(RTA_OIF, &way.link, sizeof way.link);
        if (way.metric) put(RTA_PRIORITY, &way.metric, sizeof way.metric);
    }
    void link_up(std::uint32_t index, bool up) {
        ifinfomsg header{};
        header.ifi_index = static_cast<int>(index);
        header.ifi_change = IFF_UP;
        header.ifi_flags = up ? IFF_UP : 0;
        begin(RTM_NEWLINK, 0, &header, sizeof header);
    }
    /// Two links; the kernel names the other end.
    void new_veth(const char* name) {
        ifinfomsg header{};
        begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &header, sizeof header);
        put(IFLA_IFNAME, name, std::strlen(name) + 1);
        struct {
            rtattr kind{sizeof(rtattr) + 5, IFLA_INFO_KIND};
            char name[8] = "veth";
        } info;
        put(IFLA_LINKINFO, &info, sizeof info);
    }
    void delete_link(std::uint32_t index) {
        ifinfomsg header{};
        header.ifi_index = static_cast<int>(index);
        begin(RTM_DELLINK, 0, &header, sizeof header);
    }
    /// An IPv6 address that is usable at once; no error where it is there.
    void address(std::uint32_t link, const char* text, unsigned length) {
        ifaddrmsg header{};
        header.ifa_family = AF_INET6;
        header.ifa_prefixlen = static_cast<unsigned char>(length);
        header.ifa_flags = IFA_F_NODAD;
        header.ifa_index = link;
        unsigned char bytes[16];
        if (inet_pton(AF_INET6, text, bytes) != 1) fail(text);
        begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header, sizeof header);
        put(IFA_ADDRESS, bytes, sizeof bytes);
    }
    std::size_t size() const { return size_; }
    void send(int fd) {
        if (size_ && ::send(fd, bytes_, size_, 0) < 0) fail("send");
        size_ = 0;
    }

  private:
    void begin(int type, int flags, const void* header, std::size_t size) {
        if (size_ + 512 > sizeof bytes_) fail("too many messages in a batch");
        start_ = size_;
        std::memset(bytes_ + start_, 0, NLMSG_SPACE(size));
        auto* message = reinterpret_cast<nlmsghdr*>(bytes_ + start_);
        message->nlmsg_len = static_cast<std::uint32_t>(NLMSG_LENGTH(size));
        message->nlmsg_type = static_cast<std::uint16_t>(type);
        message->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
        std::memcpy(NLMSG_DATA(message), header, size);
        size_ = start_ + NLMSG_ALIGN(message->nlmsg_len);
    }
    void put(int type, const void* data, std::size_t size) {
        auto* attribute = reinterpret_cast<rtattr*>(bytes_ + size_);
        attribute->rta_type = static_cast<unsigned short>(type);
        attribute->rta_len = static_cast<unsigned short>(RTA_LENGTH(size));
        std::memcpy(RTA_DATA(attribute), data, size);
        size_ += RTA_ALIGN(attribute->rta_len);
        reinterpret_cast<nlmsghdr*>(bytes_ + start_)->nlmsg_len = static_cast<std::uint32_t>(size_ - start_);
    }
    alignas(nlmsghdr) char bytes_[32768];
    std::size_t size_ = 0;
    std::size_t start_ = 0;
};

/// A route of a notification; false where it is none.
inline bool read_way(const nlmsghdr& message, Way& way) {
    if (message.nlmsg_type != RTM_NEWROUTE && message.nlmsg_type != RTM_DELROUTE) return false;
    const auto* header = static_cast<const rtmsg*>(NLMSG_DATA(&message));
    way = {};
    way.family = header->rtm_family;
    way.table = header->rtm_table;
    way.length = header->rtm_dst_len;
    auto left = static_cast<int>(message.nlmsg_len - NLMSG_LENGTH(sizeof *header));
    for (const rtattr* a = RTM_RTA(header); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
        switch (a->rta_type) {
        case RTA_TABLE: std::memcpy(&way.table, RTA_DATA(a), sizeof way.table); break;
        case RTA_OIF: std::memcpy(&way.link, RTA_DATA(a), sizeof way.link); break;
        case RTA_PRIORITY: std::memcpy(&way.metric, RTA_DATA(a), sizeof way.metric); break;
        case RTA_GATEWAY:
            way.has_gateway = true;
            std::memcpy(way.gateway, RTA_DATA(a), RTA_PAYLOAD(a) < sizeof way.gateway ? RTA_PAYLOAD(a) : 16);
            break;
        }
    }
    return true;
}

/// Reads one datagram and shows its messages; false where there is none.
template<typename Visit>
bool read_datagram(int fd, int flags, Visit visit) {
    alignas(nlmsghdr) static char bytes[65536];
    const ssize_t size = recv(fd, bytes, sizeof bytes, flags);
    if (size <= 0) return false;
    auto left = static_cast<unsigned>(size);
    for (auto* m = reinterpret_cast<const nlmsghdr*>(bytes); NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) visit(*m);
    return true;
}

/// Reads the answers to what was sent; a new route, address or link that the kernel refuses ends the program, as what
/// it times could never come.
inline void expect_no_refusal(int fd) {
    const auto check = [](const nlmsghdr& message) {
        if (message.nlmsg_type != NLMSG_ERROR) return;
        const auto* answer = static_cast<const nlmsgerr*>(NLMSG_DATA(&message));
        const auto type = answer->msg.nlmsg_type;
        if (!answer->error || (type != RTM_NEWROUTE && type != RTM_NEWADDR && type != RTM_NEWLINK)) return;
        errno = -answer->error;
        fail(type == RTM_NEWROUTE  ? "the kernel refuses a route"
             : type == RTM_NEWADDR ? "the kernel refuses an address"
                                   : "the kernel refuses a link");
    };
    while (read_datagram(fd, MSG_DONTWAIT, check)) {
    }
}

/// Only notifications of routes of this table, 0 or 1 bits long.
inline void filter_defaults(int fd, std::uint32_t table) {
    const auto in_header = [](std::size_t offset) { return static_cast<std::uint32_t>(NLMSG_HDRLEN + offset); };
    // Tables above 255 are in an attribute: the first one of a route's notification.
    const std::uint32_t where = table < 256 ? in_header(offsetof(rtmsg, rtm_table)) : in_header(sizeof(rtmsg) + 4);
    const int width = table < 256 ? BPF_B : BPF_W;
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, in_header(offsetof(rtmsg, rtm_dst_len))),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 1, 3, 0),
        BPF_STMT(static_cast<std::uint16_t>(BPF_LD | width | BPF_ABS), where),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, table < 256 ? table : htonl(table), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const sock_fprog program{static_cast<unsigned short>(sizeof code / sizeof *code), code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0) fail("SO_ATTACH_FILTER");
}

inline std::uint32_t index_of(const char* link) {
    const std::uint32_t index = if_nametoindex(link);
    if (!index) fail(link);
    return index;
}

} // namespace novpn::bench
