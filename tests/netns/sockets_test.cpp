// SocketDiag against the kernel: real sockets, in cgroups and network namespaces of the test's own. Needs root.
#include "netlink/sockets.h"

#include "agent/process.h"
#include "rules/cgroup.h"
#include "tests/netns/two_networks.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace novpn {
namespace {

using namespace std::chrono_literals;
using boost::asio::ip::make_address;
using test::kEchoPort;
using test::kServer4;
using test::kServer6;
using test::Socket;

constexpr uid_t kNobody = 65534;

std::uint32_t inode_of(int fd) {
    struct stat status {};
    EXPECT_EQ(fstat(fd, &status), 0);
    return static_cast<std::uint32_t>(status.st_ino);
}

std::uint16_t local_port_of(int fd) {
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size), 0);
    // sin_port and sin6_port are in the same place.
    return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

Socket connected(const std::string& server, int type) {
    Socket made(server, type);
    EXPECT_EQ(made.connect(server, kEchoPort), 0);
    return made;
}

/// An IPv6 socket that speaks IPv4.
Socket connected_mapped(int type) { return connected(std::string("::ffff:") + kServer4, type); }

bool works(const Socket& socket) { return !socket.ask().empty(); }

/// What read(2) says; nothing when it neither fails nor ends in the time that a test socket waits.
std::optional<int> error_of_read(const Socket& socket) {
    char byte = 0;
    const ssize_t size = recv(socket.fd(), &byte, 1, 0);
    if (size >= 0) return std::nullopt;
    return errno == EAGAIN ? std::nullopt : std::optional(errno);
}

/// As proc_net(5) has it: "sl local_address rem_address st ...", 06 being TIME_WAIT.
bool in_time_wait(std::uint16_t port) {
    std::ifstream table("/proc/thread-self/net/tcp");
    const std::string suffix = fmt::format(":{:04X}", port);
    for (std::string line; std::getline(table, line);) {
        std::istringstream words(line);
        std::string slot, local, remote, state;
        words >> slot >> local >> remote >> state;
        if (local.ends_with(suffix) && state == "06") return true;
    }
    return false;
}

class SocketsTest : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        networks = new test::TwoNetworks;
        tree = new CgroupTree(CgroupTree::find().value());
        home = CgroupTree::of(getpid()).value();
        for (const std::string& cgroup : {members, others}) ASSERT_TRUE(tree->create(cgroup));
    }
    static void TearDownTestSuite() {
        for (const std::string& cgroup : {members, others}) EXPECT_TRUE(tree->remove(cgroup));
        delete tree;
        delete networks;
    }

    void SetUp() override {
        auto opened = SocketDiag::open();
        ASSERT_TRUE(opened) << to_string(opened.error());
        diag.emplace(std::move(*opened));
    }

    /// What `make` makes while this process is in `cgroup`.
    template<typename Make>
    static auto in(const std::string& cgroup, Make make) {
        EXPECT_TRUE(tree->move(cgroup, getpid()));
        auto made = make();
        EXPECT_TRUE(tree->move(home, getpid()));
        return made;
    }
    static Socket member(const std::string& server, int type) {
        return in(members, [&] { return connected(server, type); });
    }

    std::vector<OpenSocket> all() { return diag->sockets().value(); }
    std::vector<OpenSocket> of_cgroup(const std::string& cgroup) {
        std::vector<OpenSocket> found = all();
        std::erase_if(found, [id = tree->id(cgroup)](const OpenSocket& socket) { return socket.cgroup_id != id; });
        return found;
    }
    std::optional<OpenSocket> find(const Socket& socket) {
        for (const OpenSocket& open : all())
            if (open.inode == inode_of(socket.fd())) return open;
        return std::nullopt;
    }
    void end(const OpenSocket& socket) {
        const auto done = diag->end(socket);
        EXPECT_TRUE(done) << to_string(done.error());
    }

    static inline test::TwoNetworks* networks = nullptr;
    static inline CgroupTree* tree = nullptr;
    static inline std::string home;
    static inline const std::string root = "novpn-test-" + std::to_string(getpid());
    static inline const std::string members = root + "/novpn";
    static inline const std::string others = root + "/games";
    std::optional<SocketDiag> diag;
};

TEST_F(SocketsTest, AreFoundByTheCgroupTheyWereBornIn) {
    const Socket tcp4 = member(kServer4, SOCK_STREAM);
    const Socket tcp6 = member(kServer6, SOCK_STREAM);
    const Socket udp4 = member(kServer4, SOCK_DGRAM);
    const Socket udp6 = member(kServer6, SOCK_DGRAM);
    const Socket mapped = in(members, [] { return connected_mapped(SOCK_STREAM); });
    const Socket unconnected = in(members, [] {
        Socket made("0.0.0.0", SOCK_DGRAM);
        made.bind("0.0.0.0", 0);
        return made;
    });
    const Socket other = in(others, [] { return connected(kServer4, SOCK_STREAM); });
    const Socket outside = connected(kServer4, SOCK_STREAM);

    std::vector<OpenSocket> expected;
    const auto add = [&](const Socket& socket, std::uint8_t protocol, const char* local, const char* remote) {
        OpenSocket open{.family = family_of(make_address(local)),
                        .ip_protocol = protocol,
                        .local = make_address(local),
                        .local_port = local_port_of(socket.fd()),
                        .cgroup_id = tree->id(members).value(),
                        .inode = inode_of(socket.fd()),
                        .uid = getuid()};
        if (remote) open.remote = make_address(remote);
        if (remote) open.remote_port = kEchoPort;
        expected.push_back(open);
    };
    add(tcp4, IPPROTO_TCP, test::kTunnel4, kServer4);
    add(tcp6, IPPROTO_TCP, test::kTunnel6, kServer6);
    add(udp4, IPPROTO_UDP, test::kTunnel4, kServer4);
    add(udp6, IPPROTO_UDP, test::kTunnel6, kServer6);
    add(mapped, IPPROTO_TCP, test::kTunnel4, kServer4);
    expected.back().ipv4_mapped = true;
    add(unconnected, IPPROTO_UDP, "0.0.0.0", nullptr);

    std::vector<OpenSocket> found = of_cgroup(members);
    for (OpenSocket& socket : found) {
        EXPECT_NE(socket.cookie, 0);
        socket.cookie = 0; // the kernel's to choose
    }
    std::ranges::sort(found, {}, &OpenSocket::inode);
    std::ranges::sort(expected, {}, &OpenSocket::inode);
    EXPECT_EQ(found, expected);
    EXPECT_EQ(std::ranges::count_if(found, [](const OpenSocket& s) { return leaves_this_machine(s); }), 5);
    EXPECT_EQ(of_cgroup(others).size(), 1);
    EXPECT_EQ(of_cgroup(others).front().inode, inode_of(other.fd()));
    EXPECT_NE(find(outside)->cgroup_id, tree->id(members));
}

TEST_F(SocketsTest, KeepTheirCgroupWhenItsProcessJoinsAnother) {
    const Socket before = connected(kServer4, SOCK_STREAM);
    EXPECT_TRUE(in(members, [&] { return of_cgroup(members).empty(); }));
    const auto after = in(members, [&] { return find(before); });
    ASSERT_TRUE(after);
    EXPECT_NE(after->cgroup_id, tree->id(members));
}

TEST_F(SocketsTest, TellTheirMark) {
    const Socket marked = member(kServer4, SOCK_DGRAM);
    marked.set_mark(0x4e000000);
    EXPECT_EQ(find(marked)->mark, 0x4e000000);
}

TEST_F(SocketsTest, ListeningOnesAndThoseOfOtherNetworksAreNotAmongThem) {
    const Socket listener("127.0.0.1", SOCK_STREAM);
    listener.bind("127.0.0.1", 0);
    listener.listen();
    EXPECT_EQ(find(listener), std::nullopt);

    const Socket socket = member(kServer4, SOCK_STREAM);
    ASSERT_TRUE(works(socket));
    for (const OpenSocket& open : all())
        EXPECT_FALSE(open.local == make_address(kServer4)) << "the server's end: " << to_string(open);
}

TEST_F(SocketsTest, AConnectionInTimeWaitIsNotAmongThem) {
    const Socket listener("127.0.0.1", SOCK_STREAM);
    listener.bind("127.0.0.1", 0);
    listener.listen();
    const std::uint16_t port = local_port_of(listener.fd());
    Socket client("127.0.0.1", SOCK_STREAM);
    ASSERT_EQ(client.connect("127.0.0.1", port), 0);
    std::optional<Socket> accepted(std::in_place, accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    const linger politely{};
    for (int fd : {client.fd(), accepted->fd()})
        ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &politely, sizeof politely), 0);
    const std::uint16_t client_port = local_port_of(client.fd());
    EXPECT_TRUE(find(client));
    EXPECT_FALSE(leaves_this_machine(*find(client)));
    { const Socket closed = std::move(client); }
    char byte = 0;
    ASSERT_EQ(recv(accepted->fd(), &byte, 1, 0), 0);
    accepted.reset();
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    while (!in_time_wait(client_port)) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    for (const OpenSocket& open : all()) EXPECT_NE(open.local_port, client_port) << to_string(open);
}

struct Kind {
    const char* name;
    int type;
    const char* server;
};

class SocketsEnd : public SocketsTest, public testing::WithParamInterface<Kind> {};

TEST_P(SocketsEnd, FailsTheProcesssReadAndLeavesOthersAlone) {
    const auto& [name, type, server] = GetParam();
    const Socket ended = member(server, type);
    const Socket other = in(others, [&] { return connected(server, type); });
    const Socket outside = connected(server, type);
    for (const Socket* socket : {&ended, &other, &outside}) ASSERT_TRUE(works(*socket));

    const auto found = of_cgroup(members);
    ASSERT_EQ(found.size(), 1);
    end(found.front());
    EXPECT_EQ(error_of_read(ended), ECONNABORTED);
    EXPECT_TRUE(of_cgroup(members).empty());
    EXPECT_TRUE(works(other));
    EXPECT_TRUE(works(outside));
    end(found.front()); // gone already
}

INSTANTIATE_TEST_SUITE_P(Of, SocketsEnd,
                         testing::Values(Kind{"Tcp4", SOCK_STREAM, kServer4}, Kind{"Tcp6", SOCK_STREAM, kServer6},
                                         Kind{"Udp4", SOCK_DGRAM, kServer4}, Kind{"Udp6", SOCK_DGRAM, kServer6},
                                         Kind{"TcpMapped", SOCK_STREAM, "::ffff:203.0.113.1"},
                                         Kind{"UdpMapped", SOCK_DGRAM, "::ffff:203.0.113.1"}),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST_F(SocketsTest, EndingWakesAReadThatWaits) {
    const Socket socket = member(kServer4, SOCK_STREAM);
    const timeval patience{.tv_sec = 10, .tv_usec = 0};
    ASSERT_EQ(setsockopt(socket.fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    std::optional<int> error;
    std::thread reader([&] { error = error_of_read(socket); });
    end(of_cgroup(members).at(0));
    reader.join();
    EXPECT_EQ(error, ECONNABORTED);
}

TEST_F(SocketsTest, EndingTellsTheOtherEnd) {
    const Socket server = networks->internet_socket(kServer4, SOCK_STREAM);
    server.bind(kServer4, 8080);
    server.listen();
    const Socket client = in(members, [] { return Socket(kServer4, SOCK_STREAM); });
    ASSERT_EQ(client.connect(kServer4, 8080), 0);
    const Socket accepted(accept4(server.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    end(of_cgroup(members).at(0));
    EXPECT_EQ(error_of_read(accepted), ECONNRESET);
}

TEST_F(SocketsTest, EndingWhileConnecting) {
    const Socket socket = in(members, [] { return Socket(kServer4, SOCK_STREAM | SOCK_NONBLOCK); });
    // On a link where nobody answers for this address, the SYN waits for its neighbour.
    ASSERT_EQ(socket.connect("10.8.0.77", 9), EINPROGRESS);
    const auto found = of_cgroup(members);
    ASSERT_EQ(found.size(), 1);
    EXPECT_TRUE(leaves_this_machine(found.front()));
    end(found.front());
    EXPECT_EQ(error_of_read(socket), ECONNABORTED);
}

TEST_F(SocketsTest, EndingOneThatIsClosedLeavesTheNextOfItsAddressesAlone) {
    for (int type : {SOCK_STREAM, SOCK_DGRAM}) {
        std::optional<Socket> first = member(kServer4, type);
        const OpenSocket old = of_cgroup(members).at(0);
        first.reset();
        end(old);
        const Socket second(kServer4, type);
        second.bind(test::kTunnel4, old.local_port);
        ASSERT_EQ(second.connect(kServer4, kEchoPort), 0);
        ASSERT_EQ(find(second)->local_port, old.local_port);
        end(old);
        EXPECT_TRUE(works(second));
    }
}

TEST_F(SocketsTest, AUdpSocketThatSharesItsAddressIsNotTakenForGone) {
    const auto shared = [] {
        Socket made("0.0.0.0", SOCK_DGRAM);
        made.bind("0.0.0.0", 5353);
        return made;
    };
    const Socket first = in(members, shared); // SO_REUSEADDR lets both have it
    const Socket second = in(others, shared);
    int hidden = 0;
    for (const Socket* socket : {&first, &second}) {
        const auto done = diag->end(*find(*socket));
        if (done) {
            EXPECT_EQ(error_of_read(*socket), ECONNABORTED);
        } else {
            ++hidden;
            EXPECT_EQ(done.error().code, std::errc::address_in_use) << to_string(done.error());
            EXPECT_EQ(error_of_read(*socket), std::nullopt) << "not ended";
        }
    }
    EXPECT_EQ(hidden, 1);
}

TEST_F(SocketsTest, EndingNeedsARightAndReadingDoesNot) {
    const Socket socket = member(kServer4, SOCK_STREAM);
    socket.set_mark(0x4e000000);
    const OpenSocket found = of_cgroup(members).at(0);
    const pid_t child = fork();
    if (child == 0) {
        if (setuid(kNobody) != 0) _exit(1);
        auto own = SocketDiag::open();
        if (!own) _exit(2);
        auto all = own->sockets();
        if (!all) _exit(3);
        OpenSocket unmarked = found;
        unmarked.mark = 0;
        if (std::ranges::find(*all, unmarked) == all->end()) _exit(4);
        auto done = own->end(found);
        _exit(!done && done.error().code == std::errc::operation_not_permitted ? 0 : 5);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(works(socket));
}

/// A process that has a socket of its own and others that it came with.
class Holder {
  public:
    Holder() {
        int ready[2];
        EXPECT_EQ(pipe2(ready, O_CLOEXEC), 0);
        pid_ = fork();
        if (pid_ == 0) {
            const Socket own = connected(kServer4, SOCK_STREAM);
            const std::uint32_t inode = inode_of(dup(own.fd()));
            if (write(ready[1], &inode, sizeof inode) != sizeof inode) _exit(1);
            while (true) pause();
        }
        close(ready[1]);
        EXPECT_EQ(read(ready[0], &own_, sizeof own_), ssize_t{sizeof own_});
        close(ready[0]);
    }
    ~Holder() { end(); }
    Holder(const Holder&) = delete;
    Holder& operator=(const Holder&) = delete;
    void end() {
        if (pid_ <= 0) return;
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }
    pid_t pid() const { return pid_; }
    std::uint32_t own_inode() const { return own_; }

  private:
    pid_t pid_ = 0;
    std::uint32_t own_ = 0;
};

TEST_F(SocketsTest, OfAProcessAreTheOnesItHolds) {
    const Socket inherited = connected(kServer4, SOCK_STREAM);
    Holder holder;
    const Socket later = connected(kServer4, SOCK_STREAM);
    const auto inodes = socket_inodes_of(holder.pid());
    EXPECT_EQ(std::ranges::count(inodes, holder.own_inode()), 1) << "two descriptors, one socket";
    EXPECT_EQ(std::ranges::count(inodes, inode_of(inherited.fd())), 1);
    EXPECT_EQ(std::ranges::count(inodes, inode_of(later.fd())), 0);

    // What the agent says of a process that joins now.
    EXPECT_TRUE(tree->move(members, holder.pid()));
    const auto open = all();
    EXPECT_EQ(std::ranges::count_if(open,
                                    [&](const OpenSocket& socket) {
                                        return std::ranges::binary_search(inodes, socket.inode) &&
                                               leaves_this_machine(socket) && socket.cgroup_id != tree->id(members);
                                    }),
              2);

    const pid_t pid = holder.pid();
    holder.end();
    EXPECT_TRUE(socket_inodes_of(pid).empty()) << "gone";
}

TEST_F(SocketsTest, OfAnothersProcessNeedARight) {
    const Holder holder;
    const pid_t child = fork();
    if (child == 0) {
        if (setuid(kNobody) != 0) _exit(1);
        _exit(socket_inodes_of(holder.pid()).empty() ? 0 : 2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

} // namespace
} // namespace novpn
