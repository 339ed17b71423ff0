// A library to preload into novpnd (LD_PRELOAD) that counts what it writes to the kernel, and ends it, or has the
// kernel refuse or answer badly, at the Nth time. What and when is a page that the test shares (inject.py; its layout
// is there too). The program under test is the one that is installed.
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/inet_diag.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/xfrm.h>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

using Cell = std::atomic<std::uint64_t>;

/// Numbers count from 1. A range is inclusive, and 0 to 0 is none.
struct Control {
    Cell writes; ///< so far
    Cell kill_at;
    Cell refuse_from;
    Cell refuse_to;
    Cell refuse_with; ///< errno
    Cell after_all;   ///< 1: what is refused has been done
    Cell answers;     ///< datagrams of answers so far
    Cell spoil_from;
    Cell spoil_to;
    Cell spoil_how;
};
static_assert(sizeof(Control) == 80 && Cell::is_always_lock_free);

enum Spoil : std::uint64_t { interrupted = 1, cut, empty_ack, fails };

Control* map_control() {
    const char* path = std::getenv("NOVPN_INJECT");
    // The preload is also in what starts the agent.
    if (!path || std::string_view(program_invocation_short_name) != "novpnd") return nullptr;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    void* page = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) std::abort();
    close(fd);
    return static_cast<Control*>(page);
}

Control* control() {
    static Control* const mapped = map_control();
    return mapped;
}

template<typename Function>
Function next(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool in_range(std::uint64_t number, const Cell& from, const Cell& to) { return number >= from && number <= to; }

/// Refusals of what was done all the same: the next answer on that socket is lost.
std::atomic<int> answer_lost_on{-1};

/// One write to the kernel by `call`, which returns negative with errno set where it fails. Nothing may come between
/// what `call` returns and who asked for it, errno included.
template<typename Call>
long write_to_kernel(const Call& call, int netlink = -1) {
    Control* now = control();
    const std::uint64_t number = ++now->writes;
    if (number == now->kill_at) {
        kill(getpid(), SIGKILL);
        pause();
    }
    if (!in_range(number, now->refuse_from, now->refuse_to)) return call();
    if (now->after_all) {
        const long result = call();
        if (netlink >= 0) {
            answer_lost_on = netlink;
            return result;
        }
    }
    errno = static_cast<int>(now->refuse_with.load());
    return -1;
}

/// Of a netlink socket; -1: it is none.
int protocol_of(int fd) {
    int domain = 0, protocol = 0;
    socklen_t size = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_NETLINK) return -1;
    size = sizeof protocol;
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 ? protocol : -1;
}

bool is_change(int fd, const void* data, std::size_t size) {
    if (!control() || size < sizeof(nlmsghdr)) return false;
    nlmsghdr header{};
    std::memcpy(&header, data, sizeof header);
    switch (protocol_of(fd)) {
    case NETLINK_ROUTE: return (header.nlmsg_type & 3) != 2; // new, delete, get, set: rtnetlink(7)
    case NETLINK_NETFILTER: return header.nlmsg_type == NFNL_MSG_BATCH_BEGIN;
    case NETLINK_XFRM: return header.nlmsg_type == XFRM_MSG_NEWPOLICY || header.nlmsg_type == XFRM_MSG_DELPOLICY;
    case NETLINK_SOCK_DIAG: return header.nlmsg_type == SOCK_DESTROY;
    default: return false;
    }
}

bool is_for_requests(int fd) {
    sockaddr_nl own{};
    socklen_t size = sizeof own;
    return control() && protocol_of(fd) >= 0 && getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0 &&
           own.nl_groups == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0;
}

bool is_kernels(const char* path) { return control() && std::string_view(path).starts_with("/sys/fs/"); }

bool is_kernels(int fd) {
    if (!control()) return false;
    char path[256];
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    const ssize_t size = readlink(link.c_str(), path, sizeof path - 1);
    if (size < 0) return false;
    path[size] = 0;
    return is_kernels(path) || std::string_view(path).starts_with("/proc/sys/");
}

ssize_t spoil(void* data, ssize_t size) {
    Control* now = control();
    auto* header = static_cast<nlmsghdr*>(data);
    const std::uint64_t number = ++now->answers;
    if (!in_range(number, now->spoil_from, now->spoil_to)) return size;
    switch (now->spoil_how) {
    case interrupted:
        if (header->nlmsg_flags & NLM_F_MULTI) header->nlmsg_flags |= NLM_F_DUMP_INTR;
        return size;
    case cut: return size / 2 & ~3;
    case empty_ack:
        if (header->nlmsg_type != NLMSG_ERROR) return size;
        header->nlmsg_len = sizeof *header;
        return sizeof *header;
    default: errno = static_cast<int>(now->refuse_with.load()); return -1;
    }
}

ssize_t receive(int fd, void* data, std::size_t size, int flags) {
    static const auto real = next<ssize_t (*)(int, void*, std::size_t, int)>("recv");
    if (!is_for_requests(fd)) return real(fd, data, size, flags);
    if (int lost = fd; answer_lost_on.compare_exchange_strong(lost, -1)) {
        errno = static_cast<int>(control()->refuse_with.load());
        return -1;
    }
    const ssize_t got = real(fd, data, size, flags);
    return got < static_cast<ssize_t>(sizeof(nlmsghdr)) ? got : spoil(data, got);
}

} // namespace

extern "C" {

ssize_t sendmsg(int fd, const msghdr* message, int flags) {
    static const auto real = next<ssize_t (*)(int, const msghdr*, int)>("sendmsg");
    const auto call = [&] { return static_cast<long>(real(fd, message, flags)); };
    const bool changes =
        message->msg_iovlen > 0 && is_change(fd, message->msg_iov[0].iov_base, message->msg_iov[0].iov_len);
    return changes ? write_to_kernel(call, fd) : call();
}

ssize_t sendto(int fd, const void* data, size_t size, int flags, const sockaddr* to, socklen_t to_size) {
    static const auto real = next<ssize_t (*)(int, const void*, size_t, int, const sockaddr*, socklen_t)>("sendto");
    const auto call = [&] { return static_cast<long>(real(fd, data, size, flags, to, to_size)); };
    return is_change(fd, data, size) ? write_to_kernel(call, fd) : call();
}

ssize_t recv(int fd, void* data, size_t size, int flags) { return receive(fd, data, size, flags); }
// What _FORTIFY_SOURCE makes of it.
ssize_t __recv_chk(int fd, void* data, size_t size, size_t, int flags) { return receive(fd, data, size, flags); }

ssize_t write(int fd, const void* data, size_t size) {
    static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
    const auto call = [&] { return static_cast<long>(real(fd, data, size)); };
    return is_kernels(fd) ? write_to_kernel(call) : call();
}

int mkdir(const char* path, mode_t mode) {
    static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
    const auto call = [&] { return static_cast<long>(real(path, mode)); };
    return static_cast<int>(is_kernels(path) ? write_to_kernel(call) : call());
}

int rmdir(const char* path) {
    static const auto real = next<int (*)(const char*)>("rmdir");
    const auto call = [&] { return static_cast<long>(real(path)); };
    return static_cast<int>(is_kernels(path) ? write_to_kernel(call) : call());
}

int unlink(const char* path) {
    static const auto real = next<int (*)(const char*)>("unlink");
    const auto call = [&] { return static_cast<long>(real(path)); };
    return static_cast<int>(is_kernels(path) ? write_to_kernel(call) : call());
}

/// libbpf's way to bpf(2). A system call has six arguments at most, and takes of them what it knows.
long syscall(long number, ...) {
    static const auto real = next<long (*)(long, ...)>("syscall");
    std::va_list list;
    va_start(list, number);
    long given[6];
    for (long& argument : given) argument = va_arg(list, long);
    va_end(list);
    const auto call = [&] { return real(number, given[0], given[1], given[2], given[3], given[4], given[5]); };
    if (number != SYS_bpf || !control()) return call();
    switch (given[0]) {
    case BPF_OBJ_PIN:
    case BPF_PROG_ATTACH:
    case BPF_PROG_DETACH:
    case BPF_MAP_UPDATE_ELEM:
    case BPF_MAP_DELETE_ELEM: return write_to_kernel(call);
    default: return call();
    }
}

} // extern "C"
