// Others' chains where packets leave, and whether their rules drop. Internal to rules/.
#pragma once

#include "rules/firewall.h"
#include "rules/nft_socket.h"

namespace novpn::nft {

/// Of all families and tables but ours; two requests.
Expected<std::vector<Firewall>> firewalls(Socket& socket);

} // namespace novpn::nft
