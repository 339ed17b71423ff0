// The commands against a real server with a fake agent: what they print, and their exit status.
#include "agent/cli/commands.h"

#include "agent/cli/name.h"
#include "tests/unit/control_fixture.h"

#include <boost/json/parse.hpp>
#include <fstream>
#include <netinet/in.h>

namespace novpn::test {
namespace {

using namespace std::chrono_literals;
using testing::internal::CaptureStderr;
using testing::internal::CaptureStdout;
using testing::internal::GetCapturedStderr;
using testing::internal::GetCapturedStdout;

/// What a command printed and returned; its stderr after its stdout.
struct Said {
    int exit = 0;
    std::string text;
    bool operator==(const Said&) const = default;
};

void PrintTo(const Said& said, std::ostream* out) { *out << said.exit << ": " << said.text; }

Said said_by(const std::function<int()>& command) {
    CaptureStdout();
    CaptureStderr();
    const int status = command();
    const std::string out = GetCapturedStdout();
    return {status, out + GetCapturedStderr()};
}

/// The last process of this test program to be asked about: itself.
std::string myself() {
    std::ifstream file("/proc/self/comm");
    std::string name;
    std::getline(file, name);
    return "PID " + std::to_string(::getpid()) + " (" + name + ")";
}

class CommandsTest : public ControlTest {
  protected:
    void SetUp() override {
        ControlTest::SetUp();
        if (!root()) GTEST_SKIP() << "needs root: its own processes are root's";
    }
};

TEST_F(CommandsTest, AddCountsTheSocketsThatKeepTheirPath) {
    serve();
    const auto add = [&](const std::string& class_name = "novpn") {
        return said_by([&] { return cli::add(dir, {.class_name = class_name, .pid = ::getpid()}); });
    };
    EXPECT_EQ(add(), (Said{0, myself() + " is in class novpn; 2 of its open sockets were made before and keep their "
                                         "path\n"}));
    on_loop([&] {
        agent.placing = Placed{.old_sockets = 1, .named = {{"udp", "10.8.0.2:4711", "203.0.113.1:443", 7, "game"}}};
    });
    EXPECT_EQ(add(),
              (Said{0, myself() + " is in class novpn; 1 of its open sockets was made before and keeps its path\n"
                                  "  udp 10.8.0.2:4711 to 203.0.113.1:443, of game (7)\n"}));
    on_loop([&] { agent.placing = Placed{}; });
    EXPECT_EQ(add(), (Said{0, myself() + " is in class novpn\n"}));
    EXPECT_EQ(add("resting"), (Said{1, "novpn: placing " + myself() +
                                           " in class resting: class resting is off: nothing in it would be "
                                           "steered\n"}));
}

TEST_F(CommandsTest, RunStartsNothingWhereNoAgentRuns) {
    const std::string file = dir + "/started";
    const cli::Run run{.command = {"touch", file}};
    const auto said = said_by([&] { return cli::run(dir, run); });
    EXPECT_EQ(said.exit, 125);
    EXPECT_NE(said.text.find("no agent runs there"), std::string::npos) << said.text;
    EXPECT_NE(::access(file.c_str(), F_OK), 0);
}

TEST_F(CommandsTest, RemoveSaysWhatBecameOfTheSockets) {
    serve();
    const auto remove = [&] { return said_by([&] { return cli::remove(dir, {.pid = ::getpid()}); }); };
    EXPECT_EQ(remove(), (Said{0, myself() + " is out of class novpn; 1 open socket was ended; 3 open sockets keep "
                                            "their path\n"}));
    on_loop([&] { agent.releasing = Released{.class_name = "novpn"}; });
    EXPECT_EQ(remove(), (Said{0, myself() + " is out of class novpn\n"}));
    on_loop([&] { agent.releasing = system_error(EINVAL, "releasing"); });
    EXPECT_EQ(remove(), (Said{1, "novpn: taking " + myself() + " out of its class: process " +
                                     std::to_string(::getpid()) + " is in no class\n"}));
}

TEST_F(CommandsTest, OffSaysHowToEndIt) {
    serve();
    const auto turn = [&](const cli::Switch& what) { return said_by([&] { return cli::turn(dir, what); }); };
    EXPECT_EQ(turn({.enabled = false, .for_how_long = 1h}),
              (Said{0, "class novpn is off for 1 h; `novpn on` ends that\n"}));
    EXPECT_EQ(turn({.enabled = false, .class_name = "resting", .for_how_long = {}}),
              (Said{0, "class resting is off; `novpn on resting` ends that\n"}));
    EXPECT_EQ(turn({.enabled = true, .for_how_long = {}}), (Said{0, "class novpn is on\n"}));
    EXPECT_EQ(turn({.enabled = true, .class_name = "games", .for_how_long = {}}),
              (Said{1, "novpn: turning class games on: there is no class games\n"}));
}

TEST_F(CommandsTest, ReloadGivesTheConfigsErrorOnTheTerminal) {
    serve();
    EXPECT_EQ(said_by([&] { return cli::reload(dir); }), (Said{0, "the config has been read again\n"}));
    on_loop([&] {
        agent.reloading =
            tl::make_unexpected(Error{.code = {}, .doing = "reloading", .detail = "novpn.yaml:3:5: unknown key"});
    });
    EXPECT_EQ(said_by([&] { return cli::reload(dir); }),
              (Said{1, "novpn: reloading the config: novpn.yaml:3:5: unknown key\n"}));
}

TEST_F(CommandsTest, ExplainPrintsAnswersOfTheAgent) {
    agent.explaining = json::object{{"destination", "192.0.2.1"},
                                    {"class", "novpn"},
                                    {"ordinary", {{"route", "default dev tun0"}, {"link", "tun0"}}},
                                    {"member", {{"route", "default dev wlan0"}, {"link", "wlan0"}}}};
    serve();
    const auto explain = [&](cli::Explain what) { return said_by([&] { return cli::explain(dir, what); }); };
    const Said plain = explain({.destination = "192.0.2.1", .class_name = {}, .pid = {}});
    EXPECT_EQ(plain.exit, 0);
    EXPECT_TRUE(plain.text.starts_with("To 192.0.2.1 an ordinary process leaves by tun0, and ")) << plain.text;
    const Said of_process = explain({.destination = "192.0.2.1", .class_name = {}, .pid = ::getpid()});
    EXPECT_TRUE(of_process.text.starts_with(myself() + " is in no class: it goes the ordinary way.\nTo 192.0.2.1 "))
        << of_process.text;
    const Said as_json = explain({.destination = "192.0.2.1", .class_name = "resting", .pid = {}, .json = true});
    EXPECT_EQ(json::parse(as_json.text).as_object(), agent.explaining.value());
    EXPECT_EQ(explain({.destination = "192.0.2.1", .class_name = "games", .pid = {}}),
              (Said{1, "novpn: explaining 192.0.2.1: there is no class games\n"}));
    const Said by_name = explain({.destination = "localhost", .class_name = {}, .pid = {}});
    EXPECT_TRUE(by_name.text.starts_with("localhost is 127.0.0.1") || by_name.text.starts_with("localhost is ::1"))
        << by_name.text;
}

TEST_F(CommandsTest, ExplainOfAProcessNeedsAnAgent) {
    EXPECT_EQ(said_by([&] { return cli::explain(dir, {.destination = "192.0.2.1", .class_name = {}, .pid = 1}); }),
              (Said{1, "novpn: explaining 192.0.2.1: no agent runs that knows the process's class; try --class\n"}));
}

TEST_F(CommandsTest, WatchPrintsALineAnEventUntilTheAgentEnds) {
    serve();
    Said said;
    std::thread watching([&] { said = said_by([&] { return cli::watch(dir, {.json = true}); }); });
    // Its first look is the sign that it watches.
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    std::size_t looks = 0;
    while (looks == 0 && std::chrono::steady_clock::now() < deadline) on_loop([&] { looks = agent.askers.size(); });
    on_loop([&] { agent.subscriber({{"cause", "route"}, {"summary", "Fine."}}); });
    // The event is out before the connections are closed: a call after it is answered.
    EXPECT_EQ(ask(dir, "Status"), "done");
    on_loop([&] { control.reset(); });
    watching.join();
    EXPECT_EQ(said.exit, 1);
    std::istringstream lines(said.text);
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(json::parse(line).as_object().at("cause").as_string(), "now");
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(json::parse(line).as_object().at("cause").as_string(), "route");
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(line, "novpn: watching the agent: the agent ended, or closed the connection");
}

TEST_F(CommandsTest, PrintsWhatItWasGiven) {
    serve();
    EXPECT_EQ(said_by([&] { return cli::metrics(dir); }),
              (Said{0, "# TYPE novpn_repairs counter\nnovpn_repairs_total 2\n# EOF\n"}));
    EXPECT_EQ(said_by([&] { return cli::plan(dir, {}); }), (Said{0, "ip rule add\nnft add\n"}));
    EXPECT_EQ(said_by([&] { return cli::plan(dir, {.json = true, .config_file = {}}); }),
              (Said{0, "{\"commands\":[\"ip rule add\",\"nft add\"]}\n"}));
    EXPECT_EQ(said_by([&] { return cli::status(dir, {.json = true}); }), (Said{0, "{\"summary\":\"All is well.\"}\n"}));
}

TEST_F(CommandsTest, WithoutAnAgentItSaysSo) {
    const std::string none = "novpn: connecting to " + dir +
                             "/io.novpn.Agent: No such file or directory (no agent runs "
                             "there)\n";
    EXPECT_EQ(said_by([&] { return cli::status(dir, {}); }), (Said{1, none}));
    EXPECT_EQ(said_by([&] { return cli::watch(dir, {}); }), (Said{1, none}));
    EXPECT_EQ(said_by([&] { return cli::metrics(dir); }), (Said{1, none}));
    EXPECT_EQ(said_by([&] { return cli::add(dir, {.pid = ::getpid()}); }), (Said{1, none}));
    EXPECT_EQ(said_by([&] { return cli::run(dir, {.command = {"true"}}); }), (Said{125, none}));
}

TEST_F(CommandsTest, CheckSaysOkOrWhere) {
    const std::string good = dir + "/good.yaml";
    const std::string bad = dir + "/bad.yaml";
    std::ofstream(good) << "classes:\n  novpn: {when_no_uplink: block}\n";
    std::ofstream(bad) << "classes:\n  novpn: {when_no_uplink: perhaps}\n";
    EXPECT_EQ(said_by([&] { return cli::check({.file = good}); }), (Said{0, good + ": ok\n"}));
    const Said wrong = said_by([&] { return cli::check({.file = bad}); });
    EXPECT_EQ(wrong.exit, 1);
    EXPECT_TRUE(wrong.text.starts_with(bad + ":2:27: ")) << wrong.text;
}

TEST(Resolve, TakesAddressesAsTheyAre) {
    for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
        const auto found = resolve(address);
        ASSERT_TRUE(found);
        EXPECT_EQ(found->address, boost::asio::ip::make_address(address));
        EXPECT_FALSE(found->by_name);
    }
}

TEST(Resolve, SaysWhyANameHasNoAddress) {
    const auto found = resolve("no such host\x1b");
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().doing, R"(resolving no such host\x1b)");
    EXPECT_FALSE(found.error().detail.empty());
}

} // namespace
} // namespace novpn::test
