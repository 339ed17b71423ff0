#include "rules/cgroup.h"

#include "rules/steering.h"

#include <algorithm>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <linux/magic.h>
#include <memory>
#include <sstream>
#include <string_view>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

namespace novpn {
namespace {

constexpr char kProcesses[] = "/cgroup.procs";
constexpr mode_t kMode = 0755;
// A process that forks faster than it is moved makes the list non-empty again.
constexpr int kEmptyAttempts = 100;

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};

/// mountinfo writes space, tab, newline and backslash as \ooo (proc(5)).
std::string unescape(const std::string& text) {
    const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
    std::string plain;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && i + 3 < text.size() && std::all_of(&text[i + 1], &text[i + 4], is_octal)) {
            plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
            i += 3;
        } else {
            plain += text[i];
        }
    }
    return plain;
}

/// Names of the cgroups directly in `directory`.
std::vector<std::string> names_below(const std::string& directory) {
    std::vector<std::string> names;
    const std::unique_ptr<DIR, CloseDirectory> open(opendir(directory.c_str()));
    if (!open) return names;
    while (const dirent* entry = readdir(open.get())) {
        const std::string_view name = entry->d_name;
        if (entry->d_type == DT_DIR && name != "." && name != "..") names.emplace_back(name);
    }
    return names;
}

std::vector<pid_t> processes_in(const std::string& directory) {
    std::vector<pid_t> pids;
    std::ifstream file(directory + kProcesses);
    for (pid_t pid = 0; file >> pid;) pids.push_back(pid);
    return pids;
}

/// 0 or errno.
int write_process(const std::string& directory, pid_t pid) {
    const int fd = open((directory + kProcesses).c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    const std::string text = std::to_string(pid);
    const int error = write(fd, text.data(), text.size()) < 0 ? errno : 0;
    close(fd);
    return error;
}

/// 0 or errno. Children first: a cgroup with children cannot be removed.
int remove_tree(const std::string& directory) {
    const std::string below = directory + "/";
    for (const std::string& child : names_below(directory)) {
        if (const int error = remove_tree(below + child); error != 0) return error;
    }
    return rmdir(directory.c_str()) == 0 || errno == ENOENT ? 0 : errno;
}

/// All processes in `directory` and below.
std::vector<pid_t> processes_below(const std::string& directory) {
    std::vector<pid_t> pids = processes_in(directory);
    const std::string below = directory + "/";
    for (const std::string& child : names_below(directory)) {
        const auto more = processes_below(below + child);
        pids.insert(pids.end(), more.begin(), more.end());
    }
    return pids;
}

std::string parent_of(const std::string& path) {
    const auto slash = path.rfind('/');
    return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

/// Whole hierarchies, in the order of the mounts. `is_it` is asked of the type and the options of the file system.
template<typename Is>
std::vector<CgroupMount> find_mounts(const Is& is_it, unsigned long magic) {
    std::vector<CgroupMount> found;
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
        // "38 31 0:32 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw": any number of fields before
        // "-".
        std::istringstream fields(line);
        std::string id, parent, device, root, mount, here, word, type, source, options;
        fields >> id >> parent >> device >> root >> mount >> here;
        while (fields >> word && word != "-") {
        }
        fields >> type >> source >> options;
        // A bind mount of a part of the tree has another root; a mount beneath a later one is listed, but not
        // reachable.
        const std::string directory = unescape(mount);
        struct statfs seen {};
        if (root == "/" && is_it(type, options) && statfs(directory.c_str(), &seen) == 0 &&
            static_cast<unsigned long>(seen.f_type) == magic)
            found.push_back({directory, unescape(source), !(here + ",").starts_with("ro,")});
    }
    return found;
}

/// The first that can be written; where there is none, the first.
std::optional<CgroupMount> best_of(const std::vector<CgroupMount>& mounts) {
    if (mounts.empty()) return std::nullopt;
    const auto writable = std::find_if(mounts.begin(), mounts.end(), [](const CgroupMount& m) { return m.writable; });
    return writable == mounts.end() ? mounts.front() : *writable;
}

} // namespace

std::optional<CgroupMount> find_cgroup_v1(const std::string& controller) {
    const auto has_it = [&](const std::string& type, const std::string& options) {
        return type == "cgroup" && ("," + options + ",").find("," + controller + ",") != std::string::npos;
    };
    return best_of(find_mounts(has_it, CGROUP_SUPER_MAGIC));
}

Expected<CgroupTree> CgroupTree::find() {
    const auto is_cgroup2 = [](const std::string& type, const std::string&) { return type == "cgroup2"; };
    const auto mounts = find_mounts(is_cgroup2, CGROUP2_SUPER_MAGIC);
    if (const auto best = best_of(mounts))
        return CgroupTree(mounts.front().directory, best->writable ? best->directory : std::string());
    return system_error(ENOENT, "looking for the cgroup2 mount", "mount one: mount -t cgroup2 none /sys/fs/cgroup");
}

std::optional<std::uint64_t> CgroupTree::id(const std::string& path) const {
    struct stat status {};
    if (stat((mount_ + "/" + path).c_str(), &status) != 0) return std::nullopt;
    return status.st_ino;
}

std::vector<std::string> CgroupTree::children(const std::string& path) const {
    std::vector<std::string> paths;
    const std::string parent = path.empty() ? path : path + "/";
    for (const std::string& name : names_below(mount_ + "/" + path)) paths.push_back(parent + name);
    return paths;
}

Expected<void> CgroupTree::create(const std::string& path) const {
    for (std::size_t end = 0; end != std::string::npos;) {
        end = path.find('/', end + 1);
        const std::string directory = writable_ + "/" + path.substr(0, end);
        if (mkdir(directory.c_str(), kMode) != 0 && errno != EEXIST)
            return system_error(errno, "creating cgroup " + path);
    }
    return {};
}

Expected<void> CgroupTree::remove(const std::string& path) const {
    // The whole tree belongs to others.
    if (cgroup_level(path) == 0) return system_error(EINVAL, "removing the root cgroup");
    if (const int error = remove_tree(writable_ + "/" + path); error != 0)
        return system_error(error, "removing cgroup " + path);
    // ENOTEMPTY, EBUSY: other classes' cgroups or processes are in it; it goes with the last of them.
    if (const std::string parent = parent_of(path); !parent.empty()) (void)rmdir((writable_ + "/" + parent).c_str());
    return {};
}

Expected<void> CgroupTree::move(const std::string& path, pid_t pid) const {
    const std::string doing = "moving process " + std::to_string(pid) + " to cgroup " + path;
    // The kernel takes 0 for the writer itself.
    if (pid <= 0) return system_error(EINVAL, doing);
    const int error = write_process(writable_ + "/" + path, pid);
    return error == 0 ? Expected<void>() : system_error(error, doing);
}

Expected<void> CgroupTree::empty_into_root(const std::string& path) const {
    const std::string doing = "moving processes out of cgroup " + path;
    if (cgroup_level(path) == 0) return system_error(EINVAL, doing);
    for (int attempt = 0; attempt < kEmptyAttempts; ++attempt) {
        const auto pids = processes_below(mount_ + "/" + path);
        if (pids.empty()) return {};
        for (const pid_t pid : pids) {
            // Listed as 0: a process of another pid namespace, which has no number here.
            if (pid == 0) return system_error(EBUSY, doing, "a process of another pid namespace is inside");
            // ESRCH: it has ended meanwhile.
            const int error = write_process(writable_, pid);
            if (error != 0 && error != ESRCH) return system_error(error, doing);
        }
    }
    return system_error(EBUSY, doing, "its processes fork faster than they can be moved");
}

std::vector<pid_t> CgroupTree::processes(const std::string& path) const { return processes_in(mount_ + "/" + path); }

std::optional<std::string> CgroupTree::of(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/cgroup");
    for (std::string line; std::getline(file, line);) {
        // cgroups(7): the v2 entry is "0::/PATH".
        constexpr std::string_view kV2 = "0::/";
        if (line.starts_with(kV2)) return line.substr(kV2.size());
    }
    return std::nullopt;
}

Expected<std::string> cgroup_root_of_this_netns() {
    struct stat status {};
    if (stat("/proc/self/ns/net", &status) != 0) return system_error(errno, "reading /proc/self/ns/net");
    return "novpn-" + std::to_string(status.st_ino);
}

} // namespace novpn
