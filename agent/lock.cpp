#include "agent/lock.h"

#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

namespace novpn {

Expected<NamespaceLock> NamespaceLock::take() {
    const std::string doing = "locking this network namespace";
    struct stat ns {};
    if (stat("/proc/self/ns/net", &ns) < 0) return system_error(errno, doing);
    if (mkdir(kLockDirectory, 0755) < 0 && errno != EEXIST)
        return system_error(errno, fmt::format("making {}", kLockDirectory));
    std::string path = fmt::format("{}/netns-{}.lock", kLockDirectory, ns.st_ino);
    UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file) return system_error(errno, "opening " + path);
    // The file stays behind: removing a lock file races with whoever has just opened it.
    if (flock(file.get(), LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK) return system_error(errno, "locking " + path);
        return system_error(EBUSY, doing, "another novpnd runs here; stop it first, or ask it with 'novpn status'");
    }
    return NamespaceLock(std::move(file));
}

} // namespace novpn
