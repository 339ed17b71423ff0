#include "agent/cli/command_line.h"

#include <cstdlib>
#include <gtest/gtest.h>

namespace novpn::cli {

void PrintTo(const CommandLine& line, std::ostream* out) {
    *out << line.runtime_dir << " word " << line.command.index();
}

namespace {

CommandLine line(Command command, std::string runtime_dir = "/run/novpn") {
    return {.runtime_dir = std::move(runtime_dir), .command = std::move(command)};
}

// Beside the fixture, in which Run is a function of GoogleTest.
CommandLine run_line(std::string class_name, std::vector<std::string> command, std::string runtime_dir = "/run/novpn") {
    return line(Run{.class_name = std::move(class_name), .command = std::move(command)}, std::move(runtime_dir));
}

class CommandLineTest : public testing::Test {
  protected:
    void SetUp() override { ::unsetenv("NOVPN_RUNTIME_DIR"); }
    void TearDown() override { ::unsetenv("NOVPN_RUNTIME_DIR"); }
};

TEST_F(CommandLineTest, LeavesAllAfterTheProgramToTheProgram) {
    const auto expected = run_line("novpn", {"ls", "--class", "x", "--help", "--", "-l"});
    EXPECT_EQ(parse({"run", "ls", "--class", "x", "--help", "--", "-l"}).value(), expected);
    EXPECT_EQ(parse({"run", "--", "ls", "--class", "x", "--help", "--", "-l"}).value(), expected);
}

TEST_F(CommandLineTest, RunsAnywayWhereAsked) {
    auto expected = run_line("novpn", {"ls", "--anyway"});
    EXPECT_EQ(parse({"run", "ls", "--anyway"}).value(), expected);
    std::get<cli::Run>(expected.command).anyway = true;
    EXPECT_EQ(parse({"run", "--anyway", "ls", "--anyway"}).value(), expected);
    EXPECT_EQ(parse({"run", "--anyway", "--", "ls", "--anyway"}).value(), expected);
}

TEST_F(CommandLineTest, RunsAProgramNamedAsAWordOrAnOption) {
    EXPECT_EQ(parse({"run", "status", "--json"}).value(), run_line("novpn", {"status", "--json"}));
    EXPECT_EQ(parse({"run", "run"}).value(), run_line("novpn", {"run"}));
    EXPECT_EQ(parse({"run", "--", "--json"}).value(), run_line("novpn", {"--json"}));
}

TEST_F(CommandLineTest, TakesOptionsOnBothSidesOfTheWord) {
    const auto expected = run_line("games", {"steam", "-x"}, "/tmp/n");
    EXPECT_EQ(parse({"--runtime-dir", "/tmp/n", "run", "--class", "games", "steam", "-x"}).value(), expected);
    EXPECT_EQ(parse({"run", "--runtime-dir=/tmp/n", "--class=games", "--", "steam", "-x"}).value(), expected);
    EXPECT_EQ(parse({"status", "--runtime-dir", "/tmp/n", "--json"}).value(), line(Status{.json = true}, "/tmp/n"));
    EXPECT_EQ(parse({"--runtime-dir", "run", "status"}).value(), line(Status{}, "run"));
}

TEST_F(CommandLineTest, ReadsTheRuntimeDirFromTheEnvironmentUnlessGiven) {
    ::setenv("NOVPN_RUNTIME_DIR", "/tmp/env", 1);
    EXPECT_EQ(parse({"status"}).value(), line(Status{}, "/tmp/env"));
    EXPECT_EQ(parse({"status", "--runtime-dir", "/tmp/n"}).value(), line(Status{}, "/tmp/n"));
}

TEST_F(CommandLineTest, TakesProcessesByTheirNumber) {
    EXPECT_EQ(parse({"add", "1234"}).value(), line(Add{.pid = 1234}));
    EXPECT_EQ(parse({"add", "--class", "games", "--", "1234"}).value(), line(Add{.class_name = "games", .pid = 1234}));
    EXPECT_EQ(parse({"--runtime-dir", "/tmp/n", "remove", "1234"}).value(), line(Remove{.pid = 1234}, "/tmp/n"));
    EXPECT_EQ(parse({"remove", "1234", "--runtime-dir", "/tmp/n"}).value(), line(Remove{.pid = 1234}, "/tmp/n"));
}

TEST_F(CommandLineTest, SwitchesAClassForATime) {
    EXPECT_EQ(parse({"off"}).value(), line(Switch{.enabled = false, .for_how_long = {}}));
    EXPECT_EQ(parse({"off", "--for", "1h30m"}).value(),
              line(Switch{.enabled = false, .for_how_long = std::chrono::minutes(90)}));
    EXPECT_EQ(parse({"off", "games", "--for=10m"}).value(),
              line(Switch{.enabled = false, .class_name = "games", .for_how_long = std::chrono::minutes(10)}));
    EXPECT_EQ(parse({"on"}).value(), line(Switch{.enabled = true, .for_how_long = {}}));
    EXPECT_EQ(parse({"on", "games"}).value(), line(Switch{.enabled = true, .class_name = "games", .for_how_long = {}}));
}

TEST_F(CommandLineTest, DrawsTheStatusOrPrintsItForPrograms) {
    EXPECT_EQ(parse({"status", "--dot"}).value(), line(Status{.dot = true}));
    EXPECT_EQ(parse({"status", "--dot", "--json"}).error().exit, 2);
}

TEST_F(CommandLineTest, Doctors) {
    EXPECT_EQ(parse({"doctor"}).value(), line(Doctor{}));
    EXPECT_EQ(parse({"doctor", "--json"}).value(), line(Doctor{.json = true}));
}

TEST_F(CommandLineTest, ExplainsForAClassOrAProcess) {
    EXPECT_EQ(parse({"explain", "example.com"}).value(),
              line(Explain{.destination = "example.com", .class_name = {}, .pid = {}}));
    EXPECT_EQ(parse({"explain", "--class", "games", "192.0.2.1", "--json"}).value(),
              line(Explain{.destination = "192.0.2.1", .class_name = "games", .pid = {}, .json = true}));
    EXPECT_EQ(parse({"explain", "2001:db8::1", "--pid", "7"}).value(),
              line(Explain{.destination = "2001:db8::1", .class_name = {}, .pid = 7}));
}

TEST_F(CommandLineTest, KnowsItsOtherWords) {
    EXPECT_EQ(parse({"watch", "--json"}).value(), line(Watch{.json = true}));
    EXPECT_EQ(parse({"reload"}).value(), line(Reload{}));
    EXPECT_EQ(parse({"metrics"}).value(), line(Metrics{}));
    EXPECT_EQ(parse({"apps"}).value(), line(Apps{}));
    EXPECT_EQ(parse({"apps", "--json"}).value(), line(Apps{.json = true}));
    EXPECT_EQ(parse({"desktop-entry", "spotify"}).value(), line(Launcher{.id = "spotify"}));
    EXPECT_EQ(parse({"desktop-entry", "--class", "games", "steam"}).value(),
              line(Launcher{.id = "steam", .class_name = "games"}));
    EXPECT_EQ(parse({"run", "--shell"}).value(), line(cli::Run{.shell = true}));
    EXPECT_EQ(parse({"run", "--anyway", "--shell", "--class", "games"}).value(),
              line(cli::Run{.class_name = "games", .anyway = true, .shell = true}));
    EXPECT_EQ(parse({"run", "ls", "--shell"}).value(), run_line("novpn", {"ls", "--shell"}));
    EXPECT_EQ(parse({"plan"}).value(), line(Plan{}));
    EXPECT_EQ(parse({"plan", "--json", "--config", "f"}).value(), line(Plan{.json = true, .config_file = "f"}));
    EXPECT_EQ(parse({"down", "--force"}).value(), line(Down{.force = true}));
    EXPECT_EQ(parse({"check", "f.yaml"}).value(), line(Check{.file = "f.yaml"}));
}

TEST_F(CommandLineTest, AnswersHelpAndVersionOnBothSides) {
    for (const std::vector<std::string>& words : {std::vector<std::string>{"--help"},
                                                  {"--version"},
                                                  {"status", "--help"},
                                                  {"status", "--version"},
                                                  {"--version", "status"},
                                                  {"run", "--help"},
                                                  {"run", "--help", "ls"},
                                                  {"--help", "run"}}) {
        const auto answer = parse(words);
        ASSERT_FALSE(answer) << words.front();
        EXPECT_EQ(answer.error().exit, 0) << words.front();
        EXPECT_FALSE(answer.error().text.empty());
    }
}

TEST_F(CommandLineTest, RefusesWhatItDoesNotKnow) {
    for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                  {"fly"},
                                                  {"status", "fly"},
                                                  {"status", "--fly"},
                                                  {"--fly", "status"},
                                                  {"run"},
                                                  {"run", "--"},
                                                  {"run", "--fly", "ls"},
                                                  {"run", "--shell", "ls"},
                                                  {"run", "--shell", "--", "ls"},
                                                  {"desktop-entry"},
                                                  {"desktop-entry", "a", "b"},
                                                  {"run", "--class"},
                                                  {"check"},
                                                  {"check", "a", "b"},
                                                  {"status", "plan"},
                                                  {"add"},
                                                  {"add", "0"},
                                                  {"add", "-1"},
                                                  {"add", "1x"},
                                                  {"add", "99999999999"},
                                                  {"add", "1", "2"},
                                                  {"remove"},
                                                  {"remove", "self"},
                                                  {"off", "--for"},
                                                  {"off", "--for", "1"},
                                                  {"off", "--for", "1 potato"},
                                                  {"on", "--for", "1h"},
                                                  {"off", "a", "b"},
                                                  {"explain"},
                                                  {"explain", "a", "b"},
                                                  {"explain", "a", "--pid", "x"},
                                                  {"explain", "a", "--pid", "1", "--class", "novpn"},
                                                  {"watch", "now"},
                                                  {"reload", "now"},
                                                  {"metrics", "now"},
                                                  {"--runtime-dir"}}) {
        const auto answer = parse(words);
        ASSERT_FALSE(answer) << (words.empty() ? "" : words.back());
        EXPECT_EQ(answer.error().exit, 2);
        EXPECT_TRUE(answer.error().text.starts_with("novpn: reading the command line: ")) << answer.error().text;
        EXPECT_EQ(answer.error().text.find('\n'), answer.error().text.size() - 1) << answer.error().text;
    }
}

} // namespace
} // namespace novpn::cli
