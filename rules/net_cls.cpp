#include "rules/net_cls.h"

#include "rules/cgroup.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <linux/capability.h>
#include <sstream>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace novpn {
namespace {

constexpr char kController[] = "net_cls";
/// What our mounts are named in the kernel's list of them, by which a later agent knows them.
constexpr char kSource[] = "novpn";
constexpr char kClassid[] = "net_cls.classid";
constexpr mode_t kMode = 0755;

/// Whether the kernel has it (cgroups(7), /proc/cgroups).
bool is_enabled() {
    std::ifstream file("/proc/cgroups");
    for (std::string line; std::getline(file, line);) {
        std::istringstream fields(line);
        std::string name;
        int hierarchy = 0, cgroups = 0, enabled = 0;
        fields >> name >> hierarchy >> cgroups >> enabled;
        if (name == kController) return enabled == 1;
    }
    return false;
}

bool may_mount() {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> now{};
    return syscall(SYS_capget, &header, now.data()) == 0 &&
           (now[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN)) != 0;
}

/// 0 where it cannot be read: the cgroup has gone.
std::uint32_t classid_of(const std::string& mount, const std::string& path) {
    std::uint32_t classid = 0;
    std::ifstream(NetCls::classid_file(mount, path)) >> classid;
    return classid;
}

bool is_ours(const std::string& name) {
    const std::string_view prefix = "novpn-";
    return name.starts_with(prefix) && name.size() > prefix.size() &&
           name.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
}

void take_others(const CgroupTree& tree, const std::string& path, ObservedNetCls& into) {
    into.has_others = true;
    if (const auto classid = classid_of(tree.mount(), path)) into.others[path] = classid;
    for (const std::string& child : tree.children(path)) take_others(tree, child, into);
}

Expected<CgroupTree> tree_for(const std::string& doing) {
    if (auto mounted = find_cgroup_v1(kController)) return CgroupTree(mounted->directory);
    return system_error(ENOENT, doing, "net_cls is not mounted");
}

/// 0 or errno.
int make_directories(const std::string& directory) {
    for (std::size_t end = 0; end != std::string::npos;) {
        end = directory.find('/', end + 1);
        if (mkdir(directory.substr(0, end).c_str(), kMode) != 0 && errno != EEXIST) return errno;
    }
    return 0;
}

} // namespace

std::string NetCls::classid_file(const std::string& mount, const std::string& path) {
    return fmt::format("{}/{}/{}", mount, path, kClassid);
}

ObservedNetCls NetCls::observe() const {
    ObservedNetCls observed;
    if (!is_enabled()) {
        observed.unavailable = "this kernel has no net_cls: CONFIG_CGROUP_NET_CLASSID, and no cgroup_no_v1= on its "
                               "command line";
        return observed;
    }
    const auto mounted = find_cgroup_v1(kController);
    if (!mounted) {
        if (!may_mount())
            observed.unavailable =
                "net_cls is not mounted, and mounting it takes CAP_SYS_ADMIN, which the agent's unit "
                "does not have, nor an agent that started with another marking: restart it, or have "
                "net_cls mounted before (novpnd(8))";
        return observed;
    }
    observed.mount = mounted->directory;
    observed.mounted_by_us = mounted->source == kSource;
    const CgroupTree tree(mounted->directory);
    for (const std::string& top : tree.children({})) {
        if (top != cgroup_root_) {
            // Those of agents in other network namespaces, where their class ids mean something else.
            if (is_ours(top))
                observed.has_others = true;
            else
                take_others(tree, top, observed);
            continue;
        }
        for (const std::string& path : tree.children(top)) observed.ours[path] = classid_of(tree.mount(), path);
    }
    return observed;
}

Expected<void> NetCls::mount(const std::string& directory) const {
    const std::string doing = fmt::format("mounting {} at {}", kController, directory);
    if (find_cgroup_v1(kController)) return {};
    if (const int error = make_directories(directory); error != 0) return system_error(error, doing);
    int error = ::mount(kSource, directory.c_str(), "cgroup", 0, kController) == 0 ? 0 : errno;
    // Somewhere out of our sight it is mounted together with the controller that it usually comes with.
    if (error == EBUSY) error = ::mount(kSource, directory.c_str(), "cgroup", 0, "net_cls,net_prio") == 0 ? 0 : errno;
    if (error == 0) return {};
    (void)rmdir(directory.c_str());
    return system_error(error, doing);
}

Expected<void> NetCls::unmount(const std::string& directory) const {
    const std::string doing = fmt::format("unmounting {} at {}", kController, directory);
    // EINVAL: it is not mounted any more.
    if (umount2(directory.c_str(), UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT)
        return system_error(errno, doing);
    (void)rmdir(directory.c_str()); // somebody may have put something there
    return {};
}

Expected<void> NetCls::create(const std::string& path, std::uint32_t classid) const {
    const std::string doing = fmt::format("giving cgroup {} class id {:#x}", path, classid);
    const auto tree = tree_for(doing);
    if (!tree) return tl::make_unexpected(tree.error());
    if (auto made = tree->create(path); !made) return made;
    const int fd = open(classid_file(tree->mount(), path).c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return system_error(errno, doing);
    const std::string text = std::to_string(classid);
    const int error = write(fd, text.data(), text.size()) < 0 ? errno : 0;
    close(fd);
    return error == 0 ? Expected<void>() : system_error(error, doing);
}

Expected<void> NetCls::remove(const std::string& path) const {
    const auto mounted = find_cgroup_v1(kController);
    if (!mounted) return {};
    const CgroupTree tree(mounted->directory);
    if (auto done = tree.empty_into_root(path); !done) return done;
    return tree.remove(path);
}

Expected<void> NetCls::move(const std::string& path, pid_t pid) const {
    const auto tree = tree_for(fmt::format("moving process {} in {}", pid, kController));
    return tree ? tree->move(path, pid) : tl::make_unexpected(tree.error());
}

std::vector<pid_t> NetCls::processes(const std::string& path) const {
    const auto mounted = find_cgroup_v1(kController);
    if (!mounted) return {};
    const CgroupTree tree(mounted->directory);
    std::vector<pid_t> pids = tree.processes(path);
    for (const std::string& child : tree.children(path)) {
        const auto below = processes(child);
        pids.insert(pids.end(), below.begin(), below.end());
    }
    return pids;
}

std::optional<std::string> NetCls::of(pid_t pid) {
    std::ifstream file(fmt::format("/proc/{}/cgroup", pid));
    for (std::string line; std::getline(file, line);) {
        // cgroups(7): "10:net_cls,net_prio:/PATH".
        const auto first = line.find(':');
        const auto second = line.find(":/", first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        if (controllers.find(fmt::format(",{},", kController)) != std::string::npos) return line.substr(second + 2);
    }
    return std::nullopt;
}

} // namespace novpn
