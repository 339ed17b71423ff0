// Name servers as programs of the system write them down. Pure: text in, addresses out; what is none is left out.
#pragma once

#include "netlink/values.h"

#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// A list of systemd's or of NetworkManager's, between blanks: an address, or `ADDRESS:PORT`, `[ADDRESS]:PORT`,
/// `ADDRESS%LINK` and `ADDRESS#NAME` (systemd.network(5), DNS=). Another port than 53 is left out.
std::vector<address> parse_servers(std::string_view list);

/// The value of the first line that begins with `key=`; empty without one.
std::string_view value_of(std::string_view text, std::string_view key);

/// The nameserver lines of resolv.conf(5), of which glibc takes three.
std::vector<address> parse_resolv_conf(std::string_view text);

/// Domains between blanks or commas, lower case and without a dot at the end; a leading `~` marks one that is not
/// searched (systemd.network(5), Domains=), and what is no domain is left out.
std::vector<std::string> parse_domains(std::string_view list);

/// Of the last line `search` or `domain` of resolv.conf(5).
std::vector<std::string> parse_search_domains(std::string_view text);

} // namespace novpn
