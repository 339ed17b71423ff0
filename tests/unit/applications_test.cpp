// What `novpn apps` finds of desktop files, and how it writes an id.
#include "agent/applications.h"
#include "config/load.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

namespace fs = std::filesystem;

class Installed : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/novpn-apps-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        root = name;
    }
    void TearDown() override { fs::remove_all(root); }
    void write(const std::string& path, const std::string& text) {
        fs::create_directories((root / path).parent_path());
        std::ofstream(root / path) << text;
    }
    Applications found(const std::vector<std::string>& below) {
        Applications apps;
        std::vector<std::string> directories;
        for (const std::string& name : below) directories.push_back(root / name);
        add_installed(apps, desktop_files(directories));
        return apps;
    }
    fs::path root;
};

} // namespace

TEST_F(Installed, HasTheIdsAndNamesOfDesktopFiles) {
    write("a/applications/spotify.desktop",
          "[Desktop Entry]\nName=Spotify\nName[de]=Musik\n[Desktop Action x]\nName=X\n");
    write("a/applications/kde/org.kde.foo.desktop", "[Desktop Entry]\nName=Foo\n");
    write("a/applications/README", "[Desktop Entry]\nName=None\n");
    write("b/applications/spotify.desktop", "[Desktop Entry]\nName=Another\n");
    write("b/applications/firefox_firefox.desktop", "[Desktop Entry]\nName=Firefox\n");
    const Applications want{{"spotify", {.name = "Spotify", .installed = true}},
                            {"kde-org.kde.foo", {.name = "Foo", .installed = true}},
                            {"firefox_firefox", {.name = "Firefox", .installed = true}}};
    EXPECT_EQ(found({"a", "b", "absent"}), want);
}

TEST_F(Installed, LeavesOutWhatNoMenuShows) {
    write("a/applications/helper.desktop", "[Desktop Entry]\nName=Helper\nNoDisplay=true\n");
    write("a/applications/gone.desktop", "[Desktop Entry]\nHidden=true\n");
    EXPECT_EQ(found({"a"}), Applications{});
}

TEST_F(Installed, HasFlatpaksByTheNameOfTheLink) {
    write("flatpak/app/com.spotify.Client/current/active/export/share/applications/com.spotify.Client.desktop",
          "[Desktop Entry]\nName = Spotify \n");
    fs::create_directories(root / "flatpak/exports/share/applications");
    const std::string link = "flatpak/exports/share/applications/com.spotify.Client.desktop";
    fs::create_symlink("../../../app/com.spotify.Client/current/active/export/share/applications/"
                       "com.spotify.Client.desktop",
                       root / link);
    fs::create_symlink("/nowhere", root / "flatpak/exports/share/applications/org.gone.desktop");
    const Applications want{{"com.spotify.Client", {.name = "Spotify", .installed = true}}};
    EXPECT_EQ(found({"flatpak/exports/share"}), want);
    EXPECT_EQ(desktop_files({root / "flatpak/exports/share"}), (DesktopFiles{{"com.spotify.Client", root / link}}));
}

TEST_F(Installed, LeavesOutWhatTheFirstDirectoryHides) {
    write("a/applications/spotify.desktop", "[Desktop Entry]\nHidden=true\n");
    write("b/applications/spotify.desktop", "[Desktop Entry]\nName=Spotify\n");
    EXPECT_EQ(found({"a", "b"}), Applications{});
}

TEST(ToYaml, IsReadBackAsTheIdThatItIs) {
    for (const std::string id : {"spotify", "org.gnome.Terminal", "firefox-esr", "1password", "true", "no", "a b",
                                 "it's", "caf\xc3\xa9", "x#y", "a: b", "-x"}) {
        const auto config = parse_config("classes: {novpn: {apps: [" + to_yaml(id) + "]}}", "f");
        ASSERT_TRUE(config) << to_yaml(id);
        EXPECT_EQ(config->classes.front().apps, std::vector{id});
    }
    EXPECT_EQ(to_yaml("spotify"), "spotify");
    EXPECT_EQ(to_yaml("1password"), "'1password'");
}

} // namespace novpn::test
