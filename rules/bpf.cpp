#include "rules/bpf.h"

#include <algorithm>
#include <array>
#include <bpf/bpf.h>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <iterator>
#include <linux/magic.h>
#include <memory>
#include <string_view>
#include <sys/stat.h>
#include <sys/vfs.h>

namespace novpn::bpf {
namespace {

constexpr mode_t kMode = 0700;

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};

bool is_attached(const Fd& cgroup, bpf_attach_type type, std::uint32_t program) {
    const auto attached = attached_to(cgroup, type);
    return attached && std::ranges::find(attached->programs, program) != attached->programs.end();
}

bool is_same_file_system() {
    struct stat one {
    }, other{};
    return stat(kMount, &one) == 0 && stat(kWritableMount, &other) == 0 && one.st_dev == other.st_dev;
}

/// `path`, below kMount, as it can be written.
std::string writable(const std::string& path) {
    const bool elsewhere = access(kMount, W_OK) != 0 && errno == EROFS && is_same_file_system();
    return elsewhere ? kWritableMount + path.substr(std::size(kMount) - 1) : path;
}

} // namespace

Fd open_directory(const std::string& path) { return Fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); }

bool is_mounted() {
    struct statfs seen {};
    return statfs(kMount, &seen) == 0 && seen.f_type == BPF_FS_MAGIC;
}

int find_write_obstacle() { return access(writable(kMount).c_str(), W_OK | X_OK) == 0 ? 0 : errno; }

Fd load(Hook hook, const std::string& name, const std::vector<bpf_insn>& instructions) {
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = hook.attach);
    return Fd(bpf_prog_load(hook.type, name.c_str(), "GPL", instructions.data(), instructions.size(), &options));
}

std::optional<Attached> attached_to(const Fd& cgroup, bpf_attach_type type) {
    constexpr std::size_t kMost = 64; // BPF_CGROUP_MAX_PROGS
    std::array<std::uint32_t, kMost> ids{};
    std::uint32_t count = kMost;
    Attached attached;
    if (bpf_prog_query(cgroup.get(), type, 0, &attached.flags, ids.data(), &count) != 0) return std::nullopt;
    attached.programs.assign(ids.begin(), ids.begin() + std::min<std::uint32_t>(count, kMost));
    return attached;
}

std::optional<Pinned> pinned_at(const std::string& path) {
    Fd fd(bpf_obj_get(path.c_str()));
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    if (!fd || bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return std::nullopt;
    return Pinned{std::move(fd), info.id, std::string(info.name, strnlen(info.name, sizeof info.name))};
}

bool is_shortage(int error) { return error == EMFILE || error == ENFILE || error == ENOMEM || error == EINTR; }

Expected<std::vector<std::string>> names_in(const std::string& directory) {
    std::vector<std::string> names;
    const std::unique_ptr<DIR, CloseDirectory> open(opendir(directory.c_str()));
    if (!open && is_shortage(errno)) return system_error(errno, "looking into " + directory);
    if (!open) return names;
    while (const dirent* entry = readdir(open.get()))
        if (const std::string_view name = entry->d_name; name != "." && name != "..") names.emplace_back(name);
    return names;
}

Expected<void> pin(const Fd& made, const std::string& directory, const std::string& name, const std::string& doing) {
    if (!is_mounted()) return system_error(ENODEV, doing, std::string("no bpffs at ") + kMount);
    const std::string parent = writable(directory);
    const std::string path = parent + "/" + name;
    if (mkdir(parent.c_str(), kMode) != 0 && errno != EEXIST) return system_error(errno, doing);
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return system_error(errno, doing);
    if (bpf_obj_pin(made.get(), path.c_str()) != 0) return system_error(errno, doing);
    return {};
}

Expected<void> unpin(const std::string& directory, const std::string& name) {
    const std::string parent = writable(directory);
    const std::string path = parent + "/" + name;
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return system_error(errno, "removing " + path);
    // ENOTEMPTY: other programs are in it.
    (void)rmdir(parent.c_str());
    return {};
}

Expected<void> attach(const std::string& path, const std::string& cgroup, bpf_attach_type type,
                      const std::string& doing) {
    const auto pinned = pinned_at(path);
    if (!pinned) return system_error(errno, doing);
    const Fd directory = open_directory(cgroup);
    if (!directory) return system_error(errno, doing);
    // EINVAL: it is attached there already.
    if (bpf_prog_attach(pinned->fd.get(), directory.get(), type, BPF_F_ALLOW_MULTI) == 0 ||
        (errno == EINVAL && is_attached(directory, type, pinned->id)))
        return {};
    const int error = errno;
    return system_error(error, doing,
                        error == EPERM ? "a BPF program on a cgroup above allows none beside it" : std::string());
}

Expected<void> detach(const std::string& path, const std::string& cgroup, bpf_attach_type type,
                      const std::string& doing) {
    const Fd directory = open_directory(cgroup);
    if (!directory) return errno == ENOENT ? Expected<void>() : system_error(errno, doing);
    const auto pinned = pinned_at(path);
    if (!pinned) return system_error(errno, doing);
    if (bpf_prog_detach2(pinned->fd.get(), directory.get(), type) != 0 && errno != ENOENT)
        return system_error(errno, doing);
    return {};
}

} // namespace novpn::bpf
