// What each method answers, and to whom.
#include "tests/unit/control_fixture.h"

#include <fstream>

namespace novpn::test {
namespace {

using namespace std::string_literals;

class MethodsTest : public ControlTest {
  protected:
    /// As the caller that runs the tests.
    json::object call(std::string_view method, json::object parameters = {}) {
        auto client = Client::connect(dir);
        if (!client) return {{"error", to_string(client.error())}};
        const auto answer = client->call(method, std::move(parameters), "asking", kPatience);
        return answer ? *answer : json::object{{"error", to_string(answer.error())}};
    }
    /// The error's name and parameters as they are sent.
    std::string raw(std::string_view method, std::string_view parameters) {
        Raw client(dir);
        EXPECT_TRUE(client.call(R"({"method":"io.novpn.Agent.)" + std::string(method) + R"(","parameters":)" +
                                std::string(parameters) + "}"));
        return client.receive();
    }
    static std::string refused(const std::string& error, const std::string& message) {
        return R"({"error":"io.novpn.Agent.)" + error + R"(","parameters":{"message":")" + message + R"("}})";
    }
    static std::string invalid(const std::string& parameter) {
        return error_reply("InvalidParameter", "parameter", parameter);
    }
};

TEST_F(MethodsTest, PlaceTellsOfOldSockets) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(call("Place", {{"class", "novpn"}, {"pid", ::getpid()}}),
              (json::object{{"class", "novpn"}, {"old_sockets", 2}, {"old", json::array{}}}));
}

TEST_F(MethodsTest, ReleaseTellsWhatBecameOfTheSockets) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(call("Release", {{"pid", ::getpid()}}), (json::object{{"class", "novpn"}, {"ended", 1}, {"kept", 3}}));
    end();
    EXPECT_EQ(agent.released, std::vector<pid_t>{::getpid()});
}

TEST_F(MethodsTest, AUserReleasesOwnProcessesOnly) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child stranger([] {
        become(kUser + 1);
        return "ready"s;
    });
    Child user([&, this] {
        become(kUser);
        std::string said;
        for (const pid_t pid : {::getpid(), stranger.pid(), pid_t{1}})
            said += ask(dir, "Release", {{"pid", pid}}) + "\n";
        return said;
    });
    Child not_allowed([this] {
        become(kUser + 2);
        return ask(dir, "Release", {{"pid", ::getpid()}});
    });
    ASSERT_EQ(stranger.result(), "ready");
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    serve();
    const auto refused = [](pid_t pid) {
        return "asking: process " + std::to_string(pid) +
               " is not uid 61234's own, in each of its user ids; only root may release it\n";
    };
    EXPECT_EQ(user.result(), "done\n" + refused(stranger.pid()) + refused(1));
    EXPECT_TRUE(not_allowed.result().starts_with("asking: uid 61236 is neither in allow.users"));
    end();
    EXPECT_EQ(agent.released, std::vector<pid_t>{user.pid()});
}

TEST_F(MethodsTest, ReleaseSaysThatAProcessIsInNoClassOrGone) {
    if (!root()) GTEST_SKIP() << "needs root";
    const std::string self = std::to_string(::getpid());
    const std::string parameters = R"({"pid":)" + self + "}";
    agent.releasing = system_error(EINVAL, "releasing");
    serve();
    EXPECT_EQ(raw("Release", parameters), refused("NotSteered", "process " + self + " is in no class"));
    on_loop([&] { agent.releasing = system_error(ESRCH, "releasing"); });
    EXPECT_EQ(raw("Release", parameters), refused("NoSuchProcess", "there is no process " + self));
    on_loop([&] { agent.releasing = system_error(EBUSY, "releasing"); });
    EXPECT_EQ(raw("Release", parameters), refused("Failed", "releasing: Device or resource busy"));
    EXPECT_EQ(raw("Release", R"({"pid":0})"), invalid("pid"));
}

namespace {

pid_t paused_process() {
    const pid_t child = ::fork();
    if (child != 0) return child;
    for (;;) ::pause();
}

void end_process(pid_t pid) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
}

} // namespace

TEST_F(MethodsTest, ReportsAProcessThatEndedWhileItWasReleased) {
    if (!root()) GTEST_SKIP() << "needs root";
    const pid_t victim = paused_process();
    agent.while_moving = end_process;
    serve();
    EXPECT_EQ(ask(dir, "Release", {{"pid", victim}}),
              "asking: process " + std::to_string(victim) + " ended while it was released");
    end();
    EXPECT_EQ(agent.warnings.size(), 1u);
}

TEST_F(MethodsTest, ReleasesAProcessThatEndsWithItsSockets) {
    if (!root()) GTEST_SKIP() << "needs root";
    const pid_t process = paused_process();
    agent.after_moving = end_process;
    serve();
    EXPECT_EQ(call("Release", {{"pid", process}}).at("class"), "novpn");
    end();
    EXPECT_TRUE(agent.warnings.empty());
}

TEST_F(MethodsTest, SetEnabledTakesSecondsOrNone) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(call("SetEnabled", {{"class", "novpn"}, {"enabled", false}}), json::object());
    EXPECT_EQ(call("SetEnabled", {{"class", "novpn"}, {"enabled", false}, {"seconds", nullptr}}), json::object());
    EXPECT_EQ(call("SetEnabled", {{"class", "resting"}, {"enabled", true}, {"seconds", 3600}}), json::object());
    for (const char* seconds : {"0", "-1", "31536001", "9223372036854775807", "\"1\"", "1.5", "true"})
        EXPECT_EQ(raw("SetEnabled", R"({"class":"novpn","enabled":false,"seconds":)"s + seconds + "}"),
                  invalid("seconds"))
            << seconds;
    EXPECT_EQ(raw("SetEnabled", R"({"class":"novpn","enabled":0})"), invalid("enabled"));
    EXPECT_EQ(raw("SetEnabled", R"({"class":"novpn"})"), invalid("enabled"));
    EXPECT_EQ(raw("SetEnabled", R"({"class":"games","enabled":true})"),
              refused("NoSuchClass", "there is no class games"));
    end();
    EXPECT_EQ(agent.switched, (std::vector<FakeAgent::Switched>{{"novpn", false, std::nullopt},
                                                                {"novpn", false, std::nullopt},
                                                                {"resting", true, std::chrono::hours(1)}}));
}

TEST_F(MethodsTest, OnlyRootSwitchesReloadsAndEnds) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child user([this] {
        become(kUser);
        return ask(dir, "SetEnabled", {{"class", "novpn"}, {"enabled", false}}) + "\n" + ask(dir, "Reload") + "\n" +
               ask(dir, "Down");
    });
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    serve();
    EXPECT_EQ(user.result(), "asking: only root may turn a class off\n"
                             "asking: only root may have the config read again\n"
                             "asking: only root may end the agent");
    end();
    EXPECT_TRUE(agent.switched.empty());
    EXPECT_EQ(agent.reloads, 0u);
    EXPECT_TRUE(agent.ends.empty());
}

TEST_F(MethodsTest, ReloadTellsAWrongConfigFromAKernelThatRefuses) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(call("Reload"), json::object());
    on_loop([&] {
        agent.reloading = tl::make_unexpected(
            Error{.code = {}, .doing = "reloading", .detail = "novpn.yaml:3:5: unknown key 'aps'; did you mean apps?"});
    });
    EXPECT_EQ(raw("Reload", "{}"), refused("InvalidConfig", "novpn.yaml:3:5: unknown key 'aps'; did you mean apps?"));
    on_loop([&] { agent.reloading = system_error(EPERM, "adding a rule"); });
    EXPECT_EQ(raw("Reload", "{}"), refused("Failed", "adding a rule: Operation not permitted"));
}

TEST_F(MethodsTest, ExplainTakesAnyAddress) {
    serve();
    for (const char* destination : {"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.7", "fe80::1"})
        EXPECT_EQ(call("Explain", {{"destination", destination}}), json::object()) << destination;
    for (const char* destination : {R"("")", R"("example.com")", R"("192.0.2.1/24")", R"("192.0.2.1\u0000x")", "7"})
        EXPECT_EQ(raw("Explain", R"({"destination":)"s + destination + "}"), invalid("destination")) << destination;
    EXPECT_EQ(raw("Explain", "{}"), invalid("destination"));
    end();
    EXPECT_EQ(agent.explained,
              (std::vector<std::pair<std::string, std::string>>{
                  {"192.0.2.1", "novpn"}, {"2001:db8::1", "novpn"}, {"192.0.2.7", "novpn"}, {"fe80::1", "novpn"}}));
}

TEST_F(MethodsTest, ExplainTakesAClassOrAProcess) {
    if (!root()) GTEST_SKIP() << "needs root";
    Child member([] { return ""s; });
    agent.members = {member.pid()};
    serve();
    const auto pid = [](pid_t number) { return json::object{{"destination", "192.0.2.1"}, {"pid", number}}; };
    EXPECT_EQ(call("Explain", {{"destination", "192.0.2.1"}, {"class", "resting"}}), json::object());
    const json::array old{{{"protocol", "tcp"},
                           {"local", "10.8.0.2:40112"},
                           {"remote", "203.0.113.1:443"},
                           {"pid", member.pid()},
                           {"process", "a member"}}};
    EXPECT_EQ(call("Explain", pid(member.pid())),
              (json::object{{"selector", "app spotify"}, {"old", old}, {"process_class", "resting"}}));
    EXPECT_EQ(call("Explain", pid(::getpid())),
              (json::object{{"selector", nullptr}, {"old", json::array{}}, {"process_class", nullptr}}));
    EXPECT_EQ(raw("Explain", R"({"destination":"192.0.2.1","class":"novpn","pid":1})"), invalid("class"));
    EXPECT_EQ(raw("Explain", R"({"destination":"192.0.2.1","pid":-1})"), invalid("pid"));
    EXPECT_EQ(raw("Explain", R"({"destination":"192.0.2.1","class":"games"})"),
              refused("NoSuchClass", "there is no class games"));
    on_loop([&] { agent.explaining = system_error(EINVAL, "looking up 192.0.2.1"); });
    EXPECT_EQ(raw("Explain", R"({"destination":"192.0.2.1"})"),
              refused("Failed", "looking up 192.0.2.1: Invalid argument"));
    end();
    using Explained = std::pair<std::string, std::string>;
    EXPECT_EQ(agent.explained[0], Explained("192.0.2.1", "resting"));
    EXPECT_EQ(agent.explained[1], Explained("192.0.2.1", "resting"));
    EXPECT_EQ(agent.explained[2], Explained("192.0.2.1", "novpn"));
}

TEST_F(MethodsTest, ExplainTellsNobodyOfAnothersProcess) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child stranger([] {
        become(kUser + 1);
        return "ready"s;
    });
    Child user([&, this] {
        become(kUser);
        return ask(dir, "Explain", {{"destination", "192.0.2.1"}, {"pid", stranger.pid()}}) + "\n" +
               ask(dir, "Explain", {{"destination", "192.0.2.1"}, {"pid", ::getpid()}});
    });
    ASSERT_EQ(stranger.result(), "ready");
    agent.members = {stranger.pid()};
    serve();
    EXPECT_EQ(user.result(), "asking: process " + std::to_string(stranger.pid()) +
                                 " is not uid 61234's own, in each of its user ids; only root may look at it\ndone");
}

TEST_F(MethodsTest, AnyoneReads) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        std::string said;
        for (const char* method : {"Status", "Plan", "Metrics"}) said += ask(dir, method) + " ";
        return said + ask(dir, "Explain", {{"destination", "192.0.2.1"}});
    });
    agent.allowed = {.users = {}, .groups = {}};
    serve();
    EXPECT_EQ(user.result(), "done done done done");
    EXPECT_EQ(call("Metrics").at("text").as_string(), "# TYPE novpn_repairs counter\nnovpn_repairs_total 2\n# EOF\n");
}

} // namespace
} // namespace novpn::test
