// What systemd is asked for, and where. That it answers is tests/systemd/'s to show.
#include "agent/cli/scope.h"

#include <gtest/gtest.h>

namespace novpn::cli {

namespace {

TEST(Scope, LiesBelowTheClasssSliceByANameOfItsOwn) {
    const ScopeRequest expected{
        .name = "novpn-4711-00000000000000ab.scope", .slice = "novpn-work.slice", .description = "d", .pid = 4711};
    EXPECT_EQ(scope_for("work", 4711, 0xab, "d"), expected);
    EXPECT_NE(scope_for("work", 4711, 0xac, "d").name, expected.name);
}

TEST(Scope, IsAskedForOfTheUsersOwnSystemdAndByRootOfTheSystems) {
    EXPECT_EQ(bus_address(0, "/run/user/0"), "unix:path=/run/dbus/system_bus_socket");
    EXPECT_EQ(bus_address(1000, nullptr), "unix:path=/run/user/1000/bus");
    EXPECT_EQ(bus_address(1000, ""), "unix:path=/run/user/1000/bus");
    EXPECT_EQ(bus_address(1000, "relative"), "unix:path=/run/user/1000/bus");
    EXPECT_EQ(bus_address(1000, "/tmp/run"), "unix:path=/tmp/run/bus");
    EXPECT_EQ(bus_address(1000, "/tmp/a;b,c=%d"), "unix:path=/tmp/a%3bb%2cc%3d%25d/bus") << "no address of its own";
}

} // namespace

} // namespace novpn::cli
