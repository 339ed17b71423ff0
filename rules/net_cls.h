// net_cls of cgroup v1: where it is mounted, or mounting it; cgroups of its own with a class id, and the processes in
// them. Files only, synchronous; keeps nothing between calls.
#pragma once

#include "netlink/error.h"
#include "rules/steering.h"

#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

class NetCls {
  public:
    /// `cgroup_root`: the parent of this network namespace's class cgroups ("novpn-4026531840").
    explicit NetCls(std::string cgroup_root)
        : cgroup_root_(std::move(cgroup_root)) {}

    ObservedNetCls observe() const;
    /// Where the kernel tells and takes a cgroup's class id.
    static std::string classid_file(const std::string& mount, const std::string& path);
    /// mkdir -p DIRECTORY; mount -t cgroup -o net_cls novpn DIRECTORY. One that is mounted there already is done.
    Expected<void> mount(const std::string& directory) const;
    /// umount DIRECTORY; rmdir DIRECTORY. Its cgroups, if there are any, live on.
    Expected<void> unmount(const std::string& directory) const;
    /// mkdir -p, and its class id: the kernel gives that to the open sockets of who is in there too.
    Expected<void> create(const std::string& path, std::uint32_t classid) const;
    /// Processes still inside go to the root of the tree. An absent one is not an error.
    Expected<void> remove(const std::string& path) const;
    /// Moves the whole process, and gives the class id to its open sockets; empty: the root of the tree, where there
    /// is none.
    Expected<void> move(const std::string& path, pid_t pid) const;
    /// Processes in the cgroup and below.
    std::vector<pid_t> processes(const std::string& path) const;
    /// Path of the cgroup that `pid` is in, no leading slash; none when it is gone, or no such hierarchy is mounted.
    static std::optional<std::string> of(pid_t pid);

  private:
    std::string cgroup_root_;
};

} // namespace novpn
