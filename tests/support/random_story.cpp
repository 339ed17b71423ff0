#include "tests/support/random_story.h"

#include <fmt/format.h>

namespace novpn::test {

namespace {

struct NewLink {
    const char* name;
    const char* words;
};
constexpr NewLink kPhysical[] = {
    {"eth0", ""},           {"wlan0", ""}, {"enx0", ""}, {"wwan0", " raw-ip"}, {"ppp0", " kind ppp ppp"},
    {"br0", " kind bridge"}};
constexpr NewLink kTunnels[] = {{"tun0", " kind tun"},
                                {"tun1", " kind tun"},
                                {"wg0", " kind wireguard"},
                                {"tap0", " tap"},
                                {"ppp1", " kind ppp ppp"}};
constexpr const char* kNames[] = {"lan0", "eth0", "wlan0", "corp0", "tun0", "guest0"};
constexpr const char* kFamilyWords[] = {"ipv4", "ipv6"};

const std::vector<std::vector<std::string>>& configs() {
    static const std::vector<std::vector<std::string>> kConfigs{
        {},
        {},
        {"uplinks:", "  prefer: [\"wl*\", wwan0]", "  ignore: [guest0]", "tunnels:", "  links: [\"corp*\"]"},
        {"classes:", "  novpn:", "    dns: uplink"},
        {"classes:", "  novpn: {}", "  backup:", "    uplink: \"w*\"", "    table: 7867",
         "    mark: 0x4f000000/0xff000000", "    preference: 70", "  work:", "    via: \"tun*\"", "    table: 7868",
         "    mark: 0x50000000/0xff000000", "    preference: 80"},
        {"classes:", "  novpn:", "    when_no_uplink: tunnel", "  games:", "    table: 7867",
         "    mark: 0x4f000000/0xff000000", "    preference: 200"},
        // The networks of joins_network are sites 1 to 3.
        {"sites:", "  - {name: office, match: {ssid: [\"Corp*\", Site1]}, classes: {novpn: off}}",
         "  - {name: home, match: {network: 192.168.2.0/24, link: \"[elw]*\"},",
         "     classes: {novpn: {add: {destinations: [203.0.113.0/24]}}}}",
         "  - {name: desk, match: {bssid: \"02:00:00:00:00:03\"}, classes: {novpn: {when_no_uplink: tunnel}}}"},
        {"classes:", "  novpn: {enabled: false}", "  backup:", "    table: 7867", "    mark: 0x4f000000/0xff000000",
         "    preference: 70", "    destinations: [198.51.100.0/24]",
         "sites:", "  - {name: office, match: {domain: \"site1.*\"}, classes: {backup: off}}",
         "  - {name: home, match: {gateway_mac: \"02:00:00:00:00:02\"}, classes: {novpn: on}}",
         "  - {name: inside, match: {tunnel: \"tun*\"}, uplinks: {prefer: [\"w*\"]},",
         "     classes: {novpn: on, backup: {destinations: [203.0.113.0/24]}}}"},
        {"classes:", "  work:", "    via: \"tun*\"", "    table: 7868", "    mark: 0x50000000/0xff000000",
         "    preference: 80", "sites:",
         "  - {name: cafe, match: {network: [192.168.3.0/24, \"2001:db8:3::/64\"]}, classes: {work: on, novpn: off}}",
         "  - {name: lan, match: {link: \"eth*\"}, uplinks: {ignore: [\"w*\"]}, classes: {work: off}}"},
    };
    return kConfigs;
}

bool looks_like_tunnel(const Link& link) { return may_be_tunnel(link, {"corp*"}); }

} // namespace

std::string to_text(const Story& story) {
    std::string text;
    for (const StoryLine& line : story) {
        text += line.text + "\n";
        for (const std::string& of_block : line.block) text += "  " + of_block + "\n";
    }
    return text;
}

StoryTeller::StoryTeller(std::uint32_t seed)
    : random_(seed) {
    constexpr int kChances[] = {100, 50, 15};
    percent_noticed_ = kChances[pick(3)];
}

// The standard's distributions differ from library to library.
int StoryTeller::pick(int below) { return static_cast<int>(random_() % static_cast<std::uint32_t>(below)); }
bool StoryTeller::chance(int percent) { return pick(100) < percent; }
template<typename Values>
const auto& StoryTeller::one_of(const Values& values) {
    return values[static_cast<std::size_t>(pick(static_cast<int>(std::size(values))))];
}

void StoryTeller::tell(std::string text) { waiting_.push_back(std::move(text)); }
/// What a client leaves out one time in five, as it fails or is another version.
void StoryTeller::tell_rarely(const std::string& text) {
    if (!chance(20)) tell(text);
}

std::string StoryTeller::some_link(Player& player, bool tunnel) {
    std::vector<std::string> names;
    for (const Link& link : player.kernel().links())
        if (!link.loopback && looks_like_tunnel(link) == tunnel) names.push_back(link.name);
    return names.empty() ? "none" : one_of(names);
}

Story StoryTeller::beginning() {
    Story story;
    if (const auto& config = one_of(configs()); !config.empty()) {
        story.push_back({"config", config});
        has_sites_ = std::ranges::find(config, "sites:") != config.end();
    }
    for (int i = pick(3); i >= 0; --i) {
        const NewLink& link = one_of(kPhysical);
        tell(fmt::format("link add {}{}", link.name, link.words));
        joins_network(link.name);
    }
    for (; !waiting_.empty(); waiting_.pop_front()) story.push_back({waiting_.front(), {}});
    story.push_back({"agent runs", {}});
    return story;
}

StoryLine StoryTeller::next(Player& player) {
    if (notice_next_ || (waiting_.empty() && chance(percent_noticed_ / 3))) {
        notice_next_ = false;
        return {"agent runs", {}};
    }
    while (waiting_.empty()) {
        switch (pick(20)) {
        case 0:
        case 1:
        case 2: {
            const NewLink& link = one_of(kPhysical);
            tell(fmt::format("link add {}{}", link.name, link.words));
            joins_network(link.name);
            break;
        }
        case 3: joins_network(some_link(player, false)); break;
        case 4:
        case 5: leaves_network(player, some_link(player, false)); break;
        case 6:
        case 7:
        case 8: changes_link(player); break;
        case 9:
        case 10: gets_other_route(player); break;
        case 11:
        case 12:
        case 13: vpn_comes(player); break;
        case 14:
        case 15: vpn_goes(player); break;
        case 16: rule_comes_or_goes(player); break;
        case 17: damages(player); break;
        case 18: {
            const auto& classes = player.config().classes;
            tell(fmt::format("{} {}", chance(60) ? "on" : "off", one_of(classes).name));
            break;
        }
        default: tell(chance(30) ? "agent restarts" : "agent runs");
        }
    }
    StoryLine line{waiting_.front(), {}};
    waiting_.pop_front();
    notice_next_ = chance(percent_noticed_);
    return line;
}

void StoryTeller::joins_network(const std::string& link) {
    int site = 1 + pick(3);
    int metric = 100 * pick(8);
    if (has_sites_ && chance(80)) shows_its_site(link, site);
    if (chance(80)) {
        if (link.starts_with("ppp") || (link == "wwan0" && chance(50))) {
            tell(fmt::format("address add 100.72.{}.4/32 peer 10.64.64.64/32 dev {}", site, link));
            tell_rarely(fmt::format("route add default dev {} metric {}", link, metric));
        } else {
            int host = 50 + pick(3);
            tell(fmt::format("address add 192.168.{}.{}/24 dev {}", site, host, link));
            std::string source = chance(30) ? fmt::format(" src 192.168.{}.{}", site, host) : "";
            tell_rarely(fmt::format("route add default via 192.168.{}.{} dev {} proto dhcp{} metric {}", site,
                                    1 + pick(2), link, source, metric));
        }
    }
    if (chance(60)) {
        if (chance(50)) tell(fmt::format("address add fe80::{}/64 dev {}", 50 + pick(3), link));
        tell(fmt::format("address add 2001:db8:{}::50/64 dev {}", site, link));
        tell_rarely(fmt::format("route add default via fe80::{} dev {} proto ra metric 1024", 1 + pick(2), link));
    }
    if (has_sites_ && chance(30)) shows_its_site(link, site);
}

/// What sites are told by, before its address comes or after it; now and then of another network than that of the
/// address.
void StoryTeller::shows_its_site(const std::string& link, int site) {
    if (chance(15)) site = 1 + pick(3);
    if (link.starts_with("w")) {
        if (chance(40)) tell(fmt::format("wifi {} associates", link));
        if (chance(30)) tell("agent runs");
        const std::string name = site == 1 && chance(50) ? R"(Corp\x1b\x20\x5c)" : fmt::format("Site{}", site);
        tell_rarely(fmt::format("wifi {} joins {} bssid 02:00:00:00:00:0{}", link, name, site));
    }
    for (int host = 1; host <= 2; ++host) {
        const std::string mac = chance(15) ? "none" : fmt::format("02:00:00:00:00:0{}", site);
        tell_rarely(fmt::format("mac 192.168.{}.{} dev {} {}", site, host, link, mac));
    }
    if (chance(10)) tell("resolver none");
    if (chance(60)) tell(fmt::format("domain lease dev {} site{}.example", link, site));
    if (chance(20)) tell(fmt::format("search site{}.example", 1 + pick(3)));
}

void StoryTeller::leaves_network(Player& player, const std::string& link) {
    const Link* known = player.kernel().link(link);
    for (const Address& a : player.kernel().addresses())
        if (known && a.link == known->index)
            tell_rarely(fmt::format("address del {}/{} dev {}", a.local.to_string(), a.prefix_length, link));
    if (chance(50)) joins_network(link); // another one
}

void StoryTeller::changes_link(Player& player) {
    std::string link = some_link(player, chance(25));
    switch (pick(9)) {
    case 0: tell(fmt::format("link set {} down", link)); break;
    case 1:
    case 2:
        tell(fmt::format("link set {} up", link));
        if (chance(50)) joins_network(link);
        break;
    case 3: tell(fmt::format("link set {} no-carrier", link)); break;
    case 4:
    case 5: tell(fmt::format("link set {} carrier", link)); break;
    case 6: tell(fmt::format("link del {}", link)); break;
    case 7: tell(fmt::format("link set {} name {}", link, one_of(kNames))); break;
    default: tell(fmt::format("link set {} {}", link, chance(50) ? "master br0" : "nomaster"));
    }
}

void StoryTeller::gets_other_route(Player& player) {
    std::string link = some_link(player, chance(10));
    int site = 1 + pick(3);
    switch (pick(10)) {
    case 0: tell(fmt::format("route del default dev {}", link)); break;
    case 1: tell(fmt::format("route del default ipv6 dev {}", link)); break;
    case 2:
        tell(fmt::format("route replace default via 192.168.{}.{} dev {} proto dhcp metric {}", site, 1 + pick(3), link,
                         100 * pick(8)));
        break;
    case 3: tell(fmt::format("route add default via fe80::{} dev {} proto ra metric 1024", 1 + pick(4), link)); break;
    case 4: tell(fmt::format("route add 172.{}.0.0/16 via 192.168.{}.9 dev {}", 16 + pick(3), site, link)); break;
    case 5: tell(fmt::format("route add 2001:db8:ff{}::/48 via fe80::9 dev {}", pick(3), link)); break;
    case 6: tell(fmt::format("route add 100.64.{}.0/24 dev {} metric {}", pick(3), link, pick(2))); break;
    case 7:
        tell(fmt::format("route del {}", chance(50) ? fmt::format("172.{}.0.0/16", 16 + pick(3))
                                                    : fmt::format("2001:db8:ff{}::/48", pick(3))));
        break;
    case 8:
        tell(fmt::format("route add default metric {} nexthop via 192.168.{}.1 dev {} nexthop via 192.168.{}.1 dev {}",
                         50 * pick(3), site, link, 1 + pick(3), some_link(player, chance(10))));
        break;
    default: tell(fmt::format("route add default via 10.9.{}.1 dev {} onlink metric {}", site, link, 100 * pick(8)));
    }
}

void StoryTeller::vpn_comes(Player& player) {
    const NewLink& tunnel = one_of(kTunnels);
    int site = 1 + pick(3);
    bool ipv4 = chance(80);
    bool ipv6 = !ipv4 || chance(50);
    tell(fmt::format("link add {}{}", tunnel.name, tunnel.words));
    if (ipv4) tell(fmt::format("address add 10.8.0.{}/{} dev {}", 2 + pick(3), chance(70) ? 24 : 32, tunnel.name));
    if (ipv6) tell(fmt::format("address add 2001:db8:8:1::{}/64 dev {}", 2 + pick(3), tunnel.name));
    std::string uplink = some_link(player, false);
    if (chance(60)) tell(fmt::format("route add 203.0.113.20/32 via 192.168.{}.1 dev {}", site, uplink));
    if (chance(20)) tell(fmt::format("route add 2001:db8:cafe::20/128 via fe80::1 dev {}", uplink));
    if (ipv4) vpn_takes_over(tunnel.name, false);
    if (ipv6) vpn_takes_over(tunnel.name, true);
}

void StoryTeller::vpn_takes_over(const std::string& tunnel, bool ipv6) {
    std::string family = kFamilyWords[ipv6];
    std::string whole = ipv6 ? "default ipv6" : "default";
    auto pair_of_rules = [&](const std::string& first, const std::string& second) {
        tell(fmt::format("rule add {}{} not fwmark 0xca6c lookup 51820", family, first));
        tell_rarely(fmt::format("rule add {}{} lookup main suppress_prefixlength 0", family, second));
    };
    switch (pick(8)) {
    case 0:
        tell("route del " + whole);
        if (chance(40)) tell("route del " + whole);
        tell(fmt::format("route add {} dev {}", whole, tunnel));
        break;
    case 1: tell(fmt::format("route replace {} dev {}{}", whole, tunnel, ipv6 ? " metric 1" : "")); break;
    case 2: tell(fmt::format("route add {} dev {} proto static metric 50", whole, tunnel)); break;
    case 3:
        for (const char* part : {"0.0.0.0/1", "128.0.0.0/1"})
            if (!ipv6) tell_rarely(fmt::format("route add {} dev {}", part, tunnel));
        for (const char* part : {"::/3", "2000::/4", "3000::/4", "fc00::/7"})
            if (ipv6) tell_rarely(fmt::format("route add {} dev {}", part, tunnel));
        break;
    case 4:
        for (const char* part : {"0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"})
            if (!ipv6) tell_rarely(fmt::format("route add {} dev {}", part, tunnel));
        if (ipv6) tell(fmt::format("route add 2000::/3 dev {}", tunnel));
        break;
    case 5: // wg-quick
        tell(fmt::format("route add {} dev {} table 51820", whole, tunnel));
        pair_of_rules("", "");
        break;
    case 6: // NetworkManager
        tell(fmt::format("route add {} dev {} table 51820 proto static metric 50", whole, tunnel));
        pair_of_rules(" preference 30567", " preference 30566");
        break;
    default: // Tailscale, strongSwan
        bool tailscale = chance(60);
        int table = tailscale ? 52 : 220;
        if (tailscale) tell(fmt::format("rule add {} preference 5210 fwmark 0x80000/0xff0000 lookup main", family));
        tell(fmt::format("rule add {} preference {} lookup {}", family, tailscale ? 5270 : 220, table));
        tell(fmt::format("route add {} dev {} table {}", whole, tunnel, table));
        if (chance(50)) tell(fmt::format("route add throw {} table {}", ipv6 ? "fd00::/8" : "192.168.0.0/16", table));
    }
}

void StoryTeller::vpn_goes(Player& player) {
    std::string tunnel = some_link(player, true);
    bool cleans = chance(60);
    if (cleans) {
        for (const Rule& rule : player.kernel().rules())
            if (rule.protocol == Protocol{3} && chance(80))
                tell(fmt::format("rule del {} preference {}", to_string(rule.family), rule.preference.value));
        tell("route del 203.0.113.20/32");
        if (chance(50))
            tell(fmt::format("route add default via 192.168.{}.1 dev {}", 1 + pick(3), some_link(player, false)));
    }
    tell("link del " + tunnel);
}

void StoryTeller::rule_comes_or_goes(Player& player) {
    std::string family = one_of(kFamilyWords);
    std::string at = chance(60) ? "" : fmt::format(" preference {}", 1 + pick(chance(50) ? 100 : 30000));
    switch (pick(8)) {
    case 0: tell(fmt::format("rule add {}{} lookup main", family, at)); break;
    case 1: tell(fmt::format("rule add {}{} not fwmark 0x{:x} lookup 51820", family, at, 1 + pick(3))); break;
    case 2: tell(fmt::format("rule add {}{} fwmark 0x80000/0xff0000 lookup main", family, at)); break;
    case 3: tell(fmt::format("rule add {}{} fwmark 0x77 unreachable", family, at)); break;
    case 4:
        tell(fmt::format("rule add {}{} to {} lookup 51820", family, at,
                         family == "ipv4" ? "198.51.100.0/24" : "2001:db8:1234::/48"));
        break;
    case 5: tell(fmt::format("rule add {}{} blackhole", family, at)); break;
    default:
        for (const Rule& rule : player.kernel().rules())
            if (rule.protocol == Protocol{3} && chance(50))
                tell(fmt::format("rule del {} preference {}", to_string(rule.family), rule.preference.value));
    }
}

void StoryTeller::damages(Player& player) {
    const ClassConfig& c = one_of(player.config().classes);
    std::string ipv6 = chance(50) ? " ipv6" : "";
    switch (pick(7)) {
    case 0: tell(fmt::format("route del default{} table {}", ipv6, c.table.value)); break;
    case 1: tell(fmt::format("route del unreachable default{} table {}", ipv6, c.table.value)); break;
    case 2: tell(fmt::format("route del 192.168.{}.0/24 table {}", 1 + pick(3), c.table.value)); break;
    case 3:
        for (const Rule& rule : player.kernel().rules())
            if (rule.protocol == kNovpnProtocol && chance(40))
                tell(fmt::format("rule del {} preference {}{}", to_string(rule.family), rule.preference.value,
                                 rule.action == RuleAction::nop ? " nop" : ""));
        break;
    case 4: tell("nft flush ruleset"); break;
    case 5: tell(fmt::format("cgroup del class {}", c.name)); break;
    default:
        tell(fmt::format("route add 10.99.0.0/16 dev {} table {} proto novpn", some_link(player, chance(50)),
                         c.table.value));
    }
}

} // namespace novpn::test
