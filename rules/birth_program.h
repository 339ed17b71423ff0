// The BPF program of a BirthMark, as instructions. Pure; made by hand, so that neither a compiler for BPF nor an object
// file is needed. Internal to rules/.
#pragma once

#include "rules/steering.h"

#include <linux/bpf.h>
#include <vector>

namespace novpn {

/// For `cgroup/sock_create` (BPF_PROG_TYPE_CGROUP_SOCK); lets every socket be made.
std::vector<bpf_insn> instructions_of(const BirthMark& birth);

} // namespace novpn
