#include "agent/process.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <memory>
#include <optional>
#include <poll.h>
#include <sys/syscall.h>
#include <vector>

namespace novpn {
namespace {

/// The numbers of the line that begins with `name`; empty when there is no such line, or something else in it.
std::vector<std::uint32_t> numbers_of_line(std::string_view text, std::string_view name) {
    std::vector<std::uint32_t> numbers;
    while (!text.empty()) {
        const auto end = text.find('\n');
        std::string_view line = text.substr(0, end);
        text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
        if (!line.starts_with(name)) continue;
        line.remove_prefix(name.size());
        for (;;) {
            const auto start = line.find_first_not_of(" \t");
            if (start == std::string_view::npos) return numbers;
            line.remove_prefix(start);
            std::uint32_t number = 0;
            const auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), number);
            if (error != std::errc{}) return {};
            numbers.push_back(number);
            line.remove_prefix(static_cast<std::size_t>(rest - line.data()));
        }
    }
    return numbers;
}

tl::unexpected<Error> gone(pid_t pid) { return system_error(ESRCH, "looking at process " + std::to_string(pid)); }

} // namespace

Expected<ProcessStatus> parse_process_status(std::string_view text) {
    const auto uids = numbers_of_line(text, "Uid:");
    const auto pids = numbers_of_line(text, "NSpid:");
    if (uids.size() != 4 || pids.empty())
        return system_error(EBADMSG, "reading /proc/PID/status", "no Uid or NSpid line");
    return ProcessStatus{.uids = {uids[0], uids[1], uids[2], uids[3]},
                         .pid_namespaces = static_cast<unsigned>(pids.size())};
}

Expected<Process> Process::open(pid_t pid) {
    // Close-on-exec from birth (pidfd_open(2)). EINVAL: a thread that leads no process, which newer kernels call
    // ENOENT.
    const auto fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (fd >= 0) return Process(pid, UniqueFd(fd));
    if (errno == EINVAL || errno == ENOENT || errno == ESRCH) return gone(pid);
    return system_error(errno, "opening process " + std::to_string(pid));
}

bool Process::alive() const {
    // A pidfd turns readable when the process has exited, which is before its number can be given to another.
    pollfd exited{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&exited, 1, 0) == 0;
}

Expected<ProcessStatus> Process::status() const {
    const std::string path = "/proc/" + std::to_string(pid_) + "/status";
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) return errno == ENOENT || errno == ESRCH ? gone(pid_) : system_error(errno, "opening " + path);
    std::string text;
    std::array<char, 4096> chunk;
    for (;;) {
        const ssize_t size = ::read(file.get(), chunk.data(), chunk.size());
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return errno == ESRCH ? gone(pid_) : system_error(errno, "reading " + path);
        if (size == 0) break;
        text.append(chunk.data(), static_cast<std::size_t>(size));
    }
    auto status = parse_process_status(text);
    if (!alive()) return gone(pid_);
    return status;
}

std::string process_name(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/comm");
    std::string name;
    std::getline(file, name);
    // JSON is UTF-8, which a name cut to 15 bytes need not be.
    std::ranges::replace_if(
        name, [](char c) { return static_cast<unsigned char>(c) >= 0x80; }, '?');
    return name;
}

std::vector<std::uint32_t> socket_inodes_of(pid_t pid) {
    const std::string path = "/proc/" + std::to_string(pid) + "/fd";
    const std::unique_ptr<DIR, int (*)(DIR*)> files(::opendir(path.c_str()), ::closedir);
    std::vector<std::uint32_t> inodes;
    while (const dirent* file = files ? ::readdir(files.get()) : nullptr) {
        std::array<char, 64> link;
        const ssize_t size = ::readlinkat(::dirfd(files.get()), file->d_name, link.data(), link.size());
        if (size < 0) continue; // "." and "..", or closed since
        std::string_view target(link.data(), static_cast<std::size_t>(size));
        constexpr std::string_view kSocket = "socket:[";
        if (!target.starts_with(kSocket)) continue;
        target.remove_prefix(kSocket.size());
        std::uint32_t inode = 0;
        if (std::from_chars(target.begin(), target.end(), inode).ec == std::errc{}) inodes.push_back(inode);
    }
    std::ranges::sort(inodes);
    const auto repeated = std::ranges::unique(inodes); // dup(2)
    inodes.erase(repeated.begin(), repeated.end());
    return inodes;
}

} // namespace novpn
