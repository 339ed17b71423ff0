// Which cgroup is in which class: the names that desktops give, and every way in which a user could choose one to get
// in.
#include "rules/membership.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uid_t kAlice = 1000; ///< allowed
constexpr uid_t kBob = 1001;   ///< not allowed
const std::string kManager = "user.slice/user-1000.slice/user@1000.service";

/// A tree as systemd makes it: everything root's, but from a user's manager on the user's.
class Tree {
  public:
    Tree& add(const std::string& path) {
        for (auto end = path.find('/'); end != std::string::npos; end = path.find('/', end + 1))
            add_one(path.substr(0, end));
        add_one(path);
        return *this;
    }
    Tree& give(const std::string& path, uid_t owner) {
        add(path);
        seen_.at(path).owner = owner;
        return *this;
    }
    const SeenCgroups& seen() const { return seen_; }

  private:
    void add_one(const std::string& path) {
        uid_t owner = 0;
        for (uid_t user : {kAlice, kBob})
            if (path.find("user@" + std::to_string(user) + ".service") != std::string::npos) owner = user;
        seen_.try_emplace(path, SeenCgroup{.id = seen_.size() + 1, .owner = owner});
    }
    SeenCgroups seen_;
};

std::vector<CgroupSelectors> novpn(CgroupSelectors selectors) {
    selectors.class_name = "novpn";
    return {selectors};
}

/// By what the cgroup is in class novpn; "no".
std::string matched_by(const CgroupSelectors& selectors, const Tree& tree, const std::string& path) {
    const auto matched = matched_cgroups(novpn(selectors), tree.seen(), {kAlice});
    const auto found = matched.find(path);
    return found == matched.end() ? "no" : found->second.selector;
}
std::string matched_by(const CgroupSelectors& selectors, const std::string& path) {
    return matched_by(selectors, Tree().add(path), path);
}

const CgroupSelectors kSpotify{.apps = {"spotify"}};
const CgroupSelectors kTransmission{.units = {"transmission-daemon.service"}};
const CgroupSelectors kBackup{.slices = {"backup.slice"}};

} // namespace

// The names of desktops

TEST(ApplicationIds, OfScopes) {
    EXPECT_THAT(application_ids("app-gnome-org.gnome.Terminal-4711.scope"), ElementsAre("org.gnome.Terminal"));
    EXPECT_THAT(application_ids("app-org.kde.konsole-1a2b3c.scope"), ElementsAre("org.kde.konsole"));
    EXPECT_THAT(application_ids("app-spotify-4711.scope"), ElementsAre("spotify"));
    EXPECT_THAT(application_ids("app-gnome-firefox\\x2desr-4711.scope"), ElementsAre("firefox-esr"));
    EXPECT_THAT(application_ids("app-niri-caf\\xc3\\xa9-1.scope"), ElementsAre("caf\xc3\xa9"));
}

TEST(ApplicationIds, OfFlatpaks) {
    EXPECT_THAT(application_ids("app-flatpak-com.spotify.Client-2049.scope"), ElementsAre("com.spotify.Client"));
    EXPECT_THAT(application_ids("app-flatpak-org.foo.Bar\\x2dBaz-2049.scope"), ElementsAre("org.foo.Bar-Baz"));
    EXPECT_THAT(application_ids("app-flatpak-org.foo.Bar-Baz-2049.scope"),
                ElementsAre("org.foo.Bar", "org.foo.Bar-Baz"))
        << "where it has not escaped it";
}

TEST(ApplicationIds, OfSnaps) {
    EXPECT_THAT(application_ids("snap.spotify.spotify-b2d5f8ba-1f3d-4bb3-a3d1-8b0c6b2f1bd1.scope"),
                ElementsAre("spotify", "spotify.spotify", "spotify_spotify"));
    EXPECT_THAT(
        application_ids("snap.gnome-calculator.gnome-calculator-4711.scope"),
        ElementsAre("gnome-calculator", "gnome-calculator.gnome-calculator", "gnome-calculator_gnome-calculator"));
    EXPECT_THAT(application_ids("snap.vlc.vlc\\x2dtray-4711.scope"),
                ElementsAre("vlc", "vlc.vlc-tray", "vlc_vlc-tray"));
}

TEST(ApplicationIds, OfKdesAndTheBussServices) {
    EXPECT_THAT(application_ids("app-org.kde.dolphin@5f3a1c.service"), ElementsAre("org.kde.dolphin"));
    EXPECT_THAT(application_ids("app-gmail\\x2dtray@autostart.service"), ElementsAre("gmail-tray"));
    EXPECT_THAT(application_ids("dbus-:1.2-org.gnome.Nautilus@0.service"), ElementsAre("org.gnome.Nautilus"));
    EXPECT_THAT(application_ids("dbus-:1.12-org.foo.a\\x2db@3.service"), ElementsAre("org.foo.a-b"));
}

TEST(ApplicationIds, OfNoOtherName) {
    for (const char* unit : {"spotify.service",
                             "app-spotify.scope",
                             "app-.scope",
                             "app--.scope",
                             "app-spotify-.scope",
                             "app--1.scope",
                             "app-a-b-spotify-1.scope",
                             "app-spotify.service",
                             "app-spotify@.service",
                             "app-@1.service",
                             "app-gnome-spotify@1.service",
                             "snap.spotify.scope",
                             "snap..spotify-1.scope",
                             "snap.spotify.-1.scope",
                             "dbus-:1.2-org.foo@x.service",
                             "dbus-:-org.foo@0.service",
                             "dbus-:a-org.foo@0.service",
                             "dbus-1.2-org.foo@0.service",
                             "app-spotify-1.slice",
                             "run-r1234.scope",
                             "session-2.scope",
                             ""})
        EXPECT_THAT(application_ids(unit), IsEmpty()) << unit;
}

TEST(ApplicationIds, RefuseEscapesThatAreNone) {
    for (const char* id : {"spot\\x", "spot\\x0", "spot\\xzz", "spot\\n", "spotify\\x00evil", "a\\x2fb", "a\\x0ab"})
        EXPECT_THAT(application_ids("app-gnome-" + std::string(id) + "-1.scope"), IsEmpty()) << id;
}

// Where a name counts

TEST(Apps, MatchDirectlyUnderSlicesOfTheUsersManager) {
    EXPECT_EQ(matched_by(kSpotify, kManager + "/app.slice/app-gnome-spotify-4711.scope"), "app spotify");
    EXPECT_EQ(matched_by(kSpotify, kManager + "/app.slice/app-spotify@1f.service"), "app spotify");
    EXPECT_EQ(
        matched_by(kSpotify, kManager + "/app.slice/app-dbus\\x2d:1.2\\x2dspotify.slice/dbus-:1.2-spotify@0.service"),
        "app spotify")
        << "of nested slices";
    EXPECT_EQ(matched_by(kSpotify, kManager + "/session.slice/snap.spotify.spotify-1.scope"), "app spotify");
}

TEST(Apps, MatchByGlobs) {
    const CgroupSelectors globs{.apps = {"firefox*", "com.valvesoftware.*"}};
    EXPECT_EQ(matched_by(globs, kManager + "/app.slice/app-gnome-firefox\\x2desr-1.scope"), "app firefox*");
    EXPECT_EQ(matched_by(globs, kManager + "/app.slice/app-flatpak-com.valvesoftware.Steam-1.scope"),
              "app com.valvesoftware.*");
    EXPECT_EQ(matched_by(globs, kManager + "/app.slice/app-gnome-chromium-1.scope"), "no");
}

TEST(Apps, OfUsersWhoAreAllowedOnly) {
    const std::string bobs = "user.slice/user-1001.slice/user@1001.service/app.slice/app-spotify-1.scope";
    EXPECT_EQ(matched_by(kSpotify, bobs), "no");
    const auto allowed = matched_cgroups(novpn(kSpotify), Tree().add(bobs).seen(), {kBob});
    EXPECT_EQ(allowed.size(), 1U);
    EXPECT_EQ(matched_by(kSpotify, "user.slice/user-0.slice/user@0.service/app.slice/app-spotify-1.scope"),
              "app spotify")
        << "root always";
}

TEST(Apps, NotInAScopeOrServiceThatAUserMadeForIt) {
    for (const std::string& path : {kManager + "/app.slice/app-gnome-terminal-1.scope/app-spotify-1.scope",
                                    kManager + "/app.slice/mine.service/app.slice/app-spotify-1.scope",
                                    kManager + "/init.scope/app-spotify-1.scope", kManager + "/app-spotify-1.scope",
                                    std::string("user.slice/user-1000.slice/session-2.scope/app-spotify-1.scope"),
                                    std::string("user.slice/user-1000.slice/app-spotify-1.scope"),
                                    std::string("app.slice/app-spotify-1.scope"), std::string("app-spotify-1.scope")})
        EXPECT_EQ(matched_by(kSpotify, path), "no") << path;
}

TEST(Apps, NotOfAManagerThatIsNotWhereManagersAre) {
    for (const char* path :
         {"system.slice/user.slice/user-1000.slice/user@1000.service/app.slice/app-spotify-1.scope",
          "machine.slice/machine-c.scope/user.slice/user-1000.slice/user@1000.service/app.slice/app-spotify-1.scope",
          "user.slice/user-1001.slice/user@1000.service/app.slice/app-spotify-1.scope",
          "user.slice/user-1000.slice/user@01000.service/app.slice/app-spotify-1.scope",
          "user.slice/user-1000.slice/user@1000.service.d/app.slice/app-spotify-1.scope",
          "user.slice/user-1000.slice/user@1000.scope/app.slice/app-spotify-1.scope",
          "user.slice/user-1000.slice/user@x.service/app.slice/app-spotify-1.scope",
          "user-1000.slice/user@1000.service/app.slice/app-spotify-1.scope",
          "user.slice/user@1000.service/app.slice/app-spotify-1.scope",
          "user.slice/user-1000.slice/user@1000.service/user.slice/user-0.slice/user@0.service/app.slice/"
          "app-spotify-1.scope",
          "user.slice/user-4294967296.slice/user@4294967296.service/app.slice/app-spotify-1.scope"})
        EXPECT_EQ(matched_by(kSpotify, path), "no") << path;
}

TEST(Apps, NotWhereSomebodyElseMayMakeCgroups) {
    const std::string app = kManager + "/app.slice/app-spotify-1.scope";
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app), app), "app spotify");
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app).give("user.slice/user-1000.slice", kBob), app), "no");
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app).give("user.slice", kAlice), app), "no");
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app).give(kManager, kBob), app), "no");
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app).give(kManager + "/app.slice", kBob), app), "no");
    EXPECT_EQ(matched_by(kSpotify, Tree().add(app).give(kManager, 0), app), "app spotify");
}

TEST(Apps, AreNotMatchedInTheSystemsTree) {
    EXPECT_EQ(matched_by(kSpotify, "system.slice/app-spotify-1.scope"), "no");
    EXPECT_EQ(matched_by(kSpotify, "system.slice/snap.spotify.spotify-1.scope"), "no");
}

TEST(Units, MatchInTheSystemsTreeBelowSlices) {
    EXPECT_EQ(matched_by(kTransmission, "system.slice/transmission-daemon.service"),
              "unit transmission-daemon.service");
    EXPECT_EQ(matched_by(kTransmission, "net.slice/net-slow.slice/transmission-daemon.service"),
              "unit transmission-daemon.service");
    const CgroupSelectors instance{.units = {"openvpn@work.service", "memory.service"}};
    EXPECT_EQ(matched_by(instance, "system.slice/system-openvpn.slice/openvpn@work.service"),
              "unit openvpn@work.service");
    EXPECT_EQ(matched_by(instance, "system.slice/_memory.service"), "unit memory.service")
        << "systemd marks a name that a file of the kernel could have";
}

TEST(Units, NotOfAUserOrAContainer) {
    const std::string name = "transmission-daemon.service";
    for (const std::string& path :
         {kManager + "/app.slice/" + name, kManager + "/" + name, kManager + "/system.slice/" + name,
          "user.slice/user-1000.slice/session-2.scope/" + name, "system.slice/docker-0123.scope/system.slice/" + name,
          "system.slice/docker-0123.scope/" + name,
          "machine.slice/systemd-nspawn@c.service/payload/system.slice/" + name,
          "machine.slice/machine-c.scope/system.slice/" + name, "lxc.payload.c/system.slice/" + name,
          "docker/0123/system.slice/" + name, "system.slice/delegated.service/" + name,
          "machine.slice/system.slice/" + name, "kubepods.slice/kubepods-pod1.slice/system.slice/" + name})
        EXPECT_EQ(matched_by(kTransmission, path), "no") << path;
}

TEST(Units, NotInASliceThatIsDelegated) {
    const std::string unit = "system.slice/transmission-daemon.service";
    EXPECT_EQ(matched_by(kTransmission, Tree().add(unit).give("system.slice", kAlice), unit), "no");
    EXPECT_EQ(matched_by(kTransmission, Tree().add(unit).give(unit, kAlice), unit), "unit transmission-daemon.service")
        << "whose own cgroup it is says nothing: its name was given by the system manager";
}

TEST(Slices, MatchWhereSystemdPutsThem) {
    EXPECT_EQ(matched_by(kBackup, "backup.slice"), "slice backup.slice");
    const CgroupSelectors nested{.slices = {"backup-night.slice"}};
    EXPECT_EQ(matched_by(nested, "backup.slice/backup-night.slice"), "slice backup-night.slice");
    for (const std::string& path : {kManager + "/backup.slice", std::string("system.slice/backup.slice"),
                                    std::string("machine.slice/machine-c.scope/backup.slice"),
                                    std::string("user.slice/user-1000.slice/session-2.scope/backup.slice")})
        EXPECT_EQ(matched_by(kBackup, path), "no") << path;
    EXPECT_EQ(matched_by(nested, "backup-night.slice"), "no");
}

TEST(Cgroups, MatchTheirPathBelowSlices) {
    const CgroupSelectors by{.cgroups = {"jobs.slice/nightly", "games"}};
    EXPECT_EQ(matched_by(by, "jobs.slice/nightly"), "cgroup jobs.slice/nightly");
    EXPECT_EQ(matched_by(by, "games"), "cgroup games");
    EXPECT_EQ(matched_by(by, "jobs.slice/nightly/games"), "no");
    EXPECT_EQ(matched_by(by, kManager + "/jobs.slice/nightly"), "no");
    EXPECT_EQ(matched_by(by, Tree().add("jobs.slice/nightly").give("jobs.slice", kAlice), "jobs.slice/nightly"), "no");
    const CgroupSelectors of_user{.cgroups = {kManager + "/app.slice"}};
    EXPECT_EQ(matched_by(of_user, kManager + "/app.slice"), "no");
}

TEST(MatchedCgroups, TheClasssOwnSliceOfASystemd) {
    const CgroupSelectors own{.own_slice = true};
    const std::string slice = "novpn.slice/novpn-novpn.slice";
    for (const std::string& path : {slice, kManager + "/" + slice}) {
        EXPECT_EQ(matched_by(own, path), "slice novpn-novpn.slice") << path;
        EXPECT_EQ(matched_by({}, path), "no") << path;
        EXPECT_EQ(matched_by(own, Tree().add(path + "/novpn-1-1.scope"), path + "/novpn-1-1.scope"), "no")
            << "the slice holds all that is in it";
    }
}

TEST(MatchedCgroups, TheClasssOwnSliceOfNobodyElse) {
    const CgroupSelectors own{.own_slice = true};
    const std::string slice = "novpn.slice/novpn-novpn.slice";
    const std::string bobs = "user.slice/user-1001.slice/user@1001.service/" + slice;
    for (const std::string& path :
         {bobs, std::string("novpn-novpn.slice"), kManager + "/novpn-novpn.slice", "system.slice/" + slice,
          "system.slice/docker-1.scope/" + slice, kManager + "/app.slice/a.service/" + slice,
          "user.slice/user-1000.slice/session-1.scope/" + slice, std::string("novpn.slice/novpn-work.slice"),
          kManager + "/novpn.slice/novpn-novpn-more.slice", kManager + "/novpn.slice/novpn-novpn.slice.scope"})
        EXPECT_EQ(matched_by(own, path), "no") << path;
    EXPECT_EQ(matched_by(own, Tree().give("novpn.slice", kAlice).add(slice), slice), "no");
    EXPECT_EQ(matched_by(own, Tree().give(kManager + "/novpn.slice", kBob).add(kManager + "/" + slice),
                         kManager + "/" + slice),
              "no");
}

TEST(ClassSlice, IsFoundInPaths) {
    EXPECT_EQ(class_slice("novpn"), "novpn-novpn.slice");
    const std::string slice = kManager + "/novpn.slice/novpn-novpn.slice";
    EXPECT_EQ(class_slice_above(slice + "/novpn-7-1.scope/inner", "novpn"), slice);
    EXPECT_EQ(class_slice_above(slice + "/novpn-7-1.scope", "work"), std::nullopt);
    EXPECT_EQ(class_slice_above(slice, "novpn"), std::nullopt) << "no process is in a slice itself";
    EXPECT_TRUE(is_run_scope(slice + "/novpn-7-1.scope/inner", slice));
    for (const char* path : {"/backup.service", "/run-u1.scope", "/novpn-.scope", "/a.service/novpn-7-1.scope", ""})
        EXPECT_FALSE(is_run_scope(slice + path, slice)) << path;
    for (const char* name : {"novpn", "a", "work_2"}) EXPECT_TRUE(is_class_name(name)) << name;
    for (const char* name : {"", "2a", "a-b", "A", "a.slice", "abcdefghijklmnopqrstuvwxyzabcdef"})
        EXPECT_FALSE(is_class_name(name)) << name;
}

TEST(MatchedCgroups, TheFirstClassHasWhatTwoSelect) {
    const std::string app = kManager + "/app.slice/app-spotify-1.scope";
    const std::vector<CgroupSelectors> classes{
        {.class_name = "work", .apps = {"spot*"}},
        {.class_name = "novpn", .apps = {"spotify"}, .slices = {"user-1000.slice"}}};
    const Tree tree = Tree().add(app);
    const auto matched = matched_cgroups(classes, tree.seen(), {kAlice});
    ASSERT_EQ(matched.size(), 2U);
    EXPECT_EQ(matched.at(app), (MatchedCgroup{"work", "app spot*", tree.seen().at(app).id}));
    EXPECT_EQ(matched.at("user.slice/user-1000.slice").class_name, "novpn") << "and the nearest one decides";
}

TEST(MayHoldMatches, SlicesAndManagersOnly) {
    for (const std::string& path :
         {std::string(), std::string("system.slice"), std::string("user.slice/user-1000.slice"), kManager,
          kManager + "/app.slice", kManager + "/app.slice/app-dbus\\x2dx.slice"})
        EXPECT_TRUE(may_hold_matches(path)) << path;
    for (const std::string& path :
         {std::string("init.scope"), std::string("system.slice/cron.service"), kManager + "/init.scope",
          kManager + "/app.slice/app-spotify-1.scope", std::string("user.slice/user-1000.slice/session-2.scope"),
          std::string("system.slice/docker-1.scope/system.slice"), std::string("novpn-4026531840")})
        EXPECT_FALSE(may_hold_matches(path)) << path;
}

TEST(ManagerOf, ItsUser) {
    EXPECT_EQ(manager_of(kManager), kAlice);
    EXPECT_EQ(manager_of(kManager + "/app.slice/x.scope"), kAlice);
    EXPECT_EQ(manager_of("system.slice/cron.service"), std::nullopt);
    EXPECT_EQ(managers_in(Tree().add(kManager + "/app.slice").seen()), std::set<uid_t>{kAlice});
}

} // namespace novpn::test
