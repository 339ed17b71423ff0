// Where the names of a class are resolved. Pure functions.
#pragma once

#include "agent/observed.h"
#include "agent/uplink.h"

#include <map>

namespace novpn {

enum class DnsState {
    vpn,     ///< as the VPN has it: port 53 takes the ordinary path
    machine, ///< as the machine has it: no VPN has taken over, and what its uplink's resolver is nobody says
    uplink,  ///< by the resolvers of the class's uplink
    none     ///< refused: nobody says what the uplink's resolver is, and the VPN's must not be asked
};
std::string to_string(DnsState state); ///< the word of `status`

struct DnsDecision {
    DnsState state = DnsState::vpn;
    std::vector<address> servers;                   ///< the uplink's
    ResolverSource from = ResolverSource::resolved; ///< meaningless without servers
    Resolvers resolvers;                            ///< what is asked in whose place
    bool operator==(const DnsDecision&) const = default;
};

/// `dns: uplink` can be done: sockets carry the class's mark, and BPF programs may redirect them.
bool can_redirect(const Observed& observed, const Config& config);

struct DnsQuery {
    const std::map<Family, Selection>& ways_out; ///< of the class
    bool goes_with_the_rest = false;             ///< it has none, and may use the VPN
    bool taken_over = false;                     ///< by a VPN, in either family
    const std::optional<LinkResolvers>& remembered;
};

/// Of a class with `dns: uplink` that is on, where that can be done. Resolvers on loopback and link-local ones, for
/// which connect() would need a link, do not count.
DnsDecision decide_dns(const DnsQuery& query, const Observed& observed, const Config& config);

/// Where NetworkManager has not answered, or not of all links: what it said before goes on, of links that are still in
/// all the networks that they were in then.
void keep_networkmanagers(NameServers& servers, const NameServers& before);

/// Puts what resolv.conf names into the memory, where it is the uplink's: while no tunnel is up. `next` has the rest of
/// the memory already.
void remember_resolvers(Memory& next, const Memory& memory, const std::map<Family, Selection>& uplinks,
                        const Observed& observed, const Config& config);

} // namespace novpn
