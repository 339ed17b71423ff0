#include "tests/netns/two_networks.h"

#include <arpa/inet.h>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdexcept>
#include <sys/mount.h>
#include <sys/time.h>
#include <system_error>
#include <unistd.h>
#include <vector>

namespace novpn::test {
namespace {

constexpr time_t kPatienceSeconds = 1;
constexpr int kPollMs = 50;
constexpr int kPings = 20;

int check(int result, const char* what) {
    if (result < 0) throw std::system_error(errno, std::system_category(), what);
    return result;
}

struct Endpoint {
    sockaddr_storage storage{};
    socklen_t size = sizeof(sockaddr_storage);
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

Endpoint endpoint(const std::string& address, std::uint16_t port) {
    Endpoint to;
    if (address.find(':') != std::string::npos) {
        auto* in6 = reinterpret_cast<sockaddr_in6*>(&to.storage);
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        inet_pton(AF_INET6, address.c_str(), &in6->sin6_addr);
        to.size = sizeof(sockaddr_in6);
    } else {
        auto* in4 = reinterpret_cast<sockaddr_in*>(&to.storage);
        in4->sin_family = AF_INET;
        in4->sin_port = htons(port);
        inet_pton(AF_INET, address.c_str(), &in4->sin_addr);
        to.size = sizeof(sockaddr_in);
    }
    return to;
}

std::string address_of(const Endpoint& from) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const bool v6 = from.storage.ss_family == AF_INET6;
    const void* bytes = v6 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(&from.storage)->sin6_addr)
                           : &reinterpret_cast<const sockaddr_in*>(&from.storage)->sin_addr;
    inet_ntop(v6 ? AF_INET6 : AF_INET, bytes, text.data(), text.size());
    return text.data();
}

/// Calls `work` on a thread of its own in the network namespace `netns`.
template<typename Work>
void in_network(int netns, Work work) {
    std::exception_ptr failure;
    std::thread([&] {
        try {
            check(setns(netns, CLONE_NEWNET), "setns");
            work();
        } catch (...) {
            failure = std::current_exception();
        }
    }).join();
    if (failure) std::rethrow_exception(failure);
}

} // namespace

std::string run(const std::string& command) {
    FILE* pipe = popen(("{ " + command + "\n} 2>&1").c_str(), "re");
    if (pipe == nullptr) throw std::system_error(errno, std::system_category(), command);
    std::string output;
    std::array<char, 4096> part{};
    while (const std::size_t size = fread(part.data(), 1, part.size(), pipe)) output.append(part.data(), size);
    if (pclose(pipe) != 0) throw std::runtime_error(command + ": " + output);
    return output;
}

bool succeeds(const std::string& command) {
    try {
        run(command);
        return true;
    } catch (const std::runtime_error&) {
        return false;
    }
}

Socket::Socket(const std::string& family_of_address, int type)
    : fd_(check(socket(endpoint(family_of_address, 0).storage.ss_family, type | SOCK_CLOEXEC, 0), "socket")) {
    const timeval patience{.tv_sec = kPatienceSeconds, .tv_usec = 0};
    check(setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), "SO_RCVTIMEO");
    check(setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience), "SO_SNDTIMEO");
    // A stream ends with its RST, so that no packet of one test reaches the next.
    const linger abruptly{.l_onoff = 1, .l_linger = 0};
    if (type == SOCK_STREAM) check(setsockopt(fd_, SOL_SOCKET, SO_LINGER, &abruptly, sizeof abruptly), "SO_LINGER");
    const int on = 1;
    check(setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
}

Socket::~Socket() {
    if (fd_ >= 0) close(fd_);
}

void Socket::set_mark(std::uint32_t mark) const {
    check(setsockopt(fd_, SOL_SOCKET, SO_MARK, &mark, sizeof mark), "SO_MARK");
}

int Socket::connect(const std::string& address, std::uint16_t port) const {
    Endpoint to = endpoint(address, port);
    return ::connect(fd_, to.get(), to.size) == 0 ? 0 : errno;
}

void Socket::bind(const std::string& address, std::uint16_t port) const {
    Endpoint at = endpoint(address, port);
    check(::bind(fd_, at.get(), at.size), "bind");
}

void Socket::listen() const { check(::listen(fd_, 8), "listen"); }

void Socket::send_to(const std::string& address, std::uint16_t port) const {
    Endpoint to = endpoint(address, port);
    check(static_cast<int>(sendto(fd_, "hello", 5, 0, to.get(), to.size)), "sendto");
}

std::string Socket::ask() const {
    if (send(fd_, "hello", 5, MSG_NOSIGNAL) < 0) return {};
    std::array<char, 128> answer{};
    const ssize_t size = recv(fd_, answer.data(), answer.size(), 0);
    return size <= 0 ? std::string() : std::string(answer.data(), static_cast<std::size_t>(size));
}

TwoNetworks::TwoNetworks() {
    check(unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare");
    check(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "mount --make-rprivate /");
    std::exception_ptr failure;
    std::thread([&] {
        try {
            check(unshare(CLONE_NEWNET), "unshare");
            internet_ = check(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), "/proc/thread-self/ns/net");
        } catch (...) {
            failure = std::current_exception();
        }
    }).join();
    if (failure) std::rethrow_exception(failure);

    const std::string internet = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(internet_);
    // Without an own link-local address yet, a host does not ask for its neighbours.
    const std::string no_waiting = "sysctl -w net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0";
    run(no_waiting);
    run_in_internet(no_waiting);
    run("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
    run("ip link set lo up");
    for (const auto& [here, there, net4, net6] :
         {std::array<std::string, 4>{"up0", "net0", "192.0.2.", "2001:db8:1::"},
          std::array<std::string, 4>{"vpn0", "vpn1", "10.8.0.", "2001:db8:8::"}}) {
        run("ip link add " + here + " type veth peer name " + there + " netns " + internet);
        run("ip addr add " + net4 + "2/24 dev " + here);
        run("ip -6 addr add " + net6 + "2/64 dev " + here + " nodad");
        run("ip link set " + here + " up");
        run_in_internet("ip addr add " + net4 + "1/24 dev " + there);
        run_in_internet("ip -6 addr add " + net6 + "1/64 dev " + there + " nodad");
        run_in_internet("ip link set " + there + " up");
    }
    run_in_internet("ip link set lo up");
    run_in_internet(std::string("ip addr add ") + kServer4 + "/32 dev lo");
    run_in_internet(std::string("ip -6 addr add ") + kServer6 + "/128 dev lo nodad");
    for (const std::string family : {"-4", "-6"}) {
        const std::string gateway = family == "-4" ? "192.0.2.1" : "2001:db8:1::1";
        const std::string tunnel = family == "-4" ? "10.8.0.1" : "2001:db8:8::1";
        run("ip " + family + " route add default via " + tunnel + " dev vpn0");
        run("ip " + family + " route add default via " + gateway + " dev up0 table 7866");
        run("ip " + family + " rule add pref 64 fwmark 0x4e000000/0xff000000 lookup 7866");
    }
    // Strict, so that a reply which has lost its mark is dropped.
    run("sysctl -w net.ipv4.conf.up0.rp_filter=1 net.ipv4.conf.up0.src_valid_mark=1");
    in_network(internet_, [this] { listen_everywhere(); });
    server_ = std::thread([this] { serve(); });
    // A veth's IPv6 works once its carrier has been noticed, some time after `up`.
    for (const std::string neighbour : {"2001:db8:1::1", "2001:db8:8::1"}) {
        for (int attempt = 1; !succeeds("ping -6 -n -c 1 -W 1 " + neighbour); ++attempt) {
            if (attempt == kPings) throw std::runtime_error("no answer from " + neighbour);
        }
    }
}

TwoNetworks::~TwoNetworks() {
    stop_ = true;
    if (server_.joinable()) server_.join();
    close(internet_);
}

std::string TwoNetworks::run_in_internet(const std::string& command) const {
    std::string output;
    in_network(internet_, [&] { output = run(command); });
    return output;
}

Socket TwoNetworks::internet_socket(const std::string& family_of_address, int type) const {
    int fd = -1;
    in_network(internet_, [&] {
        const Socket made(family_of_address, type);
        fd = dup(made.fd());
    });
    return Socket(fd);
}

void TwoNetworks::listen_everywhere() {
    for (const char* address : {kServer4, kServer6}) {
        served_.push_back({Socket(address, SOCK_DGRAM), Served::silent});
        served_.back().socket.bind(address, kSilentPort);
        for (const std::uint16_t port : {kEchoPort, kDnsPort}) {
            served_.push_back({Socket(address, SOCK_DGRAM), Served::datagrams});
            served_.back().socket.bind(address, port);
            served_.push_back({Socket(address, SOCK_STREAM), Served::listener});
            served_.back().socket.bind(address, port);
            served_.back().socket.listen();
        }
    }
}

void TwoNetworks::serve() {
    while (!stop_) {
        std::vector<pollfd> polled;
        for (const Served& served : served_)
            polled.push_back({.fd = served.socket.fd(), .events = POLLIN, .revents = 0});
        if (poll(polled.data(), polled.size(), kPollMs) <= 0) continue;
        auto served = served_.begin();
        for (const pollfd& ready : polled) {
            const auto one = served++;
            if (ready.revents != 0 && !answer(*one)) served_.erase(one);
        }
    }
}

bool TwoNetworks::answer(const Served& served) {
    const int fd = served.socket.fd();
    if (served.kind == Served::listener) {
        const int accepted = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
        if (accepted >= 0) served_.push_back({Socket(accepted), Served::connection});
        return true;
    }
    std::array<char, 64> question{};
    Endpoint from;
    const ssize_t size = recvfrom(fd, question.data(), question.size(), MSG_DONTWAIT, from.get(), &from.size);
    if (served.kind == Served::connection) {
        if (size <= 0) return false;
        from = {};
        getpeername(fd, from.get(), &from.size);
        const std::string saw = address_of(from);
        return send(fd, saw.data(), saw.size(), MSG_NOSIGNAL) > 0;
    }
    const std::string saw = address_of(from);
    if (size >= 0 && served.kind == Served::datagrams) sendto(fd, saw.data(), saw.size(), 0, from.get(), from.size);
    return true;
}

} // namespace novpn::test
