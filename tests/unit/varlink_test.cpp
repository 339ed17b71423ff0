#include "agent/control/varlink.h"

#include <boost/json/value.hpp>
#include <gtest/gtest.h>

namespace novpn::varlink {
namespace {

using namespace std::string_literals;

TEST(VarlinkMessages, CutsAStreamAtNulWhereverItIsBroken) {
    const std::string stream = "{\"a\":1}\0{\"b\":2}\0{\"c\""s;
    for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
        Messages messages(100);
        std::vector<std::string> got;
        for (std::size_t at = 0; at < stream.size(); at += piece) {
            messages.append(std::string_view(stream).substr(at, piece));
            while (auto message = messages.next()) got.push_back(*message);
        }
        EXPECT_EQ(got, (std::vector<std::string>{"{\"a\":1}", "{\"b\":2}"})) << "in pieces of " << piece;
        EXPECT_FALSE(messages.too_long());
    }
}

TEST(VarlinkMessages, TakesAMessageOfTheLimitAndRefusesOneMore) {
    Messages exact(8);
    exact.append("12345678\0"s);
    EXPECT_EQ(exact.next(), "12345678");
    EXPECT_FALSE(exact.too_long());

    Messages whole(8);
    whole.append("123456789\0"s);
    EXPECT_EQ(whole.next(), std::nullopt);
    EXPECT_TRUE(whole.too_long());

    Messages unended(8);
    unended.append("123456789");
    EXPECT_EQ(unended.next(), std::nullopt);
    EXPECT_TRUE(unended.too_long());
    unended.append("\0"s);
    EXPECT_EQ(unended.next(), std::nullopt) << "what follows a message that is too long is lost with it";
}

TEST(VarlinkCall, ReadsEveryField) {
    const auto call = parse_call(R"({"method":"io.novpn.Agent.Place","parameters":{"pid":7},"more":true})");
    ASSERT_TRUE(call);
    EXPECT_EQ(*call, (Call{.method = "io.novpn.Agent.Place",
                           .parameters = {{"pid", 7}},
                           .oneway = false,
                           .more = true,
                           .upgrade = false}));
}

TEST(VarlinkCall, TakesAbsentAndNullForTheDefault) {
    const Call expected{.method = "a.B", .parameters = {}};
    EXPECT_EQ(parse_call(R"({"method":"a.B"})").value(), expected);
    EXPECT_EQ(parse_call(R"({"method":"a.B","parameters":null,"oneway":null,"more":false})").value(), expected);
}

TEST(VarlinkCall, IgnoresMembersOfNewerProtocols) {
    EXPECT_EQ(parse_call(R"({"method":"a.B","colour":["blue"]})").value().method, "a.B");
}

TEST(VarlinkCall, ComesBackAsItWasWritten) {
    const Call call{
        .method = "a.B", .parameters = {{"x", {1, "two", nullptr}}}, .oneway = true, .more = false, .upgrade = false};
    std::string message = to_message(call);
    ASSERT_EQ(message.back(), '\0');
    message.pop_back();
    EXPECT_EQ(message.find('\0'), std::string::npos);
    EXPECT_EQ(parse_call(message).value(), call);
}

class HostileCall : public testing::TestWithParam<std::string> {};

TEST_P(HostileCall, IsRefused) { EXPECT_FALSE(parse_call(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Varlink, HostileCall,
                         testing::Values(""s, " "s, "{"s, "}"s, "null"s, "7"s, "[]"s, "\"a.B\""s, "{}"s,
                                         R"({"method":7})"s, R"({"method":null})"s, R"({"method":""})"s,
                                         R"({"method":"."})"s, R"({"method":"B"})"s, R"({"method":".B"})"s,
                                         R"({"method":"a."})"s, R"({"method":"a.B","parameters":[]})"s,
                                         R"({"method":"a.B","parameters":"x"})"s, R"({"method":"a.B","more":1})"s,
                                         R"({"method":"a.B","oneway":"true"})"s,
                                         R"({"method":"a.B","more":true,"oneway":true})"s, R"({"method":"a.B"} {})"s,
                                         R"({"method":"a.B",})"s, "{\"method\":\"a.\xff\xfe\"}"s, "\x16\x03\x01"s,
                                         "GET / HTTP/1.1\r\n"s));

std::string nested(std::size_t depth) {
    return R"({"method":"a.B","parameters":{"x":)" + std::string(depth, '[') + std::string(depth, ']') + "}}";
}

TEST(VarlinkCall, BoundsTheDepth) {
    // The call and its parameters are two levels of their own.
    EXPECT_TRUE(parse_call(nested(kMaxDepth - 2)));
    EXPECT_FALSE(parse_call(nested(kMaxDepth - 1)));
    EXPECT_FALSE(parse_call(std::string(kMaxCallSize, '[')));
}

TEST(VarlinkCall, AnyByteChangedGivesAValueOrAnError) {
    const std::string good =
        R"({"method":"io.novpn.Agent.Place","parameters":{"class":"novpn","pid":-12e1},"more":false})";
    ASSERT_TRUE(parse_call(good));
    for (std::size_t at = 0; at < good.size(); ++at) {
        std::string bad = good;
        for (int byte = 0; byte < 256; ++byte) {
            bad[at] = static_cast<char>(byte);
            if (const auto call = parse_call(bad)) {
                EXPECT_FALSE(interface_of(call->method).empty()) << bad;
            }
        }
        if (at + 1 < good.size()) {
            EXPECT_FALSE(parse_call(std::string_view(good).substr(0, at))) << "cut at " << at;
        }
    }
}

TEST(VarlinkReply, ReadsErrorAndContinues) {
    const auto error = parse_reply(R"({"error":"io.novpn.Agent.NotAllowed","parameters":{"message":"no"}})");
    EXPECT_EQ(error.value(),
              (Reply{.parameters = {{"message", "no"}}, .continues = false, .error = "io.novpn.Agent.NotAllowed"}));
    EXPECT_EQ(parse_reply(R"({"continues":true})").value(), (Reply{.parameters = {}, .continues = true, .error = {}}));
    EXPECT_EQ(parse_reply("{}").value(), Reply{});
    EXPECT_FALSE(parse_reply(R"({"error":7})"));
    EXPECT_FALSE(parse_reply(R"({"continues":"yes"})"));
    EXPECT_FALSE(parse_reply("[]"));
}

TEST(VarlinkReply, AlwaysHasParameters) { EXPECT_EQ(to_message(Reply{}), "{\"parameters\":{}}\0"s); }

TEST(VarlinkInterface, IsAllBeforeTheLastDot) {
    EXPECT_EQ(interface_of("io.novpn.Agent.Status"), "io.novpn.Agent");
    EXPECT_EQ(interface_of("Status"), "");
    EXPECT_EQ(interface_of("io.novpn."), "");
}

} // namespace
} // namespace novpn::varlink
