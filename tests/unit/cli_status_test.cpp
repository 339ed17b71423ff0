#include "agent/cli/status.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <gtest/gtest.h>

namespace novpn {
namespace {

std::string text_of(std::string_view status) { return to_text(boost::json::parse(status).as_object()); }

TEST(StatusText, SaysEverythingInOrder) {
    EXPECT_EQ(text_of(R"({
        "version": "0.1.0",
        "summary": "Members of novpn go out by wlan0 while tun0 has everything else.",
        "health": "ok",
        "site": "office",
        "families": {
            "ipv4": {
                "uplink": {"link": "wlan0", "ifindex": 3, "gateway": "192.168.10.1", "source": "192.168.10.23",
                           "from": "host_route", "reason": "203.0.113.5 leaves by it"},
                "takeovers": [{"shape": "split", "link": "tun0", "table": 254, "preference": null},
                              {"shape": "catch_all_rule", "link": "tailscale0", "table": 52, "preference": 5270}]
            },
            "ipv6": {"uplink": null, "takeovers": []}
        },
        "classes": [
            {"name": "novpn", "table": 7866, "mark": 1308622848, "mask": 4278190080, "preference": 64,
             "state": "steering", "backend": ["bpf", "nft"],
             "dns": {"by": "uplink", "servers": ["192.168.10.1", "2001:db8:a::1"], "from": "resolved", "asked": ["127.0.0.53"]},
             "members": [{"cgroup": "novpn-4026531840/novpn", "selector": "run", "processes": 1, "old_sockets": 0},
                         {"cgroup": "user.slice/app-spotify-12.scope", "selector": "app spotify", "processes": 4,
                          "old_sockets": 2, "old": [{"protocol": "tcp", "local": "10.8.0.2:40112",
                          "remote": "203.0.113.1:443", "pid": 12, "process": "spot\u001bify"}]}],
             "packets": {"marked": 120, "masqueraded": 3, "dropped": 0}},
            {"name": "games", "table": 7867, "mark": 1325400064, "mask": 4278190080, "preference": 65,
             "state": "off", "backend": [], "members": [], "packets": {"marked": 0, "masqueraded": 0, "dropped": 0}}
        ],
        "repairs": 2,
        "last_reaction_us": 1240,
        "warnings": [{"code": "rp_filter", "text": "wlan0 drops replies to members: rp_filter is 1"}]
    })"),
              R"(Members of novpn go out by wlan0 while tun0 has everything else.

site           office
ipv4 uplink    wlan0, gateway 192.168.10.1, source 192.168.10.23
               from the host route to the VPN's server; 203.0.113.5 leaves by it
     takeover  tun0 added routes that together cover everything (table main)
               tailscale0 added a rule for all packets (table 52, preference 5270)
ipv6 uplink    none
     takeover  none
class novpn    steering past the VPN
               table 7866, mark 0x4e000000/0xff000000, preference 64, by bpf, nft
     members   novpn-4026531840/novpn (run): 1 process
               user.slice/app-spotify-12.scope (app spotify): 4 processes, 2 sockets from before it joined, still in the VPN
                 tcp 10.8.0.2:40112 to 203.0.113.1:443, of spot\x1bify (12)
                 and 1 more
     names     by 192.168.10.1, 2001:db8:a::1 of the uplink (from systemd-resolved)
     packets   120 marked, 3 masqueraded, 0 dropped
class games    off
               table 7867, mark 0x4f000000/0xff000000, preference 65
     members   none
     packets   0 marked, 0 masqueraded, 0 dropped
repairs        2
last reaction  1.2 ms
warning        wlan0 drops replies to members: rp_filter is 1 (rp_filter)
)");
}

TEST(StatusText, SaysWhereTheLaptopMayBe) {
    const auto with = [](const std::string& matches) {
        return text_of(R"({"summary": "S.", "site": null, "sites": [
            {"name": "office", "matches": ")" +
                       matches + R"(", "failed": ["network", "domain"]},
            {"name": "home", "matches": "no", "failed": ["link"]}],
            "place": [{"key": "ssid", "value": "\\x1b[2J"}]})");
    };
    EXPECT_EQ(with("unknown"), R"(S.

site           not known yet
no site        office: network, domain not known yet
no site        home: link does not match
place          ssid \x1b[2J
last reaction  none yet
)");
    EXPECT_EQ(with("no"), R"(S.

site           none
no site        office: network, domain do not match
no site        home: link does not match
place          ssid \x1b[2J
last reaction  none yet
)");
}

TEST(StatusText, LeavesOutWhatAnotherVersionDoesNotSay) {
    EXPECT_EQ(text_of(R"({"summary": "Nothing is steered.", "site": null, "last_reaction_us": null})"),
              "Nothing is steered.\n\nlast reaction  none yet\n");
}

TEST(StatusText, SurvivesFieldsOfOtherTypes) {
    EXPECT_EQ(text_of(R"({"summary": 7, "families": [], "classes": {"name": 1}, "repairs": "x", "warnings": [3],
                          "last_reaction_us": 2500000})"),
              "\n\nlast reaction  2.5 s\n");
}

TEST(StatusText, KeepsControlCharactersFromTheTerminal) {
    EXPECT_EQ(text_of(R"({"summary": "a\u001b[2Jb\u009bc\nd\u007f é", "last_reaction_us": 850})"),
              R"(a\x1b[2Jb\u{9b}c\x0ad\x7f é)"
              "\n\nlast reaction  850 us\n");
}

} // namespace
} // namespace novpn
