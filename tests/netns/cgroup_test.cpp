// CgroupTree against the kernel, in cgroups of the test's own. Needs root.
#include "rules/cgroup.h"

#include <array>
#include <csignal>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace novpn {
namespace {

/// A process that only waits.
class Child {
  public:
    Child()
        : pid_(fork()) {
        if (pid_ == 0) {
            while (true) pause();
        }
    }
    ~Child() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    pid_t pid() const { return pid_; }

  private:
    pid_t pid_;
};

class CgroupTest : public testing::Test {
  protected:
    void TearDown() override {
        EXPECT_TRUE(tree.empty_into_root(root));
        EXPECT_TRUE(tree.remove(root));
        EXPECT_FALSE(tree.id(root));
    }

    CgroupTree tree = CgroupTree::find().value();
    std::string root = "novpn-test-" + std::to_string(getpid());
    std::string members = root + "/novpn";
};

TEST_F(CgroupTest, CreatesWithParentsAndTwiceIsNotAnError) {
    EXPECT_FALSE(tree.id(members));
    ASSERT_TRUE(tree.create(members));
    ASSERT_TRUE(tree.create(members));
    struct stat status {};
    ASSERT_EQ(stat((tree.mount() + "/" + members).c_str(), &status), 0);
    EXPECT_EQ(tree.id(members), status.st_ino);
    EXPECT_EQ(tree.children(root), std::vector{members});
    EXPECT_TRUE(tree.processes(members).empty());
}

TEST_F(CgroupTest, MovesAProcess) {
    ASSERT_TRUE(tree.create(members));
    const Child child;
    ASSERT_TRUE(tree.move(members, child.pid()));
    EXPECT_EQ(tree.processes(members), std::vector{child.pid()});
    EXPECT_EQ(CgroupTree::of(child.pid()), members);
}

TEST_F(CgroupTest, MovingWhatIsNotThereSaysSo) {
    ASSERT_TRUE(tree.create(members));
    pid_t gone = 0;
    {
        const Child child;
        gone = child.pid();
    }
    EXPECT_EQ(tree.move(members, gone).error().code, std::errc::no_such_process);
    EXPECT_EQ(tree.move(members, 0).error().code, std::errc::invalid_argument);
    EXPECT_EQ(tree.move(root + "/absent", getpid()).error().code, std::errc::no_such_file_or_directory);
    EXPECT_FALSE(CgroupTree::of(gone));
}

TEST_F(CgroupTest, RemovesTheParentWithTheLastChildOnly) {
    ASSERT_TRUE(tree.create(members));
    ASSERT_TRUE(tree.create(root + "/games"));
    ASSERT_TRUE(tree.remove(members));
    EXPECT_TRUE(tree.id(root));
    ASSERT_TRUE(tree.remove(root + "/games"));
    EXPECT_FALSE(tree.id(root));
    ASSERT_TRUE(tree.remove(members)) << "an absent cgroup is not an error";
}

TEST_F(CgroupTest, DoesNotRemoveWhileProcessesAreInside) {
    ASSERT_TRUE(tree.create(members));
    const Child child;
    ASSERT_TRUE(tree.move(members, child.pid()));
    EXPECT_EQ(tree.remove(members).error().code, std::errc::device_or_resource_busy);
    ASSERT_TRUE(tree.id(members));
}

TEST_F(CgroupTest, EmptiesNestedCgroupsSoThatAllCanGo) {
    ASSERT_TRUE(tree.create(members + "/a/b"));
    const std::array<Child, 3> children;
    ASSERT_TRUE(tree.move(members, children[0].pid()));
    ASSERT_TRUE(tree.move(members + "/a", children[1].pid()));
    ASSERT_TRUE(tree.move(members + "/a/b", children[2].pid()));
    ASSERT_TRUE(tree.empty_into_root(members));
    for (const Child& child : children) {
        EXPECT_EQ(CgroupTree::of(child.pid()), "");
        EXPECT_EQ(kill(child.pid(), 0), 0) << "it runs on";
    }
    EXPECT_TRUE(tree.remove(members));
    EXPECT_FALSE(tree.id(root));
}

TEST_F(CgroupTest, NeverRemovesTheRootOfTheTree) {
    for (const char* root_path : {"", "/"}) {
        EXPECT_EQ(tree.remove(root_path).error().code, std::errc::invalid_argument);
        EXPECT_EQ(tree.empty_into_root(root_path).error().code, std::errc::invalid_argument);
    }
}

TEST(CgroupRoot, IsNamedAfterTheNetworkNamespace) {
    struct stat status {};
    ASSERT_EQ(stat("/proc/self/ns/net", &status), 0);
    EXPECT_EQ(cgroup_root_of_this_netns().value(), "novpn-" + std::to_string(status.st_ino));
}

} // namespace
} // namespace novpn
