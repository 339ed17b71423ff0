#include "agent/policies.h"

#include <algorithm>
#include <netinet/in.h>
#include <set>

namespace novpn {

namespace {

/// Links by which packets leave for public destinations, ordinary ones or members'. Nothing of ours counts: it comes
/// and goes with the answer.
std::set<IfIndex> links_out(Family family, const Observed& observed, const std::optional<Uplink>& uplink) {
    std::set<IfIndex> links;
    if (uplink) links.insert(uplink->link);
    for (const Route& route : observed.routes)
        if (route.table == kMainTable && is_default(route) && family_of(route) == family) links.insert(route.link);
    for (const Lookup& lookup : observed.lookups)
        if (!lookup.link && lookup.answer && family_of(lookup.destination) == family) links.insert(lookup.answer->link);
    return links;
}

/// The sources that packets to public destinations have, and by which link. A VPN's own address may be on any link
/// (strongSwan's table 220 prefers it as the source).
std::set<std::pair<address, IfIndex>> sources_out(Family family, const Observed& observed,
                                                  const std::optional<Uplink>& uplink) {
    std::set<std::pair<address, IfIndex>> sources;
    auto links = links_out(family, observed, uplink);
    for (const Address& a : observed.addresses)
        if (family_of(a.local) == family && a.scope == 0 && links.contains(a.link)) sources.emplace(a.local, a.link);
    for (const Lookup& lookup : observed.lookups)
        if (!lookup.link && lookup.answer && lookup.answer->source && family_of(lookup.destination) == family)
            sources.emplace(*lookup.answer->source, lookup.answer->link);
    return sources;
}

bool takes(const XfrmPolicy& policy) { return policy.block || policy.templates > 0; }

/// Any web page or video call: its ports tell it from what a VPN client lets pass for itself.
std::vector<XfrmFlow> ordinary_flows(Family family, const Observed& observed, const std::optional<Uplink>& uplink) {
    constexpr std::uint16_t kEphemeralPort = 40000;
    constexpr std::uint16_t kHttps = 443;
    std::vector<XfrmFlow> flows;
    for (const auto& [source, link] : sources_out(family, observed, uplink))
        for (const address& destination : public_destinations())
            for (std::uint8_t ip_protocol : {std::uint8_t{IPPROTO_TCP}, std::uint8_t{IPPROTO_UDP}})
                if (family_of(destination) == family)
                    flows.push_back({.source = source,
                                     .destination = destination,
                                     .ip_protocol = ip_protocol,
                                     .source_port = kEphemeralPort,
                                     .destination_port = kHttps,
                                     .link = link});
    return flows;
}

/// Adds those of the policies that take the flow. Of two with the same priority it is not told which is older: either
/// may be the one.
void add_taking(std::vector<XfrmPolicy>& taking, const XfrmFlow& flow, const std::vector<XfrmPolicy>& policies) {
    std::vector<XfrmPolicy> first;
    for (const XfrmPolicy& policy : policies) {
        if (!selects(policy, flow) || (!first.empty() && first.front().priority < policy.priority)) continue;
        if (!first.empty() && policy.priority < first.front().priority) first.clear();
        first.push_back(policy);
    }
    for (const XfrmPolicy& policy : first)
        if (takes(policy) && std::ranges::find(taking, policy) == taking.end()) taking.push_back(policy);
}

} // namespace

std::vector<XfrmPolicy> taking_policies(Family family, const Observed& observed, const std::optional<Uplink>& uplink) {
    std::vector<XfrmPolicy> main;
    std::vector<XfrmPolicy> sub;
    for (const XfrmPolicy& policy : observed.policies) {
        if (policy.direction != XfrmDirection::out || owned_by_us(policy) || family_of(policy) != family) continue;
        (policy.sub ? sub : main).push_back(policy);
    }
    std::vector<XfrmPolicy> taking;
    if (std::ranges::none_of(main, takes) && std::ranges::none_of(sub, takes)) return taking;
    for (const XfrmFlow& flow : ordinary_flows(family, observed, uplink)) {
        add_taking(taking, flow, main);
        add_taking(taking, flow, sub);
    }
    std::ranges::sort(taking, {}, &XfrmPolicy::index);
    return taking;
}

bool is_passable(const XfrmPolicy& taking) { return !taking.sub && taking.priority > kNovpnPolicyPriority; }

void add_passing(std::vector<XfrmPolicy>& policies, Family family, Mark mark, const Observed& observed) {
    for (XfrmDirection direction : kXfrmDirections) {
        XfrmPolicy pass{.direction = direction,
                        .source = any_prefix(family),
                        .destination = any_prefix(family),
                        .mark = mark,
                        .priority = kNovpnPolicyPriority};
        bool taken = std::ranges::any_of(
            observed.policies, [&](const XfrmPolicy& other) { return same_key(other, pass) && !owned_by_us(other); });
        if (!taken) policies.push_back(pass);
    }
}

} // namespace novpn
