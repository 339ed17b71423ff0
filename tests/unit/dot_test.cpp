// `novpn status --dot`: the ways that are drawn.
#include "agent/cli/dot.h"

#include <boost/json/parse.hpp>
#include <gmock/gmock.h>

namespace novpn {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string dot(const std::string& families, const std::string& classes) {
    return to_dot(
        boost::json::parse(R"({"summary": "Now.", "families": )" + families + R"(, "classes": )" + classes + "}")
            .as_object());
}

const std::string kTakenOver = R"({"ipv4": {"uplink": {"link": "wlan0"},
    "takeovers": [{"shape": "inverted_mark_rule", "link": "wg0", "table": 51820, "preference": 32764}]},
    "ipv6": {"uplink": {"link": "wlan0"}, "takeovers": []}})";

std::string of_class(const std::string& state, const std::string& uplinks) {
    return R"([{"name": "novpn", "table": 7866, "mark": 1308622848, "mask": 4278190080, "preference": 64, "state": ")" +
           state + R"(", "uplinks": )" + uplinks + R"(, "members": [{"selector": "run", "processes": 2}]}])";
}

TEST(Dot, DrawsAClassPastTheTunnel) {
    const std::string text = dot(kTakenOver, of_class("steering", R"({"ipv4": "wlan0", "ipv6": "wlan0"})"));
    EXPECT_THAT(text, HasSubstr(R"(label="Now.")"));
    EXPECT_THAT(text, HasSubstr(R"("class novpn" [label="class novpn\n2 processes")"));
    EXPECT_THAT(text, HasSubstr(R"("class novpn" -> "table 7866" [label="mark 0x4e000000/0xff000000\nrule 64"])"));
    EXPECT_THAT(text, HasSubstr(R"("table 7866" -> "link wlan0" [label="IPv4, IPv6")"));
    EXPECT_THAT(text,
                HasSubstr(R"("others" -> "link wg0" [label="IPv4: inverted_mark_rule\ntable 51820, rule 32764")"));
    EXPECT_THAT(text, HasSubstr(R"("others" -> "link wlan0" [label="IPv6")"));
    EXPECT_THAT(text, HasSubstr(R"("link wg0" -> "internet" [label="through the VPN"])"));
    EXPECT_THAT(text, Not(HasSubstr("unreachable")));
}

TEST(Dot, DrawsTheBackstopOfAFamilyWithoutAnUplink) {
    const std::string text = dot(kTakenOver, of_class("steering", R"({"ipv4": "wlan0", "ipv6": null})"));
    EXPECT_THAT(text, HasSubstr(R"("table 7866" -> "link wlan0" [label="IPv4")"));
    EXPECT_THAT(text, HasSubstr(R"("table 7866" -> "backstop novpn" [label="IPv6"])"));
    const std::string open = dot(kTakenOver, of_class("tunnel", R"({"ipv4": null, "ipv6": null})"));
    EXPECT_THAT(open, HasSubstr(R"("table 7866" -> "others" [label="IPv4, IPv6: no uplink", style=dashed])"));
}

TEST(Dot, DrawsAClassThatIsOffWithTheOthers) {
    const std::string text = dot(kTakenOver, of_class("off", R"({"ipv4": null, "ipv6": null})"));
    EXPECT_THAT(text, HasSubstr(R"("class novpn" -> "others" [label="off", style=dashed])"));
    EXPECT_THAT(text, Not(HasSubstr("table 7866")));
}

TEST(Dot, QuotesNamesOfOthers) {
    const std::string text = dot(R"({"ipv4": {"uplink": {"link": "a\"] b\\"}, "takeovers": []}})", "[]");
    EXPECT_THAT(text, HasSubstr(R"("link a\"] b\\")"));
}

} // namespace
} // namespace novpn
