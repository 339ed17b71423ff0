#include "rules/birth_mark.h"

#include "rules/birth_program.h"
#include "rules/bpf.h"

#include <bpf/libbpf.h>
#include <cerrno>
#include <cstring>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

constexpr bpf::Hook kSockCreate{BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_CREATE};

/// -1 with errno.
bpf::Fd load(const BirthMark& birth, const std::string& name) {
    return bpf::load(kSockCreate, name, instructions_of(birth));
}

/// Empty: nothing stands in the way.
std::string find_obstacle(const std::string& cgroup_mount) {
    if (!bpf::is_mounted())
        return std::string("no bpffs at ") + bpf::kMount +
               ", without which nobody could remove the program later; mount -t bpf bpf " + bpf::kMount;
    if (const int error = bpf::find_write_obstacle(); error != 0)
        return std::string(bpf::kMount) + " cannot be written: " + strerror(error);
    if (!load(BirthMark{.mark = {.value = 1, .mask = 1}, .taken = 1}, "novpn_probe")) {
        if (errno == EPERM)
            return "the kernel lets nobody load the BPF program but who has CAP_BPF and CAP_NET_ADMIN, and nobody at "
                   "all under lockdown";
        return std::string("the kernel takes no BPF program that marks a new socket (CGROUP_BPF, Linux 4.14): ") +
               strerror(errno);
    }
    const auto root = bpf::attached_to(bpf::open_directory(cgroup_mount), kSockCreate.attach);
    if (!root) return std::string("the kernel attaches no BPF program to a cgroup (CGROUP_BPF): ") + strerror(errno);
    if (!root->programs.empty() && !(root->flags & BPF_F_ALLOW_MULTI))
        return "a BPF program on the root cgroup allows none beside it (bpftool cgroup show " + cgroup_mount + ")";
    return {};
}

} // namespace

BirthMarks::BirthMarks(std::string cgroup_mount, const std::string& directory)
    : cgroup_mount_(std::move(cgroup_mount))
    , directory_(std::string(bpf::kMount) + "/" + directory) {}

BirthMarks BirthMarks::open(std::string cgroup_mount, const std::string& directory) {
    libbpf_set_print(nullptr); // a library does not log
    BirthMarks made(std::move(cgroup_mount), directory);
    made.unavailable_ = find_obstacle(made.cgroup_mount_);
    return made;
}

bool BirthMarks::pinned() const { return access(directory_.c_str(), F_OK) == 0; }

Expected<ObservedBirthMarks> BirthMarks::observe(const std::vector<std::string>& cgroups) const {
    ObservedBirthMarks observed{.unavailable = unavailable_, .directory = directory_};
    std::map<std::uint32_t, ObservedBirthMark*> by_id;
    const auto names = bpf::names_in(directory_);
    if (!names) return tl::make_unexpected(names.error());
    if (names->empty() && pinned()) observed.classes[""] = {};
    for (const std::string& name : *names) {
        if (name.find(kPinOfOther) != std::string::npos) continue;
        const auto pinned = bpf::pinned_at(path_of(name));
        if (!pinned && bpf::is_shortage(errno)) return system_error(errno, "looking at " + path_of(name));
        ObservedBirthMark& seen = observed.classes[name];
        if (!pinned) continue;
        by_id[pinned->id] = &seen;
        if (pinned->name.starts_with(kBirthProgram)) seen.program = pinned->name;
    }
    if (by_id.empty()) return observed;
    for (const std::string& path : cgroups) {
        const bpf::Fd cgroup = bpf::open_directory(cgroup_mount_ + "/" + path);
        if (!cgroup && bpf::is_shortage(errno)) return system_error(errno, "looking at cgroup " + path);
        const auto attached = cgroup ? bpf::attached_to(cgroup, kSockCreate.attach) : std::nullopt;
        if (!attached) continue;
        for (const std::uint32_t id : attached->programs)
            if (auto ours = by_id.find(id); ours != by_id.end()) ours->second->cgroups.insert(path);
    }
    return observed;
}

Expected<void> BirthMarks::pin(const std::string& class_name, const BirthMark& birth) const {
    const std::string doing = "pinning the BPF program of class " + class_name + " at " + path_of(class_name);
    const bpf::Fd program = load(birth, program_of(birth));
    if (!program) return system_error(errno, "loading the BPF program of class " + class_name);
    return bpf::pin(program, directory_, class_name, doing);
}

Expected<void> BirthMarks::attach(const std::string& class_name, const std::string& cgroup) const {
    return bpf::attach(path_of(class_name), cgroup_mount_ + "/" + cgroup, kSockCreate.attach,
                       "attaching the BPF program of class " + class_name + " to cgroup " + cgroup);
}

Expected<void> BirthMarks::detach(const std::string& class_name, const std::string& cgroup) const {
    return bpf::detach(path_of(class_name), cgroup_mount_ + "/" + cgroup, kSockCreate.attach,
                       "detaching the BPF program of class " + class_name + " from cgroup " + cgroup);
}

Expected<void> BirthMarks::unpin(const std::string& class_name) const {
    if (!class_name.empty()) return bpf::unpin(directory_, class_name);
    if (rmdir(directory_.c_str()) != 0 && errno != ENOENT) return system_error(errno, "removing " + directory_);
    return {};
}

} // namespace novpn
