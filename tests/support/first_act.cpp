// A program whose first act is connect(): prints the address that echo.py saw of it, or "no answer: REASON".
//
// Usage: first_act tcp|udp ADDRESS
//        first_act in CGROUP MICROSECONDS tcp|udp ADDRESS     makes the cgroup, moves there, waits so long, and then
#include <arpa/inet.h>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

constexpr int kPort = 7000;

int fail(const char* what) {
    std::printf("no answer: %s: %s\n", what, std::strerror(errno));
    return 1;
}

/// As systemd does it: the directory first, then the process in it.
bool enter(const std::string& cgroup, long microseconds) {
    if (mkdir(cgroup.c_str(), 0755) != 0) return false;
    const auto made = std::chrono::steady_clock::now();
    const int procs = open((cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC);
    const bool moved = procs >= 0 && write(procs, "0", 1) == 1;
    while (std::chrono::steady_clock::now() < made + std::chrono::microseconds(microseconds)) usleep(20);
    return moved;
}

} // namespace

int main(int argc, char** argv) {
    char** word = argv + 1;
    if (argc == 6 && std::strcmp(*word, "in") == 0) {
        if (!enter(word[1], std::strtol(word[2], nullptr, 10))) return fail("entering the cgroup");
        word += 3;
    } else if (argc != 3) {
        return 2;
    }
    const bool is_tcp = std::strcmp(word[0], "tcp") == 0;
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(kPort);
    inet_pton(AF_INET, word[1], &to.sin_addr);
    const int fd = socket(AF_INET, is_tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
    const timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return fail("connecting");
    char seen[200] = {};
    if (send(fd, "hello\n", 6, 0) != 6 || recv(fd, seen, sizeof seen - 1, 0) <= 0) return fail("asking");
    std::printf("%s\n", std::string(seen, std::strcspn(seen, " \n")).c_str());
    return 0;
}
