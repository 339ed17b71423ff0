// The agent's state as OpenMetrics text (https://openmetrics.io), for a scrape or the textfile collector. Pure.
#pragma once

#include "agent/status.h"

namespace novpn {

std::string to_metrics(const StatusFacts& facts);

} // namespace novpn
