// Which site the laptop is in, and the config as it is there. Pure functions.
#pragma once

#include "agent/observed.h"
#include "config/config.h"

#include <optional>
#include <string>
#include <vector>

namespace novpn {

/// `unknown`: the lease is still coming.
enum class Certainty : std::uint8_t { no, unknown, yes };

/// How one site of the config fared.
struct SiteVerdict {
    std::string name;
    Certainty matches = Certainty::no;
    std::vector<std::string> failed; ///< keys that do not hold, or of which it is not known yet
    bool operator==(const SiteVerdict&) const = default;
};

struct SiteDecision {
    std::vector<SiteVerdict> verdicts; ///< in the order of the config
    /// An earlier site than the first that matches may match as well: the stricter of them all holds.
    bool known = true;
    std::optional<std::string> name; ///< none: the defaults, or not known
    bool operator==(const SiteDecision&) const = default;
};

/// All keys of a match must hold, each by any of its values; the first site that matches is the one.
SiteDecision find_site(const Observed& observed, const Config& config);

/// With what the site changes. While it is not known, with what is the strictest of all that it may be: a class is on
/// where it is on in each of them.
Config config_at(const SiteDecision& site, const Config& config);

/// "home (office: network does not match)", "not known yet", "none"; for the log.
std::string describe(const SiteDecision& site);

} // namespace novpn
