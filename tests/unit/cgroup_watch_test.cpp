// The watch of cgroups, on an ordinary directory: what it knows is what is there, whatever happened in between.
#include "rules/cgroup_watch.h"

#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <poll.h>
#include <random>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace novpn::test {

namespace {

namespace fs = std::filesystem;

class Watched : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/novpn-watch-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        root = name;
        watch.emplace(*CgroupWatch::open(root));
        make("user.slice/user-1000.slice/user@1000.service/app.slice");
        make("system.slice/cron.service");
        watch->scan();
    }
    void TearDown() override { fs::remove_all(root); }

    void make(const std::string& path) { fs::create_directories(root / path); }
    void remove(const std::string& path) { fs::remove_all(root / path); }
    /// Where matches may be, as a walk finds it.
    std::map<std::string, std::uint64_t> there() {
        std::map<std::string, std::uint64_t> found;
        for (auto entry = fs::recursive_directory_iterator(root); entry != fs::recursive_directory_iterator();
             ++entry) {
            if (!entry->is_directory()) continue;
            const std::string path = fs::relative(entry->path(), root);
            struct stat status {};
            EXPECT_EQ(stat(entry->path().c_str(), &status), 0);
            found[path] = status.st_ino;
            if (!may_hold_matches(path)) entry.disable_recursion_pending();
        }
        return found;
    }
    std::map<std::string, std::uint64_t> known() {
        std::map<std::string, std::uint64_t> found;
        for (const auto& [path, seen] : watch->seen()) found[path] = seen.id;
        return found;
    }
    bool is_readable() {
        pollfd one{.fd = watch->fd(), .events = POLLIN, .revents = 0};
        return poll(&one, 1, 0) > 0;
    }

    fs::path root;
    std::optional<CgroupWatch> watch;
    const std::string kApps = "user.slice/user-1000.slice/user@1000.service/app.slice";
};

} // namespace

TEST_F(Watched, AScanFindsWhatIsThere) {
    EXPECT_EQ(known(), there());
    EXPECT_EQ(watch->seen().size(), 6U);
    EXPECT_FALSE(watch->problem());
    EXPECT_EQ(watch->seen().at(kApps).owner, getuid());
}

TEST_F(Watched, WhatComesAndGoesIsTold) {
    EXPECT_FALSE(watch->drain());
    make(kApps + "/app-a.slice/app-a-b.slice/app-x-1.scope");
    EXPECT_TRUE(is_readable());
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there()) << "of any depth, and made before it was watched";
    make(kApps + "/app-a.slice/app-a-b.slice/app-x-2.scope");
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there());
    remove(kApps + "/app-a.slice");
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there());
    remove("user.slice/user-1000.slice");
    make("user.slice/user-1001.slice/user@1001.service/app.slice/app-y-1.scope");
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there()) << "a manager went, another came";
    EXPECT_FALSE(watch->drain());
}

TEST_F(Watched, WhatLiesBelowAUnitIsNobodysMatchAndNotWatched) {
    make("system.slice/cron.service/inner");
    make(kApps + "/app-x-1.scope");
    EXPECT_TRUE(watch->drain());
    make(kApps + "/app-x-1.scope/inner");
    EXPECT_FALSE(watch->drain());
    EXPECT_EQ(known(), there());
    EXPECT_FALSE(watch->seen().contains(kApps + "/app-x-1.scope/inner"));
}

TEST_F(Watched, AnotherOneOfTheSameNameIsAnotherOne) {
    const std::string path = kApps + "/app-a.slice";
    make(path + "/app-x-1.scope");
    EXPECT_TRUE(watch->drain());
    make("kept"); // so that its inode number stays taken
    fs::rename(root / path, root / "kept/former");
    make(path + "/app-x-2.scope");
    watch->drain();
    EXPECT_EQ(watch->seen().at(path).id, there().at(path));
    make(path + "/app-x-3.scope");
    EXPECT_TRUE(watch->drain());
    EXPECT_TRUE(watch->seen().contains(path + "/app-x-3.scope")) << "and it is watched";
    EXPECT_FALSE(watch->seen().contains(path + "/app-x-1.scope"));
}

TEST_F(Watched, AnOwnerThatChangesIsTold) {
    if (getuid() != 0) FAIL() << "run as root";
    ASSERT_EQ(chown((root / kApps).c_str(), 1000, 1000), 0);
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(watch->seen().at(kApps).owner, 1000U);
}

TEST_F(Watched, FilesAreNoCgroups) {
    std::ofstream(root / "system.slice/file") << "x";
    EXPECT_FALSE(watch->drain());
    EXPECT_EQ(known(), there());
}

TEST_F(Watched, AfterAnOverrunItReadsAllAnew) {
    std::ifstream limit("/proc/sys/fs/inotify/max_queued_events");
    int events = 0;
    ASSERT_TRUE(limit >> events);
    for (int i = 0; i <= events / 2; ++i) {
        make(kApps + "/app-x-1.scope");
        ASSERT_EQ(rmdir((root / kApps / "app-x-1.scope").c_str()), 0);
    }
    make(kApps + "/app-late-1.scope"); // told to nobody
    make("system.slice/late.service");
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there());
    make("system.slice/later.service");
    EXPECT_TRUE(watch->drain());
    EXPECT_EQ(known(), there());
}

TEST_F(Watched, StoppedItKnowsNothing) {
    watch->stop();
    make("system.slice/late.service");
    EXPECT_FALSE(watch->drain());
    EXPECT_TRUE(watch->seen().empty());
    EXPECT_FALSE(watch->is_watching());
}

TEST_F(Watched, AtRandomItKnowsWhatIsThere) {
    std::mt19937 random(11);
    const std::vector<std::string> names{"a.slice",
                                         "a.slice/a-b.slice",
                                         "a.slice/a-b.slice/x.service",
                                         "a.slice/y.scope",
                                         kApps + "/app-c.slice",
                                         kApps + "/app-c.slice/app-z-1.scope",
                                         "user.slice/user-0.slice/user@0.service/app.slice/app-w-1.scope"};
    for (int step = 0; step < 1000; ++step) {
        const std::string& path = names[random() % names.size()];
        if (random() % 2 == 0)
            make(path);
        else
            remove(path);
        if (random() % 4 != 0) continue;
        watch->drain();
        ASSERT_EQ(known(), there()) << "step " << step;
    }
}

} // namespace novpn::test
