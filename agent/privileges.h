// What the agent may do at most: the rights that it uses, kept, and all others of root given up for good. The unit says
// the same; this holds where it is started by hand too.
#pragma once

#include "netlink/error.h"

namespace novpn {

/// Whether net_cls is mounted or taken down later (CAP_SYS_ADMIN): `marking: net_cls` alone does that.
enum class Mounting { kept, given_up };

/// Of this thread and of those that it starts later: call it before there are others. Whoever has fewer rights keeps
/// those. No program that it might start gets more either.
Expected<void> drop_privileges(Mounting mounting);

} // namespace novpn
