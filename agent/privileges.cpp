#include "agent/privileges.h"

#include <array>
#include <cerrno>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

namespace novpn {

namespace {

/// As CapabilityBoundingSet= of the unit, which says what each is for.
std::vector<int> used_capabilities(Mounting mounting) {
    std::vector<int> used{CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_DAC_OVERRIDE};
    // Linux 5.8. Before it the right to load BPF programs was part of a larger one.
    const bool has_bpf = prctl(PR_CAPBSET_READ, CAP_BPF, 0, 0, 0) >= 0;
    if (has_bpf) used.push_back(CAP_BPF);
    if (!has_bpf || mounting == Mounting::kept) used.push_back(CAP_SYS_ADMIN);
    return used;
}

/// capabilities(7): 64 bits in two halves. glibc has no wrapper, and libcap would be one more library.
using Halves = std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3>;

} // namespace

Expected<void> drop_privileges(Mounting mounting) {
    const char* const doing = "giving up what is not needed of root's rights";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return system_error(errno, doing);

    Halves kept{};
    for (const int capability : used_capabilities(mounting))
        kept[CAP_TO_INDEX(capability)].permitted |= CAP_TO_MASK(capability);

    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    Halves now{};
    if (syscall(SYS_capget, &header, now.data()) != 0) return system_error(errno, doing);
    // What a program started by root would have: only who has CAP_SETPCAP can lower it, and without it it is low
    // already.
    if (now[CAP_TO_INDEX(CAP_SETPCAP)].effective & CAP_TO_MASK(CAP_SETPCAP))
        for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability)
            if (!(kept[CAP_TO_INDEX(capability)].permitted & CAP_TO_MASK(capability)) &&
                prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
                return system_error(errno, doing);
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); // Linux 4.3; without it there are none
    bool has_more = false;
    for (std::size_t i = 0; i < now.size(); ++i) {
        // systemd 257, unlike 252, makes what a unit may have inheritable too, which is no more than that.
        has_more = has_more || ((now[i].permitted | now[i].inheritable) & ~kept[i].permitted);
        now[i].permitted &= kept[i].permitted;
        now[i].effective &= kept[i].permitted;
        now[i].inheritable = 0;
    }
    // The unit has given it all up, and its filter of system calls has no capset.
    if (!has_more) return {};
    if (syscall(SYS_capset, &header, now.data()) != 0) return system_error(errno, doing);
    return {};
}

} // namespace novpn
