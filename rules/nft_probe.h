// Asks the kernel whether it knows what `table inet novpn` is made of, and changes nothing. Internal to rules/.
#pragma once

#include "rules/nft_socket.h"
#include "rules/nft_structure.h"

namespace novpn::nft {

/// A structure with every chain and expression that any config can ask for.
Structure everything();

/// operation_not_supported: the kernel lacks something, and `detail` names it.
Expected<void> probe(Socket& socket, const Structure& structure);

} // namespace novpn::nft
