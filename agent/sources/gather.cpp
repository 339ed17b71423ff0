#include "agent/sources/gather.h"

#include "agent/sources/files.h"
#include "agent/sources/name_servers.h"
#include "agent/sources/networkmanager.h"
#include "netlink/rtnetlink.h"

#include <algorithm>
#include <charconv>
#include <map>

namespace novpn {

namespace {

/// One lease; dhclient appends to its file and rewrites it now and then.
constexpr std::size_t kMaxLease = 65536;
constexpr std::size_t kMaxLeases = 1048576;

std::optional<IfIndex> index_of(const std::vector<Link>& links, std::string_view name) {
    auto found = std::ranges::find(links, name, &Link::name);
    return found == links.end() ? std::nullopt : std::optional(found->index);
}

/// The link of dhcpcd's NAME.lease or NAME-SSID.lease. A name may itself have a "-": the longest is meant.
std::optional<IfIndex> link_of_dhcpcd(const std::vector<Link>& links, std::string_view file) {
    const Link* best = nullptr;
    for (const Link& link : links) {
        if (!file.starts_with(link.name) || (best && best->name.size() >= link.name.size())) continue;
        char next = file[link.name.size()]; // there is one: the file's name ends with ".lease"
        if (next == '-' || file.substr(link.name.size()) == ".lease") best = &link;
    }
    return best ? std::optional(best->index) : std::nullopt;
}

class Collector {
  public:
    Collector(const std::vector<Link>& links, WallClock::time_point now)
        : links_(links)
        , now_(now) {}

    void add(UplinkSource from, std::optional<IfIndex> link, const std::optional<Lease>& lease) {
        if (!link || !lease || lease->expires <= now_) return;
        hints_.push_back({.from = from, .link = *link, .gateway = lease->gateway, .local = lease->local});
        const auto resolvers = from == UplinkSource::networkd ? ResolverSource::networkd : ResolverSource::lease;
        add({.from = resolvers,
             .link = *link,
             .servers = lease->resolvers,
             .local = lease->local,
             .domains = lease->domains});
    }

    void add(LinkResolvers said) {
        if (!said.servers.empty() || !said.domains.empty()) resolvers_.push_back(std::move(said));
    }

    /// Files named for the index of their link.
    template<typename Take>
    void by_index(const std::string& directory, Take take) {
        auto is_number = [](std::string_view name) {
            return name.find_first_not_of("0123456789") == std::string_view::npos;
        };
        for (const SourceFile& file : read_files(directory, kMaxLease, is_number)) {
            IfIndex link;
            auto parsed = std::from_chars(file.name.data(), file.name.data() + file.name.size(), link.value);
            // A number that is too large names no link.
            if (parsed.ec != std::errc{} || std::ranges::find(links_, link, &Link::index) == links_.end()) continue;
            take(link, file);
        }
    }

    /// What a program of systemd has for its links, in lines of KEY=VALUE.
    void servers_by_index(ResolverSource from, const std::string& directory, std::string_view key) {
        by_index(directory, [&](IfIndex link, const SourceFile& file) {
            add({.from = from,
                 .link = link,
                 .servers = parse_servers(value_of(file.content, key)),
                 .domains = parse_domains(value_of(file.content, "DOMAINS"))});
        });
    }

    void networkd(const std::string& directory) {
        by_index(directory, [&](IfIndex link, const SourceFile& file) {
            add(UplinkSource::networkd, link, parse_networkd_lease(file.content, file.written));
        });
    }

    void dhclient(const std::string& directory) {
        auto wanted = [](std::string_view name) {
            return name.starts_with("dhclient") && (name.ends_with(".leases") || name.ends_with(".lease"));
        };
        for (const SourceFile& file : read_files(directory, kMaxLeases, wanted))
            for (const LinkLease& found : parse_dhclient_leases(file.content))
                add(UplinkSource::lease, index_of(links_, found.link), found.lease);
    }

    void dhcpcd(const std::string& directory) {
        auto wanted = [](std::string_view name) { return name.ends_with(".lease"); };
        for (const SourceFile& file : read_files(directory, kMaxLease, wanted)) {
            auto bytes = std::as_bytes(std::span(file.content));
            add(UplinkSource::lease, link_of_dhcpcd(links_, file.name), parse_dhcpcd_lease(bytes, file.written));
        }
    }

    std::vector<Hint> hints() && { return std::move(hints_); }
    std::vector<LinkResolvers> resolvers() && { return std::move(resolvers_); }

  private:
    const std::vector<Link>& links_;
    WallClock::time_point now_;
    std::vector<Hint> hints_;
    std::vector<LinkResolvers> resolvers_;
};

void collect_leases(Collector& collector, const std::string& root) {
    collector.networkd(root + "/run/systemd/netif/leases");
    // Debian's and Fedora's; NetworkManager's where it is told to use dhclient.
    for (const char* directory : {"/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/NetworkManager"})
        collector.dhclient(root + directory);
    collector.dhcpcd(root + "/var/lib/dhcpcd");
}

} // namespace

std::vector<Hint> hints_of_files(const std::string& root, const std::vector<Link>& links, WallClock::time_point now) {
    Collector collector(links, now);
    collect_leases(collector, root);
    return std::move(collector).hints();
}

NameServers name_servers_of_files(const std::string& root, const std::vector<Link>& links, WallClock::time_point now) {
    Collector collector(links, now);
    collector.servers_by_index(ResolverSource::resolved, root + "/run/systemd/resolve/netif", "SERVERS");
    // What systemd-networkd has by any way: static, DHCP of both families, router advertisements.
    collector.servers_by_index(ResolverSource::networkd, root + "/run/systemd/netif/links", "DNS");
    collect_leases(collector, root);
    NameServers servers{.of_links = std::move(collector).resolvers()};
    if (auto text = read_file(root + "/etc/resolv.conf", kMaxLease)) {
        servers.of_machine = parse_resolv_conf(*text);
        servers.domains_of_machine = parse_search_domains(*text);
    }
    return servers;
}

void keep_current(NameServers& servers, const std::vector<Address>& addresses) {
    auto on_link = [&](const LinkResolvers& said, auto condition) {
        return std::ranges::any_of(addresses, [&](const Address& a) { return a.link == said.link && condition(a); });
    };
    std::erase_if(servers.of_links, [&](const LinkResolvers& said) {
        return said.local && !on_link(said, [&](const Address& a) { return a.local == *said.local; });
    });
    for (const Address& a : addresses) servers.networks.insert({a.link, prefix_of(a.local, a.prefix_length)});
    for (LinkResolvers& said : servers.of_links)
        for (const Address& a : addresses)
            if (a.link == said.link && !(a.local.is_v6() && a.local.to_v6().is_link_local()))
                said.networks.insert(prefix_of(a.local, a.prefix_length));
}

std::vector<Hint> hints_of_routers(const std::vector<Neighbour>& neighbours) {
    std::map<IfIndex, std::vector<address>> routers;
    for (const Neighbour& n : neighbours) {
        bool link_local = n.host.is_v6() && n.host.to_v6().is_link_local();
        if (n.router && link_local && n.state != NeighbourState::failed) routers[n.link].push_back(n.host);
    }
    std::vector<Hint> hints;
    for (const auto& [link, hosts] : routers)
        if (hosts.size() == 1) hints.push_back({.from = UplinkSource::ra, .link = link, .gateway = hosts.front()});
    return hints;
}

Hints gather(const std::string& root, WallClock::time_point now, std::chrono::milliseconds at_most) {
    Hints hints;
    auto socket = RouteSocket::open();
    if (!socket) return hints;
    auto links = socket->links();
    if (!links) return hints;
    hints.given = hints_of_files(root, *links, now);
    hints.name_servers = name_servers_of_files(root, *links, now);
    const auto [came, objects] = ask_networkmanager(at_most);
    hints.networkmanager = came;
    for (const LinkGateway& found : gateways_of(objects))
        if (auto link = index_of(*links, found.link))
            hints.given.push_back(
                {.from = UplinkSource::networkmanager, .link = *link, .gateway = found.gateway, .local = found.local});
    for (const LinkNameServers& found : name_servers_of(objects))
        if (auto link = index_of(*links, found.link))
            hints.name_servers.of_links.push_back({.from = ResolverSource::networkmanager,
                                                   .link = *link,
                                                   .servers = found.servers,
                                                   .domains = found.domains});
    if (auto addresses = socket->addresses()) keep_current(hints.name_servers, *addresses);
    if (auto neighbours = socket->neighbours()) {
        auto routers = hints_of_routers(*neighbours);
        hints.given.insert(hints.given.end(), routers.begin(), routers.end());
        hints.neighbours = std::move(*neighbours);
    }
    return hints;
}

} // namespace novpn
