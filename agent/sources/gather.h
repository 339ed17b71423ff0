// All sources at one moment: files of DHCP clients, NetworkManager, and what the kernel knows of neighbours. Blocking;
// sources.h asks off the loop.
#pragma once

#include "agent/hint.h"
#include "agent/sources/lease.h"

#include <chrono>
#include <string>

namespace novpn {

/// What one look may take, of which a bus that does not answer can use up all.
inline constexpr auto kSourcesMaxWait = std::chrono::milliseconds(200);

/// Hints of files below `root` ("" but in tests) that are in force at `now`.
std::vector<Hint> hints_of_files(const std::string& root, const std::vector<Link>& links, WallClock::time_point now);

/// Resolvers of the links, of files below `root`, and those of its resolv.conf.
NameServers name_servers_of_files(const std::string& root, const std::vector<Link>& links, WallClock::time_point now);

/// The router that the kernel knows by its advertisements. Where a link has several there is none: one of them may
/// have said that it is no way out (a lifetime of 0), and the neighbour table does not tell which.
std::vector<Hint> hints_of_routers(const std::vector<Neighbour>& neighbours);

/// Drops what came with an address that its link does not have, and puts the networks that the link is in beside the
/// rest.
void keep_current(NameServers& servers, const std::vector<Address>& addresses);

Hints gather(const std::string& root, WallClock::time_point now, std::chrono::milliseconds at_most);

} // namespace novpn
