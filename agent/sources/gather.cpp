#include "agent/sources/gather.h"

#include "agent/sources/files.h"
#include "agent/sources/networkmanager.h"
#include "netlink/rtnetlink.h"

#include <algorithm>
#include <charconv>
#include <map>

namespace novpn {

namespace {

/// One lease; dhclient appends to its file and rewrites it now and then.
constexpr std::size_t kMaxLease = 64 * 1024;
constexpr std::size_t kMaxLeases = 1024 * 1024;

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
    }

    void networkd(const std::string& directory) {
        auto is_number = [](std::string_view name) {
            return name.find_first_not_of("0123456789") == std::string_view::npos;
        };
        for (const SourceFile& file : read_files(directory, kMaxLease, is_number)) {
            IfIndex link;
            auto parsed = std::from_chars(file.name.data(), file.name.data() + file.name.size(), link.value);
            // A number that is too large names no link.
            if (parsed.ec != std::errc{} || std::ranges::find(links_, link, &Link::index) == links_.end()) continue;
            add(UplinkSource::networkd, link, parse_networkd_lease(file.content, file.written));
        }
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

  private:
    const std::vector<Link>& links_;
    WallClock::time_point now_;
    std::vector<Hint> hints_;
};

} // namespace

std::vector<Hint> hints_of_files(const std::string& root, const std::vector<Link>& links, WallClock::time_point now) {
    Collector collector(links, now);
    collector.networkd(root + "/run/systemd/netif/leases");
    // Debian's and Fedora's; NetworkManager's where it is told to use dhclient.
    for (const char* directory : {"/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/NetworkManager"})
        collector.dhclient(root + directory);
    collector.dhcpcd(root + "/var/lib/dhcpcd");
    return std::move(collector).hints();
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
    for (const LinkGateway& found : gateways_of(ask_networkmanager(at_most)))
        if (auto link = index_of(*links, found.link))
            hints.given.push_back(
                {.from = UplinkSource::networkmanager, .link = *link, .gateway = found.gateway, .local = found.local});
    if (auto neighbours = socket->neighbours()) {
        auto routers = hints_of_routers(*neighbours);
        hints.given.insert(hints.given.end(), routers.begin(), routers.end());
        hints.neighbours = std::move(*neighbours);
    }
    return hints;
}

} // namespace novpn
