// Others' chains where packets leave, and whether their rules drop; and where they come in, and whether they judge the
// way back. Internal to rules/.
#pragma once

#include "rules/firewall.h"
#include "rules/nft_socket.h"

namespace novpn::nft {

/// Of all families and tables but ours; two requests.
Expected<std::vector<Firewall>> firewalls(Socket& socket);
/// Likewise, of priorities up to `last`; one request where nobody has a chain there.
Expected<std::vector<ReversePathFilter>> reverse_path_filters(Socket& socket, std::int32_t last);

} // namespace novpn::nft
