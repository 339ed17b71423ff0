// Which running processes a new one may hand over to, of a /proc and desktop files made by hand.
#include "agent/cli/handover.h"

#include <filesystem>
#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace novpn::cli {

namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

class RunningInstances : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/novpn-handover-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        root = name;
        where = {
            .proc = root / "proc", .data_directories = {root / "share"}, .path = "/nowhere:" + (root / "bin").string()};
        fs::create_directories(root / "proc");
    }
    void TearDown() override { fs::remove_all(root); }
    std::string write(const std::string& path, const std::string& text, fs::perms mode = fs::perms::owner_all) {
        fs::create_directories((root / path).parent_path());
        std::ofstream(root / path) << text;
        fs::permissions(root / path, mode);
        return root / path;
    }
    void desktop_file(const std::string& exec, const std::string& more = "") {
        write("share/applications/app.desktop", "[Desktop Entry]\nExec=" + exec + "\n" + more);
    }
    void process(pid_t pid, const std::string& executable, pid_t parent = 1, const std::string& words = "x") {
        const std::string directory = "proc/" + std::to_string(pid) + "/";
        write(directory + "cmdline", words + std::string(1, '\0'));
        write(directory + "stat", std::to_string(pid) + " (a) S b) S " + std::to_string(parent) + " 1 1");
        fs::create_symlink(executable, root / directory / "exe");
    }
    std::vector<pid_t> found(const std::string& command, uid_t uid = ::getuid()) {
        return running_instances({command, "https://example.com"}, uid, where);
    }
    fs::path root;
    Surroundings where;
};

TEST_F(RunningInstances, OfTheSameProgramAndUser) {
    const auto browser = write("lib/browser/browser", "\x7f"
                                                      "ELF");
    fs::create_directories(root / "bin");
    fs::create_symlink(browser, root / "bin/browser-esr");
    desktop_file("browser-esr %u");
    EXPECT_THAT(found("browser-esr"), IsEmpty());
    process(10, browser);
    process(11, browser, 10); // a renderer
    process(12, browser + " (deleted)");
    process(13, "/usr/bin/other");
    EXPECT_THAT(found("browser-esr"), ElementsAre(10, 12));
    EXPECT_THAT(found(browser), ElementsAre(10, 12)) << "by its path";
    EXPECT_THAT(found("browser-esr", ::getuid() + 1), IsEmpty());
    EXPECT_THAT(found("absent"), IsEmpty());
}

TEST_F(RunningInstances, OfAProgramThatAScriptStarts) {
    const auto script = write("opt/chrome/google-chrome", "#!/bin/sh\n");
    fs::create_directories(root / "bin");
    fs::create_symlink(script, root / "bin/google-chrome-stable");
    desktop_file("/usr/bin/google-chrome-stable %U");
    process(10, root / "opt/chrome/chrome");
    process(11, root / "opt/other/chrome");
    EXPECT_THAT(found("google-chrome-stable"), ElementsAre(10));
    write("bin/chromium", "#!/bin/sh\n");
    desktop_file("chromium %U");
    process(12, "/usr/lib/chromium/chromium");
    process(13, root / "bin/dash");
    EXPECT_THAT(found("chromium"), ElementsAre(12)) << "what lies beside it is no part of it";
}

TEST_F(RunningInstances, OfAScriptOfAnInterpreter) {
    const auto script = write("bin/lutris", "#!/usr/bin/python3\n");
    desktop_file("env X=1 lutris %U");
    process(10, "/usr/bin/python3.11", 1, std::string("python3\0", 8) + script);
    process(11, "/usr/bin/python3.11", 1, std::string("python3\0/other", 14));
    EXPECT_THAT(found("lutris"), ElementsAre(10));
}

TEST_F(RunningInstances, OfApplicationsWithWindowsOnly) {
    const auto curl = write("bin/curl", "\x7f"
                                        "ELF");
    process(10, curl);
    EXPECT_THAT(found("curl"), IsEmpty()) << "no desktop file";
    desktop_file("curl", "Terminal=true\n");
    EXPECT_THAT(found("curl"), IsEmpty()) << "in a terminal each is one of its own";
    desktop_file("curl");
    EXPECT_THAT(found("curl"), ElementsAre(10));
}

} // namespace

} // namespace novpn::cli
