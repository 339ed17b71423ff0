// Programs of ours in bpffs and on cgroups: loading, pinning, attaching, looking. Owns no state. Internal to rules/,
// and only there where libbpf is.
#pragma once

#include "netlink/error.h"

#include <cstdint>
#include <linux/bpf.h>
#include <map>
#include <optional>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

namespace novpn::bpf {

// Where systemd mounts it, and the kernel has a directory for it. Another mount is another file system.
inline constexpr char kMount[] = "/sys/fs/bpf";
// The same file system once more, where a unit's ProtectKernelTunables= has /sys read-only (BindPaths=).
inline constexpr char kWritableMount[] = "/run/novpn/bpf";

class Fd {
  public:
    explicit Fd(int fd)
        : fd_(fd) {}
    Fd(Fd&& other) noexcept
        : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&&) = delete;
    ~Fd() {
        if (fd_ >= 0) close(fd_);
    }
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

  private:
    int fd_;
};

Fd open_directory(const std::string& path);
bool is_mounted();
/// 0 or errno: whether programs can be pinned.
int find_write_obstacle();

/// What a program is loaded as.
struct Hook {
    bpf_prog_type type;
    bpf_attach_type attach;
};

/// -1 with errno.
Fd load(Hook hook, const std::string& name, const std::vector<bpf_insn>& instructions);

struct Attached {
    std::vector<std::uint32_t> programs; ///< by their ids
    std::uint32_t flags = 0;
};
/// Those of the cgroup itself, not of its ancestors. None with errno.
std::optional<Attached> attached_to(const Fd& cgroup, bpf_attach_type type);

struct Pinned {
    Fd fd;
    std::uint32_t id = 0;
    std::string name;
};
/// None with errno: no program is pinned there, or what is cannot be taken.
std::optional<Pinned> pinned_at(const std::string& path);
/// Of a directory that is not there: none.
Expected<std::vector<std::string>> names_in(const std::string& directory);
/// An errno that says nothing of what was asked for: who takes it for "not there" makes a second one beside the first.
bool is_shortage(int error);

/// Pins in the place of what is there, and makes the directory. Not below another file system: a directory of sysfs
/// would take none either, but nothing is tried in what is not ours to write.
Expected<void> pin(const Fd& made, const std::string& directory, const std::string& name, const std::string& doing);
/// What is gone is done; the directory goes with the last.
Expected<void> unpin(const std::string& directory, const std::string& name);

/// Attaches what is pinned, beside the programs of others (BPF_F_ALLOW_MULTI). What is attached is done.
Expected<void> attach(const std::string& path, const std::string& cgroup, bpf_attach_type type,
                      const std::string& doing);
/// An absent cgroup, and one that it is not attached to, is no error.
Expected<void> detach(const std::string& path, const std::string& cgroup, bpf_attach_type type,
                      const std::string& doing);

} // namespace novpn::bpf
