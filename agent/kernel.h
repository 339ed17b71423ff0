// The port to the kernel: look, and do one thing. Linux is one side of it (linux_kernel.h), the tests' fake the other.
#pragma once

#include "agent/plan.h"
#include "netlink/error.h"

#include <sys/types.h>

namespace novpn {

class Kernel {
  public:
    virtual ~Kernel() = default;

    virtual Expected<Observed> observe(const Scope& scope) = 0;
    /// One rtnetlink request, nft batch or file write. What is already so is done.
    virtual Expected<void> apply(const Operation& operation) = 0;

    /// Packets of each class since its structure was made, by class name.
    virtual Expected<std::map<std::string, PacketCounts>> packets() = 0;
    /// Moves a whole process into a cgroup of ours. no_such_process: it is gone.
    virtual Expected<void> place(const std::string& cgroup, pid_t pid) = 0;
    /// Processes directly in a cgroup of ours; empty when it does not exist.
    virtual std::vector<pid_t> processes(const std::string& cgroup) = 0;
};

} // namespace novpn
