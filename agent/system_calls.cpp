#include "agent/system_calls.h"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <vector>

namespace novpn {

namespace {

// Calls that not every architecture has are left out there.
constexpr int kRefused[] = {
    // A program of its own, which the agent never starts.
    SYS_execve,
    SYS_execveat,
    // Other namespaces and other roots.
    SYS_setns,
    SYS_unshare,
    SYS_chroot,
    SYS_pivot_root,
// The memory of others. A leak checker traces its own process.
#ifndef __SANITIZE_ADDRESS__
    SYS_ptrace,
#endif
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_perf_event_open,
    SYS_userfaultfd,
    // What is there from birth: the kernel itself, the users, the time.
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_quotactl,
    SYS_syslog,
    SYS_setuid,
    SYS_setgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_setgroups,
    SYS_capset,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_personality,
    SYS_vhangup,
    // Ways around: keys, files by a handle, all the rest by a ring.
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_open_by_handle_at,
    SYS_fanotify_init,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_pidfd_getfd
    SYS_pidfd_getfd,
#endif
#ifdef SYS_io_uring_setup
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
#endif
#ifdef SYS_iopl
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
#endif
};

constexpr int kRefusedWithoutMounting[] = {
    SYS_mount,         SYS_umount2,
#ifdef SYS_fsopen
    SYS_fsopen,        SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_move_mount, SYS_open_tree,
#endif
#ifdef SYS_mount_setattr
    SYS_mount_setattr,
#endif
};

constexpr std::uint32_t kArchitecture =
#if defined(__x86_64__)
    AUDIT_ARCH_X86_64;
#elif defined(__aarch64__) && defined(__AARCH64EL__)
    AUDIT_ARCH_AARCH64;
#elif defined(__riscv) && __riscv_xlen == 64
    AUDIT_ARCH_RISCV64;
#else
    0;
#endif

constexpr std::uint32_t kOfX32 = 0x40000000; // __X32_SYSCALL_BIT: other calls by the same numbers

std::vector<sock_filter> to_program(Mounting mounting) {
    std::vector<sock_filter> program;
    const auto load = [&](std::size_t offset) {
        program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)));
    };
    const auto end_with = [&](std::uint32_t verdict) { program.push_back(BPF_STMT(BPF_RET | BPF_K, verdict)); };
    constexpr std::uint32_t kRefuse = SECCOMP_RET_ERRNO | EPERM;
    const auto refuse = [&](int call) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1));
        end_with(kRefuse);
    };
    load(offsetof(seccomp_data, arch));
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0));
    end_with(kRefuse);
    load(offsetof(seccomp_data, nr));
    if (kArchitecture == AUDIT_ARCH_X86_64) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, kOfX32, 0, 1));
        end_with(kRefuse);
    }
    for (const int call : kRefused) refuse(call);
    if (mounting == Mounting::given_up)
        for (const int call : kRefusedWithoutMounting) refuse(call);
    end_with(SECCOMP_RET_ALLOW);
    return program;
}

} // namespace

Expected<void> refuse_system_calls(Mounting mounting) {
    if (kArchitecture == 0 || prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 0) return {};
    std::vector<sock_filter> code = to_program(mounting);
    const sock_fprog program{.len = static_cast<unsigned short>(code.size()), .filter = code.data()};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        return system_error(errno, "refusing system calls that are not needed");
    return {};
}

} // namespace novpn
