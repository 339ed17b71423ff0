#include "agent/dns.h"

#include <algorithm>

namespace novpn {
namespace {

/// systemd-resolved's own, and the one that leaves its cache and its rules out (systemd-resolved.service(8)).
const std::vector<address>& stubs() {
    static const std::vector<address> kStubs{boost::asio::ip::make_address("127.0.0.53"),
                                             boost::asio::ip::make_address("127.0.0.54")};
    return kStubs;
}

bool is_usable(const address& server) {
    const bool link_local = server.is_v6() && server.to_v6().is_link_local();
    return !server.is_loopback() && !server.is_unspecified() && !server.is_multicast() && !link_local;
}

/// The link is still in a network that it was in when this was said.
bool holds(const LinkResolvers& said, const Observed& observed) {
    return std::ranges::any_of(observed.addresses, [&](const Address& a) {
        return a.link == said.link && said.networks.contains(prefix_of(a.local, a.prefix_length));
    });
}

/// The servers of a family that the first source names for a link.
std::vector<address> servers_on(IfIndex link, Family family, const std::optional<LinkResolvers>& remembered,
                                const Observed& observed, ResolverSource& from) {
    const LinkResolvers* best = nullptr;
    auto serves = [&](const address& server) { return family_of(server) == family && is_usable(server); };
    auto take = [&](const LinkResolvers& said) {
        if (said.link == link && holds(said, observed) && std::ranges::any_of(said.servers, serves) &&
            (!best || said.from < best->from))
            best = &said;
    };
    std::ranges::for_each(observed.name_servers.of_links, take);
    if (remembered) take(*remembered);
    std::vector<address> servers;
    if (!best) return servers;
    from = best->from;
    std::ranges::copy_if(best->servers, std::back_inserter(servers), serves);
    return servers;
}

/// What a member may ask: the machine's name servers first, in their order; the stubs; and those of tunnels.
std::vector<address> name_servers_asked(const Observed& observed, const Config& config) {
    std::vector<address> asked = observed.name_servers.of_machine;
    auto add = [&](const address& server) {
        if (std::ranges::find(asked, server) == asked.end()) asked.push_back(server);
    };
    std::ranges::for_each(stubs(), add);
    for (const LinkResolvers& said : observed.name_servers.of_links) {
        const Link* link = find_link(observed, said.link);
        if (link && is_tunnel(*link, observed, config)) std::ranges::for_each(said.servers, add);
    }
    // More than a machine has; the kernel's map has no room for more either.
    constexpr std::size_t kMost = 32;
    if (asked.size() > kMost) asked.resize(kMost);
    return asked;
}

} // namespace

std::string to_string(DnsState state) {
    switch (state) {
    case DnsState::vpn: return "vpn";
    case DnsState::machine: return "machine";
    case DnsState::uplink: return "uplink";
    case DnsState::none: return "none";
    }
    return {};
}

bool can_redirect(const Observed& observed, const Config& config) {
    return marks_by_bpf(config.marking) && observed.birth_marks.unavailable.empty() &&
           observed.redirects.unavailable.empty();
}

DnsDecision decide_dns(const DnsQuery& query, const Observed& observed, const Config& config) {
    DnsDecision decision{.state = DnsState::machine};
    if (query.goes_with_the_rest) return decision;
    std::map<Family, std::vector<address>> servers;
    for (const auto& [family, selection] : query.ways_out) {
        if (!selection.uplink) continue;
        ResolverSource from{};
        servers[family] = servers_on(selection.uplink->link, family, query.remembered, observed, from);
        if (servers[family].empty()) continue;
        if (decision.servers.empty()) decision.from = from;
        decision.servers.insert(decision.servers.end(), servers[family].begin(), servers[family].end());
    }
    const std::vector<address> asked = name_servers_asked(observed, config);
    // One that programs do ask is needed by the family of a resolver; glibc asks 127.0.0.1 where nothing is configured.
    const auto& of_machine = observed.name_servers.of_machine;
    auto is_served = [&](const address& server) { return !servers[family_of(server)].empty(); };
    const bool known = of_machine.empty() ? !servers[Family::ipv4].empty() : std::ranges::any_of(of_machine, is_served);
    if (!known && !query.taken_over) return {.state = DnsState::machine};
    decision.state = known ? DnsState::uplink : DnsState::none;
    if (!known) decision.servers.clear();
    std::map<Family, std::size_t> next;
    for (const address& server : asked) {
        if (std::ranges::find(decision.servers, server) != decision.servers.end()) continue;
        const auto& there = servers[family_of(server)];
        const bool is_stub = std::ranges::find(stubs(), server) != stubs().end();
        if (!known || there.empty())
            decision.resolvers[server] = std::nullopt;
        else
            decision.resolvers[server] = there[is_stub ? 0 : next[family_of(server)]++ % there.size()];
    }
    return decision;
}

void keep_networkmanagers(NameServers& servers, const NameServers& before) {
    const auto is_networkmanagers = [](const LinkResolvers& said) {
        return said.from == ResolverSource::networkmanager;
    };
    for (const LinkResolvers& said : before.of_links) {
        const auto is_of_it = [&](const LinkResolvers& now) {
            return is_networkmanagers(now) && now.link == said.link;
        };
        const auto is_still_in = [&](const Prefix& network) { return servers.networks.contains({said.link, network}); };
        if (is_networkmanagers(said) && std::ranges::none_of(servers.of_links, is_of_it) && !said.networks.empty() &&
            std::ranges::all_of(said.networks, is_still_in))
            servers.of_links.push_back(said);
    }
}

void remember_resolvers(Memory& next, const Memory& memory, const std::map<Family, Selection>& uplinks,
                        const Observed& observed, const Config& config) {
    next.resolvers = memory.resolvers;
    next.name_servers_of_tunnel = memory.name_servers_of_tunnel;
    const std::vector<address>& named = observed.name_servers.of_machine;
    if (std::ranges::any_of(observed.links,
                            [&](const Link& link) { return link.up && is_tunnel(link, observed, config); })) {
        next.name_servers_of_tunnel = named;
        return;
    }
    std::set<IfIndex> links;
    for (const auto& [_, selection] : uplinks)
        if (selection.uplink) links.insert(selection.uplink->link);
    if (links.size() != 1 || named == memory.name_servers_of_tunnel) return;
    const std::vector<std::string>& domains = observed.name_servers.domains_of_machine;
    if (domains.empty() && std::ranges::none_of(named, is_usable)) return;
    LinkResolvers said{
        .from = ResolverSource::resolv_conf, .link = *links.begin(), .servers = named, .domains = domains};
    for (const Address& a : observed.addresses)
        if (a.link == said.link && is_usable(a.local)) said.networks.insert(prefix_of(a.local, a.prefix_length));
    next.resolvers = said;
}

} // namespace novpn
