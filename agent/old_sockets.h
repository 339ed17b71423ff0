// Sockets that keep the path they began on, as replies name them.
#pragma once

#include "agent/control/service.h"
#include "netlink/sockets.h"

#include <boost/json/array.hpp>

namespace novpn {

/// `pid`: who holds it, whose name is looked up; 0: not known.
OldSocket named(const OpenSocket& socket, pid_t pid);

/// [{protocol, local, remote, pid, process}], the first kMaxNamedSockets; what is not known is null.
boost::json::array to_json(const std::vector<OldSocket>& sockets);

} // namespace novpn
