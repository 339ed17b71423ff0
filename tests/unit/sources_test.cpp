// What DHCP clients and NetworkManager leave for others to read. The files of lease_examples/ were written by
// systemd-networkd 252, dhclient 4.4.3 and dhcpcd 9.4.1 for a lease of dnsmasq; networkmanager* are what is of use in
// the answers of NetworkManager 1.42.4 after OpenVPN deleted the default: object, property, value.
#include "agent/sources/file_watch.h"
#include "agent/sources/files.h"
#include "agent/sources/gather.h"
#include "agent/sources/lease.h"
#include "agent/sources/name_servers.h"
#include "agent/sources/networkmanager.h"
#include "agent/sources/sources.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <random>
#include <sstream>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace novpn {

void PrintTo(const Hint& hint, std::ostream* stream) {
    *stream << to_string(hint.from) << " link " << hint.link.value << " via " << hint.gateway.to_string();
    if (hint.local) *stream << " of " << hint.local->to_string();
}

namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;
namespace fs = std::filesystem;

address ip(const char* text) { return boost::asio::ip::make_address(text); }

std::string example(const std::string& name) {
    std::ifstream stream(std::string(NOVPN_SOURCE_DIR) + "/tests/unit/lease_examples/" + name, std::ios::binary);
    std::stringstream content;
    content << stream.rdbuf();
    if (content.str().empty()) throw std::runtime_error("no example " + name);
    return content.str();
}

BusObjects objects_in(const std::string& name) {
    BusObjects objects;
    std::istringstream lines(example(name));
    for (std::string path, property, value; lines >> path >> property && std::getline(lines >> std::ws, value);)
        objects[path][property] = value;
    return objects;
}

const std::string kNetworkManager = "/org/freedesktop/NetworkManager/";

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

/// 23 Nov 2026, 22:18:50 UTC: the moment that the examples were written.
const WallClock::time_point kWritten = WallClock::from_time_t(1795472330);

std::string without(std::string text, const std::string& part) {
    auto at = text.find(part);
    if (at == std::string::npos) throw std::runtime_error("no " + part);
    return text.erase(at, part.size());
}

/// A root directory with what a test puts there.
class Root {
  public:
    Root() {
        char name[] = "/tmp/novpn-sources-XXXXXX";
        if (!mkdtemp(name)) throw std::runtime_error("mkdtemp");
        path_ = name;
    }
    ~Root() { fs::remove_all(path_); }
    Root(const Root&) = delete;
    std::string path() const { return path_; }
    fs::path write(const std::string& file, const std::string& content) const {
        fs::path path = path_ + file;
        fs::create_directories(path.parent_path());
        std::ofstream(path, std::ios::binary) << content;
        chmod(path.c_str(), 0644); // whatever the umask is
        chmod(path.parent_path().c_str(), 0755);
        return path;
    }

  private:
    std::string path_;
};

const std::vector<Link> kLinks{{.index = IfIndex{2}, .name = "wlan0"}, {.index = IfIndex{3}, .name = "wlan0-x"}};

/// dhclient's example, in force for a day from now.
std::string dhclient_lease(const std::string& link, const std::string& local, const std::string& gateway) {
    std::time_t tomorrow = WallClock::to_time_t(WallClock::now() + 24h);
    std::tm calendar{};
    gmtime_r(&tomorrow, &calendar);
    char expire[40];
    std::strftime(expire, sizeof expire, "%w %Y/%m/%d %H:%M:%S", &calendar);
    return "lease {\n  interface \"" + link + "\";\n  fixed-address " + local + ";\n  option routers " + gateway +
           ";\n  expire " + expire + ";\n}\n";
}

} // namespace

TEST(NetworkdLease, IsRead) {
    EXPECT_EQ(parse_networkd_lease(example("networkd"), kWritten), (Lease{.local = ip("192.168.10.115"),
                                                                          .gateway = ip("192.168.10.1"),
                                                                          .expires = kWritten + 3600s,
                                                                          .resolvers = {ip("192.168.10.1")}}));
}

TEST(NetworkdLease, ClasslessRoutesReplaceTheRouter) {
    EXPECT_EQ(parse_networkd_lease(example("networkd_classless"), kWritten)->gateway, ip("192.168.10.1"));
    std::string no_default = without(example("networkd_classless"), " 0.0.0.0/0,192.168.10.1");
    EXPECT_EQ(parse_networkd_lease(no_default, kWritten), std::nullopt) << "RFC 3442: the router does not count";
}

TEST(NetworkdLease, IsNoneWithoutWhatItTakes) {
    for (const char* part : {"ADDRESS=192.168.10.115\n", "ROUTER=192.168.10.1\n", "LIFETIME=3600\n"})
        EXPECT_EQ(parse_networkd_lease(without(example("networkd"), part), kWritten), std::nullopt) << part;
    EXPECT_EQ(parse_networkd_lease("ADDRESS=192.168.10.115\nROUTER=gateway\nLIFETIME=3600\n", kWritten), std::nullopt);
    EXPECT_EQ(parse_networkd_lease("ADDRESS=192.168.10.115\nROUTER=0.0.0.0\nLIFETIME=3600\n", kWritten), std::nullopt);
    std::string text = example("networkd");
    text.pop_back();
    EXPECT_EQ(parse_networkd_lease(text, kWritten), std::nullopt) << "cut short";
}

TEST(DhclientLeases, AreRead) {
    EXPECT_THAT(parse_dhclient_leases(example("dhclient")),
                ElementsAre(LinkLease{"wlan0",
                                      {.local = ip("192.168.10.146"),
                                       .gateway = ip("192.168.10.1"),
                                       .expires = WallClock::from_time_t(1795475930),
                                       .resolvers = {ip("192.168.10.1")}}}));
}

TEST(DhclientLeases, TheLastOfALinkCounts) {
    auto leases = parse_dhclient_leases(dhclient_lease("wlan0", "192.168.10.50", "192.168.10.1") +
                                        dhclient_lease("eth0", "10.0.0.5", "10.0.0.1") +
                                        dhclient_lease("wlan0", "172.16.0.9", "172.16.0.1"));
    ASSERT_EQ(leases.size(), 2u);
    EXPECT_EQ(leases[0].link, "eth0");
    EXPECT_EQ(leases[1].lease.gateway, ip("172.16.0.1"));
}

TEST(DhclientLeases, TheOneThatIsCutShortDoesNotCount) {
    std::string text = dhclient_lease("wlan0", "192.168.10.50", "192.168.10.1");
    std::string cut = dhclient_lease("wlan0", "172.16.0.9", "172.16.0.1");
    cut.resize(cut.find("expire"));
    EXPECT_EQ(parse_dhclient_leases(text + cut).at(0).lease.gateway, ip("192.168.10.1"));
}

TEST(DhclientLeases, UnderstandQuotesCommentsAndTimes) {
    std::string text = R"(# a comment with lease { and }
default-duid "\000\001;{\"";
lease6 { interface "wlan0"; ia-na 01 { iaaddr 2001:db8::1 { max-life 60; } } }
lease {
  interface "wlan0";
  option domain-name "}; fixed-address 10.0.0.1; \" }";
  fixed-address 192.168.10.50;
  option routers 192.168.10.1,192.168.10.2;
  option domain-name-servers 192.168.10.3, 192.168.10.4;
  expire epoch 1795475930; # Mon Nov 23 23:18:50 2026
}
)";
    auto leases = parse_dhclient_leases(text);
    ASSERT_EQ(leases.size(), 1u);
    EXPECT_EQ(leases[0].lease, (Lease{.local = ip("192.168.10.50"),
                                      .gateway = ip("192.168.10.1"),
                                      .expires = WallClock::from_time_t(1795475930),
                                      .resolvers = {ip("192.168.10.3"), ip("192.168.10.4")},
                                      .domains = {"fixed-address"}}));
    auto with_expiry = [&](const std::string& when) {
        std::string changed = text;
        return parse_dhclient_leases(changed.replace(changed.find("epoch 1795475930"), 16, when));
    };
    EXPECT_EQ(with_expiry("never").at(0).lease.expires, WallClock::time_point::max());
    EXPECT_EQ(with_expiry("5 9999/12/31 00:00:00").at(0).lease.expires, WallClock::time_point::max());
    EXPECT_THAT(with_expiry("epoch x"), IsEmpty());
    EXPECT_THAT(with_expiry("1 2026/11"), IsEmpty());
}

TEST(DhclientLeases, ClasslessRoutesReplaceTheRouters) {
    std::string text = example("dhclient");
    text.replace(text.find("routers 192.168.10.1"), 20, "routers 192.168.10.7");
    EXPECT_EQ(parse_dhclient_leases(text).at(0).lease.gateway, ip("192.168.10.1"));
    EXPECT_THAT(parse_dhclient_leases(without(text, ",0,192,168,10,1")), IsEmpty());
}

TEST(DhcpcdLease, IsRead) {
    EXPECT_EQ(parse_dhcpcd_lease(bytes_of(example("dhcpcd")), kWritten), (Lease{.local = ip("192.168.10.146"),
                                                                                .gateway = ip("192.168.10.1"),
                                                                                .expires = kWritten + 3600s,
                                                                                .resolvers = {ip("192.168.10.1")}}));
}

TEST(DhcpcdLease, IsNoneWhereverItIsCutShort) {
    std::string whole = example("dhcpcd");
    for (std::size_t size = 0; size < whole.size(); ++size)
        EXPECT_EQ(parse_dhcpcd_lease(bytes_of(whole.substr(0, size)), kWritten), std::nullopt) << size;
}

TEST(DhcpcdLease, IsAnAcknowledgement) {
    std::string offer = example("dhcpcd"), request = offer;
    offer[242] = 2;
    request[0] = 1;
    EXPECT_EQ(parse_dhcpcd_lease(bytes_of(offer), kWritten), std::nullopt);
    EXPECT_EQ(parse_dhcpcd_lease(bytes_of(request), kWritten), std::nullopt);
}

TEST(SearchDomains, AreWhatEachClientWritesDown) {
    using Domains = std::vector<std::string>;
    EXPECT_EQ(parse_networkd_lease("ADDRESS=192.168.10.50\nROUTER=192.168.10.1\nLIFETIME=60\nDOMAINNAME=Corp.Example.\n"
                                   "DOMAIN_SEARCH_LIST=eu.corp.example corp.example\n",
                                   kWritten)
                  ->domains,
              (Domains{"corp.example", "eu.corp.example"}));
    const auto dhclient =
        parse_dhclient_leases("lease { interface \"eth0\"; fixed-address 10.0.0.5; option routers 10.0.0.1; option "
                              "domain-name \"corp.example\"; "
                              "option domain-search \"eu.corp.example\", \"us.corp.example.\"; expire never; }");
    EXPECT_EQ(dhclient.at(0).lease.domains, (Domains{"corp.example", "eu.corp.example", "us.corp.example"}));
    EXPECT_EQ(parse_networkmanager_lease({{"ip_address", "10.0.0.5"},
                                          {"routers", "10.0.0.1"},
                                          {"domain_name", "corp.example"},
                                          {"domain_search", "eu.corp.example us.corp.example"}})
                  ->domains,
              (Domains{"corp.example", "eu.corp.example", "us.corp.example"}));
    // RFC 3397: eu.corp.example, then us and a pointer to where corp begins; and one that leads round in a circle.
    std::string message = example("dhcpcd");
    message.resize(message.rfind('\xff'));
    const auto with_option = [&](const std::string& list) {
        return parse_dhcpcd_lease(bytes_of(message + '\x77' + static_cast<char>(list.size()) + list + '\xff'), kWritten)
            ->domains;
    };
    const std::string first("\2eu\4corp\7example\0", 17);
    EXPECT_EQ(with_option(first + std::string("\2us\xc0\3", 5)), (Domains{"eu.corp.example", "us.corp.example"}));
    EXPECT_EQ(with_option(std::string("\1a\xc0\0", 4)), Domains{});
    EXPECT_EQ(with_option(std::string("\x3f"
                                      "a",
                                      2)),
              Domains{});
    EXPECT_EQ(parse_domains("Corp.Example, ~route.example a..b/c -"), (Domains{"corp.example", "-"}));
    EXPECT_EQ(
        parse_search_domains("domain old.example\n# search no.example\nsearch a.example  B.example\nnameserver ::1\n"),
        (Domains{"a.example", "b.example"}));
}

/// Whatever a byte becomes: a value or none; the sanitizers say the rest.
TEST(Leases, AnyBytesGiveAValueOrNone) {
    std::mt19937 random(4711);
    for (const char* name : {"networkd", "networkd_classless", "dhclient", "dhcpcd"}) {
        for (int round = 0; round < 2000; ++round) {
            std::string text = example(name);
            for (int change = 0; change < 3; ++change) text[random() % text.size()] = static_cast<char>(random());
            text.resize(text.size() - random() % 8);
            auto networkd = parse_networkd_lease(text, kWritten);
            auto dhcpcd = parse_dhcpcd_lease(bytes_of(text), kWritten);
            for (const auto& lease : {networkd, dhcpcd}) EXPECT_FALSE(lease && lease->gateway.is_unspecified());
            for (const LinkLease& found : parse_dhclient_leases(text)) EXPECT_FALSE(found.link.empty());
        }
    }
}

TEST(SourceFiles, FollowNoLinksAndReadNoPipes) {
    Root root;
    auto any = [](std::string_view name) { return !name.starts_with('.'); };
    fs::path good = root.write("/d/good", "x");
    fs::path elsewhere = root.write("/elsewhere", "secret");
    fs::create_symlink(elsewhere, root.path() + "/d/symlink");
    fs::create_hard_link(elsewhere, root.path() + "/d/hard_link");
    ASSERT_EQ(mkfifo((root.path() + "/d/fifo").c_str(), 0644), 0);
    fs::create_directory(root.path() + "/d/directory");
    root.write("/d/empty", "");
    root.write("/d/large", std::string(65, 'x'));
    root.write("/d/full", std::string(64, 'x'));
    chmod(root.write("/d/writable", "x").c_str(), 0666);

    std::vector<std::string> names;
    for (const SourceFile& file : read_files(root.path() + "/d", 64, any)) names.push_back(file.name);
    EXPECT_THAT(names, ElementsAre("full", "good"));

    fs::create_symlink(root.path() + "/d", root.path() + "/l");
    EXPECT_THAT(read_files(root.path() + "/l", 64, any), IsEmpty()) << "the directory is a symbolic link";
    chmod((root.path() + "/d").c_str(), 0777);
    EXPECT_THAT(read_files(root.path() + "/d", 64, any), IsEmpty()) << "anybody may put files there";
    EXPECT_THAT(read_files(root.path() + "/none", 64, any), IsEmpty());
}

TEST(SourceFiles, BelongToRootOrToTheOwnerOfTheDirectory) {
    auto status = [](uid_t owner, mode_t mode) {
        struct stat s {};
        s.st_uid = owner;
        s.st_mode = mode;
        s.st_nlink = 1;
        return s;
    };
    constexpr mode_t kFile = S_IFREG | 0644, kDirectory = S_IFDIR | 0755;
    EXPECT_TRUE(is_trusted(status(0, kFile), status(0, kDirectory)));
    EXPECT_TRUE(is_trusted(status(998, kFile), status(998, kDirectory))) << "systemd-network's";
    EXPECT_TRUE(is_trusted(status(0, kFile), status(998, kDirectory)));
    EXPECT_FALSE(is_trusted(status(1000, kFile), status(0, kDirectory)));
    EXPECT_FALSE(is_trusted(status(1000, kFile), status(998, kDirectory)));
    EXPECT_FALSE(is_trusted(status(0, kFile), status(0, S_IFDIR | 01777)));
    EXPECT_FALSE(is_trusted(status(0, kFile | S_IWGRP), status(0, kDirectory)));
}

TEST(HintsOfFiles, NameSourceLinkGatewayAndAddress) {
    Root root;
    root.write("/run/systemd/netif/leases/2", example("networkd"));
    root.write("/run/systemd/netif/leases/99", example("networkd"));                   // no such link
    root.write("/run/systemd/netif/leases/99999999999999999999", example("networkd")); // no number
    root.write("/var/lib/dhcp/dhclient.wlan0.leases", dhclient_lease("wlan0", "192.168.10.50", "192.168.10.1"));
    root.write("/var/lib/dhcp/dhclient.eth9.leases", dhclient_lease("eth9", "192.168.10.50", "192.168.10.1"));
    root.write("/var/lib/NetworkManager/dhclient-6f1b-wlan0.lease", dhclient_lease("wlan0", "10.0.0.5", "10.0.0.1"));
    root.write("/var/lib/dhcpcd/wlan0-Home.lease", example("dhcpcd"));
    root.write("/var/lib/dhcpcd/wlan0-x.lease", example("dhcpcd"));
    root.write("/var/lib/dhcpcd/wlan00.lease", example("dhcpcd"));
    EXPECT_THAT(hints_of_files(root.path(), kLinks, WallClock::now()),
                ElementsAre(Hint{UplinkSource::networkd, IfIndex{2}, ip("192.168.10.1"), ip("192.168.10.115")},
                            Hint{UplinkSource::lease, IfIndex{2}, ip("192.168.10.1"), ip("192.168.10.50")},
                            Hint{UplinkSource::lease, IfIndex{2}, ip("10.0.0.1"), ip("10.0.0.5")},
                            Hint{UplinkSource::lease, IfIndex{2}, ip("192.168.10.1"), ip("192.168.10.146")},
                            Hint{UplinkSource::lease, IfIndex{3}, ip("192.168.10.1"), ip("192.168.10.146")}));
}

TEST(HintsOfFiles, AnExpiredLeaseIsNone) {
    Root root;
    root.write("/run/systemd/netif/leases/2", example("networkd"));
    root.write("/var/lib/dhcpcd/wlan0.lease", example("dhcpcd"));
    root.write("/var/lib/dhcp/dhclient.leases", dhclient_lease("wlan0", "192.168.10.50", "192.168.10.1"));
    EXPECT_EQ(hints_of_files(root.path(), kLinks, WallClock::now()).size(), 3u);
    EXPECT_EQ(hints_of_files(root.path(), kLinks, WallClock::now() + 2h).size(), 1u) << "dhclient's";
    EXPECT_THAT(hints_of_files(root.path(), kLinks, WallClock::now() + 48h), IsEmpty());
}

TEST(HintsOfRouters, AreTheOnlyRouterOfALink) {
    auto neighbour = [](std::uint32_t link, const char* host, bool router,
                        NeighbourState state = NeighbourState::stale) {
        return Neighbour{.link = IfIndex{link}, .host = ip(host), .state = state, .router = router};
    };
    EXPECT_THAT(
        hints_of_routers({neighbour(2, "fe80::1", true), neighbour(2, "fe80::2", false),
                          neighbour(2, "fe80::3", true, NeighbourState::failed), neighbour(2, "2001:db8:a::1", true),
                          neighbour(3, "fe80::1", true), neighbour(3, "fe80::2", true)}),
        ElementsAre(Hint{UplinkSource::ra, IfIndex{2}, ip("fe80::1"), std::nullopt}));
}

TEST(NetworkManager, ADevicesConfigHasItsGateway) {
    BusObjects objects{
        {"/org/freedesktop/NetworkManager/Devices/2",
         {{"Interface", "cdc-wdm0"},
          {"IpInterface", "wwan0"},
          {"Ip4Config", "/org/freedesktop/NetworkManager/IP4Config/7"},
          {"Ip6Config", "/org/freedesktop/NetworkManager/IP6Config/8"}}},
        {"/org/freedesktop/NetworkManager/Devices/3", {{"IpInterface", "eth0"}, {"Ip4Config", "/"}}},
        {"/org/freedesktop/NetworkManager/Devices/4", {{"Ip4Config", "/org/freedesktop/NetworkManager/IP4Config/7"}}},
        {"/org/freedesktop/NetworkManager/IP4Config/7", {{"Gateway", "192.168.10.1"}}},
        {"/org/freedesktop/NetworkManager/IP6Config/8", {{"Gateway", "fe80::1"}}},
        {"/org/freedesktop/NetworkManager/IP4Config/9", {{"Gateway", "garbage"}}},
    };
    EXPECT_THAT(gateways_of(objects),
                ElementsAre(LinkGateway{"wwan0", ip("192.168.10.1"), {}}, LinkGateway{"wwan0", ip("fe80::1"), {}}));
}

TEST(NetworkManager, ALeaseHasTheRouterOfADefaultThatIsGone) {
    BusObjects objects = objects_in("networkmanager");
    LinkGateway lease{"wlan0", ip("192.168.10.1"), ip("192.168.10.149")};
    LinkGateway ipv6{"wlan0", ip("fe80::5c5f:23ff:fe7b:7479"), {}}, tunnel{"tun0", ip("10.8.0.1"), {}};
    EXPECT_THAT(gateways_of(objects), ElementsAre(lease, ipv6, tunnel));

    BusProperties& device = objects.at(kNetworkManager + "Devices/2");
    device["ipv4.never-default"] = "true";
    EXPECT_THAT(gateways_of(objects), ElementsAre(ipv6, tunnel));
    device["ipv4.never-default"] = "false";
    EXPECT_THAT(gateways_of(objects), ElementsAre(lease, ipv6, tunnel));

    LinkGateway in_settings{"wlan0", ip("192.168.10.2"), {}}, in_force{"wlan0", ip("192.168.10.3"), {}};
    device["ipv4.gateway"] = "192.168.10.2";
    EXPECT_THAT(gateways_of(objects), ElementsAre(in_settings, ipv6, tunnel));
    objects[kNetworkManager + "IP4Config/2"]["Gateway"] = "192.168.10.3";
    EXPECT_THAT(gateways_of(objects), ElementsAre(in_force, ipv6, tunnel));
}

TEST(NetworkManager, AStaticProfileHasTheGatewayOfADefaultThatIsGone) {
    BusObjects objects = objects_in("networkmanager_static");
    LinkGateway ipv6{"wlan0", ip("fe80::d0fb:efff:fe8e:af12"), {}}, tunnel{"tun0", ip("10.8.0.1"), {}};
    EXPECT_THAT(gateways_of(objects), ElementsAre(LinkGateway{"wlan0", ip("192.168.10.1"), {}}, ipv6, tunnel));
    objects.at(kNetworkManager + "Devices/2").erase("ipv4.gateway");
    EXPECT_THAT(gateways_of(objects), ElementsAre(ipv6, tunnel));
}

TEST(NetworkManagerLease, IsNoneWithoutWhatItTakes) {
    const BusProperties whole = objects_in("networkmanager").at(kNetworkManager + "DHCP4Config/1");
    EXPECT_EQ(parse_networkmanager_lease(whole),
              (Lease{.local = ip("192.168.10.149"), .gateway = ip("192.168.10.1"), .resolvers = {ip("192.168.10.1")}}));
    for (const char* name : {"routers", "ip_address"}) {
        for (const char* value : {"", "0.0.0.0", "garbage", "fe80::1", " 192.168.10.1"}) {
            BusProperties options = whole;
            options[name] = value;
            EXPECT_EQ(parse_networkmanager_lease(options), std::nullopt) << name << " " << value;
        }
    }
    BusProperties options = whole;
    options["routers"] = "192.168.10.1 192.168.10.2";
    EXPECT_EQ(parse_networkmanager_lease(options)->gateway, ip("192.168.10.1"));
    EXPECT_EQ(parse_networkmanager_lease({}), std::nullopt);
}

TEST(NetworkManagerLease, ClasslessRoutesReplaceTheRouters) {
    for (const char* name : {"networkmanager_classless", "networkmanager_classless_dhclient"}) {
        BusProperties options = objects_in(name).at(kNetworkManager + "DHCP4Config/1");
        options["routers"] = "192.168.10.7";
        EXPECT_EQ(parse_networkmanager_lease(options)->gateway, ip("192.168.10.1")) << name;
        options["ms_classless_static_routes"] = "0.0.0.0/0 192.168.10.8";
        EXPECT_EQ(parse_networkmanager_lease(options)->gateway, ip("192.168.10.1")) << name;
        auto routes = options.extract("rfc3442_classless_static_routes").mapped();
        EXPECT_EQ(parse_networkmanager_lease(options)->gateway, ip("192.168.10.8")) << name;
        auto last = std::min(routes.find(" 0.0.0.0/0 "), routes.find(" 0 192 "));
        options["rfc3442_classless_static_routes"] = routes.substr(0, last);
        EXPECT_EQ(parse_networkmanager_lease(options), std::nullopt) << name << ": no default among them";
    }
}

TEST(NetworkManager, ADevicesConfigHasItsNameServers) {
    BusObjects objects = objects_in("networkmanager");
    BusProperties& device = objects.at(kNetworkManager + "Devices/2");
    EXPECT_THAT(name_servers_of(objects), ElementsAre(LinkNameServers{"wlan0", {ip("192.168.10.1")}})) << "its lease";
    objects[device["Ip4Config"]]["NameserverData"] = "192.168.10.8 192.168.10.9 ";
    objects[device["Ip6Config"]]["Nameservers"] = "2001:db8:a::1 ";
    objects[kNetworkManager + "Devices/9"] = {{"IpInterface", "eth0"}};
    EXPECT_THAT(name_servers_of(objects),
                ElementsAre(LinkNameServers{"wlan0", {ip("192.168.10.8"), ip("192.168.10.9"), ip("2001:db8:a::1")}}));
}

TEST(NameServers, AreReadInTheWaysOfSystemd) {
    EXPECT_THAT(parse_servers("192.168.10.1 2001:db8:a::1 fe80::1%wlan0 192.168.10.2:53 [2001:db8:a::2]:53 "
                              "192.168.10.3#dns.example [2001:db8:a::3]:53%2#dns.example"),
                ElementsAre(ip("192.168.10.1"), ip("2001:db8:a::1"), ip("fe80::1"), ip("192.168.10.2"),
                            ip("2001:db8:a::2"), ip("192.168.10.3"), ip("2001:db8:a::3")));
    EXPECT_THAT(parse_servers("192.168.10.2:5353 [2001:db8:a::2]:853 [2001:db8:a::2 gateway 0.0.0.0 :: #"), IsEmpty());
    const std::string text = "# a comment\nSERVERS_OF=10.0.0.1\nSERVERS=192.168.10.1 2001:db8:a::1\nDOMAINS=x\n";
    EXPECT_EQ(value_of(text, "SERVERS"), "192.168.10.1 2001:db8:a::1");
    EXPECT_EQ(value_of(text, "DNS"), "");
}

TEST(NameServers, OfResolvConfAreThoseThatGlibcAsks) {
    EXPECT_THAT(parse_resolv_conf("# nameserver 10.0.0.9\nsearch example\n  nameserver\t127.0.0.53 \nnameserver ::1\n"
                                  "nameservers 10.0.0.8\nnameserver x\nnameserver 10.8.0.1\nnameserver 10.8.0.2\n"),
                ElementsAre(ip("127.0.0.53"), ip("::1"), ip("10.8.0.1")));
}

TEST(NameServers, OfFilesAreThoseOfTheLinksAndOfTheMachine) {
    Root root;
    root.write("/run/systemd/resolve/netif/2", "LLMNR=no\nSERVERS=192.168.10.8 2001:db8:a::8\n");
    root.write("/run/systemd/resolve/netif/99", "SERVERS=192.168.10.9\n");
    root.write("/run/systemd/netif/links/3", "ADMIN_STATE=configured\nDNS=192.168.10.7\nNTP=10.0.0.1\n");
    root.write("/run/systemd/netif/leases/2", example("networkd"));
    root.write("/var/lib/dhcpcd/wlan0.lease", example("dhcpcd"));
    fs::path stub = root.write("/run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n");
    fs::create_directories(root.path() + "/etc");
    fs::create_symlink(stub, root.path() + "/etc/resolv.conf");
    NameServers servers = name_servers_of_files(root.path(), kLinks, WallClock::now());
    const NameServers expected{
        .of_links = {{ResolverSource::resolved, IfIndex{2}, {ip("192.168.10.8"), ip("2001:db8:a::8")}, {}, {}},
                     {ResolverSource::networkd, IfIndex{3}, {ip("192.168.10.7")}, {}, {}},
                     {ResolverSource::networkd, IfIndex{2}, {ip("192.168.10.1")}, ip("192.168.10.115"), {}},
                     {ResolverSource::lease, IfIndex{2}, {ip("192.168.10.1")}, ip("192.168.10.146"), {}}},
        .of_machine = {ip("127.0.0.53")}};
    EXPECT_EQ(servers, expected);

    keep_current(servers, {{.link = IfIndex{2}, .local = ip("192.168.10.115"), .prefix_length = 24},
                           {.link = IfIndex{2}, .local = ip("fe80::2"), .prefix_length = 64},
                           {.link = IfIndex{3}, .local = ip("192.168.10.146"), .prefix_length = 24}});
    ASSERT_EQ(servers.of_links.size(), 3u) << "dhcpcd's was for another address";
    EXPECT_EQ(servers.of_links[2].from, ResolverSource::networkd);
    EXPECT_EQ(servers.of_links[2].networks, (std::set<Prefix>{{ip("192.168.10.0"), 24}}));

    chmod(stub.c_str(), 0666);
    EXPECT_THAT(name_servers_of_files(root.path(), kLinks, WallClock::now()).of_machine, IsEmpty());
}

/// Each way to write a file is told of, and a file that is made later, and nothing else in /etc.
TEST(FileWatch, TellsOfFilesThatNameServers) {
    Root root;
    root.write("/etc/resolv.conf", "nameserver 10.0.0.1\n");
    fs::create_directories(root.path() + "/run/systemd");
    boost::asio::io_context io;
    int told = 0;
    FileWatch watch(io, root.path(), [&] { ++told; });
    watch.watch(true);
    auto until_told = [&](const char* what) {
        const auto end = std::chrono::steady_clock::now() + 10s;
        const int before = told;
        while (told == before && std::chrono::steady_clock::now() < end) io.run_one_for(100ms);
        EXPECT_GT(told, before) << what;
        io.poll();
    };
    root.write("/etc/resolv.conf", "nameserver 10.0.0.2\n");
    until_told("written in its place");
    root.write("/etc/resolv.conf.new", "nameserver 10.0.0.3\n");
    fs::rename(root.path() + "/etc/resolv.conf.new", root.path() + "/etc/resolv.conf");
    until_told("another in its place");
    root.write("/etc/resolv.conf", "nameserver 10.0.0.4\n");
    until_told("that one is written");
    fs::create_directory(root.path() + "/run/systemd/resolve");
    until_told("its directory is made");
    fs::create_directory(root.path() + "/run/systemd/resolve/netif");
    until_told("and one in it");
    root.write("/run/systemd/resolve/netif/2", "SERVERS=192.168.10.8\n");
    until_told("a file of resolved");

    const int before = told;
    root.write("/etc/hosts", "127.0.0.1 localhost\n");
    watch.watch(false);
    root.write("/etc/resolv.conf", "nameserver 10.0.0.5\n");
    io.restart();
    io.poll();
    EXPECT_EQ(told, before);
}

/// A look that hangs holds up neither the loop nor the end of the agent, and is asked for once.
TEST(SourcesThread, TheLoopDoesNotWaitForALook) {
    auto io = std::make_unique<boost::asio::io_context>();
    struct Gate {
        std::promise<void> open;
        std::shared_future<void> opened = open.get_future().share();
        std::atomic<int> looks = 0;
    };
    auto gate = std::make_shared<Gate>();
    int heard = 0;
    {
        Sources sources(
            *io,
            [gate] {
                ++gate->looks;
                gate->opened.wait();
                return Hints{};
            },
            [&](const Hints&) { ++heard; });
        EXPECT_EQ(sources.ask(), 0ms);
        while (sources.ask() < 1ms) std::this_thread::yield(); // it tells for how long the first has looked
        io->run();                                             // returns: nothing is queued on the loop
    }
    gate->open.set_value(); // the look ends after Sources did
    EXPECT_EQ(heard, 0);
    EXPECT_LE(gate->looks, 1);
}

TEST(SourcesThread, AnAnswerComesToTheLoop) {
    boost::asio::io_context io;
    auto work = boost::asio::make_work_guard(io);
    std::vector<Hint> heard;
    Hint hint{UplinkSource::ra, IfIndex{2}, ip("fe80::1"), std::nullopt};
    Sources sources(
        io, [hint] { return Hints{.given = {hint}}; },
        [&](Hints hints) {
            heard.insert(heard.end(), hints.given.begin(), hints.given.end());
            if (heard.size() == 1)
                sources.ask();
            else
                io.stop();
        });
    sources.ask();
    io.run();
    EXPECT_THAT(heard, ElementsAre(hint, hint));
}

} // namespace novpn
