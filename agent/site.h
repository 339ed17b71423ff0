// Which site the laptop is in, and the config as it is there. Pure functions.
#pragma once

#include "agent/observed.h"
#include "agent/uplink.h"
#include "config/config.h"

#include <optional>
#include <string>
#include <vector>

namespace novpn {

/// What places are told by. Tunnels are apart: an address, a domain or a gateway inside a VPN says nothing about where
/// the laptop is.
struct Place {
    std::vector<WifiLink> wifi;      ///< with carrier
    std::vector<Neighbour> gateways; ///< of the ways out, as far as the kernel knows them
    std::vector<Prefix> networks;    ///< on-link on those links
    std::vector<std::string> domains;
    std::vector<std::string> links; ///< up, with carrier
    std::vector<std::string> tunnels;
    bool arriving = false;          ///< a link has carrier, and no address of its network yet
    bool gateways_missing = false;  ///< some are not known yet, or none is
    bool domains_missing = false;   ///< the sources have not answered yet since the laptop is here
    std::vector<Neighbour> unasked; ///< of the gateways, those that nobody has asked for their address
    bool operator==(const Place&) const = default;
};

/// `memory`: also the gateway that the VPN replaced, and the domain that resolv.conf named before it.
Place look_around(const Observed& observed, const Config& config, const Memory& memory);

/// `unknown`: the association, the lease, the gateway's address or the sources' answer is still coming.
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
SiteDecision find_site(const Place& place, const Config& config);

/// With what the site changes. While it is not known, with what is the strictest of all that it may be: what is in a
/// class by each of them, and forced into a tunnel by one of them. `before`: the classes as they were until a reload
/// that found the laptop where it was; what they let out, and one of the sites does too, is not cut off meanwhile.
Config config_at(const SiteDecision& site, const Config& config, const std::vector<ClassConfig>& before = {});

/// The laptop has not moved between the two.
bool same_surroundings(const Place& a, const Place& b);

/// With the selectors of all sites: what has to be looked at.
Config at_all_sites(const Config& config);

/// A key of `match` that a site of the config uses.
bool tells_by_wifi(const Config& config);
bool tells_by_bssid(const Config& config);
bool tells_by_lease(const Config& config); ///< network, gateway_mac or domain: an address comes before they are known
bool tells_by_gateway(const Config& config);
bool tells_by_domain(const Config& config);

/// A Wi-Fi name as globs see it and as it is shown: printable, with a backslash doubled and other bytes as \x1b.
std::string ssid_text(const std::string& ssid);

/// "home (office: network does not match)", "not known yet", "none"; for the log.
std::string describe(const SiteDecision& site);

} // namespace novpn
