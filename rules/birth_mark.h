// The BPF programs that mark sockets at birth: loaded once a class, pinned in bpffs, attached to cgroups. Owns no file
// descriptor: what is pinned stays, and a new agent finds it. Synchronous; never mounts anything. Without libbpf at
// build nothing is available.
#pragma once

#include "netlink/error.h"
#include "rules/steering.h"

#include <string>
#include <vector>

namespace novpn {

class BirthMarks {
  public:
    /// Asks the kernel for what is needed, and changes nothing. `cgroup_mount`: where cgroup2 is; `directory`: the name
    /// of the pins' directory below bpffs, one of each network namespace ("novpn-4026531840").
    static BirthMarks open(std::string cgroup_mount, const std::string& directory);

    /// Empty: sockets can be marked at birth.
    const std::string& unavailable() const { return unavailable_; }
    /// Whether anything of ours is pinned: only then something can be attached.
    bool pinned() const;
    /// What is pinned, and to which of these cgroups (paths below the mount) it is attached. A directory with nothing
    /// in it, as a crash may leave it, is there as the pin of a class without a name, to be unpinned like any.
    Expected<ObservedBirthMarks> observe(const std::vector<std::string>& cgroups) const;

    /// Loads the program and pins it, in the place of another one of the class; attached is none.
    Expected<void> pin(const std::string& class_name, const BirthMark& birth) const;
    /// Attaches what is pinned, beside the programs of others (BPF_F_ALLOW_MULTI). What is attached is done.
    Expected<void> attach(const std::string& class_name, const std::string& cgroup) const;
    /// An absent cgroup, and one that it is not attached to, is no error.
    Expected<void> detach(const std::string& class_name, const std::string& cgroup) const;
    /// Lets the program go, and the directory with the last one. What it is still attached to keeps it: detach first.
    Expected<void> unpin(const std::string& class_name) const;

  private:
    BirthMarks(std::string cgroup_mount, const std::string& directory);
    std::string path_of(const std::string& class_name) const { return directory_ + "/" + class_name; }

    std::string cgroup_mount_;
    std::string directory_;
    std::string unavailable_;
};

} // namespace novpn
