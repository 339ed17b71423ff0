// Sends small UDP packets (frames of 60 bytes, the smallest there are) as fast as it can, by one process on one
// processor, so that what the kernel does with a packet on its way to the link, and to the far end of a veth, is in its
// own time.
//   blast ADDRESS PORT MILLISECONDS connected|sendto
// One line comes out: packets, nanoseconds, nanoseconds of processor time, packets that were refused.
#include "tests/bench/wire.h"

#include <netinet/in.h>
#include <sched.h>
#include <string>

using namespace novpn::bench;

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) fail("sched_getaffinity");
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &allowed)) --last;
    CPU_ZERO(&allowed);
    CPU_SET(last, &allowed);
    if (sched_setaffinity(0, sizeof allowed, &allowed) < 0) fail("sched_setaffinity");

    sockaddr_in there{};
    there.sin_family = AF_INET;
    there.sin_port = htons(static_cast<std::uint16_t>(std::atoi(argv[2])));
    if (inet_pton(AF_INET, argv[1], &there.sin_addr) != 1) fail(argv[1]);
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    const bool connected = std::string(argv[4]) == "connected";
    auto* name = reinterpret_cast<sockaddr*>(&there);
    if (connected && connect(fd, name, sizeof there) < 0) fail("connect");

    const auto time_of = [](clockid_t clock) {
        timespec time{};
        clock_gettime(clock, &time);
        return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
    };
    const char payload[18] = {};
    unsigned long packets = 0;
    unsigned long refused = 0;
    const std::uint64_t cpu = time_of(CLOCK_THREAD_CPUTIME_ID);
    const std::uint64_t began = now_ns();
    const std::uint64_t end = began + static_cast<std::uint64_t>(std::atol(argv[3])) * 1'000'000U;
    while (now_ns() < end) {
        for (int i = 0; i < 256; ++i, ++packets)
            if (sendto(fd, payload, sizeof payload, 0, connected ? nullptr : name, connected ? 0 : sizeof there) < 0)
                ++refused;
    }
    std::printf("%lu %llu %llu %lu\n", packets, static_cast<unsigned long long>(now_ns() - began),
                static_cast<unsigned long long>(time_of(CLOCK_THREAD_CPUTIME_ID) - cpu), refused);
}
