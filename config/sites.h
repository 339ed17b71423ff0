// The list `sites` from its node, and what only all files together can tell of it. A site's keys are few and its maps
// stand in a list, so they are not in the table of schema.cpp.
#pragma once

#include "config/config.h"
#include "config/document.h"

#include <optional>
#include <string>

namespace novpn {

inline constexpr auto kSitesAllowed = "a list of maps with the keys classes, match, name, on_enter, on_leave, uplinks";

/// Sites merge by name, and new ones append.
std::optional<Problem> parse_sites(const YamlNode& node, std::vector<SiteConfig>& sites);

/// The text of a site's `name`; empty where it has none.
std::string site_name(const YamlNode& site);

/// The class as it is at the site.
ClassConfig class_at(const SiteConfig& site, ClassConfig of_class);

/// What the site lets out of the VPN, or into it, that stays where it is elsewhere, as a phrase; empty: nothing.
std::string opens(const SiteConfig& site, const Config& config);

/// Whether all that the site is told by can be pretended by whoever runs a network: names and addresses are no proof.
bool is_spoofable(const SiteMatch& match);

/// Whether wherever `later` is recognised `earlier` is too, so that `later` never holds.
bool always_matches_before(const SiteConfig& earlier, const SiteConfig& later);

} // namespace novpn
