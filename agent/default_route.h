// The default of a class's table, which decide() and the mirror make alike.
#pragma once

#include "agent/uplink.h"

namespace novpn {

/// The default of the table by this uplink.
Route default_route(const Uplink& uplink, TableId table);

} // namespace novpn
