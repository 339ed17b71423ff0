#include "rules/cgroup_watch.h"

#include "rules/cgroup.h"

#include <array>
#include <cerrno>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

/// IN_ATTRIB: systemd makes a directory and then gives it to the user it is delegated to.
constexpr std::uint32_t kEvents = IN_CREATE | IN_DELETE | IN_ATTRIB | IN_ONLYDIR | IN_DONT_FOLLOW;

std::string child(const std::string& path, const std::string& name) { return path.empty() ? name : path + "/" + name; }

} // namespace

Expected<CgroupWatch> CgroupWatch::open(std::string mount) {
    const int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd < 0) return system_error(errno, "watching cgroups", "raise fs.inotify.max_user_instances");
    return CgroupWatch(std::move(mount), fd);
}

CgroupWatch::CgroupWatch(CgroupWatch&& other) noexcept
    : mount_(std::move(other.mount_))
    , fd_(std::exchange(other.fd_, -1))
    , seen_(std::move(other.seen_))
    , path_of_(std::move(other.path_of_))
    , watch_of_(std::move(other.watch_of_))
    , problem_(std::move(other.problem_))
    , heard_(other.heard_) {}

CgroupWatch::~CgroupWatch() {
    if (fd_ >= 0) close(fd_);
}

void CgroupWatch::scan() {
    stop();
    ++heard_;
    enter({});
}

void CgroupWatch::stop() {
    // What is queued for these watches meets none of them any more.
    for (const auto& [watch, _] : path_of_) (void)inotify_rm_watch(fd_, watch);
    path_of_.clear();
    watch_of_.clear();
    seen_.clear();
    problem_.reset();
}

/// The watch first: what is made in between is found by reading, or told, or both.
void CgroupWatch::enter(const std::string& path) {
    const int watch = inotify_add_watch(fd_, (mount_ + "/" + path).c_str(), kEvents);
    if (watch < 0 && (errno == ENOENT || errno == ENOTDIR)) return;
    if (watch < 0) {
        // What is there now is known all the same: nobody leaves a class for want of a watch.
        problem_ = system_error(errno, "watching cgroup /" + path,
                                errno == ENOSPC ? "raise fs.inotify.max_user_watches" : std::string())
                       .value();
    } else {
        path_of_[watch] = path;
        watch_of_[path] = watch;
    }
    for (const std::string& below : CgroupTree(mount_).children(path)) add(below);
}

void CgroupWatch::add(const std::string& path) {
    struct stat status {};
    if (lstat((mount_ + "/" + path).c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return remove(path);
    const SeenCgroup now{.id = status.st_ino, .owner = status.st_uid};
    const auto known = seen_.find(path);
    // Another one of the same name: what was below has gone with the former.
    if (known != seen_.end() && known->second.id != now.id) remove(path);
    const bool is_new = !seen_.contains(path);
    seen_[path] = now;
    if (is_new && may_hold_matches(path)) enter(path);
}

void CgroupWatch::remove(const std::string& path) {
    const std::string inside = path + "/";
    seen_.erase(path);
    for (auto below = seen_.lower_bound(inside); below != seen_.end() && below->first.starts_with(inside);)
        below = seen_.erase(below);
    const auto forget = [&](std::map<std::string, int>::iterator watched) {
        // The kernel removed it with the directory, unless the name has a new one.
        (void)inotify_rm_watch(fd_, watched->second);
        path_of_.erase(watched->second);
        return watch_of_.erase(watched);
    };
    if (const auto own = watch_of_.find(path); own != watch_of_.end()) forget(own);
    for (auto below = watch_of_.lower_bound(inside); below != watch_of_.end() && below->first.starts_with(inside);)
        below = forget(below);
}

/// The owner of a cgroup that is watched. Of others it tells nothing.
bool CgroupWatch::refresh(const std::string& path) {
    const auto known = seen_.find(path);
    struct stat status {};
    if (known == seen_.end() || lstat((mount_ + "/" + path).c_str(), &status) != 0) return false;
    if (known->second.owner == status.st_uid) return false;
    known->second.owner = status.st_uid;
    return true;
}

bool CgroupWatch::drain() {
    bool changed = false;
    bool overrun = false;
    alignas(inotify_event) std::array<char, 16384> buffer{};
    for (;;) {
        const ssize_t size = read(fd_, buffer.data(), buffer.size());
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) break;
        ++heard_;
        for (ssize_t offset = 0; offset < size;) {
            const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + offset);
            offset += static_cast<ssize_t>(sizeof *event + event->len);
            overrun = overrun || (event->mask & IN_Q_OVERFLOW) != 0;
            const auto of = path_of_.find(event->wd);
            if (of == path_of_.end()) continue;
            // A copy: what follows may remove the watch.
            const std::string parent = of->second;
            const std::string path = event->len > 0 ? child(parent, event->name) : parent;
            if ((event->mask & IN_ISDIR) == 0) continue;
            if ((event->mask & IN_ATTRIB) != 0) changed = refresh(path) || changed;
            if ((event->mask & (IN_CREATE | IN_DELETE)) == 0) continue;
            // Another one of that name may be there by now, with a number that the former had, as file systems have it.
            if ((event->mask & IN_DELETE) != 0) remove(path);
            add(path);
            changed = true;
        }
    }
    if (overrun) scan();
    return changed || overrun;
}

bool CgroupWatch::is_silent() const {
    int queued = 0;
    return ioctl(fd_, FIONREAD, &queued) == 0 && queued == 0;
}

} // namespace novpn
