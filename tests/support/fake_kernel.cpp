#include "tests/support/fake_kernel.h"

#include <algorithm>
#include <cerrno>
#include <stdexcept>

namespace novpn::test {

namespace {

constexpr Protocol kKernelProtocol{2}, kRouterAdvertisement{9};
constexpr std::uint8_t kLinkScope = 253;

/// Whether a request to delete names this route: a metric of 0, no link, no gateway and no source stand for any.
bool is_named_by(const Route& request, const Route& route) {
    if (route.table != request.table || route.destination != request.destination) return false;
    if (route.protocol != request.protocol) return false;
    if (request.metric && route.metric != request.metric) return false;
    if (request.link.value && route.link != request.link) return false;
    if (request.gateway && route.gateway != request.gateway) return false;
    if (family_of(route) == Family::ipv6) return true; // compares no type and no source
    return route.type == request.type && route.scope == request.scope &&
           (!request.source || route.source == request.source);
}

Rule kernel_rule(Family family, std::uint32_t preference, TableId table) {
    return {.family = family, .preference = Preference{preference}, .table = table, .protocol = kKernelProtocol};
}

} // namespace

FakeKernel::FakeKernel() {
    add_link({.name = "lo", .hardware = 772, .up = true, .carrier = true, .loopback = true});
    for (Family family : kFamilies) {
        add_rule(kernel_rule(family, 0, kLocalTable));
        add_rule(kernel_rule(family, 32766, kMainTable));
        if (family == Family::ipv4) add_rule(kernel_rule(family, 32767, TableId{253}));
    }
}

IfIndex FakeKernel::add_link(Link link) {
    if (!link.index.value) link.index = IfIndex{next_index_++};
    links_.push_back(link);
    return link.index;
}

Link& FakeKernel::link_ref(const std::string& name) {
    auto found = std::ranges::find(links_, name, &Link::name);
    if (found == links_.end()) throw std::invalid_argument("no link " + name);
    return *found;
}

const Link* FakeKernel::link(const std::string& name) const {
    auto found = std::ranges::find(links_, name, &Link::name);
    return found == links_.end() ? nullptr : &*found;
}

std::string FakeKernel::link_name(IfIndex index) const { return LinkNames{&links_}(index); }

void FakeKernel::drop_routes_of(IfIndex link) {
    // From every table, ours included; the unreachable backstop belongs to no link and stays.
    std::erase_if(routes_, [&](const Route& route) { return route.link == link; });
}

void FakeKernel::delete_link(const std::string& name) {
    IfIndex index = link_ref(name).index;
    drop_routes_of(index);
    forget_neighbours(index);
    std::erase_if(wifi_, [&](const WifiLink& wifi) { return wifi.link == index; });
    std::erase_if(addresses_, [&](const Address& a) { return a.link == index; });
    std::erase_if(links_, [&](const Link& l) { return l.index == index; });
}

void FakeKernel::rename_link(const std::string& name, const std::string& to) { link_ref(name).name = to; }

/// Addresses and routes stay where they were.
void FakeKernel::set_master(const std::string& name, std::optional<IfIndex> master) { link_ref(name).master = master; }

void FakeKernel::set_up(const std::string& name, bool up) {
    Link& link = link_ref(name);
    if (link.up == up) return;
    link.up = up;
    link.carrier = up;
    if (!up) {
        forget_neighbours(link.index);
        drop_routes_of(link.index);
        std::erase_if(addresses_, [&](const Address& a) { return a.link == link.index && a.local.is_v6(); });
        return;
    }
    for (const Address& a : std::vector(addresses_))
        if (a.link == link.index) add_connected_route(a);
}

void FakeKernel::join(const std::string& name, const std::string& ssid, const MacAddress& bssid) {
    const IfIndex link = link_ref(name).index;
    std::erase_if(wifi_, [&](const WifiLink& wifi) { return wifi.link == link; });
    wifi_.push_back({.link = link, .ssid = ssid, .bssid = ssid.empty() ? std::nullopt : std::optional(bssid)});
}

void FakeKernel::set_mac(const std::string& name, const address& host, std::optional<MacAddress> mac) {
    const std::pair key(link_ref(name).index, host);
    macs_.erase(key);
    if (mac) macs_.emplace(key, *mac);
}

/// neigh_carrier_down in net/core/neighbour.c
void FakeKernel::forget_neighbours(IfIndex link) {
    std::erase_if(neighbours, [&](const Neighbour& known) {
        return known.link == link && known.state != NeighbourState::permanent;
    });
}

void FakeKernel::set_carrier(const std::string& name, bool carrier) {
    Link& link = link_ref(name);
    link.carrier = carrier;
    if (!carrier) forget_neighbours(link.index);
    for (Route& route : routes_)
        if (route.link == link.index) route.link_down = !carrier;
}

void FakeKernel::add_connected_route(const Address& a) {
    bool ipv4 = a.local.is_v4();
    if (ipv4 && a.prefix_length == 32 && !a.peer) return; // fib_add_ifaddr in net/ipv4/fib_frontend.c
    auto link = std::ranges::find(links_, a.link, &Link::index);
    Route route{.table = kMainTable,
                .destination = prefix_of(a.peer.value_or(a.local), a.prefix_length),
                .metric = ipv4 ? 0u : 256u,
                .link = a.link,
                .scope = ipv4 ? kLinkScope : std::uint8_t{0},
                .protocol = kKernelProtocol,
                .link_down = !link->carrier};
    if (ipv4) route.source = a.local;
    routes_.push_back(route);
}

void FakeKernel::add_address(const std::string& link, const address& local, unsigned prefix_length,
                             std::optional<address> peer) {
    const Link& l = link_ref(link);
    addresses_.push_back({.link = l.index, .local = local, .prefix_length = prefix_length, .peer = peer});
    if (l.up) add_connected_route(addresses_.back());
}

void FakeKernel::delete_address(const std::string& link, const address& local) {
    IfIndex index = link_ref(link).index;
    std::erase_if(addresses_, [&](const Address& a) { return a.link == index && a.local == local; });
    auto also_on_link = [&](const Prefix& prefix) {
        return std::ranges::any_of(addresses_, [&](const Address& a) {
            return a.link == index && prefix_of(a.local, a.prefix_length) == prefix;
        });
    };
    if (local.is_v6()) {
        // Its connected route goes; a route that prefers it as source forgets the source and stays.
        std::erase_if(routes_, [&](const Route& route) {
            return route.link == index && !route.gateway && route.protocol == kKernelProtocol &&
                   contains(route.destination, local) && route.table == kMainTable && !also_on_link(route.destination);
        });
        for (Route& route : routes_)
            if (route.source == local) route.source.reset();
        return;
    }
    // All without a word: main's routes that prefer it as source, its connected route among them, but not those of
    // other tables (fib_sync_down_addr in net/ipv4/fib_semantics.c); with the last address every IPv4 route of the
    // link. A gateway that only this address reached stays in use.
    bool last = std::ranges::none_of(addresses_, [&](const Address& a) { return a.link == index && a.local.is_v4(); });
    // Where another link has the same address only its own connected route goes (fib_del_ifaddr).
    bool elsewhere = std::ranges::find(addresses_, local, &Address::local) != addresses_.end();
    std::erase_if(routes_, [&](const Route& route) {
        bool connected = route.link == index && route.protocol == kKernelProtocol;
        return (route.source == local && route.table == kMainTable && (connected || !elsewhere)) ||
               (last && route.link == index && family_of(route) == Family::ipv4);
    });
}

bool FakeKernel::gateway_is_reachable(const Route& route) const {
    if (!route.gateway || route.onlink) return true;
    if (route.gateway->is_v6() && route.gateway->to_v6().is_link_local()) return true;
    // The kernel asks the route's own table, then the rules.
    return std::ranges::any_of(routes_, [&](const Route& other) {
        return (other.table == route.table || other.table == kMainTable) && other.type == RouteType::unicast &&
               other.link == route.link && !other.gateway && contains(other.destination, *route.gateway);
    });
}

bool FakeKernel::has_no_carrier(const Route& route) const {
    auto link = std::ranges::find(links_, route.link, &Link::index);
    return link != links_.end() && !link->carrier;
}

void FakeKernel::add_route(Route route) {
    route.link_down = has_no_carrier(route);
    routes_.push_back(std::move(route));
}

std::optional<Error> FakeKernel::refusal(const Route& route) const {
    // The kernel's own defaults of several routers stand side by side (rt6_add_dflt_router in net/ipv6/route.c).
    bool advertised = route.protocol == kRouterAdvertisement && is_default(route);
    bool exists = std::ranges::any_of(routes_, [&](const Route& other) {
        return other.table == route.table && other.destination == route.destination && other.metric == route.metric &&
               !(advertised && other.gateway != route.gateway);
    });
    return exists ? system_error(EEXIST, "adding a route").value() : unusable(route);
}

bool FakeKernel::delete_route(const Route& route) {
    auto named = routes_.end();
    for (auto r = routes_.begin(); r != routes_.end(); ++r) {
        bool is_named = r->table == route.table && r->destination == route.destination && r->type == route.type &&
                        (!route.link.value || r->link == route.link) && (!route.metric || r->metric == route.metric) &&
                        (!route.gateway || r->gateway == route.gateway);
        if (is_named && (named == routes_.end() || r->metric < named->metric)) named = r;
    }
    if (named == routes_.end()) return false;
    if (named->next_hops > 1) // with all its hops
        std::erase_if(routes_, [gone = *named](const Route& r) { return r.next_hops > 1 && key(r) == key(gone); });
    else
        routes_.erase(named);
    return true;
}

Preference FakeKernel::free_preference(Family family) const {
    // fib_default_rule_pref in net/core/fib_rules.c
    std::vector<Preference> preferences;
    for (const Rule& rule : rules_)
        if (rule.family == family) preferences.push_back(rule.preference);
    if (preferences.size() < 2 || !preferences[1].value) return {};
    return {preferences[1].value - 1};
}

void FakeKernel::add_rule(Rule rule) {
    // In order of preference, after its equals.
    auto after = std::ranges::upper_bound(rules_, std::tuple(rule.family, rule.preference), {},
                                          [](const Rule& r) { return std::tuple(r.family, r.preference); });
    rules_.insert(after, std::move(rule));
}

bool FakeKernel::delete_rule(const Rule& rule) {
    auto found = std::ranges::find(rules_, rule);
    if (found == rules_.end()) return false;
    rules_.erase(found);
    return true;
}

Expected<void> FakeKernel::add_policy(XfrmPolicy policy) {
    if (std::ranges::any_of(policies_, [&](const XfrmPolicy& other) { return same_key(other, policy); }))
        return system_error(EEXIST, "adding an IPsec policy");
    if (!policy.index || std::ranges::find(policies_, policy.index, &XfrmPolicy::index) != policies_.end()) {
        policy.index = next_policy_ + static_cast<std::uint32_t>(policy.direction);
        next_policy_ += 8;
    }
    policies_.push_back(policy);
    return {};
}

bool FakeKernel::delete_policy(const XfrmPolicy& policy) {
    return std::erase_if(policies_, [&](const XfrmPolicy& other) { return same_key(other, policy); }) > 0;
}

const XfrmPolicy* FakeKernel::policy_of(const Packet& packet, const Route& route) const {
    XfrmFlow flow{.destination = packet.destination,
                  .ip_protocol = packet.ip_protocol,
                  .destination_port = packet.destination_port,
                  .link = route.link,
                  .mark = packet.mark};
    auto local = std::ranges::find_if(addresses_, [&](const Address& a) {
        return a.link == route.link && family_of(a.local) == family_of(packet.destination);
    });
    if (!route.source && local == addresses_.end()) return nullptr;
    flow.source = route.source ? *route.source : local->local;
    const XfrmPolicy* first = nullptr;
    for (const XfrmPolicy& policy : policies_)
        if (policy.direction == XfrmDirection::out && selects(policy, flow) &&
            (!first || policy.priority < first->priority))
            first = &policy;
    return first;
}

std::optional<Route> FakeKernel::lookup(const Packet& packet) const {
    Family family = family_of(packet.destination);
    std::optional<Preference> jump;
    for (const Rule& rule : rules_) {
        if (rule.family != family) continue;
        if (jump && rule.preference < *jump) continue;
        jump.reset();
        bool selected = (!rule.from || (packet.source && contains(*rule.from, *packet.source))) &&
                        (rule.iif.empty() || rule.iif == "lo") && // what this machine sends comes in by lo
                        rule.oif.empty() &&                       // it has none yet
                        (!rule.uids || (rule.uids->first <= packet.uid && packet.uid <= rule.uids->last)) &&
                        (!rule.mark || (packet.mark & rule.mark->mask) == rule.mark->value) &&
                        (!rule.to || contains(*rule.to, packet.destination)) &&
                        (!rule.ip_protocol || *rule.ip_protocol == packet.ip_protocol) &&
                        (!rule.destination_port || (rule.destination_port->first <= packet.destination_port &&
                                                    packet.destination_port <= rule.destination_port->last));
        if (selected == rule.invert) continue;
        // A goto without a rule to go to is passed over.
        if (rule.action == RuleAction::goto_ && std::ranges::any_of(rules_, [&](const Rule& target) {
                return target.family == family && target.preference == rule.target;
            }))
            jump = rule.target;
        if (rule.action == RuleAction::unreachable || rule.action == RuleAction::blackhole ||
            rule.action == RuleAction::prohibit)
            return std::nullopt;
        if (rule.action != RuleAction::to_table) continue;
        const Route* best = nullptr;
        for (const Route& route : routes_) {
            if (route.table != rule.table || family_of(route) != family) continue;
            if (!contains(route.destination, packet.destination)) continue;
            if (packet.link && route.type == RouteType::unicast && route.link != *packet.link) continue;
            if (best && (best->destination.length > route.destination.length ||
                         (best->destination.length == route.destination.length && best->metric <= route.metric)))
                continue;
            best = &route;
        }
        if (!best || best->type == RouteType::throw_) continue;
        if (rule.suppress_prefix_length && best->destination.length <= *rule.suppress_prefix_length) continue;
        return best->link.value ? std::optional(*best) : std::nullopt;
    }
    return std::nullopt;
}

Expected<Observed> FakeKernel::observe(const Scope& scope) {
    Observed observed{.links = links_, .addresses = addresses_, .rules = rules_, .cgroup_mount = "/sys/fs/cgroup"};
    std::vector<TableId> tables = scope.tables;
    tables.push_back(kMainTable);
    for (const Rule& rule : rules_)
        if (rule.protocol == kNovpnProtocol && rule.action == RuleAction::to_table) tables.push_back(rule.table);
    for (const Route& route : routes_) {
        bool stray = scope.strays && route.protocol == kNovpnProtocol;
        if (stray || std::ranges::find(tables, route.table) != tables.end()) observed.routes.push_back(route);
    }
    for (const Neighbour& gateway : gateways_to_look_at(scope, observed.routes))
        for (const Neighbour& known : neighbours)
            if (known.link == gateway.link && known.host == gateway.host) observed.place_gateways.push_back(known);
    if (scope.wifi)
        for (WifiLink link : wifi_) {
            if (!scope.bssids) link.bssid.reset();
            observed.wifi.push_back(link);
        }
    const auto destinations = telling_destinations(scope);
    for (const address& destination : destinations)
        observed.lookups.push_back({.destination = destination, .answer = lookup({.destination = destination})});
    for (const Link& link : links_)
        for (Family family : kFamilies)
            if (link.up && may_be_tunnel(link, scope.tunnels)) {
                Packet packet{.destination = *std::ranges::find(destinations, family,
                                                                [](const address& a) { return family_of(a); }),
                              .link = link.index};
                observed.lookups.push_back(
                    {.destination = packet.destination, .link = link.index, .answer = lookup(packet)});
            }
    for (const auto& [path, id] : cgroups_) {
        bool asked = std::ranges::find(scope.cgroups, path) != scope.cgroups.end();
        bool below_root = !scope.cgroup_root.empty() && path.starts_with(scope.cgroup_root + "/");
        bool empty_root =
            path == scope.cgroup_root && cgroups_.upper_bound(path + "/") == cgroups_.upper_bound(path + "0");
        if (asked || below_root || empty_root) observed.cgroups[path] = id;
    }
    observed.ipv4_of_all = ipv4_of_all_;
    if (scope.others) observed.others = others_;
    if (scope.net_cls || scope.strays) observed.net_cls = net_cls;
    observed.nft = nft_;
    observed.policies.assign(policies_.rbegin(), policies_.rend()); // the kernel lists the youngest first
    observed.birth_marks = {.unavailable = bpf_ ? "" : "no bpffs at /sys/fs/bpf",
                            .directory = "/sys/fs/bpf/novpn-4026531840",
                            .classes = birth_marks_};
    observed.redirects = {.unavailable = observed.birth_marks.unavailable, .classes = redirects_};
    return observed;
}

/// Why no route like this can be.
std::optional<Error> FakeKernel::unusable(const Route& route) const {
    auto because = [](int number) { return system_error(number, "adding a route").value(); };
    if (route.type != RouteType::unicast) return std::nullopt;
    auto link = std::ranges::find(links_, route.link, &Link::index);
    if (link == links_.end()) return because(ENODEV);
    if (!link->up) return because(ENETDOWN);
    if (!gateway_is_reachable(route)) return because(family_of(route) == Family::ipv4 ? ENETUNREACH : EHOSTUNREACH);
    if (route.source && std::ranges::find(addresses_, *route.source, &Address::local) == addresses_.end())
        return because(EINVAL);
    return std::nullopt;
}

Expected<void> FakeKernel::replace_route(Route route) {
    if (auto reason = unusable(route)) return tl::make_unexpected(*reason);
    route.link_down = has_no_carrier(route);
    auto existing = std::ranges::find_if(routes_, [&](const Route& r) { return key(r) == key(route); });
    if (existing == routes_.end())
        routes_.push_back(route);
    else if (family_of(route) == Family::ipv4 || is_default(route))
        *existing = route; // the other IPv6 routes are added beside those of other links: one that exists is done
    return {};
}

Expected<void> FakeKernel::replace_nft(const NftTable& table) {
    ObservedNft made{.present = true, .intact = true, .structure = structure_of(table), .follows = !table.idle};
    for (const ClassMarking& c : table.classes) {
        if (c.guarded) // without a guard there is no set of links
            for (IfIndex link : c.links) made.links.insert({c.name, link});
        for (std::uint32_t uid : c.users) made.users.insert({c.name, uid});
        for (const Prefix& prefix : c.destinations) made.destinations.insert({c.name, prefix});
        for (const std::string& cgroup : c.cgroups) {
            if (!cgroups_.contains(cgroup)) return system_error(ENOENT, "looking for cgroup " + cgroup);
            made.members.insert({c.name, cgroup_level(cgroup), cgroups_.at(cgroup)});
        }
        for (const auto& [path, id] : c.others) made.members.insert({c.name, cgroup_level(path), id});
    }
    nft_ = std::move(made);
    return {};
}

Expected<void> FakeKernel::apply(const Operation& operation) {
    if (refuse) {
        if (auto error = refuse(operation)) return tl::make_unexpected(*error);
    }
    struct Apply {
        FakeKernel& kernel;
        Expected<void> operator()(const ReplaceRoute& op) { return kernel.replace_route(op.route); }
        Expected<void> operator()(const DeleteRoute& op) {
            // The kernel holds them by metric: of several the lowest is found first.
            auto found = kernel.routes_.end();
            for (auto r = kernel.routes_.begin(); r != kernel.routes_.end(); ++r)
                if (is_named_by(op.route, *r) && (found == kernel.routes_.end() || r->metric < found->metric))
                    found = r;
            if (found != kernel.routes_.end()) kernel.routes_.erase(found);
            return {};
        }
        Expected<void> operator()(const AddRule& op) {
            if (std::ranges::find(kernel.rules_, op.rule) == kernel.rules_.end()) kernel.add_rule(op.rule);
            return {};
        }
        Expected<void> operator()(const DeleteRule& op) {
            kernel.delete_rule(op.rule);
            return {};
        }
        Expected<void> operator()(const AddXfrmPolicy& op) { return kernel.add_policy(op.policy); }
        Expected<void> operator()(const DeleteXfrmPolicy& op) {
            std::erase_if(kernel.policies_, [&](const XfrmPolicy& policy) {
                return policy.index == op.policy.index && policy.mark == op.policy.mark;
            });
            return {};
        }
        Expected<void> operator()(const CreateCgroup& op) {
            kernel.cgroups_.try_emplace(op.path, kernel.next_cgroup_);
            ++kernel.next_cgroup_; // a re-created cgroup has a new id
            return {};
        }
        Expected<void> operator()(const RemoveCgroup& op) {
            kernel.cgroups_.erase(op.path);
            for (auto& [_, pinned] : kernel.birth_marks_) pinned.cgroups.erase(op.path);
            for (auto& [_, pinned] : kernel.redirects_) pinned.cgroups.erase(op.path);
            kernel.processes_.erase(op.path);
            return {};
        }
        Expected<void> operator()(const MountNetCls& op) {
            if (!kernel.net_cls.mount.empty()) return {};
            kernel.net_cls.mount = op.directory;
            kernel.net_cls.mounted_by_us = true;
            return {};
        }
        Expected<void> operator()(const UnmountNetCls&) {
            kernel.net_cls.mount.clear();
            kernel.net_cls.mounted_by_us = false;
            return {};
        }
        Expected<void> operator()(const SetClassid& op) {
            if (kernel.net_cls.mount.empty()) return system_error(ENOENT, "giving a class id");
            kernel.net_cls.ours[op.path] = op.classid;
            return {};
        }
        Expected<void> operator()(const RemoveNetClsCgroup& op) {
            kernel.net_cls.ours.erase(op.path);
            kernel.net_cls_processes_.erase(op.path);
            return {};
        }
        Expected<void> operator()(const ReplaceNft& op) { return kernel.replace_nft(op.table); }
        Expected<void> operator()(const DeleteNft&) {
            kernel.nft_ = {};
            return {};
        }
        Expected<void> operator()(const AddMember& op) {
            auto id = kernel.cgroups_.find(op.cgroup);
            if (id == kernel.cgroups_.end() || !kernel.nft_.present) return system_error(ENOENT, "adding a member");
            kernel.nft_.members.insert({op.class_name, cgroup_level(op.cgroup), id->second});
            return {};
        }
        Expected<void> operator()(const RemoveMember& op) {
            kernel.nft_.members.erase(op.member);
            return {};
        }
        Expected<void> operator()(const AddLink& op) {
            if (!kernel.nft_.present) return system_error(ENOENT, "adding a link");
            kernel.nft_.links.insert(op.element);
            return {};
        }
        Expected<void> operator()(const RemoveLink& op) {
            kernel.nft_.links.erase(op.element);
            return {};
        }
        Expected<void> operator()(const PinBirthMark& op) {
            if (!kernel.bpf_) return system_error(EPERM, "loading a BPF program");
            kernel.birth_marks_[op.class_name] = {.program = program_of(op.birth), .cgroups = {}};
            return {};
        }
        Expected<void> operator()(const UnpinBirthMark& op) {
            kernel.birth_marks_.erase(op.class_name);
            return {};
        }
        Expected<void> operator()(const AttachBirthMark& op) {
            auto pinned = kernel.birth_marks_.find(op.class_name);
            if (pinned == kernel.birth_marks_.end() ||
                (!kernel.cgroups_.contains(op.cgroup) && !kernel.others_.contains(op.cgroup)))
                return system_error(ENOENT, "attaching a BPF program");
            pinned->second.cgroups.insert(op.cgroup);
            return {};
        }
        Expected<void> operator()(const DetachBirthMark& op) {
            auto pinned = kernel.birth_marks_.find(op.class_name);
            if (pinned == kernel.birth_marks_.end())
                return kernel.cgroups_.contains(op.cgroup) ? system_error(ENOENT, "detaching a BPF program")
                                                           : Expected<void>();
            pinned->second.cgroups.erase(op.cgroup);
            return {};
        }
        Expected<void> operator()(const PinRedirect& op) {
            if (!kernel.bpf_) return system_error(EPERM, "loading a BPF program");
            kernel.redirects_[op.class_name] = {.program = redirect_program_of(op.mark)};
            return {};
        }
        Expected<void> operator()(const UnpinRedirect& op) {
            kernel.redirects_.erase(op.class_name);
            return {};
        }
        Expected<void> operator()(const SetResolvers& op) {
            auto pinned = kernel.redirects_.find(op.class_name);
            if (pinned == kernel.redirects_.end()) return system_error(ENOENT, "setting resolvers");
            pinned->second.resolvers = op.resolvers;
            return {};
        }
        Expected<void> operator()(const AttachRedirect& op) {
            auto pinned = kernel.redirects_.find(op.class_name);
            if (pinned == kernel.redirects_.end() ||
                (!kernel.cgroups_.contains(op.cgroup) && !kernel.others_.contains(op.cgroup)))
                return system_error(ENOENT, "attaching a BPF program");
            pinned->second.cgroups.insert(op.cgroup);
            return {};
        }
        Expected<void> operator()(const DetachRedirect& op) {
            auto pinned = kernel.redirects_.find(op.class_name);
            if (pinned != kernel.redirects_.end()) pinned->second.cgroups.erase(op.cgroup);
            return {};
        }
        Expected<void> operator()(const DropConnection& op) {
            std::erase(kernel.open_connections, op.connection);
            return {};
        }
        Expected<void> operator()(const AddConnections& op) {
            for (const OpenSocket& s : op.sockets)
                kernel.open_connections.push_back({.ip_protocol = s.ip_protocol,
                                                   .source = s.local,
                                                   .source_port = s.local_port,
                                                   .destination = *s.remote,
                                                   .destination_port = s.remote_port,
                                                   .translated = s.local});
            return {};
        }
        Expected<void> operator()(const SetSrcValidMark& op) {
            auto link = std::ranges::find(kernel.links_, op.link, &Link::index);
            if (link == kernel.links_.end())
                return op.on ? system_error(ENODEV, "setting src_valid_mark") : Expected<void>();
            link->ipv4.src_valid_mark = op.on ? 1 : 0;
            link->ipv4.tag = op.on ? kNovpnTag : 0;
            return {};
        }
        Expected<void> operator()(const ForgetNeighbour& op) {
            std::erase_if(kernel.neighbours, [&](const Neighbour& known) {
                return known.link == op.neighbour.link && known.host == op.neighbour.host;
            });
            return {};
        }
        Expected<void> operator()(const ProbeNeighbour& op) {
            auto same = [&](const Neighbour& n) { return n.link == op.neighbour.link && n.host == op.neighbour.host; };
            auto known = std::ranges::find_if(kernel.neighbours, same);
            if (known == kernel.neighbours.end())
                known = kernel.neighbours.insert(known, {.link = op.neighbour.link, .host = op.neighbour.host});
            auto answers = kernel.macs_.find({op.neighbour.link, op.neighbour.host});
            known->mac.reset();
            known->state = NeighbourState::incomplete;
            if (answers == kernel.macs_.end()) return {};
            known->mac = answers->second;
            known->state = NeighbourState::reachable;
            return {};
        }
        Expected<void> operator()(const ChangeElements& op) {
            if (!kernel.nft_.present) return system_error(ENOENT, "changing elements");
            for (const auto& member : op.change.members_to_remove)
                if (!kernel.nft_.members.contains(member)) return system_error(ENOENT, "changing elements");
            for (const auto& member : op.change.members_to_remove) kernel.nft_.members.erase(member);
            kernel.nft_.members.insert(op.change.members_to_add.begin(), op.change.members_to_add.end());
            for (const auto& user : op.change.users_to_remove) kernel.nft_.users.erase(user);
            for (const auto& destination : op.change.destinations_to_remove)
                kernel.nft_.destinations.erase(destination);
            kernel.nft_.users.insert(op.change.users_to_add.begin(), op.change.users_to_add.end());
            kernel.nft_.destinations.insert(op.change.destinations_to_add.begin(), op.change.destinations_to_add.end());
            return {};
        }
        Expected<void> operator()(const EndSocket& op) {
            std::erase(kernel.open_sockets, op.socket);
            return {};
        }
    };
    return std::visit(Apply{*this}, operation);
}

Expected<Lookup> FakeKernel::lookup(const address& destination, std::optional<Mark> mark) {
    auto answer = lookup({.destination = destination, .mark = mark ? mark->value : 0});
    return Lookup{.destination = destination, .mark = mark, .answer = answer};
}

std::optional<std::string> FakeKernel::cgroup_of(pid_t pid) {
    for (const auto& [path, pids] : processes_)
        if (std::ranges::find(pids, pid) != pids.end()) return path;
    return std::nullopt;
}

std::uint64_t FakeKernel::add_other(const std::string& path, uid_t owner) {
    others_[path] = {.id = next_cgroup_, .owner = owner};
    return next_cgroup_++;
}

void FakeKernel::remove_other(const std::string& path) {
    for (auto at = others_.begin(); at != others_.end();) {
        if (at->first != path && !at->first.starts_with(path + "/")) {
            ++at;
            continue;
        }
        for (auto& [_, pinned] : birth_marks_) pinned.cgroups.erase(at->first);
        for (auto& [_, pinned] : redirects_) pinned.cgroups.erase(at->first);
        processes_.erase(at->first);
        at = others_.erase(at);
    }
}

Expected<std::vector<Connection>> FakeKernel::connections(const std::optional<Mark>& with) {
    std::vector<Connection> found = open_connections;
    if (with) std::erase_if(found, [&](const Connection& c) { return (c.mark & with->mask) != with->value; });
    return found;
}

std::set<std::uint64_t> FakeKernel::cgroup_ids(const std::string& cgroup) {
    if (others_.contains(cgroup)) {
        std::set<std::uint64_t> ids;
        for (const auto& [path, seen] : others_)
            if (path == cgroup || path.starts_with(cgroup + "/")) ids.insert(seen.id);
        return ids;
    }
    auto found = cgroups_.find(cgroup);
    return found == cgroups_.end() ? std::set<std::uint64_t>{} : std::set{found->second};
}

Expected<void> FakeKernel::place(const std::string& cgroup, pid_t pid) {
    for (auto& [_, pids] : processes_) std::erase(pids, pid);
    if (!cgroup.empty() && !cgroups_.contains(cgroup) && !others_.contains(cgroup))
        return system_error(ENOENT, "placing a process in " + cgroup);
    processes_[cgroup].push_back(pid);
    return {};
}

std::optional<std::string> FakeKernel::net_cls_of(pid_t pid) {
    if (net_cls.mount.empty()) return std::nullopt;
    for (const auto& [path, pids] : net_cls_processes_)
        if (std::ranges::find(pids, pid) != pids.end()) return path;
    return "";
}

Expected<void> FakeKernel::place_in_net_cls(const std::string& cgroup, pid_t pid) {
    for (auto& [_, pids] : net_cls_processes_) std::erase(pids, pid);
    if (net_cls.mount.empty() || (!cgroup.empty() && !net_cls.ours.contains(cgroup)))
        return system_error(ENOENT, "placing a process in " + cgroup);
    net_cls_processes_[cgroup].push_back(pid);
    return {};
}

} // namespace novpn::test
