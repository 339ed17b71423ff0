// The law of what a look leaves out: what is in files is as a look that reads all of it sees it, whatever has come and
// gone, and whether or not the news of it was read. On the kernel itself: no fake has its inotify. Needs root.
#include "agent/linux_kernel.h"
#include "tests/netns/two_networks.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <random>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

namespace novpn::test {

namespace {

constexpr int kSteps = 1500;
constexpr BirthMark kBirth{.mark = {0x4e000000, 0xff000000}, .taken = 0xff000000};

/// NOVPN_SEED=N: other sequences.
unsigned seed() {
    const char* given = std::getenv("NOVPN_SEED");
    return given ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : 20;
}

class FilesLaw : public testing::Test {
  protected:
    FilesLaw() {
        if (unshare(CLONE_NEWNET | CLONE_NEWNS) != 0) throw std::runtime_error("run the contract tests as root");
        run("mount --make-rprivate /; mount -t bpf novpn-contract /sys/fs/bpf; ip link set lo up");
        looking.emplace(LinuxKernel::open().value());
        reading.emplace(LinuxKernel::open().value());
        root = cgroup_root_of_this_netns().value();
        cgroup = root + "/novpn";
        mount = CgroupTree::find()->mount();
    }
    ~FilesLaw() override {
        (void)CgroupTree(mount).remove(cgroup);
        (void)CgroupTree(mount).remove(other);
    }

    Scope scope(bool trusts_watches) const {
        return {.main = false, .cgroups = {cgroup}, .others = true, .attached = {other}, .trusts_watches = trusts_watches};
    }
    std::string look() { return to_text(looking->observe(scope(true)).value()); }
    std::string read() { return to_text(reading->observe(scope(false)).value()); }
    static std::string to_text(const Observed& observed) {
        std::string text;
        for (const auto& [path, id] : observed.cgroups) text += fmt::format("{} {}\n", path, id);
        for (const auto& [name, birth] : observed.birth_marks.classes) {
            text += fmt::format("pin '{}' {}:", name, birth.program);
            for (const std::string& path : birth.cgroups) text += " " + path;
            text += "\n";
        }
        for (const auto& [name, redirect] : observed.redirects.classes) {
            text += fmt::format("DNS '{}' {}:", name, redirect.program);
            for (const std::string& path : redirect.cgroups) text += " " + path;
            text += "\n";
        }
        return text;
    }
    /// By the agent, or by others; the kernel may refuse it.
    void do_something(std::string& done) {
        const auto apply = [&](const char* what, const Operation& operation) {
            done += fmt::format("{}{}\n", what, looking->apply(operation) ? "" : ": refused");
        };
        const auto call = [&](const std::string& command) {
            done += command + "\n";
            (void)std::system(("(" + command + ") 2>/dev/null").c_str());
        };
        const std::string to = random() % 3 ? cgroup : other;
        const std::string directory = mount + "/" + cgroup;
        switch (random() % 16) {
        case 0: return apply("create", CreateCgroup{cgroup});
        case 1: return apply("remove", RemoveCgroup{cgroup});
        case 2:
        case 3: return apply("pin", PinBirthMark{"novpn", kBirth});
        case 4: return apply("unpin", UnpinBirthMark{"novpn"});
        case 5:
        case 6: return apply("attach", AttachBirthMark{"novpn", to});
        case 7: return apply("detach", DetachBirthMark{"novpn", to});
        case 8: return apply("pin DNS", PinRedirect{"novpn", kBirth.mark});
        case 9: return apply("attach DNS", AttachRedirect{"novpn", to});
        case 10: return call("rmdir " + directory);
        case 11: return call("rmdir " + directory + " && mkdir " + directory);
        case 12: return call("rm /sys/fs/bpf/" + root + "/novpn");
        case 13: return call("mkdir " + mount + "/" + other);
        case 14: return call("rmdir " + mount + "/" + other);
        case 15: return call("mkdir " + directory + "/members; rmdir " + directory + "/members");
        }
    }

    std::optional<LinuxKernel> looking, reading;
    std::string root, cgroup, mount;
    std::string other = fmt::format("novpn-files-{}", getpid());
    std::mt19937 random{seed()};
};

} // namespace

TEST_F(FilesLaw, WhatIsLeftOutIsWhatAReadingSees) {
    std::string done;
    for (int step = 0; step < kSteps; ++step) {
        for (auto i = random() % 3; i > 0; --i) do_something(done);
        if (random() % 2) looking->removal_watch().drain();
        if (random() % 2) looking->cgroup_watch().drain();
        const std::string seen = look();
        ASSERT_EQ(seen, read()) << "after\n" << done;
        if (random() % 20 == 0) done.clear();
    }
}

TEST_F(FilesLaw, WhatNobodyIsToldOfIsFoundByTheNextReading) {
    ASSERT_TRUE(looking->apply(CreateCgroup{cgroup}));
    ASSERT_TRUE(looking->apply(PinBirthMark{"novpn", kBirth}));
    ASSERT_TRUE(looking->apply(AttachBirthMark{"novpn", cgroup}));
    look();
    looking->removal_watch().drain();
    look();
    const std::string before = look();
    ASSERT_TRUE(reading->apply(DetachBirthMark{"novpn", cgroup}));
    EXPECT_EQ(look(), before) << "else nothing is ever left out";
    EXPECT_NE(read(), before);
    EXPECT_EQ(to_text(looking->observe(scope(false)).value()), read());
    EXPECT_EQ(look(), read()) << "what was read counts from now on";
    ASSERT_TRUE(looking->apply(AttachBirthMark{"novpn", cgroup}));
    look();
    ASSERT_TRUE(reading->apply(DetachBirthMark{"novpn", cgroup}));
    ::usleep(1'100'000);
    EXPECT_EQ(look(), read()) << "after a while all is read again";
}

} // namespace novpn::test
