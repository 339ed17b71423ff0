// A process held by a pidfd, so that its number cannot come to mean another one unnoticed, and what /proc tells of it.
#pragma once

#include "agent/unique_fd.h"
#include "netlink/error.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

namespace novpn {

struct ProcessStatus {
    std::array<uid_t, 4> uids{}; ///< real, effective, saved, file system
    unsigned pid_namespaces = 1; ///< how many it is visible in, from the one /proc shows: 1 is the agent's own
    bool operator==(const ProcessStatus&) const = default;
};

/// Of the text of /proc/PID/status (proc_pid_status(5)).
Expected<ProcessStatus> parse_process_status(std::string_view text);

class Process {
  public:
    /// pidfd_open(2). no_such_process: there is none, or `pid` is only a thread of one.
    static Expected<Process> open(pid_t pid);
    /// A pidfd that the kernel gave with the number, as SO_PEERPIDFD does.
    Process(pid_t pid, UniqueFd pidfd)
        : pid_(pid)
        , pidfd_(std::move(pidfd)) {}

    pid_t pid() const { return pid_; }
    /// Close-on-exec; readable once the process has ended.
    int fd() const { return pidfd_.get(); }
    /// Alive means not reaped either: the number still is this process's.
    bool alive() const;
    /// Read of /proc, and then alive(): what was read is of this process. no_such_process otherwise.
    Expected<ProcessStatus> status() const;

  private:
    pid_t pid_;
    UniqueFd pidfd_;
};

/// Of /proc/PID/comm; empty when it is gone. The process's own choice: any bytes but a line's end.
std::string process_name(pid_t pid);

/// Inode numbers of the sockets that a process holds, ascending, as sock_diag(7) tells them too; those that it shares
/// with others are among them. Empty when it is gone, and without CAP_SYS_PTRACE when it is another user's
/// (proc_pid_fd(5)). Who holds its pidfd asks alive() after this.
std::vector<std::uint32_t> socket_inodes_of(pid_t pid);

} // namespace novpn
