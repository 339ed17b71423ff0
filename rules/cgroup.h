// cgroup v2: where it is mounted, the agent's own cgroups, and moving a process. Files only; never mounts anything.
#pragma once

#include "netlink/error.h"

#include <cstdint>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

/// A mount of a whole cgroup hierarchy that can be reached.
struct CgroupMount {
    std::string directory;
    std::string source; ///< what was mounted there, a name of the mounter's choice
    bool writable = true;
};
/// Of the hierarchy of cgroup v1 that has the controller, and to be written if there is one.
std::optional<CgroupMount> find_cgroup_v1(const std::string& controller);

class CgroupTree {
  public:
    /// Finds the cgroup2 mount in /proc/self/mountinfo (it is at /sys/fs/cgroup/unified on hybrid systems).
    /// no_such_file_or_directory: none is mounted, and `detail` says what to do.
    static Expected<CgroupTree> find();
    /// `writable`: where the same tree can be written, if `mount` cannot (a unit's ProtectControlGroups=).
    explicit CgroupTree(std::string mount, std::string writable = {})
        : mount_(std::move(mount))
        , writable_(writable.empty() ? mount_ : std::move(writable)) {}

    const std::string& mount() const { return mount_; }
    /// The kernel's 64-bit id (the inode number); none when there is no such cgroup.
    std::optional<std::uint64_t> id(const std::string& path) const;
    /// Paths of the cgroups right below `path` (empty: the root of the tree); empty when there is no such cgroup.
    std::vector<std::string> children(const std::string& path) const;
    /// mkdir -p; an existing cgroup is not an error.
    Expected<void> create(const std::string& path) const;
    /// rmdir of this cgroup with the cgroups that members made in it, then of its parent when that is empty. An absent
    /// one is not an error. device_or_resource_busy: processes are inside.
    Expected<void> remove(const std::string& path) const;
    /// Moves the whole process `pid` (in our pid namespace) into `path`.
    Expected<void> move(const std::string& path, pid_t pid) const;
    /// Moves all processes in `path` and below to the root of the tree, so that remove() succeeds while members run on.
    /// device_or_resource_busy: they fork too fast, or are of another pid namespace.
    Expected<void> empty_into_root(const std::string& path) const;
    /// Processes directly in `path`; empty when there is no such cgroup.
    std::vector<pid_t> processes(const std::string& path) const;
    /// Path of the cgroup that `pid` is in, no leading slash; none when it is gone.
    static std::optional<std::string> of(pid_t pid);

  private:
    std::string mount_;
    std::string writable_; ///< for what changes the tree
};

/// "novpn-4026531840": the parent of this network namespace's class cgroups; several agents live side by side.
Expected<std::string> cgroup_root_of_this_netns();

} // namespace novpn
