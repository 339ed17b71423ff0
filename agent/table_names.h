// The names under which iproute2 shows what is ours: `ip route show table novpn`, `proto novpn`. Drop-in files only;
// nothing of the agent depends on them.
#pragma once

#include "config/config.h"
#include "netlink/error.h"

namespace novpn {

/// Writes /etc/iproute2/rt_tables.d/novpn.conf and rt_protos.d/novpn.conf; unchanged files are left alone.
Expected<void> write_table_names(const Config& config);
/// Absent files are done.
Expected<void> remove_table_names();

} // namespace novpn
