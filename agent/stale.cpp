#include "agent/stale.h"

#include <algorithm>
#include <netinet/in.h>

namespace novpn {
namespace {

bool has_mark(std::uint32_t mark, Mark of_class) { return (mark & of_class.mask) == of_class.value; }

bool is_here(const address& a, const Observed& observed) {
    return std::ranges::find(observed.addresses, a, &Address::local) != observed.addresses.end();
}

/// The link that the class's table leads to; none: nowhere.
std::optional<IfIndex> link_towards(const address& destination, TableId table, const Desired& desired) {
    const Route* best = nullptr;
    for (const Route& route : desired.routes) {
        if (route.table != table || route.type != RouteType::unicast || !contains(route.destination, destination))
            continue;
        if (!best || route.destination.length > best->destination.length) best = &route;
    }
    return best ? std::optional(best->link) : std::nullopt;
}

bool is_of_link(const address& a, IfIndex link, const Observed& observed) {
    return std::ranges::any_of(observed.addresses,
                               [&](const Address& other) { return other.link == link && other.local == a; });
}

/// A UDP socket may also be bound to what never was an address of this machine: a group, a broadcast address.
bool has_lost_its_address(const OpenSocket& socket, const OpenFlows& flows, const Observed& observed) {
    if (socket.ip_protocol == IPPROTO_UDP) return flows.gone.contains(socket.local);
    return leaves_this_machine(socket) && !is_here(socket.local, observed);
}

/// Whichever of the two began it.
bool is_of(const Connection& connection, const OpenSocket& socket) {
    const std::pair first{connection.source, connection.source_port};
    const std::pair second{connection.destination, connection.destination_port};
    const std::pair local{socket.local, socket.local_port};
    const std::pair remote{*socket.remote, socket.remote_port};
    return connection.ip_protocol == socket.ip_protocol &&
           ((first == local && second == remote) || (first == remote && second == local));
}

/// A flow that began with another link's address is masqueraded, and lives as long as its entry does: without one the
/// kernel takes its packets for those amid a forgotten flow. One that has an entry of no class keeps the path it has.
bool has_lost_its_masquerade(const OpenSocket& socket, const ClassDecision& decision, TableId table,
                             const OpenFlows& flows, const Observed& observed, const Desired& desired) {
    if (socket.ip_protocol != IPPROTO_TCP || !leaves_this_machine(socket)) return false;
    const auto link = link_towards(*socket.remote, table, desired);
    if (!flows.connections || socket.connecting || !link || is_of_link(socket.local, *link, observed)) return false;
    const auto entry = std::ranges::find_if(*flows.connections, [&](const auto& c) { return is_of(c, socket); });
    if (entry == flows.connections->end()) return true;
    return has_mark(entry->mark, decision.mark) && entry->translated != entry->source &&
           !is_of_link(entry->translated, *link, observed);
}

bool is_member(const OpenSocket& socket, const std::string& class_name, const ClassDecision& decision,
               const OpenFlows& flows) {
    const auto ids = flows.cgroups.find(class_name);
    return has_mark(socket.mark, decision.mark) ||
           (ids != flows.cgroups.end() && ids->second.contains(socket.cgroup_id));
}

std::optional<TableId> table_of(const ClassDecision& decision, const Desired& desired) {
    for (const Rule& rule : desired.rules)
        if (rule.action == RuleAction::to_table && rule.mark == decision.mark) return rule.table;
    return std::nullopt;
}

} // namespace

bool has_way_out(const ClassDecision& decision, Family family) {
    const auto way = decision.ways_out.find(family);
    return way != decision.ways_out.end() && way->second.uplink.has_value();
}

std::set<address> addresses_gone(const Observed& observed, const std::set<address>& before) {
    std::set<address> gone;
    for (const address& a : before)
        if (!is_here(a, observed)) gone.insert(a);
    return gone;
}

std::set<Family> families_moved(const Observed& observed, const Desired& desired, const std::set<address>& before,
                                const Desired* decided_before) {
    std::set<Family> moved;
    for (const address& a : addresses_gone(observed, before)) moved.insert(family_of(a));
    for (const auto& [name, decision] : desired.classes) {
        for (const auto& [family, way] : decision.ways_out) {
            const auto* old = decided_before && decided_before->classes.contains(name)
                                  ? &decided_before->classes.at(name).ways_out.at(family)
                                  : nullptr;
            if (way.uplink && (!old || !old->uplink || old->uplink->link != way.uplink->link)) moved.insert(family);
        }
    }
    return moved;
}

std::optional<FlowsBegun> flows_begun(const std::map<std::string, PacketCounts>& packets, const Desired& desired) {
    FlowsBegun begun;
    for (const auto& [name, decision] : desired.classes) {
        const auto of_class = packets.find(name);
        if (of_class == packets.end()) return std::nullopt;
        begun.counted[name] = of_class->second.marked;
        begun.classes[name] = {.mark = decision.mark,
                               .cgroup = decision.cgroup,
                               .users = decision.users,
                               .destinations = decision.destinations,
                               .matched = decision.matched};
    }
    return begun;
}

bool has_flows_of_members(const OpenFlows& flows, const Desired& desired) {
    return std::ranges::any_of(desired.classes, [&](const auto& c) {
        const std::string& name = c.first;
        const ClassDecision& decision = c.second;
        const auto is_of_class = [&](const OpenSocket& socket) {
            return is_member(socket, name, decision, flows) || selects(decision, socket);
        };
        // What the kernel does not tell may be there.
        return !flows.connections || std::ranges::any_of(flows.sockets, is_of_class) ||
               std::ranges::any_of(*flows.connections,
                                   [&](const Connection& open) { return has_mark(open.mark, decision.mark); });
    });
}

Plan stale_flows(const OpenFlows& flows, const Observed& observed, const Desired& desired) {
    Plan plan;
    for (const auto& [name, decision] : desired.classes) {
        const auto table = table_of(decision, desired);
        if (!table) continue;
        for (const OpenSocket& socket : flows.sockets) {
            const bool of_member = is_member(socket, name, decision, flows);
            const bool has_no_address =
                has_lost_its_address(socket, flows, observed) && (of_member || selects(decision, socket));
            if (has_no_address ||
                (of_member && has_lost_its_masquerade(socket, decision, *table, flows, observed, desired)))
                plan.push_back(EndSocket{socket});
        }
        for (const Connection& connection : flows.connections.value_or(std::vector<Connection>{})) {
            const bool is_translated = connection.translated != connection.source;
            if (has_mark(connection.mark, decision.mark) && is_translated && !is_here(connection.translated, observed))
                plan.push_back(DropConnection{connection});
        }
    }
    return plan;
}

std::vector<OpenSocket> flows_from_before(std::vector<OpenSocket> sockets, const Config& config) {
    const auto is_known = [&](const OpenSocket& socket) {
        const auto has_its_mark = [&](const ClassConfig& c) { return has_mark(socket.mark, c.mark); };
        return socket.closing || !leaves_this_machine(socket) || std::ranges::any_of(config.classes, has_its_mark);
    };
    std::erase_if(sockets, is_known);
    return sockets;
}

} // namespace novpn
