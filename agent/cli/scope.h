// A scope of systemd's for a process: in the caller's own systemd, for root in the system's. That needs no privilege
// and no setuid: the caller asks for its own processes. Blocks, with a bound.
#pragma once

#include "netlink/error.h"

#include <cstdint>
#include <string>
#include <sys/types.h>

namespace novpn::cli {

/// What systemd is asked for (systemd.scope(5)).
struct ScopeRequest {
    std::string name;
    std::string slice;
    std::string description;
    pid_t pid = 0;
    bool operator==(const ScopeRequest&) const = default;
};

/// A scope below the class's slice, whose name is new with each `random`.
ScopeRequest scope_for(const std::string& class_name, pid_t pid, std::uint64_t random, const std::string& description);

/// D-Bus address of the systemd of `uid`: where $XDG_RUNTIME_DIR is not known, as under su(1) and cron(8), it is where
/// pam_systemd(8) puts it.
std::string bus_address(uid_t uid, const char* xdg_runtime_dir);

/// The process is in the scope when this returns. An error: no systemd answers, or it refuses; the process is where it
/// was, and its program may go on there.
Expected<void> enter_scope(const ScopeRequest& scope);

} // namespace novpn::cli
