// The port to the kernel: look, and do one thing. Linux is one side of it (linux_kernel.h), the tests' fake the other.
#pragma once

#include "agent/plan.h"
#include "netlink/error.h"
#include "rules/firewall.h"

#include <span>
#include <sys/types.h>

namespace novpn {

class Kernel {
  public:
    virtual ~Kernel() = default;

    virtual Expected<Observed> observe(const Scope& scope) = 0;
    /// One rtnetlink request, nft batch or file write. What is already so is done.
    virtual Expected<void> apply(const Operation& operation) = 0;
    /// apply() of each, of what stands alone: in few requests. What was refused, by its place.
    virtual std::map<std::size_t, Error> apply_each(std::span<const Operation> operations);

    /// ip route get DESTINATION [mark M] fibmatch
    virtual Expected<Lookup> lookup(const address& destination, std::optional<Mark> mark) = 0;
    /// Packets of each class since its structure was made, by class name.
    virtual Expected<std::map<std::string, PacketCounts>> packets() = 0;
    /// First packets of flows of each class, by class name.
    virtual Expected<std::map<std::string, FlowCounts>> flow_counts() = 0;
    /// Of others, which may drop what leaves this machine.
    virtual Expected<std::vector<Firewall>> firewalls() = 0;
    /// Open sockets of this network namespace.
    virtual Expected<std::vector<OpenSocket>> sockets() = 0;
    /// What conntrack knows, of this network namespace: all, or what has that ct mark.
    virtual Expected<std::vector<Connection>> connections(const std::optional<Mark>& with) = 0;
    /// Ids of a cgroup and of all below it: members may make cgroups of their own. Empty when it does not exist.
    virtual std::set<std::uint64_t> cgroup_ids(const std::string& cgroup) = 0;
    /// Path of the cgroup that the process is in; none when it is gone.
    virtual std::optional<std::string> cgroup_of(pid_t pid) = 0;
    /// Moves a whole process into a cgroup; empty: the root of the tree. no_such_process: it is gone.
    virtual Expected<void> place(const std::string& cgroup, pid_t pid) = 0;
    /// Processes in a cgroup of ours and below it; empty when it does not exist.
    virtual std::vector<pid_t> processes(const std::string& cgroup) = 0;

    // The same of the hierarchy of net_cls.
    virtual std::optional<std::string> net_cls_of(pid_t pid) = 0;
    virtual Expected<void> place_in_net_cls(const std::string& cgroup, pid_t pid) = 0;
    virtual std::vector<pid_t> net_cls_processes(const std::string& cgroup) = 0;
};

} // namespace novpn
