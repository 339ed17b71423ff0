// What the command line says to a person of an event, an explanation and a duration.
#include "agent/cli/duration.h"
#include "agent/cli/event.h"
#include "agent/cli/explanation.h"
#include "agent/cli/fields.h"
#include "agent/cli/terminal.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <gtest/gtest.h>

namespace novpn {
namespace {

using namespace std::chrono_literals;

boost::json::object object(std::string_view text) { return boost::json::parse(text).as_object(); }

TEST(Duration, ReadsNumbersWithUnitsTheLargerFirst) {
    EXPECT_EQ(parse_duration("30s"), 30s);
    EXPECT_EQ(parse_duration("10m"), 10min);
    EXPECT_EQ(parse_duration("1h"), 1h);
    EXPECT_EQ(parse_duration("1h30m"), 90min);
    EXPECT_EQ(parse_duration("2d"), 48h);
    EXPECT_EQ(parse_duration("1d2h3m4s"), 26h + 3min + 4s);
    EXPECT_EQ(parse_duration("90m"), 90min);
    EXPECT_EQ(parse_duration("365d"), 24h * 365);
}

TEST(Duration, RefusesAllElse) {
    for (const char* text : {"",
                             "1",
                             "h",
                             "s",
                             "0s",
                             "0h0m",
                             "-1h",
                             "+1h",
                             "1h-5m",
                             "1.5h",
                             "1 h",
                             " 1h",
                             "1h ",
                             "1H",
                             "1m1h",
                             "1h1h",
                             "1w",
                             "366d",
                             "365d1s",
                             "99999999999999999999s",
                             "9223372036854775807d"})
        EXPECT_EQ(parse_duration(text), std::nullopt) << text;
}

TEST(Duration, IsSaidInWords) {
    EXPECT_EQ(to_words(30s), "30 s");
    EXPECT_EQ(to_words(90min), "1 h 30 min");
    EXPECT_EQ(to_words(48h), "2 d");
    EXPECT_EQ(to_words(24h + 1s), "1 d 1 s");
}

TEST(EventLine, LeadsFromTheCauseToTheReaction) {
    EXPECT_EQ(to_line(object(R"({"cause": "link tun0", "decisions": ["ipv4 takeover split by tun0"],
                                 "operations": ["ip rule add", "nft add"], "omitted": 0,
                                 "reaction_us": 1240, "summary": "All is well.", "lost": 0})")),
              "link tun0 → ipv4 takeover split by tun0 → ip rule add; nft add → 1.2 ms");
    EXPECT_EQ(to_line(object(R"({"cause": "link wlan0", "decisions": ["ipv4 uplink none", "ipv6 uplink none"],
                                 "operations": [], "omitted": 0, "reaction_us": null, "lost": 0})")),
              "link wlan0 → ipv4 uplink none; ipv6 uplink none");
    EXPECT_EQ(to_line(object(R"({"cause": "now", "operations": [], "omitted": 0, "reaction_us": null,
                                 "summary": "All is well.", "lost": 0})")),
              "now: All is well.");
}

TEST(EventLine, CountsWhatIsNotThere) {
    EXPECT_EQ(to_line(object(R"({"cause": "route", "operations": ["ip route add"], "omitted": 4095,
                                 "reaction_us": 2500000, "summary": "Fine.", "lost": 1})")),
              "(1 event missed before this one) route → ip route add; 4095 more → 2.5 s");
}

TEST(EventLine, CountsWhatDoesNotFit) {
    const auto event = object(R"({"cause": "link tun0", "decisions": ["ipv4 takeover split by tun0"],
                                  "operations": ["ip rule add", "nft add"], "reaction_us": 1240})");
    EXPECT_EQ(to_line(event, 80), to_line(event));
    EXPECT_EQ(to_line(event, 70), "link tun0 → ipv4 takeover split by tun0 → 2 operations → 1.2 ms");
    EXPECT_EQ(to_line(event, 50), "link tun0 → ipv4 takeover… → 2 operations → 1.2 ms");
}

TEST(EventLine, IsOneLineWhateverTheAgentSays) {
    EXPECT_EQ(to_line(object(R"({"cause": "a\nb", "operations": 7, "summary": "\u001b[2J", "lost": "x"})")),
              R"(a\x0ab: \x1b[2J)");
    EXPECT_EQ(to_line(object(R"({"cause": "a", "operations": ["b\nc", 7], "decisions": ["\u001b[2J"]})")),
              R"(a → \x1b[2J → b\x0ac; )");
    EXPECT_EQ(to_line({}), ": ");
}

TEST(Fit, BreaksLinesBelowTheirText) {
    const std::string text = "One sentence that is too long for it.\n\n"
                             "class novpn    steering past the VPN and on\n"
                             "               a second line, which has more\n"
                             "short          line\n";
    EXPECT_EQ(fit(text, std::nullopt, 15), text);
    EXPECT_EQ(fit(text, 30, 15), "One sentence that is too long\nfor it.\n\n"
                                 "class novpn    steering past\n"
                                 "               the VPN and on\n"
                                 "               a second line,\n"
                                 "               which has more\n"
                                 "short          line\n");
}

TEST(Fit, TakesNoSentenceForAHeading) {
    EXPECT_EQ(fit("A sentence of which a blank is there.", 30, 11), "A sentence of which a blank is\nthere.");
}

TEST(Fit, KeepsALongWordWhole) {
    EXPECT_EQ(fit("members    /a/path/that/has/no/blank/anywhere: 1 process", 25, 11),
              "members    /a/path/that/has/no/blank/anywhere:\n           1 process");
    EXPECT_EQ(fit("members    /a/path/that/has/no/blank/anywhere", 25, 11),
              "members    /a/path/that/has/no/blank/anywhere");
}

TEST(Fit, CountsCharactersAndNotBytes) {
    EXPECT_EQ(fit("ééééé ééééé", 11, 0), "ééééé ééééé");
    EXPECT_EQ(cut("ééééé", 5), "ééééé");
    EXPECT_EQ(cut("éééééé", 5), "éééé…");
}

TEST(Coloured, PaintsTheSentenceAndTheHeadings) {
    EXPECT_EQ(coloured("Well.\nYes.\n\nok     kernel\nwarning        this\nokay\n", Colour::green),
              "\033[32mWell.\033[0m\n\033[32mYes.\033[0m\n\n\033[32mok\033[0m     kernel\n"
              "\033[33mwarning\033[0m        this\nokay\n");
}

TEST(Explanation, SaysTheDifferenceFirst) {
    EXPECT_EQ(to_explanation(object(R"({
        "destination": "192.0.2.1", "class": "novpn",
        "ordinary": {"route": "0.0.0.0/1 via 10.8.0.1 dev tun0", "link": "tun0", "table": 254,
                     "rule": "preference 32766 lookup 254", "preference": 32766, "owner": "kernel"},
        "member": {"route": "default via 192.168.10.1 dev wlan0", "link": "wlan0", "table": 7866,
                   "rule": "preference 64 fwmark 0x4e000000/0xff000000 lookup 7866", "preference": 64,
                   "owner": "novpn"}})")),
              R"(To 192.0.2.1 an ordinary process leaves by tun0, and a member of class novpn leaves by wlan0.

ordinary     0.0.0.0/1 via 10.8.0.1 dev tun0
             from table main, by the rule preference 32766 lookup 254 (owner: kernel)
class novpn  default via 192.168.10.1 dev wlan0
             from table 7866, by the rule preference 64 fwmark 0x4e000000/0xff000000 lookup 7866 (owner: novpn)
)");
}

TEST(Explanation, SaysThatThereIsNoDifference) {
    const auto text = to_explanation(object(R"({
        "destination": "192.0.2.1", "class": "novpn",
        "ordinary": {"route": "default via 192.168.10.1 dev wlan0", "link": "wlan0", "table": 254},
        "member": {"route": "default via 192.168.10.1 dev wlan0", "link": "wlan0", "table": 7866}})"));
    EXPECT_TRUE(text.starts_with(
        "To 192.0.2.1 an ordinary process and a member of class novpn both leave by wlan0: the same way.\n\n"))
        << text;
}

TEST(Explanation, SaysThatThereIsNoRoute) {
    EXPECT_EQ(to_explanation(object(R"({
        "destination": "2001:db8::1", "class": "games",
        "ordinary": {"route": "default dev tun0", "link": "tun0", "table": 51820, "rule": null, "owner": null},
        "member": {"route": null, "link": null, "table": null, "rule": null, "preference": null, "owner": null}})")),
              R"(To 2001:db8::1 an ordinary process leaves by tun0, and a member of class games has no way out.

ordinary     default dev tun0
             from table 51820
class games  no route
)");
}

TEST(Explanation, SaysThatNeitherHasAWayOut) {
    EXPECT_EQ(to_explanation(object(R"({"destination": "2001:db8::1", "class": "novpn", "ordinary": {"link": null}})")),
              "To 2001:db8::1 there is no way out, neither for an ordinary process nor for a member of class novpn.\n\n"
              "ordinary     no route\nclass novpn  no route\n");
}

TEST(Explanation, SaysThatAnAddressIsThisMachinesOwn) {
    EXPECT_EQ(to_explanation(object(R"({
        "destination": "192.168.10.100", "class": "novpn",
        "ordinary": {"route": "local 192.168.10.100 dev wlan0 table 255", "link": "wlan0", "table": 255,
                     "rule": "preference 0 lookup 255", "owner": "kernel"},
        "member": {"route": "local 192.168.10.100 dev wlan0 table 255", "link": "wlan0", "table": 255}})")),
              R"(192.168.10.100 is an address of this machine: no packet to it leaves.

ordinary     local 192.168.10.100 dev wlan0 table 255
             from table local, by the rule preference 0 lookup 255 (owner: kernel)
class novpn  local 192.168.10.100 dev wlan0 table 255
             from table local
)");
}

TEST(Fields, SurviveOtherTypes) {
    const auto fields = object(R"({"text": 7, "number": "x", "object": [1], "objects": [1, {"a": 1}], "big": 1e30})");
    EXPECT_EQ(text_of(fields, "text"), "");
    EXPECT_EQ(text_of(fields, "absent"), "");
    EXPECT_EQ(number_of(fields, "number"), std::nullopt);
    EXPECT_EQ(number_of(fields, "big"), std::nullopt);
    EXPECT_TRUE(object_of(fields, "object").empty());
    EXPECT_EQ(objects_of(fields, "objects").size(), 1u);
    EXPECT_TRUE(objects_of(fields, "text").empty());
}

} // namespace
} // namespace novpn
