#include "rules/birth_mark.h"

#include "rules/birth_program.h"

#include <algorithm>
#include <array>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <memory>
#include <optional>
#include <string_view>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

// Where systemd mounts it, and the kernel has a directory for it. Another mount is another file system.
constexpr char kBpffs[] = "/sys/fs/bpf";
constexpr mode_t kMode = 0700;

class Fd {
  public:
    explicit Fd(int fd)
        : fd_(fd) {}
    Fd(Fd&& other) noexcept
        : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&&) = delete;
    ~Fd() {
        if (fd_ >= 0) close(fd_);
    }
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

  private:
    int fd_;
};

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};

Fd open_directory(const std::string& path) { return Fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); }

bool is_bpffs_mounted() {
    struct statfs seen {};
    return statfs(kBpffs, &seen) == 0 && seen.f_type == BPF_FS_MAGIC;
}

/// -1 with errno.
Fd load(const BirthMark& birth, const std::string& name) {
    const auto instructions = instructions_of(birth);
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_CGROUP_INET_SOCK_CREATE);
    return Fd(bpf_prog_load(BPF_PROG_TYPE_CGROUP_SOCK, name.c_str(), "GPL", instructions.data(), instructions.size(),
                            &options));
}

struct Attached {
    std::vector<std::uint32_t> programs; ///< by their ids
    std::uint32_t flags = 0;
};

/// Those of the cgroup itself, not of its ancestors. None with errno.
std::optional<Attached> attached_to(const Fd& cgroup) {
    constexpr std::size_t kMost = 64; // BPF_CGROUP_MAX_PROGS
    std::array<std::uint32_t, kMost> ids{};
    std::uint32_t count = kMost;
    Attached attached;
    if (bpf_prog_query(cgroup.get(), BPF_CGROUP_INET_SOCK_CREATE, 0, &attached.flags, ids.data(), &count) != 0)
        return std::nullopt;
    attached.programs.assign(ids.begin(), ids.begin() + std::min<std::uint32_t>(count, kMost));
    return attached;
}

bool is_attached(const Fd& cgroup, std::uint32_t program) {
    const auto attached = attached_to(cgroup);
    return attached && std::ranges::find(attached->programs, program) != attached->programs.end();
}

struct Pinned {
    Fd fd;
    std::uint32_t id = 0;
    std::string name;
};

/// None with errno: nothing is pinned there, or what is cannot be taken.
std::optional<Pinned> pinned_at(const std::string& path) {
    Fd fd(bpf_obj_get(path.c_str()));
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    if (!fd || bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return std::nullopt;
    return Pinned{std::move(fd), info.id, std::string(info.name, strnlen(info.name, sizeof info.name))};
}

std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    const std::unique_ptr<DIR, CloseDirectory> open(opendir(directory.c_str()));
    if (!open) return names;
    while (const dirent* entry = readdir(open.get()))
        if (const std::string_view name = entry->d_name; name != "." && name != "..") names.emplace_back(name);
    return names;
}

/// Empty: nothing stands in the way.
std::string find_obstacle(const std::string& cgroup_mount) {
    if (!is_bpffs_mounted())
        return std::string("no bpffs at ") + kBpffs +
               ", without which nobody could remove the program later; mount -t bpf bpf " + kBpffs;
    if (access(kBpffs, W_OK | X_OK) != 0) return std::string(kBpffs) + " cannot be written: " + strerror(errno);
    if (!load(BirthMark{.mark = {.value = 1, .mask = 1}, .taken = 1}, "novpn_probe")) {
        if (errno == EPERM)
            return "the kernel lets nobody load the BPF program but who has CAP_BPF and CAP_NET_ADMIN, and nobody at "
                   "all under lockdown";
        return std::string("the kernel takes no BPF program that marks a new socket (CGROUP_BPF, Linux 4.14): ") +
               strerror(errno);
    }
    const auto root = attached_to(open_directory(cgroup_mount));
    if (!root) return std::string("the kernel attaches no BPF program to a cgroup (CGROUP_BPF): ") + strerror(errno);
    if (!root->programs.empty() && !(root->flags & BPF_F_ALLOW_MULTI))
        return "a BPF program on the root cgroup allows none beside it (bpftool cgroup show " + cgroup_mount + ")";
    return {};
}

} // namespace

BirthMarks::BirthMarks(std::string cgroup_mount, const std::string& directory)
    : cgroup_mount_(std::move(cgroup_mount))
    , directory_(std::string(kBpffs) + "/" + directory) {}

BirthMarks BirthMarks::open(std::string cgroup_mount, const std::string& directory) {
    libbpf_set_print(nullptr); // a library does not log
    BirthMarks made(std::move(cgroup_mount), directory);
    made.unavailable_ = find_obstacle(made.cgroup_mount_);
    return made;
}

bool BirthMarks::pinned() const { return access(directory_.c_str(), F_OK) == 0; }

ObservedBirthMarks BirthMarks::observe(const std::vector<std::string>& cgroups) const {
    ObservedBirthMarks observed{.unavailable = unavailable_, .directory = directory_};
    std::map<std::uint32_t, ObservedBirthMark*> by_id;
    for (const std::string& name : names_in(directory_)) {
        const auto pinned = pinned_at(path_of(name));
        ObservedBirthMark& seen = observed.classes[name];
        if (!pinned) continue;
        by_id[pinned->id] = &seen;
        if (pinned->name.starts_with(kBirthProgram)) seen.program = pinned->name;
    }
    if (by_id.empty()) return observed;
    for (const std::string& path : cgroups) {
        const Fd cgroup = open_directory(cgroup_mount_ + "/" + path);
        const auto attached = cgroup ? attached_to(cgroup) : std::nullopt;
        if (!attached) continue;
        for (const std::uint32_t id : attached->programs)
            if (auto ours = by_id.find(id); ours != by_id.end()) ours->second->cgroups.insert(path);
    }
    return observed;
}

Expected<void> BirthMarks::pin(const std::string& class_name, const BirthMark& birth) const {
    const std::string path = path_of(class_name);
    const std::string doing = "pinning the BPF program of class " + class_name + " at " + path;
    // A directory of sysfs would take none either, but nothing is tried in a file system that is not ours to write.
    if (!is_bpffs_mounted()) return system_error(ENODEV, doing, std::string("no bpffs at ") + kBpffs);
    const Fd program = load(birth, program_of(birth));
    if (!program) return system_error(errno, "loading the BPF program of class " + class_name);
    if (mkdir(directory_.c_str(), kMode) != 0 && errno != EEXIST) return system_error(errno, doing);
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return system_error(errno, doing);
    if (bpf_obj_pin(program.get(), path.c_str()) != 0) return system_error(errno, doing);
    return {};
}

Expected<void> BirthMarks::attach(const std::string& class_name, const std::string& cgroup) const {
    const std::string doing = "attaching the BPF program of class " + class_name + " to cgroup " + cgroup;
    const auto pinned = pinned_at(path_of(class_name));
    if (!pinned) return system_error(errno, doing);
    const Fd directory = open_directory(cgroup_mount_ + "/" + cgroup);
    if (!directory) return system_error(errno, doing);
    // EINVAL: it is attached there already.
    if (bpf_prog_attach(pinned->fd.get(), directory.get(), BPF_CGROUP_INET_SOCK_CREATE, BPF_F_ALLOW_MULTI) == 0 ||
        (errno == EINVAL && is_attached(directory, pinned->id)))
        return {};
    const int error = errno;
    return system_error(error, doing,
                        error == EPERM ? "a BPF program on a cgroup above allows none beside it" : std::string());
}

Expected<void> BirthMarks::detach(const std::string& class_name, const std::string& cgroup) const {
    const std::string doing = "detaching the BPF program of class " + class_name + " from cgroup " + cgroup;
    const Fd directory = open_directory(cgroup_mount_ + "/" + cgroup);
    if (!directory) return errno == ENOENT ? Expected<void>() : system_error(errno, doing);
    const auto pinned = pinned_at(path_of(class_name));
    if (!pinned) return system_error(errno, doing);
    if (bpf_prog_detach2(pinned->fd.get(), directory.get(), BPF_CGROUP_INET_SOCK_CREATE) != 0 && errno != ENOENT)
        return system_error(errno, doing);
    return {};
}

Expected<void> BirthMarks::unpin(const std::string& class_name) const {
    const std::string path = path_of(class_name);
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return system_error(errno, "removing " + path);
    // ENOTEMPTY: other classes' programs are in it.
    (void)rmdir(directory_.c_str());
    return {};
}

} // namespace novpn
