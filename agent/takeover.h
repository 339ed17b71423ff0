// How a tunnel took over a family's public destinations, read from the kernel's own answers. Pure functions.
#pragma once

#include "agent/observed.h"
#include "config/config.h"

namespace novpn {

/// DESIGN's shapes.
enum class Shape { replaced, lower_metric, split, inverted_mark_rule, catch_all_rule, xfrm };
std::string to_string(Shape shape); ///< the word of `status`

struct Takeover {
    Family family = Family::ipv4;
    Shape shape = Shape::replaced;
    std::optional<IfIndex> link; ///< none for xfrm, and neither a table: policies take packets wherever they go
    std::string link_name;       ///< empty without a link
    std::optional<TableId> table;
    std::optional<Preference> preference; ///< of the rule that leads to `table`; none for main
    bool operator==(const Takeover&) const = default;
};

/// Every distinct way in which a public destination of `family` leaves by a tunnel, then those that stand behind: a VPN
/// inside a VPN. Empty when there is none. IPsec policies are policies.h's.
std::vector<Takeover> find_takeovers(Family family, const Observed& observed, const Config& config);

} // namespace novpn
