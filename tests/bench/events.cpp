// Keeps an agent busy with all that it hears of, and says what that does to its memory. In the network namespace of the
// agent, where LINK is its uplink by 10.99.0.1 or 10.99.0.254, 2001:db8:99::1 or 2001:db8:99::254.
//
//   events --pid AGENT --count N --socket PATH --tree DIRECTORY [--link L] [--other O] [--table T]
//
// Of 1,000 events 630 are new gateways, 80 routes of the link that come and go, 80 of the link OTHER going down and up,
// 140 of scopes in DIRECTORY, 68 clients that ask for the status, and 2 of a link that nobody has seen before. The
// agent has followed each gateway before the next few come. One line of JSON comes out: ten samples, and one before
// all.
#include "tests/bench/wire.h"

#include <fstream>
#include <linux/if_link.h>
#include <poll.h>
#include <string>
#include <sys/stat.h>
#include <sys/un.h>

using namespace novpn::bench;

namespace {

struct Options {
    std::string pid, socket, tree;
    long count = 1'000'000;
    std::string link = "phy0";
    std::string other = "other0";
    std::uint32_t table = 7866;
};

Options read_options(int argc, char** argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        const std::string value = argv[i + 1];
        if (name == "--pid")
            options.pid = value;
        else if (name == "--count")
            options.count = std::stol(value);
        else if (name == "--socket")
            options.socket = value;
        else if (name == "--tree")
            options.tree = value;
        else if (name == "--link")
            options.link = value;
        else if (name == "--other")
            options.other = value;
        else if (name == "--table")
            options.table = static_cast<std::uint32_t>(std::stoul(value));
        else
            std::exit(2);
    }
    if (options.pid.empty() || options.socket.empty() || options.tree.empty() || argc % 2 == 0) std::exit(2);
    return options;
}

class Events {
  public:
    explicit Events(const Options& options)
        : options_(options)
        , link_(index_of(options.link.c_str()))
        , other_(index_of(options.other.c_str()))
        , changes_(open_rtnetlink())
        , news_(open_rtnetlink()) {
        filter_defaults(news_, options.table);
        const int room = 8 << 20;
        if (setsockopt(news_, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0) fail("SO_RCVBUFFORCE");
        for (const int group : {RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE}) join(news_, group);
    }

    /// A thousand events.
    void round() {
        for (int part = 0; part < 20; ++part) {
            for (int i = 0; i < 6; ++i) gateways(5);
            routes();
            for (int i = 0; i < 2; ++i) other_link();
            for (int i = 0; i < 3; ++i) scope();
            for (int i = 0; i < 3; ++i) client();
            if (part % 2 == 0) {
                gateways(3);
                scope();
            }
        }
        for (int i = 0; i < 8; ++i) client();
        new_link();
        ++rounds_;
    }
    /// KiB that are the agent's alone.
    long memory() const {
        std::ifstream rollup("/proc/" + options_.pid + "/smaps_rollup");
        long kib = -1;
        for (std::string line; std::getline(rollup, line);)
            if (std::sscanf(line.c_str(), "Private_Dirty: %ld", &kib) == 1) return kib;
        fail("the agent has ended");
    }

  private:
    void send() {
        batch_.send(changes_);
        expect_no_refusal(changes_);
    }
    /// An odd number of new gateways at once, of one family, so that the last is another one than before; the agent has
    /// followed it.
    void gateways(int count) {
        static const char* const kGateways[2][2] = {{"10.99.0.1", "10.99.0.254"},
                                                    {"2001:db8:99::1", "2001:db8:99::254"}};
        const bool ipv6 = ++batches_ % 2;
        Way way;
        way.family = ipv6 ? AF_INET6 : AF_INET;
        way.link = link_;
        if (ipv6) way.metric = 50;
        for (int i = 0; i < count; ++i) {
            set_gateway(way, kGateways[ipv6][++turns_[ipv6] % 2]);
            batch_.route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, way);
        }
        send();
        follow(way);
    }
    void follow(const Way& wanted) {
        const std::uint64_t end = now_ns() + 20'000'000'000U;
        Way& there = there_[wanted.family == AF_INET6];
        while (std::memcmp(there.gateway, wanted.gateway, sizeof there.gateway) != 0) {
            if (now_ns() > end) {
                std::fprintf(stderr, "events: the agent does not follow\n");
                std::exit(1);
            }
            pollfd ready{news_, POLLIN, 0};
            if (poll(&ready, 1, 1000) > 0) read_news();
        }
    }
    void read_news() {
        read_datagram(news_, MSG_DONTWAIT, [&](const nlmsghdr& message) {
            Way way;
            if (!read_way(message, way) || way.table != options_.table || way.length || !way.has_gateway) return;
            there_[way.family == AF_INET6] = message.nlmsg_type == RTM_NEWROUTE ? way : Way{};
        });
    }
    void routes() {
        for (const int type : {RTM_NEWROUTE, RTM_DELROUTE})
            for (int i = 0; i < 2; ++i) {
                Way way;
                way.link = link_;
                const std::string network = "198.18." + std::to_string((rounds_ + i) % 256) + ".0";
                set_destination(way, network.c_str(), 24);
                batch_.route(type, type == RTM_NEWROUTE ? NLM_F_CREATE : 0, way);
            }
        send();
    }
    void other_link() {
        for (const bool up : {false, true}) batch_.link_up(other_, up);
        send();
    }
    void scope() {
        const std::string path = options_.tree + "/app-bench-" + std::to_string(++scopes_) + ".scope";
        if (mkdir(path.c_str(), 0755) < 0 || rmdir(path.c_str()) < 0) fail(path.c_str());
    }
    void client() {
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_un there{};
        there.sun_family = AF_UNIX;
        options_.socket.copy(there.sun_path, sizeof there.sun_path - 1);
        if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&there), sizeof there) < 0) fail("the agent's socket");
        const char call[] = R"({"method":"io.novpn.Agent.Status"})"; // its end is the message's
        if (::send(fd, call, sizeof call, 0) < 0) fail("asking the agent");
        char bytes[65536];
        for (ssize_t size = 1; size > 0;) {
            size = recv(fd, bytes, sizeof bytes, 0);
            if (size <= 0) fail("the agent's answer");
            if (bytes[size - 1] == '\0') break;
        }
        close(fd);
    }
    void new_link() {
        batch_.new_veth(("v" + std::to_string(rounds_)).c_str());
        send();
        const std::uint32_t link = index_of(("v" + std::to_string(rounds_)).c_str());
        batch_.delete_link(link);
        send();
    }

    const Options& options_;
    std::uint32_t link_;
    std::uint32_t other_;
    int changes_;
    int news_;
    Batch batch_;
    Way there_[2]; ///< the table's defaults
    unsigned turns_[2] = {};
    unsigned batches_ = 0;
    unsigned long rounds_ = 0;
    unsigned long scopes_ = 0;
};

} // namespace

int main(int argc, char** argv) {
    const Options options = read_options(argc, argv);
    Events events(options);
    std::printf("[[0, %ld]", events.memory());
    long done = 0;
    for (long sample = 1; sample <= 10; ++sample) {
        for (; done < options.count * sample / 10; done += 1000) events.round();
        usleep(300'000); // what it does after the last one
        std::printf(", [%ld, %ld]", done, events.memory());
    }
    std::puts("]");
}
