// What others say of the physical way out: filled by agent/sources/, judged by select_uplink(). Values.
#pragma once

#include "netlink/values.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

namespace novpn {

/// Where the knowledge of an uplink comes from; the words of `status`, and the order of a cold start.
enum class UplinkSource { main, table, host_route, networkd, networkmanager, lease, ra, memory };
std::string to_string(UplinkSource source);

/// "By this link that gateway is reached." Its family is the gateway's.
struct Hint {
    UplinkSource from = UplinkSource::lease;
    IfIndex link;
    address gateway;
    std::optional<address> local; ///< the address that came with it: holds while the link has it
    bool operator==(const Hint&) const = default;
};

/// Where the resolvers of a link are known from; the words of `status`, the better first.
enum class ResolverSource { resolved, networkd, networkmanager, lease, resolv_conf };
std::string to_string(ResolverSource source);

/// "On the network of this link, these answer."
struct LinkResolvers {
    ResolverSource from = ResolverSource::lease;
    IfIndex link;
    std::vector<address> servers;
    std::optional<address> local;     ///< the address that came with them: holds while the link has it
    std::set<Prefix> networks;        ///< of the link's addresses when this was said: holds while it has one of them
    std::vector<std::string> domains; ///< search domains, lower case
    bool operator==(const LinkResolvers&) const = default;
};

/// Who resolves names.
struct NameServers {
    std::vector<LinkResolvers> of_links;
    std::vector<address> of_machine;               ///< of resolv.conf(5), which programs ask
    std::vector<std::string> domains_of_machine;   ///< the same, lower case
    std::set<std::pair<IfIndex, Prefix>> networks; ///< that links were in when this was said
    bool operator==(const NameServers&) const = default;
};

/// What became of asking a program.
enum class Answer {
    whole,  ///< it has said what there is, or was not asked
    nobody, ///< there is none to be asked
    lost    ///< none came in time, or only a part of one
};

/// The answer of all sources at one moment.
struct Hints {
    std::vector<Hint> given;
    NameServers name_servers;
    Answer networkmanager = Answer::whole;
    std::vector<Neighbour> neighbours; ///< to tell gateways that do not answer
    bool settled = false; ///< at a start: what the network brought was there before, and nothing more is to be expected
    bool operator==(const Hints&) const = default;
};

} // namespace novpn
