#include "agent/linux_kernel.h"
#include "agent/unique_fd.h"
#include "rules/cgroup.h"
#include "tests/contract/world.h"
#include "tests/netns/two_networks.h"

#include <algorithm>
#include <boost/asio/ip/udp.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <stdexcept>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace novpn::test {

namespace {

constexpr auto kPatience = std::chrono::seconds(10);
constexpr auto kPoll = std::chrono::milliseconds(5);

void check(int result, const char* what) {
    if (result < 0) throw std::system_error(errno, std::system_category(), what);
}

template<typename T>
T opened(Expected<T> socket) {
    if (!socket) throw std::runtime_error(to_string(socket.error()));
    return std::move(*socket);
}

/// The process moves into the namespaces first, so that the kernel's sockets are of them. bpffs is an empty one.
struct Namespace {
    Namespace() {
        check(unshare(CLONE_NEWNET | CLONE_NEWNS),
              "unshare(CLONE_NEWNET | CLONE_NEWNS): run the contract tests as root");
        check(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "making mounts private");
        check(mount("novpn-contract", "/sys/fs/bpf", "bpf", 0, nullptr), "mounting bpffs");
    }
};

class LinuxWorld : public World {
  public:
    LinuxWorld()
        : kernel_(opened(LinuxKernel::open()))
        , routing_(opened(RouteSocket::open())) {
        run("ip link set lo up");
    }
    ~LinuxWorld() override {
        for (int fd : tunnels_) close(fd);
        auto cgroups = CgroupTree::find();
        if (!cgroups) return;
        (void)cgroups->remove(other());
        for (const std::string& child : cgroups->children(cgroup_root())) (void)cgroups->remove(child);
    }
    LinuxWorld(const LinuxWorld&) = delete;

    Kernel& kernel() override { return kernel_; }
    std::string cgroup_root() const override { return fmt::format("novpn-contract-{}", getpid()); }

    IfIndex add_link(const std::string& name) override {
        run(fmt::format("ip link add {0} type veth peer name {0}-far", name));
        // Without link-local addresses: a link has those that the test gives it.
        for (const std::string& end : {name, name + "-far"}) run("ip link set " + end + " addrgenmode none up");
        return index_of(name);
    }
    IfIndex add_tunnel(const std::string& name) override {
        int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        check(fd, "open /dev/net/tun");
        tunnels_.push_back(fd); // it has carrier while this is open
        ifreq request{};
        request.ifr_flags = IFF_TUN | IFF_NO_PI;
        name.copy(request.ifr_name, IFNAMSIZ - 1);
        check(ioctl(fd, TUNSETIFF, &request), "TUNSETIFF");
        run("ip link set " + name + " addrgenmode none up");
        return index_of(name);
    }
    void delete_link(const std::string& name) override { run("ip link del " + name); }
    void set_up(const std::string& name, bool up) override {
        run(fmt::format("ip link set {} {}", name, up ? "up" : "down"));
        if (up) set_carrier(name, true);
    }
    void set_carrier(const std::string& name, bool carrier) override {
        run(fmt::format("ip link set {}-far {}", name, carrier ? "up" : "down"));
        // The kernel tells its routes from a work queue (net/core/link_watch.c).
        IfIndex index = index_of(name);
        wait_until([&] {
            Observed now = *kernel_.observe({.strays = true});
            const Link* link = find_link(now, index);
            return link && link->carrier == carrier && std::ranges::all_of(now.routes, [&](const Route& route) {
                       return route.link != index || route.link_down != carrier;
                   });
        });
    }
    void add_address(const std::string& link, const address& local, unsigned prefix_length) override {
        run(fmt::format("ip addr add {}/{} dev {} {}", local.to_string(), prefix_length, link,
                        local.is_v6() ? "nodad" : ""));
    }
    void delete_address(const std::string& link, const address& local, unsigned prefix_length) override {
        run(fmt::format("ip addr del {}/{} dev {}", local.to_string(), prefix_length, link));
    }
    void add_route(const Route& route) override { change_route("add", route); }
    void delete_route(const Route& route) override { change_route("del", route); }
    void add_rule(const Rule& rule) override { change_rule("add", rule); }
    void delete_rule(const Rule& rule) override { change_rule("del", rule); }
    void set_neighbour(const std::string& link, const address& host, const MacAddress& mac) override {
        run(fmt::format("ip neighbour replace {} lladdr {} dev {} nud reachable", host.to_string(), to_string(mac),
                        link));
    }
    void add_policy(const XfrmPolicy& policy) override { run("ip xfrm policy add " + to_string(policy)); }

    std::string add_other() override {
        if (auto made = opened(CgroupTree::find()).create(other()); !made)
            throw std::runtime_error(to_string(made.error()));
        return other();
    }
    void remove_other() override {
        if (auto gone = opened(CgroupTree::find()).remove(other()); !gone)
            throw std::runtime_error(to_string(gone.error()));
    }

    bool is_blocked(const address& destination, std::uint32_t mark) override {
        boost::asio::ip::udp::endpoint peer(destination, 7);
        UniqueFd fd(socket(peer.protocol().family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
        check(fd.get(), "socket");
        check(setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), "SO_MARK");
        // connect() looks up the route and the policy: EPERM is that of a policy that blocks.
        if (connect(fd.get(), peer.data(), static_cast<socklen_t>(peer.size())) == 0) return false;
        if (errno != EPERM) check(-1, "connect");
        return true;
    }

    std::string leaves_by(const Packet& packet) override {
        if (!packet.ip_protocol && !packet.source && !packet.uid) {
            auto mark = packet.mark ? std::optional(Mark{packet.mark}) : std::nullopt;
            auto lookup = routing_.lookup(packet.destination, mark);
            if (!lookup) throw std::runtime_error(to_string(lookup.error()));
            return lookup->answer ? name_of(lookup->answer->link) : "refused";
        }
        std::string output;
        try {
            std::string command =
                fmt::format("ip -o route get {} mark {}", packet.destination.to_string(), packet.mark);
            if (packet.ip_protocol)
                command += fmt::format(" ipproto {} dport {}", packet.ip_protocol, packet.destination_port);
            if (packet.source) command += " from " + packet.source->to_string();
            if (packet.uid) command += fmt::format(" uid {}", packet.uid);
            output = run(command);
        } catch (const std::runtime_error&) {
            return "refused";
        }
        auto dev = output.find(" dev ");
        if (dev == std::string::npos) throw std::runtime_error("no link in: " + output);
        output = output.substr(dev + std::strlen(" dev "));
        return output.substr(0, output.find(' '));
    }

  private:
    /// A slice, by the name: others are not looked into.
    static std::string other() { return fmt::format("novpncontract{}.slice", getpid()); }
    template<typename Condition>
    static void wait_until(Condition condition) {
        auto patience = std::chrono::steady_clock::now() + kPatience;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > patience) throw std::runtime_error("it did not come true in time");
            std::this_thread::sleep_for(kPoll);
        }
    }
    static std::string family_flag(Family family) { return family == Family::ipv4 ? "-4" : "-6"; }
    std::vector<Link> links() { return kernel_.observe({})->links; }
    std::string name_of(IfIndex index) {
        auto all = links();
        return LinkNames{&all}(index);
    }
    IfIndex index_of(const std::string& name) {
        auto all = links();
        auto found = std::ranges::find(all, name, &Link::name);
        if (found == all.end()) throw std::invalid_argument("no link " + name);
        return found->index;
    }
    void change_route(const std::string& verb, const Route& route) {
        auto all = links();
        run(fmt::format("ip {} route {} {}", family_flag(family_of(route)), verb, to_string(route, {&all})));
    }
    void change_rule(const std::string& verb, const Rule& rule) {
        run(fmt::format("ip {} rule {} {}", family_flag(rule.family), verb, to_string(rule)));
    }

    Namespace namespace_;
    LinuxKernel kernel_;
    RouteSocket routing_; ///< to ask what a packet would do
    std::vector<int> tunnels_;
};

} // namespace

std::unique_ptr<World> make_linux_world() { return std::make_unique<LinuxWorld>(); }

} // namespace novpn::test
