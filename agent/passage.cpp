#include "agent/passage.h"

namespace novpn {

void Passage::take(const FlowCounts& now) {
    // They begin anew with a table that somebody had deleted.
    if (now.sent < counted_.sent || now.arrived < counted_.arrived) counted_ = {};
    const FlowCounts since{.sent = now.sent - counted_.sent, .arrived = now.arrived - counted_.arrived};
    counted_ = now;
    if (since == FlowCounts{}) return;
    last_ = since;
    blocked_ = since.sent > 2 * since.arrived;
}

} // namespace novpn
