// How long a contestant takes to follow a change: makes the change itself, stamped before it is sent, and waits for the
// notification that the default of TABLE is the physical one again. In the network namespace that it is run in, where
// LINK is up with 10.99.0.2/24 and 2001:db8:99::2/64 and TUNNEL is a tun device.
//
//   reaction [options] -- CONTESTANT…
//     --scenario gateway    main's default is replaced by another gateway of the link
//                takeover   one send: the default is replaced by one through the tunnel, a physical one comes at 100
//                flap       link down, link up, then the default by another gateway: timed from that one
//                same       as flap, by the same gateway: the kernel removed the class's default without a word
//                halves     one send: both halves through the tunnel, and another gateway
//                storm      unrelated ones come and go (--storm), another gateway meanwhile, and one after the last
//     --family 4|6  --count N  --table T  --link L  --tunnel T  --gap MICROSECONDS  --cpu FILE (cpuacct.usage)
//     --storm routes|links|scopes  --amount N of each  --other a link that flaps  --tree where scopes are made
//   reaction --fill N --link L      puts N routes into main;  --clear N  takes them out
// One line of JSON comes out.
#include "tests/bench/wire.h"

#include <algorithm>
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <linux/if_tun.h>
#include <optional>
#include <poll.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <vector>

using namespace novpn::bench;

namespace {

struct Options {
    std::string scenario = "gateway";
    int family = AF_INET;
    int count = 500;
    std::uint32_t table = 7866;
    std::string link = "phy0";
    std::string tunnel = "tun0";
    int gap_us = 1000;
    std::string cpu;
    std::string storm = "routes";
    long amount = 200'000;
    std::string other = "other0";
    std::string tree;
    long fill = 0;
    long clear = 0;
    std::vector<char*> contestant;
};

Options read_options(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--") {
            options.contestant.assign(argv + i + 1, argv + argc);
            break;
        }
        if (++i == argc) std::exit(2);
        const std::string value = argv[i];
        if (name == "--scenario")
            options.scenario = value;
        else if (name == "--family")
            options.family = value == "6" ? AF_INET6 : AF_INET;
        else if (name == "--count")
            options.count = std::stoi(value);
        else if (name == "--table")
            options.table = static_cast<std::uint32_t>(std::stoul(value));
        else if (name == "--link")
            options.link = value;
        else if (name == "--tunnel")
            options.tunnel = value;
        else if (name == "--gap")
            options.gap_us = std::stoi(value);
        else if (name == "--cpu")
            options.cpu = value;
        else if (name == "--storm")
            options.storm = value;
        else if (name == "--amount")
            options.amount = std::stol(value);
        else if (name == "--other")
            options.other = value;
        else if (name == "--tree")
            options.tree = value;
        else if (name == "--fill")
            options.fill = std::stol(value);
        else if (name == "--clear")
            options.clear = std::stol(value);
        else
            std::exit(2);
    }
    if (options.contestant.empty() && !options.fill && !options.clear) std::exit(2);
    options.contestant.push_back(nullptr);
    return options;
}

constexpr int kReplace = NLM_F_CREATE | NLM_F_REPLACE;
constexpr std::uint64_t kSecond = 1'000'000'000;

void nap(int microseconds) { usleep(static_cast<useconds_t>(microseconds)); }

/// Routes of unrelated prefixes by the link's first gateway.
void many(int type, std::uint32_t link, std::uint32_t first, unsigned length, long count) {
    const int fd = open_rtnetlink();
    Batch batch;
    const auto sent = [&] {
        batch.send(fd);
        while (read_datagram(fd, MSG_DONTWAIT, [](const nlmsghdr&) {})) {
        }
    };
    for (long i = 0; i < count; ++i) {
        Way way;
        way.length = length;
        way.link = link;
        const std::uint32_t prefix = htonl(first + (static_cast<std::uint32_t>(i) << (32 - length)));
        std::memcpy(way.destination, &prefix, sizeof prefix);
        set_gateway(way, "10.99.0.1");
        batch.route(type, type == RTM_NEWROUTE ? NLM_F_CREATE : 0, way);
        if (batch.size() > 8000) sent();
    }
    sent();
    close(fd);
}

/// As a storm has them: each comes, and goes.
void unrelated(const Options& options) {
    if (options.storm == "routes") {
        const std::uint32_t link = index_of(options.link.c_str());
        many(RTM_NEWROUTE, link, 0x40000000, 32, options.amount);
        many(RTM_DELROUTE, link, 0x40000000, 32, options.amount);
    } else if (options.storm == "links") {
        const int fd = open_rtnetlink();
        const std::uint32_t link = index_of(options.other.c_str());
        Batch batch;
        for (long i = 0; i < 2 * options.amount; ++i) {
            batch.link_up(link, i % 2);
            batch.send(fd);
        }
        close(fd);
    } else {
        constexpr long kAtOnce = 20;
        const auto path = [&](long i) { return options.tree + "/app-bench-" + std::to_string(i) + ".scope"; };
        for (long i = 0; i < options.amount + kAtOnce; ++i) {
            if (i < options.amount && mkdir(path(i).c_str(), 0755) < 0) fail(path(i).c_str());
            if (i >= kAtOnce && rmdir(path(i - kAtOnce).c_str()) < 0) fail(path(i).c_str());
        }
    }
}

/// Notifications that a socket of this namespace has missed, of all sockets together.
long overruns() {
    std::ifstream file("/proc/thread-self/net/netlink");
    long sum = 0;
    for (std::string line; std::getline(file, line);) {
        long drops = 0;
        if (std::sscanf(line.c_str(), "%*s %*d %*u %*x %*d %*d %*d %*d %ld", &drops) == 1) sum += drops;
    }
    return sum;
}

class Course {
  public:
    explicit Course(const Options& options)
        : options_(options)
        , link_(index_of(options.link.c_str()))
        , changes_(open_rtnetlink())
        , news_(open_rtnetlink()) {
        // A tun device has carrier while somebody holds it.
        const int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        ifreq request{};
        request.ifr_flags = IFF_TUN | IFF_NO_PI;
        options.tunnel.copy(request.ifr_name, IFNAMSIZ - 1);
        if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0) fail("tun");
        tunnel_ = index_of(options.tunnel.c_str());
        filter_defaults(news_, options.table);
        const int room = 8 << 20;
        if (setsockopt(news_, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0) fail("SO_RCVBUFFORCE");
        join(news_, options.family == AF_INET ? RTNLGRP_IPV4_ROUTE : RTNLGRP_IPV6_ROUTE);
    }

    Way physical(int which, std::uint32_t metric = 0) const {
        static const char* const kGateways[2][3] = {{"10.99.0.1", "10.99.0.254", "10.99.0.77"},
                                                    {"2001:db8:99::1", "2001:db8:99::254", "2001:db8:99::77"}};
        Way way = through(link_, metric);
        set_gateway(way, kGateways[options_.family == AF_INET6][which]);
        return way;
    }
    Way through(std::uint32_t link, std::uint32_t metric = 0) const {
        Way way;
        way.family = options_.family;
        way.link = link;
        way.metric = metric ? metric : options_.family == AF_INET ? 0 : 50;
        return way;
    }
    void change(int type, const Way& way) { batch_.route(type, type == RTM_NEWROUTE ? kReplace : 0, way); }
    void send() {
        batch_.send(changes_);
        expect_no_refusal(changes_);
    }
    /// Whoever is to be timed: nobody waits for one that has ended.
    void watch(pid_t contestant) { contestant_ = contestant; }
    void expect(const Way& way) {
        wanted_ = way;
        arrived_ = 0;
    }
    /// Whether the table has it already, as where the uplink is remembered.
    bool is_ahead() const { return there_ && is_wanted(*there_); }
    /// Nanoseconds since `since`; 0: it never came.
    std::uint64_t wait(std::uint64_t since, std::uint64_t patience) {
        while (!arrived_ && now_ns() < since + patience) {
            pollfd ready{news_, POLLIN, 0};
            if (poll(&ready, 1, 100) > 0)
                read();
            else
                expect_life();
        }
        return arrived_ ? arrived_ - since : 0;
    }
    void rest(int microseconds) {
        nap(microseconds);
        while (read()) {
        }
    }

    std::uint64_t once(int round) {
        const std::string& scenario = options_.scenario;
        const int which = scenario == "same" ? 0 : round & 1;
        const Way way = physical(which);
        const bool flaps = scenario == "flap" || scenario == "same";
        if (flaps) {
            rest(0);
            batch_.link_up(link_, false);
            send();
            rest(0);
            there_.reset(); // IPv4's is gone without a word
            batch_.link_up(link_, true);
            batch_.address(link_, "2001:db8:99::2", 64); // it went with the link, IPv4's does not
            send();
            rest(options_.gap_us);
        }
        Way physical_way = scenario == "takeover" ? physical(which, 100) : way;
        expect(physical_way);
        if (scenario == "takeover") {
            if (options_.family == AF_INET6) change(RTM_DELROUTE, way_now_);
            change(RTM_NEWROUTE, through(tunnel_));
        }
        if (scenario == "halves") {
            for (int half = 0; half < 2; ++half) {
                Way by_tunnel = through(tunnel_);
                by_tunnel.length = 1;
                by_tunnel.destination[0] = half ? 0x80 : 0;
                change(RTM_NEWROUTE, by_tunnel);
            }
        }
        change(RTM_NEWROUTE, physical_way);
        const bool was_ahead = is_ahead();
        if (was_ahead) ++ahead;
        const std::uint64_t since = now_ns();
        batch_.send(changes_);
        const std::uint64_t took = was_ahead ? 1 : wait(since, 2 * kSecond);
        if (!took) (void)wait(since, 20 * kSecond); // else what it is late with would count as the next answer
        expect_no_refusal(changes_);
        rest(options_.gap_us);
        if (scenario == "takeover") { // the VPN ends
            if (options_.family == AF_INET6) change(RTM_DELROUTE, through(tunnel_));
            change(RTM_NEWROUTE, way);
            change(RTM_DELROUTE, physical_way);
            send();
            rest(options_.gap_us);
        }
        way_now_ = way;
        return took;
    }
    void begin() {
        way_now_ = physical(0);
        expect(way_now_);
        change(RTM_NEWROUTE, way_now_);
        send();
    }
    void end() {
        for (int half = 0; half < 2; ++half) {
            Way by_tunnel = through(tunnel_);
            by_tunnel.length = 1;
            by_tunnel.destination[0] = half ? 0x80 : 0;
            change(RTM_DELROUTE, by_tunnel);
        }
        change(RTM_DELROUTE, through(tunnel_));
        for (int which = 0; which < 2; ++which) change(RTM_DELROUTE, physical(which));
        Way own = through(0);
        own.table = options_.table;
        own.metric = 0;
        change(RTM_DELROUTE, own);
        send();
    }

    unsigned long ahead = 0;  ///< times that the default of the table was right before the change was made
    unsigned long absent = 0; ///< times that the default of the table was deleted
    unsigned long wrong = 0;  ///< times that it became another than the expected one

  private:
    void expect_life() const {
        int status = 0;
        if (contestant_ <= 0 || waitpid(contestant_, &status, WNOHANG) != contestant_) return;
        std::fprintf(stderr, "reaction: %s has ended with %s %d\n", options_.contestant[0],
                     WIFSIGNALED(status) ? "signal" : "status",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        std::exit(1);
    }
    bool is_wanted(const Way& way) const {
        return way.link == wanted_.link && !std::memcmp(way.gateway, wanted_.gateway, sizeof way.gateway);
    }
    bool read() {
        return read_datagram(news_, MSG_DONTWAIT, [&](const nlmsghdr& message) {
            Way way;
            if (!read_way(message, way) || way.table != options_.table || way.length) return;
            if (way.family == AF_INET6 && way.metric == 0xffffffff) return; // a backstop
            there_.reset();
            if (message.nlmsg_type == RTM_DELROUTE) {
                ++absent;
                return;
            }
            there_ = way;
            if (is_wanted(way)) {
                if (!arrived_) arrived_ = now_ns();
            } else {
                ++wrong;
            }
        });
    }
    const Options& options_;
    std::uint32_t link_;
    std::uint32_t tunnel_ = 0;
    pid_t contestant_ = 0;
    int changes_;
    int news_;
    Batch batch_;
    Way wanted_;
    std::optional<Way> there_; ///< the default of the table, as far as notifications tell
    Way way_now_;
    std::uint64_t arrived_ = 0;
};

double cpu_us(const Options& options) {
    double nanoseconds = -1;
    if (!options.cpu.empty()) std::ifstream(options.cpu) >> nanoseconds;
    return nanoseconds / 1e3;
}

double at(const std::vector<double>& sorted, double share) {
    if (sorted.empty()) return -1;
    return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

} // namespace

int main(int argc, char** argv) {
    Options options = read_options(argc, argv);
    if (options.fill || options.clear) {
        many(options.fill ? RTM_NEWROUTE : RTM_DELROUTE, index_of(options.link.c_str()), 0x10000000, 24,
             options.fill + options.clear);
        return 0;
    }
    Course course(options);
    course.begin();

    auto* started = static_cast<volatile std::uint64_t*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const std::uint64_t before = now_ns();
    const pid_t contestant = fork();
    if (contestant == 0) {
        setsid();
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (!options.cpu.empty()) {
            const std::string processes = options.cpu.substr(0, options.cpu.rfind('/')) + "/cgroup.procs";
            std::ofstream(processes) << getpid() << std::flush;
        }
        *started = now_ns();
        execvp(options.contestant[0], options.contestant.data());
        fail(options.contestant[0]);
    }
    course.watch(contestant);
    const std::uint64_t ready = course.wait(before, 60 * kSecond);
    const double start_us = ready ? static_cast<double>(before + ready - *started) / 1e3 : -1;
    course.rest(200'000); // what it does after its first answer is no reaction
    for (int i = 0; i < 10 && options.scenario != "storm"; ++i) (void)course.once(i);
    course.rest(100'000);
    course.ahead = course.absent = course.wrong = 0;

    const double cpu = cpu_us(options);
    const long missed_before = overruns();
    std::vector<double> took;
    int missed = 0;
    double in_storm[2] = {-1, -1}; // during it, and after
    const auto note = [&](std::uint64_t nanoseconds) {
        if (nanoseconds)
            took.push_back(static_cast<double>(nanoseconds) / 1e3);
        else
            ++missed;
    };
    if (options.scenario == "storm") {
        const pid_t storm = fork();
        if (storm == 0) {
            unrelated(options);
            _exit(0);
        }
        course.rest(20'000);
        const auto change = [&](int which) {
            course.expect(course.physical(which));
            course.change(RTM_NEWROUTE, course.physical(which));
            const std::uint64_t since = now_ns();
            course.send();
            const std::uint64_t after = course.wait(since, 8 * kSecond);
            note(after);
            if (after) in_storm[which - 1] = static_cast<double>(after) / 1e3;
        };
        change(1);
        int status = 0;
        waitpid(storm, &status, 0);
        if (status) std::exit(1);
        change(2);
        course.rest(300'000);
    } else {
        // One that does not do it is not waited for again and again.
        for (int i = 0; i < options.count && missed < 10; ++i) note(course.once(i));
    }
    const double cpu_after = cpu_us(options);
    const auto events = std::max<double>(1, static_cast<double>(took.size()) + missed);
    const long missed_after = overruns();

    long rss = 0, pss = 0, dirty = 0;
    std::ifstream rollup("/proc/" + std::to_string(contestant) + "/smaps_rollup");
    for (std::string line; std::getline(rollup, line);) {
        long kib = 0;
        if (std::sscanf(line.c_str(), "Rss: %ld", &kib) == 1) rss = kib;
        if (std::sscanf(line.c_str(), "Pss: %ld", &kib) == 1) pss = kib;
        if (std::sscanf(line.c_str(), "Private_Dirty: %ld", &kib) == 1) dirty = kib;
    }
    const std::uint64_t stopping = now_ns();
    kill(-contestant, SIGTERM);
    int waited = 0;
    while (waitpid(contestant, nullptr, WNOHANG) == 0 && waited++ < 2000) nap(1000);
    if (waited >= 2000) kill(-contestant, SIGKILL);
    const double stop_us = static_cast<double>(now_ns() - stopping) / 1e3;
    course.end();

    std::vector<double> sorted = took;
    std::ranges::sort(sorted);
    std::printf("{\"n\": %zu, \"missed\": %d, \"ahead\": %lu, \"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"during\": "
                "%.1f, \"after\": %.1f, "
                "\"cpu_per_event\": %.1f, \"cpu_ms\": %.2f, \"absent\": %lu, \"wrong\": %lu, \"overruns\": %ld, "
                "\"start_us\": %.0f, \"stop_us\": %.0f, \"rss_kib\": %ld, \"pss_kib\": %ld, \"dirty_kib\": %ld}\n",
                sorted.size(), missed, course.ahead, at(sorted, 0.5), at(sorted, 0.99), at(sorted, 1), in_storm[0],
                in_storm[1], (cpu_after - cpu) / events, (cpu_after - cpu) / 1e3, course.absent, course.wrong,
                missed_after - missed_before, start_us, stop_us, rss, pss, dirty);
    return 0;
}
