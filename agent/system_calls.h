// What the agent asks the kernel for at most, where nobody else has bounded it: a filter of system calls (seccomp(2)).
// The unit has a stricter one, a list of what is allowed; this one is of what a mistake in the code could be used for.
#pragma once

#include "agent/privileges.h"

namespace novpn {

/// Of this thread and of those that it starts later, for good: EPERM to what starts a program, enters other namespaces,
/// reads another process's memory, loads modules, sets clocks or changes users, and to calls of another architecture.
/// Nothing is done where there is a filter already, or on an architecture without a name here. Behind
/// drop_privileges(), which sets no_new_privs.
Expected<void> refuse_system_calls(Mounting mounting);

} // namespace novpn
