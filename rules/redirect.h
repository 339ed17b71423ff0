// The BPF programs that redirect a class's DNS, and their maps: pinned in bpffs beside its mark at birth, attached to
// cgroups. Owns no file descriptor: what is pinned stays, and a new agent finds it. Synchronous. Without libbpf at
// build nothing is available.
#pragma once

#include "netlink/error.h"
#include "rules/steering.h"

#include <string>
#include <vector>

namespace novpn {

class Redirects {
  public:
    /// As BirthMarks::open(), which says in `no_birth_marks` why sockets cannot have the mark that this goes by; empty
    /// where they can.
    static Redirects open(std::string cgroup_mount, const std::string& directory, const std::string& no_birth_marks);

    /// Empty: DNS can be redirected.
    const std::string& unavailable() const { return unavailable_; }
    /// What is pinned, and to which of these cgroups (paths below the mount) it is attached.
    Expected<ObservedRedirects> observe(const std::vector<std::string>& cgroups) const;

    /// Loads and pins, in the place of what is pinned for the class; redirects nothing, attached is none.
    Expected<void> pin(const std::string& class_name, Mark mark) const;
    /// These and no others. Each one is changed at once; an answer under way is still told as that of whom was asked.
    Expected<void> set(const std::string& class_name, const Resolvers& resolvers) const;
    /// All programs of the class or none.
    Expected<void> attach(const std::string& class_name, const std::string& cgroup) const;
    /// An absent cgroup, and one that they are not attached to, is no error.
    Expected<void> detach(const std::string& class_name, const std::string& cgroup) const;
    /// What they are still attached to keeps them: detach first.
    Expected<void> unpin(const std::string& class_name) const;

  private:
    Redirects(std::string cgroup_mount, const std::string& directory);
    std::string path_of(const std::string& class_name, std::string_view what) const;

    std::string cgroup_mount_;
    std::string directory_;
    std::string unavailable_;
};

} // namespace novpn
