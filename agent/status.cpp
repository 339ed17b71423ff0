#include "agent/status.h"

#include "agent/old_sockets.h"

#include <boost/json/array.hpp>
#include <fmt/format.h>
#include <sys/stat.h>

namespace novpn {

namespace {

namespace json = boost::json;

json::value or_null(const std::optional<address>& a) { return a ? json::value(a->to_string()) : json::value(nullptr); }

json::object to_json(const Takeover& takeover) {
    json::object object{{"shape", to_string(takeover.shape)}, {"link", nullptr}, {"table", nullptr}};
    if (takeover.link) object["link"] = takeover.link_name;
    if (takeover.table) object["table"] = takeover.table->value;
    object["preference"] = takeover.preference ? json::value(takeover.preference->value) : json::value(nullptr);
    return object;
}

json::object to_json(const Selection& selection, const std::vector<Takeover>& takeovers) {
    json::object family;
    if (selection.uplink) {
        family["uplink"] = {{"link", selection.uplink->link_name},
                            {"ifindex", selection.uplink->link.value},
                            {"gateway", or_null(selection.uplink->gateway)},
                            {"source", or_null(selection.uplink->source)},
                            {"from", to_string(selection.from)},
                            {"reason", selection.reason}};
    } else {
        family["uplink"] = nullptr;
        family["reason"] = selection.reason;
    }
    json::array list;
    for (const Takeover& takeover : takeovers) list.push_back(to_json(takeover));
    family["takeovers"] = std::move(list);
    return family;
}

/// As the kernel has it, not as it should be.
bool is_marked_at_birth(const ClassConfig& c, const StatusFacts& facts) {
    const auto& pinned = facts.observed.birth_marks.classes;
    auto found = pinned.find(c.name);
    return found != pinned.end() && found->second.cgroups.contains(cgroup_of(c, facts.cgroup_root));
}

bool has_tunnel_address(const OpenSocket& socket, const StatusFacts& facts) {
    return std::ranges::any_of(facts.observed.addresses, [&](const Address& a) {
        const Link* link = find_link(facts.observed, a.link);
        return a.local == socket.local && link && is_tunnel(*link, facts.observed, facts.config);
    });
}

json::object to_json(std::string selector, const ClassDecision& selecting, const StatusFacts& facts) {
    SelectedSockets counted;
    for (const OpenSocket& socket : facts.sockets) {
        if (!selects(selecting, socket) || !leaves_this_machine(socket)) continue;
        ++counted.sockets;
        if (!has_tunnel_address(socket, facts)) continue;
        ++counted.old_sockets;
        counted.named.push_back(named(socket, 0));
    }
    return {{"selector", std::move(selector)},
            {"sockets", counted.sockets},
            {"old_sockets", counted.old_sockets},
            {"old", to_json(counted.named)}};
}

/// One for each user, for each destination that has a policy rule, and one for those beyond. A destination beyond has
/// sockets with the tunnel's address as a rule, and they are masqueraded: none is called old.
json::array selected_members(const ClassConfig& c, const ClassDecision& decision, const StatusFacts& facts) {
    json::array members;
    for (const UserSelector& user : c.users)
        if (decision.users.contains(user.uid))
            members.push_back(to_json("user " + user.name, {.users = {user.uid}}, facts));
    const auto& all = decision.destinations;
    const std::size_t with_rule = std::min(all.size(), kMaxDestinationRules);
    for (std::size_t i = 0; i < with_rule; ++i)
        members.push_back(to_json("destination " + to_string(all[i]), {.destinations = {all[i]}}, facts));
    if (with_rule == all.size()) return members;
    const std::vector<Prefix> beyond(all.begin() + static_cast<std::ptrdiff_t>(with_rule), all.end());
    json::object rest = to_json(fmt::format("{} more destinations", beyond.size()), {.destinations = beyond}, facts);
    rest["old_sockets"] = 0;
    rest["old"] = json::array{};
    members.push_back(std::move(rest));
    return members;
}

json::object to_json(const ClassConfig& c, const StatusFacts& facts) {
    PacketCounts packets;
    if (auto found = facts.packets.find(c.name); found != facts.packets.end()) packets = found->second;
    Members members;
    if (auto found = facts.members.find(c.name); found != facts.members.end()) members = found->second;
    json::value state = nullptr;
    json::value dns = nullptr;
    json::object uplinks{{"ipv4", nullptr}, {"ipv6", nullptr}};
    if (facts.desired) {
        const ClassDecision& decision = facts.desired->classes.at(c.name);
        state = to_string(decision.state);
        dns = novpn::to_json(decision.dns);
        for (const auto& [family, selection] : decision.ways_out)
            if (selection.uplink && decision.state != ClassState::off)
                uplinks[to_string(family)] = selection.uplink->link_name;
    }
    json::array backend;
    if (is_marked_at_birth(c, facts)) backend.emplace_back("bpf");
    backend.emplace_back("nft");
    json::array members_of_class;
    const std::string own = cgroup_of(c, facts.cgroup_root);
    const bool by_net_cls = facts.observed.net_cls.ours.contains(own);
    if (by_net_cls) {
        backend.emplace_back("net_cls");
        std::size_t processes = 0;
        if (auto found = facts.net_cls_members.find(c.name); found != facts.net_cls_members.end())
            processes = found->second;
        // Which of their sockets are old cannot be told: the kernel tags them all.
        members_of_class.push_back({{"cgroup", facts.observed.net_cls.mount + "/" + own},
                                    {"selector", "run"},
                                    {"processes", processes},
                                    {"old_sockets", 0},
                                    {"old", json::array{}}});
    }
    // Beside net_cls it has those of another config.
    if (!by_net_cls || members.processes > 0)
        members_of_class.push_back({{"cgroup", own},
                                    {"selector", "run"},
                                    {"processes", members.processes},
                                    {"old_sockets", members.old_sockets},
                                    {"old", to_json(members.named)}});
    std::size_t matched = 0;
    if (facts.desired) {
        for (const auto& [path, cgroup] : facts.desired->classes.at(c.name).matched) {
            ++matched;
            if (auto of = facts.matched.find(path); of != facts.matched.end())
                members_of_class.push_back({{"cgroup", path},
                                            {"selector", cgroup.selector},
                                            {"processes", of->second.processes},
                                            {"old_sockets", of->second.old_sockets},
                                            {"old", to_json(of->second.named)}});
        }
    }
    if (facts.desired)
        for (auto& selected : selected_members(c, facts.desired->classes.at(c.name), facts))
            members_of_class.push_back(std::move(selected));
    return {
        {"name", c.name},
        {"table", c.table.value},
        {"mark", c.mark.value},
        {"mask", c.mark.mask},
        {"preference", c.preference.value},
        {"state", std::move(state)},
        {"uplinks", std::move(uplinks)},
        {"backend", std::move(backend)},
        {"dns", std::move(dns)},
        {"members", std::move(members_of_class)},
        {"matched", matched},
        {"packets", {{"marked", packets.marked}, {"masqueraded", packets.masqueraded}, {"dropped", packets.dropped}}}};
}

/// What sites are told by, in the words of their `match`.
json::array to_json(const Place& place) {
    json::array signs;
    const auto add = [&](const char* key, const std::string& value) {
        signs.push_back({{"key", key}, {"value", value}});
    };
    for (const WifiLink& wifi : place.wifi) {
        if (!wifi.ssid.empty()) add("ssid", ssid_text(wifi.ssid));
        if (wifi.bssid) add("bssid", to_string(*wifi.bssid));
    }
    for (const Neighbour& gateway : place.gateways)
        if (gateway.mac) add("gateway_mac", to_string(*gateway.mac));
    for (const Prefix& network : place.networks) add("network", to_string(network));
    for (const std::string& domain : place.domains) add("domain", domain);
    return signs;
}

/// What carries the VPN, each once: "the VPN on tun0 and wg0", "the VPN by IPsec policies"; empty without one.
std::string vpn_of(const Desired& desired) {
    std::vector<std::string> names;
    for (const auto& [_, takeovers] : desired.takeovers) {
        for (const Takeover& takeover : takeovers) {
            std::string name = takeover.link ? takeover.link_name : "IPsec policies";
            if (std::ranges::find(names, name) == names.end()) names.push_back(name);
        }
    }
    if (names.empty()) return {};
    return fmt::format("the VPN {} {}", names.front() == "IPsec policies" ? "by" : "on", fmt::join(names, " and "));
}

/// One way out for both families is said once.
std::string ways_out(const ClassDecision& decision) {
    const auto& ipv4 = decision.ways_out.at(Family::ipv4).uplink;
    const auto& ipv6 = decision.ways_out.at(Family::ipv6).uplink;
    if (ipv4 && ipv6 && ipv4->link != ipv6->link)
        return fmt::format("{} (IPv4) and {} (IPv6)", ipv4->link_name, ipv6->link_name);
    return ipv4 ? ipv4->link_name : ipv6->link_name;
}

std::string first_line(const StatusFacts& facts) {
    if (!facts.desired) return "The kernel's state cannot be read; see the warnings below.";
    for (const char* code : {kRuleOrderWarning, kPolicyWarning, kFirewallWarning})
        if (auto astray = facts.warnings.find(code); astray != facts.warnings.end()) return astray->second;
    return summary(*facts.desired, facts.config);
}

std::string health(const StatusFacts& facts) {
    if (!facts.desired) return "degraded";
    for (const auto& [_, decision] : facts.desired->classes)
        if (decision.state == ClassState::blocked) return "blocked";
    return facts.warnings.empty() ? "ok" : "degraded";
}

} // namespace

json::object to_json(const DnsDecision& dns) {
    json::array servers, asked;
    for (const address& server : dns.servers) servers.emplace_back(server.to_string());
    for (const auto& [server, _] : dns.resolvers) asked.emplace_back(server.to_string());
    json::value from = dns.servers.empty() ? json::value(nullptr) : json::value(to_string(dns.from));
    return {{"by", to_string(dns.state)},
            {"servers", std::move(servers)},
            {"from", std::move(from)},
            {"asked", std::move(asked)}};
}

std::string summary(const Desired& desired, const Config& config) {
    // One class is spoken of: the first that needs a person, else the built-in one.
    const ClassConfig* spoken_of = &builtin_class(config);
    for (const ClassConfig& c : config.classes)
        if (desired.classes.contains(c.name) && desired.classes.at(c.name).state == ClassState::blocked) {
            spoken_of = &c;
            break;
        }
    const std::string& name = spoken_of->name;
    if (!desired.classes.contains(name)) return fmt::format("Class {} is new.", name);
    const ClassDecision& decision = desired.classes.at(name);
    std::string vpn = vpn_of(desired);
    switch (decision.state) {
    case ClassState::blocked:
        if (!spoken_of->via.empty())
            return fmt::format("Class {} is blocked: its tunnel {} is not there. Connect that VPN.", name,
                               spoken_of->via);
        return fmt::format("Class {} is blocked: there is no way out{}. Connect to a network.", name,
                           vpn.empty() ? "" : " besides " + vpn);
    case ClassState::tunnel:
        return fmt::format("Class {} goes wherever everything else goes: there is no uplink, and the config says so.",
                           name);
    case ClassState::off:
        return fmt::format("Class {} is off{}: its programs go where everything else goes.", name,
                           !decision.off_by_site ? ""
                           : desired.site.name   ? " at site " + *desired.site.name
                                                 : " until the site is known");
    case ClassState::steering: break;
    }
    if (!spoken_of->via.empty()) return fmt::format("Class {} leaves by the tunnel {}.", name, ways_out(decision));
    if (vpn.empty())
        return fmt::format("No VPN has taken over; class {} leaves by {} like everything else.", name,
                           ways_out(decision));
    return fmt::format("Class {} leaves by {}, outside {}.", name, ways_out(decision), vpn);
}

json::object to_status(const StatusFacts& facts) {
    json::object status{
        {"version", NOVPN_VERSION}, {"summary", first_line(facts)}, {"health", health(facts)}, {"site", nullptr}};
    json::array sites;
    if (facts.desired) {
        const SiteDecision& site = facts.desired->site;
        if (site.name) status["site"] = *site.name;
        for (const SiteVerdict& verdict : site.verdicts) {
            static constexpr const char* kWords[] = {"no", "unknown", "yes"};
            json::array failed;
            for (const std::string& key : verdict.failed) failed.emplace_back(key);
            sites.push_back({{"name", verdict.name},
                             {"matches", kWords[static_cast<std::size_t>(verdict.matches)]},
                             {"failed", std::move(failed)}});
        }
    }
    status["sites"] = std::move(sites);
    status["place"] = facts.desired ? to_json(facts.desired->place) : json::array{};
    json::object families;
    for (Family family : kFamilies) {
        families[to_string(family)] =
            facts.desired ? to_json(facts.desired->uplinks.at(family), facts.desired->takeovers.at(family))
                          : json::object{{"uplink", nullptr}, {"takeovers", json::array{}}};
    }
    status["families"] = std::move(families);
    json::array classes;
    for (const ClassConfig& c : facts.config.classes) classes.push_back(to_json(c, facts));
    status["classes"] = std::move(classes);
    status["repairs"] = facts.repairs;
    status["last_reaction_us"] = facts.last_reaction ? json::value(facts.last_reaction->count()) : json::value(nullptr);
    json::array warnings;
    for (const auto& [code, text] : facts.warnings) warnings.push_back({{"code", code}, {"text", text}});
    status["warnings"] = std::move(warnings);
    return status;
}

std::vector<pid_t> visible_processes(std::vector<pid_t> processes, const Caller& caller) {
    if (caller.uid == 0) return processes;
    std::erase_if(processes, [&](pid_t pid) {
        struct stat owner {};
        return ::stat(fmt::format("/proc/{}", pid).c_str(), &owner) != 0 || owner.st_uid != caller.uid;
    });
    return processes;
}

std::string describe(const std::optional<Uplink>& uplink) {
    if (!uplink) return "none";
    return uplink->gateway ? fmt::format("{} via {}", uplink->link_name, uplink->gateway->to_string())
                           : uplink->link_name;
}

std::string describe(const std::vector<Takeover>& takeovers) {
    if (takeovers.empty()) return "none";
    std::vector<std::string> parts;
    for (const Takeover& takeover : takeovers)
        parts.push_back(to_string(takeover.shape) + (takeover.link ? " by " + takeover.link_name : ""));
    return fmt::format("{}", fmt::join(parts, ", "));
}

} // namespace novpn
