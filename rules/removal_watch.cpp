#include "rules/removal_watch.h"

#include <array>
#include <cerrno>
#include <cstdint>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

constexpr std::uint32_t kOfDirectories = IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR | IN_DONT_FOLLOW;
constexpr std::uint32_t kOfFiles = IN_MODIFY | IN_DONT_FOLLOW;

} // namespace

Expected<RemovalWatch> RemovalWatch::open() {
    const int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd < 0) return system_error(errno, "watching what is ours", "raise fs.inotify.max_user_instances");
    return RemovalWatch(fd);
}

RemovalWatch::RemovalWatch(RemovalWatch&& other) noexcept
    : fd_(std::exchange(other.fd_, -1))
    , watches_(std::move(other.watches_))
    , heard_(other.heard_) {}

RemovalWatch::~RemovalWatch() {
    if (fd_ >= 0) close(fd_);
}

bool RemovalWatch::follow(const std::set<std::string>& directories, const std::set<std::string>& files) {
    std::set<int> now;
    bool are_all = true;
    // The kernel gives what is watched already the number that it has. ENOSPC and the like: the resync finds it out.
    const auto add = [&](const std::string& path, std::uint32_t events) {
        const int watch = inotify_add_watch(fd_, path.c_str(), events);
        if (watch >= 0) now.insert(watch);
        return watches_.contains(watch);
    };
    for (const std::string& directory : directories) are_all = add(directory, kOfDirectories) && are_all;
    for (const std::string& file : files) (void)add(file, kOfFiles);
    for (const int watch : watches_)
        if (!now.contains(watch)) (void)inotify_rm_watch(fd_, watch);
    watches_ = std::move(now);
    return are_all;
}

bool RemovalWatch::is_silent() const {
    int queued = 0;
    return !heard_ && ioctl(fd_, FIONREAD, &queued) == 0 && queued == 0;
}

bool RemovalWatch::drain() {
    bool changed = false;
    alignas(inotify_event) std::array<char, 4096> buffer{};
    for (;;) {
        const ssize_t size = read(fd_, buffer.data(), buffer.size());
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return changed;
        heard_ = true;
        for (ssize_t offset = 0; offset < size;) {
            const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + offset);
            offset += static_cast<ssize_t>(sizeof *event + event->len);
            // IN_IGNORED: a watch has ended, by us or with what it was of.
            changed = changed || (event->mask & IN_IGNORED) == 0;
        }
    }
}

} // namespace novpn
