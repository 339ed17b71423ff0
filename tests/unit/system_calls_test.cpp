#include "agent/system_calls.h"

#include <cerrno>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace novpn::test {
namespace {

/// In a process of its own, as a filter is for good; what it returns, of 0 to 255.
template<typename Body>
int in_a_process(Body body) {
    const pid_t child = fork();
    if (child == 0) _exit(body());
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

bool is_refused(long result) { return result == -1 && errno == EPERM; }

int filtered(Mounting mounting) {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 1;
    return refuse_system_calls(mounting) ? 0 : 2;
}

TEST(SystemCalls, AreRefusedThatTheAgentNeverMakes) {
    const auto body = [] {
        if (const int failed = filtered(Mounting::given_up)) return failed;
        char* const arguments[] = {nullptr};
        if (!is_refused(execve("/bin/true", arguments, arguments))) return 3;
        if (!is_refused(syscall(SYS_setns, -1, 0))) return 4;
        if (!is_refused(syscall(SYS_process_vm_readv, 1, nullptr, 0, nullptr, 0, 0))) return 5;
        if (!is_refused(syscall(SYS_delete_module, nullptr, 0))) return 6;
        if (!is_refused(syscall(SYS_setresuid, getuid(), getuid(), getuid()))) return 7;
        if (!is_refused(mount("none", "/nowhere", "cgroup", 0, nullptr))) return 8;
        // And what it does needs.
        return getppid() > 0 && fork() >= 0 ? 0 : 9;
    };
    EXPECT_EQ(in_a_process(body), 0);
    EXPECT_EQ(in_a_process([] { return execl("/bin/true", "true", nullptr); }), 0) << "of the child alone";
}

TEST(SystemCalls, OfMountsAreAllowedWhereItMounts) {
    EXPECT_EQ(in_a_process([] {
                  if (const int failed = filtered(Mounting::kept)) return failed;
                  errno = 0;
                  // EFAULT comes from the call itself, before it asks for rights.
                  return syscall(SYS_mount, nullptr, 1, 1, 0, nullptr) == -1 && errno == EFAULT ? 0 : 3;
              }),
              0);
}

TEST(SystemCalls, AreLeftToAFilterThatIsThere) {
    EXPECT_EQ(in_a_process([] {
                  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 1;
                  sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
                  const sock_fprog program{.len = 1, .filter = all};
                  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) return 2;
                  if (!refuse_system_calls(Mounting::given_up)) return 3;
                  return execl("/bin/true", "true", nullptr);
              }),
              0);
}

} // namespace
} // namespace novpn::test
