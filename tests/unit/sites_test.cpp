// What scenarios with sites do not say: names of any bytes, doubts about a config, and what cannot be seen from
// outside.
#include "agent/site.h"
#include "config/load.h"
#include "config/text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>
#include <set>
#include <unistd.h>

namespace novpn {
namespace {

address ip(const char* text) { return boost::asio::ip::make_address(text); }

Config config_of(const std::string& text) {
    auto config = parse_config(text, "f");
    if (!config) throw std::invalid_argument(to_string(config.error()));
    return *config;
}

std::vector<std::string> doubts_of(const std::string& text) {
    const auto directory = std::filesystem::temp_directory_path() / ("novpn-sites-" + std::to_string(getpid()));
    std::filesystem::create_directories(directory);
    const auto file = directory / "novpn.yaml";
    std::ofstream(file) << text;
    std::vector<std::string> doubts;
    for (const ConfigError& doubt : find_doubts(file.native())) {
        EXPECT_EQ(doubt.file, file.native());
        doubts.push_back(std::to_string(doubt.line) + ":" + std::to_string(doubt.column) + ": " +
                         doubt.message.substr(0, doubt.message.find(',')));
    }
    std::filesystem::remove_all(directory);
    return doubts;
}

} // namespace

TEST(SsidText, IsPrintableAndTellsAllBytesApart) {
    EXPECT_EQ(ssid_text("Corp"), "Corp");
    EXPECT_EQ(ssid_text("caf\xc3\xa9"), "caf\xc3\xa9");
    EXPECT_EQ(ssid_text("caf\xe9"), "caf\\xe9");
    EXPECT_EQ(ssid_text("caf\\xe9"), "caf\\\\xe9") << "another name";
    EXPECT_EQ(ssid_text(std::string("\x1b[2J\0\n", 6)), "\\x1b[2J\\x00\\x0a");
    EXPECT_EQ(ssid_text("a\xe2\x80\xae"
                        "b"),
              "a\\u{202e}b")
        << "turns the direction of what follows";
    std::mt19937 random(7); // NOLINT(cert-msc51-cpp): the same names every time
    std::set<std::string> names, texts;
    for (int i = 0; i < 20000; ++i) {
        std::string name(1 + random() % 32, '\0');
        // Of few bytes, so that there are many near misses.
        for (char& c : name) c = std::string("\\x1bu{}\xe2\x80\xae\x1b", 11)[random() % 11];
        names.insert(name);
        texts.insert(ssid_text(name));
        EXPECT_EQ(printable(ssid_text(name)), ssid_text(name));
    }
    EXPECT_EQ(names.size(), texts.size());
}

TEST(SiteDoubts, AreOfSitesThatOpenSomethingByWhatCanBePretended) {
    const auto of_site = [](const std::string& site) {
        return doubts_of(
            "classes: {novpn: {enabled: false, apps: [a]}, other: {table: 7867, mark: 0x4f000000/0xff000000, "
            "preference: 70, apps: [a]}, forced: {via: tun0, table: 7868, mark: 0x50000000/0xff000000, preference: "
            "80}}\nsites:\n  - {name: s, " +
            site + "}\n");
    };
    const auto warns = [](const std::string& what) { return std::vector{"3:5: sites.s: warning: the site " + what}; };
    for (const char* match : {"ssid: x", "bssid: '*'", "gateway_mac: '*'", "network: 10.0.0.0/8", "domain: x"})
        EXPECT_EQ(of_site(std::string("match: {") + match + "}, classes: {novpn: on}"), warns("turns class novpn on"));
    for (const char* match : {"ssid: x, tunnel: tun0", "link: eth0"})
        EXPECT_EQ(of_site(std::string("match: {") + match + "}, classes: {novpn: on}"), std::vector<std::string>{});
    const std::string by_ssid = "match: {ssid: x}, classes: ";
    EXPECT_EQ(of_site(by_ssid + "{other: {add: {apps: [b]}}}"), warns("selects more for class other"));
    EXPECT_EQ(of_site(by_ssid + "{other: {users: [4711]}}"), warns("selects more for class other"));
    EXPECT_EQ(of_site(by_ssid + "{other: {when_no_uplink: tunnel}}"),
              warns("lets class other into the VPN when there is no uplink"));
    EXPECT_EQ(of_site(by_ssid + "{other: {dns: uplink}}"),
              warns("has the names of class other resolved outside the VPN"));
    EXPECT_EQ(of_site(by_ssid + "{forced: off}"), warns("lets class forced go by any way"));
    for (const char* closes : {"{other: off}", "{other: {apps: []}}", "{novpn: {add: {apps: [b]}}}", "{forced: on}"})
        EXPECT_EQ(of_site(by_ssid + closes), std::vector<std::string>{}) << closes;
}

TEST(FindSite, NeedsEveryKeyOfAMatchAndNamesThoseThatFail) {
    const Config config =
        config_of("sites:\n  - {name: s, match: {ssid: Corp, bssid: 'c0:*', gateway_mac: '*', network: "
                  "10.0.0.0/8, domain: x.y, link: e*, tunnel: t*}}\n");
    Place place{
        .wifi = {{.link = IfIndex{2}, .ssid = "Home"}}, .networks = {{ip("192.168.1.0"), 24}}, .links = {"wlan0"}};
    place.gateways = {{.link = IfIndex{2}, .host = ip("192.168.1.1"), .state = NeighbourState::incomplete}};
    place.gateways_missing = place.domains_missing = true;
    const SiteDecision nothing = find_site(place, config);
    EXPECT_EQ(nothing.verdicts, (std::vector<SiteVerdict>{{.name = "s",
                                                           .matches = Certainty::no,
                                                           .failed = {"ssid", "bssid", "gateway_mac", "network",
                                                                      "domain", "link", "tunnel"}}}));
    EXPECT_TRUE(nothing.known) << "the SSID alone is enough to say no";

    place = {.wifi = {{.link = IfIndex{2}, .ssid = "Corp", .bssid = MacAddress{{0xc0, 1, 2, 3, 4, 5}}}},
             .gateways = {{.link = IfIndex{2},
                           .host = ip("10.0.0.1"),
                           .state = NeighbourState::stale,
                           .mac = MacAddress{{1, 2, 3, 4, 5, 6}}}},
             .networks = {{ip("10.0.0.0"), 24}},
             .domains = {"x.y"},
             .links = {"eth0"},
             .tunnels = {"tun0"}};
    EXPECT_EQ(find_site(place, config).name, "s");
    place.wifi.front().bssid.reset();
    EXPECT_FALSE(find_site(place, config).known);
}

TEST(ConfigAt, LetsOutNoMoreThanEachOfTheSitesInQuestion) {
    std::mt19937 random(7); // NOLINT(cert-msc51-cpp): the same sites every time
    const auto pick = [&](unsigned below) { return static_cast<unsigned>(random() % below); };
    const auto some = [&] {
        std::vector<std::string> apps;
        for (const char* app : {"a", "b", "c", "d"})
            if (pick(2)) apps.emplace_back(app);
        return apps;
    };
    const auto keeps_in = [](const ClassConfig& c) { return !c.via.empty(); };
    for (int round = 0; round < 3000; ++round) {
        Config config{.classes = {{.name = "out", .enabled = pick(2) == 1, .apps = some()},
                                  {.name = "in", .enabled = pick(2) == 1, .via = "tun0", .apps = some()}}};
        SiteDecision decision{.known = false};
        for (const char* name : {"one", "two", "three"}) {
            SiteConfig site{.name = name};
            for (const ClassConfig& c : config.classes) {
                SiteClass& changes = site.classes[c.name];
                if (pick(2)) changes.enabled = pick(2) == 1;
                if (pick(2)) changes.when_no_uplink = WhenNoUplink::tunnel;
                if (pick(2)) changes.dns = Dns::uplink;
                if (pick(2)) changes.replace.apps = some();
                if (pick(2)) changes.add.apps = some();
            }
            config.sites.push_back(site);
            decision.verdicts.push_back({.name = name, .matches = static_cast<Certainty>(pick(3))});
        }
        const Config strictest = config_at(decision, config);
        std::vector<std::string> possible; // sites; empty: none of them
        for (const SiteVerdict& verdict : decision.verdicts)
            if (verdict.matches != Certainty::no && (possible.empty() || possible.back() != "certain")) {
                possible.push_back(verdict.name);
                if (verdict.matches == Certainty::yes) possible.emplace_back("certain");
            }
        if (possible.empty() || possible.back() != "certain") possible.emplace_back("none");
        for (const std::string& name : possible) {
            if (name == "certain") continue;
            const SiteDecision there{.verdicts = {{.name = name, .matches = Certainty::yes}}};
            const Config candidate = name == "none" ? config_at({}, config) : config_at(there, config);
            for (std::size_t i = 0; i < config.classes.size(); ++i) {
                const ClassConfig& c = strictest.classes[i];
                const ClassConfig& other = candidate.classes[i];
                const ClassConfig& less = keeps_in(c) ? other : c; // what has to be less or the same
                const ClassConfig& more = keeps_in(c) ? c : other;
                EXPECT_LE(less.enabled, more.enabled) << c.name << " at " << name << ", round " << round;
                for (const std::string& app : less.apps)
                    EXPECT_TRUE(std::ranges::find(more.apps, app) != more.apps.end()) << c.name << " at " << name;
                EXPECT_TRUE(other.when_no_uplink == WhenNoUplink::tunnel || c.when_no_uplink == WhenNoUplink::block);
                EXPECT_TRUE(other.dns == Dns::uplink || c.dns == Dns::vpn);
            }
        }
    }
}

TEST(ConfigAt, GoesOnAfterAReloadWithWhatWasThereAndMayBeThere) {
    Config config{.classes = {{.name = "novpn", .apps = {"a", "b"}}},
                  .sites = {{.name = "office", .classes = {{"novpn", {.enabled = false}}}}}};
    const SiteDecision open{.verdicts = {{.name = "office", .matches = Certainty::unknown}}, .known = false};
    EXPECT_FALSE(config_at(open, config).classes[0].enabled);
    std::vector<ClassConfig> before{{.name = "novpn", .apps = {"b", "c"}}};
    EXPECT_TRUE(config_at(open, config, before).classes[0].enabled);
    config.sites[0].classes["novpn"] = {.replace = {.apps = std::vector<std::string>{}}};
    EXPECT_EQ(config_at(open, config, before).classes[0].apps, std::vector<std::string>{"b"}) << "a is new, c is gone";
    before[0].enabled = false;
    config.sites[0].classes["novpn"] = {.enabled = false};
    EXPECT_FALSE(config_at(open, config, before).classes[0].enabled) << "it was off";
}

TEST(LookAround, KnowsAGatewayThatTheVpnReplacedOrItsServersRoute) {
    const Config config = config_of("sites: [{name: s, match: {gateway_mac: '*'}}]\n");
    const Neighbour gateway{.link = IfIndex{2}, .host = ip("192.168.1.1")};
    Observed observed{
        .links = {{.index = IfIndex{2}, .name = "eth0", .up = true, .carrier = true},
                  {.index = IfIndex{3}, .name = "tun0", .kind = "tun", .hardware = 65534, .up = true, .carrier = true}},
        .addresses = {{.link = IfIndex{2}, .local = ip("192.168.1.9"), .prefix_length = 24}},
        .routes = {{.destination = any_prefix(Family::ipv4), .gateway = ip("10.8.0.1"), .link = IfIndex{3}}}};
    EXPECT_EQ(look_around(observed, config, {}).gateways, std::vector<Neighbour>{});
    Memory memory;
    RememberedUplink& remembered = memory.uplinks[{"", Family::ipv4}];
    remembered.uplink = {.link = IfIndex{2}, .link_name = "eth0", .gateway = ip("192.168.1.1")};
    EXPECT_EQ(look_around(observed, config, memory).gateways, std::vector{gateway});
    remembered.uplink.gateway = ip("192.168.7.1"); // of another network
    EXPECT_EQ(look_around(observed, config, memory).gateways, std::vector<Neighbour>{});
    observed.routes.push_back(
        {.destination = {ip("203.0.113.20"), 32}, .gateway = ip("192.168.1.1"), .link = IfIndex{2}});
    EXPECT_EQ(look_around(observed, config, {}).gateways, std::vector{gateway});
}

TEST(LookAround, AGatewayIsMissingUntilItIsKnownOrNeedsNoAddress) {
    const Config config = config_of("sites: [{name: s, match: {gateway_mac: '*'}}]\n");
    Observed observed{
        .links = {{.index = IfIndex{2}, .name = "eth0", .up = true, .carrier = true}},
        .addresses = {{.link = IfIndex{2}, .local = ip("192.168.1.9"), .prefix_length = 24}},
        .routes = {{.destination = any_prefix(Family::ipv4), .gateway = ip("192.168.1.1"), .link = IfIndex{2}}}};
    const auto is_missing = [&](NeighbourState state, bool with_mac) {
        Neighbour gateway{.link = IfIndex{2}, .host = ip("192.168.1.1"), .state = state};
        if (with_mac) gateway.mac = MacAddress{{2, 0, 0, 0, 0, 1}};
        observed.place_gateways = {gateway};
        return look_around(observed, config, {}).gateways_missing;
    };
    EXPECT_TRUE(is_missing(NeighbourState::incomplete, false));
    EXPECT_FALSE(is_missing(NeighbourState::stale, true));
    EXPECT_TRUE(is_missing(NeighbourState::incomplete, true)) << "the address is an old one";
    EXPECT_TRUE(is_missing(NeighbourState::failed, true)) << "so is this";
    EXPECT_FALSE(is_missing(NeighbourState::noarp, false));
}

TEST(LookAround, WhatIsToldByALinkThatIsNotThereCountsNot) {
    const Config config = config_of("sites: [{name: s, match: {ssid: Corp}}]\n");
    Observed observed{.links = {{.index = IfIndex{2}, .name = "wlan0", .up = true, .carrier = true}},
                      .wifi = {{.link = IfIndex{2}, .ssid = "Corp"}, {.link = IfIndex{9}, .ssid = "Old"}}};
    EXPECT_EQ(look_around(observed, config, {}).wifi, std::vector{observed.wifi.front()});
    Link& link = observed.links.front();
    link.carrier = false;
    EXPECT_TRUE(look_around(observed, config, {}).wifi.empty());
    link.carrier = link.loopback = true;
    EXPECT_TRUE(look_around(observed, config, {}).wifi.empty());
    link.loopback = link.up = false;
    EXPECT_TRUE(look_around(observed, config, {}).wifi.empty());
}

TEST(SameSurroundings, AreThoseOfOnePlace) {
    const Place place{.wifi = {{.link = IfIndex{2}, .ssid = "Corp"}},
                      .networks = {{ip("10.0.0.0"), 24}},
                      .links = {"wlan0"},
                      .tunnels = {"tun0"}};
    Place later = place;
    later.domains = {"corp.example"}; // the sources have answered
    EXPECT_TRUE(same_surroundings(place, later));
    std::vector<Place> others(4, place);
    others[0].wifi[0].ssid = "Home";
    others[1].networks[0].length = 25;
    others[2].links.push_back("eth0");
    others[3].tunnels.clear();
    for (const Place& other : others) EXPECT_FALSE(same_surroundings(place, other));
}

TEST(ConfigAt, KeepsNothingOfAClassThatIsAnotherSinceTheReload) {
    Config config{.classes = {{.name = "novpn", .apps = {"a"}}},
                  .sites = {{.name = "office", .classes = {{"novpn", {.enabled = false}}}}}};
    const SiteDecision open{.verdicts = {{.name = "office", .matches = Certainty::unknown}}, .known = false};
    const ClassConfig before = config.classes[0];
    const auto is_kept = [&](const ClassConfig& former) {
        return config_at(open, config, {former}).classes[0].enabled;
    };
    EXPECT_TRUE(is_kept(before));
    ClassConfig other = before;
    other.name = "games";
    EXPECT_FALSE(is_kept(other));
    other = before;
    other.mark.value = 0x4f000000;
    EXPECT_FALSE(is_kept(other)) << "its flows have a mark that means nothing any more";
    other = before;
    other.via = "tun0";
    EXPECT_FALSE(is_kept(other)) << "it let nothing out";
    config.classes[0].via = "tun0";
    config.sites[0].classes["novpn"] = {.enabled = true};
    EXPECT_EQ(config_at(open, config, {before}).classes[0].via, "tun0");
}

TEST(ConfigAt, KeepsDnsAndWhatIsWithoutAnUplinkOnlyWhereASiteSaysSo) {
    Config config{.classes = {{.name = "novpn", .when_no_uplink = WhenNoUplink::tunnel, .dns = Dns::uplink}},
                  .sites = {{.name = "office",
                             .classes = {{"novpn", {.when_no_uplink = WhenNoUplink::block, .dns = Dns::vpn}}}}}};
    const SiteDecision open{.verdicts = {{.name = "office", .matches = Certainty::unknown}}, .known = false};
    const ClassConfig before = config.classes[0];
    EXPECT_EQ(config_at(open, config, {before}).classes[0].dns, Dns::uplink);
    EXPECT_EQ(config_at(open, config, {before}).classes[0].when_no_uplink, WhenNoUplink::tunnel);
    config.classes[0].dns = Dns::vpn;
    config.classes[0].when_no_uplink = WhenNoUplink::block;
    EXPECT_EQ(config_at(open, config, {before}).classes[0].dns, Dns::vpn);
    EXPECT_EQ(config_at(open, config, {before}).classes[0].when_no_uplink, WhenNoUplink::block);
}

TEST(TellsByWifi, AlsoWhereOnlyTheAccessPointIsNamed) {
    EXPECT_TRUE(tells_by_wifi(config_of("sites: [{name: s, match: {bssid: 'c0:*'}}]\n")));
    EXPECT_FALSE(tells_by_wifi(config_of("sites: [{name: s, match: {link: eth0}}]\n")));
}

} // namespace novpn
