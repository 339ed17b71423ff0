// One agent per network namespace, whatever its runtime dir.
#pragma once

#include "agent/unique_fd.h"
#include "netlink/error.h"

namespace novpn {

/// Where locks are: writable by root only, so that nobody else can keep the agent out.
inline constexpr const char* kLockDirectory = "/run/novpn";

/// Holds /run/novpn/netns-INODE.lock until it is destroyed or the process dies.
class NamespaceLock {
  public:
    /// device_or_resource_busy: another agent lives in this network namespace.
    static Expected<NamespaceLock> take();

  private:
    explicit NamespaceLock(UniqueFd file)
        : file_(std::move(file)) {}
    UniqueFd file_;
};

} // namespace novpn
