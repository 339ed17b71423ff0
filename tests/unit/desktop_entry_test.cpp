// Desktop files: what is read, and the launcher that comes of one.
#include "agent/desktop_entry.h"

#include "agent/cli/launcher.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSpotify = "# Copyright\n"
                                 "[Desktop Entry]\n"
                                 "Type=Application\n"
                                 "Name=Spotify\n"
                                 "Name[de]=Musik\n"
                                 "TryExec=spotify\n"
                                 "Exec = spotify --uri=%u \"a \\\\$b\"\n"
                                 "DBusActivatable=true\n"
                                 "Actions=new;\n"
                                 "\n"
                                 "[Desktop Action new]\n"
                                 "Name=New Window\n"
                                 "Exec=spotify --new-window\n";

std::string launcher(const std::string& text, const std::vector<std::string>& words = {"/usr/bin/novpn", "run", "--"}) {
    const auto made = launcher_of(text, words, "games");
    return made ? *made : "refused: " + made.error().detail;
}

} // namespace

TEST(DesktopEntry, IsReadFromItsOwnGroup) {
    const DesktopEntry spotify = parse_desktop_entry(kSpotify);
    EXPECT_EQ(spotify, (DesktopEntry{.name = "Spotify", .exec = "spotify --uri=%u \"a \\\\$b\""}));
    EXPECT_EQ(
        parse_desktop_entry("[Desktop Entry]\r\nName=A\\sB\\\\C\r\nNoDisplay=true\nHidden=true\nTerminal=true\n"
                            "Type=Link\n[Other]\nName=No\nX-Flatpak=no\n"),
        (DesktopEntry{.type = "Link", .name = "A B\\C", .no_display = true, .hidden = true, .in_terminal = true}));
    EXPECT_EQ(parse_desktop_entry("[Desktop Entry]\nX-Flatpak=com.spotify.Client\n").owner, "flatpak");
    EXPECT_EQ(parse_desktop_entry("[Desktop Entry]\nX-SnapInstanceName=spotify\n").owner, "snap");
    EXPECT_EQ(parse_desktop_entry(""), DesktopEntry{});
    EXPECT_EQ(parse_desktop_entry("Exec=before the group\n#[Desktop Entry]\n#Exec=a\n"), DesktopEntry{});
}

TEST(ProgramOf, LeavesEnvAndQuotesOut) {
    EXPECT_EQ(program_of("spotify %U"), "spotify");
    EXPECT_EQ(program_of("/usr/bin/env LANG=C A=b firefox -P"), "firefox");
    EXPECT_EQ(program_of("\"/opt/My App/run\" %f"), "/opt/My App/run");
    EXPECT_EQ(program_of("\"/opt/a\\\\\"b\\\\\\\\c\" %f"), "/opt/a\"b\\c");
    EXPECT_EQ(program_of(""), "");
    EXPECT_EQ(program_of("env A=b"), "");
}

TEST(Launcher, StartsEachCommandInTheClass) {
    EXPECT_EQ(launcher(kSpotify), "# Copyright\n"
                                  "[Desktop Entry]\n"
                                  "X-Novpn-Class=games\n"
                                  "Type=Application\n"
                                  "Name=Spotify\n"
                                  "Name[de]=Musik\n"
                                  "TryExec=spotify\n"
                                  "Exec=/usr/bin/novpn run -- spotify --uri=%u \"a \\\\$b\"\n"
                                  "DBusActivatable=false\n"
                                  "Actions=new;\n"
                                  "\n"
                                  "[Desktop Action new]\n"
                                  "Name=New Window\n"
                                  "Exec=/usr/bin/novpn run -- spotify --new-window\n");
    EXPECT_EQ(parse_desktop_entry(launcher(kSpotify)).class_name, "games");
}

TEST(Launcher, QuotesAndEscapesWhatItPutsBefore) {
    const auto exec = [](const std::string& word) {
        const std::string text = launcher("[Desktop Entry]\nExec=a\n", {word});
        return text.substr(text.find("Exec="));
    };
    EXPECT_EQ(exec("/opt/novpn-1.0_x/novpn"), "Exec=/opt/novpn-1.0_x/novpn a\n");
    EXPECT_EQ(exec("/a b"), "Exec=\"/a b\" a\n");
    EXPECT_EQ(exec("/a%u"), "Exec=\"/a%%u\" a\n");
    EXPECT_EQ(exec("/a$b`c\"d\\e"), "Exec=\"/a\\\\$b\\\\`c\\\\\"d\\\\\\\\e\" a\n");
    EXPECT_EQ(exec("a\nExec=b"), "Exec=\"a\\nExec=b\" a\n") << "no line of its own";
    EXPECT_EQ(exec(""), "Exec=\"\" a\n");
    for (const std::string word : {"/a b", "/a$b`c\"d\\e", "a;b&c|d<e>f(g)h*i?j'k~l#m"})
        EXPECT_EQ(program_of(parse_desktop_entry(launcher("[Desktop Entry]\nExec=a\n", {word})).exec), word);
}

TEST(Launcher, OfOneThatHasBeenWrittenBeforeNamesTheClassOnce) {
    const std::string again = launcher("[Desktop Entry]\nX-Novpn-Class=novpn\nExec=a\n");
    EXPECT_EQ(again, "[Desktop Entry]\nX-Novpn-Class=games\nExec=/usr/bin/novpn run -- a\n");
}

TEST(Launcher, IsRefusedWhereThereIsNoCommand) {
    EXPECT_EQ(launcher("[Desktop Entry]\nDBusActivatable=true\n"),
              "refused: it has no command: it is started over D-Bus alone");
    EXPECT_EQ(launcher("[Desktop Entry]\nType=Link\nURL=https://example.com\n"),
              "refused: it starts no application, it is a Link");
}

class WriteLauncher : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/novpn-launcher-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        root = name;
    }
    void TearDown() override { fs::remove_all(root); }
    fs::path write(const std::string& path, const std::string& text) {
        fs::create_directories((root / path).parent_path());
        std::ofstream(root / path) << text;
        return root / path;
    }
    static std::string text_of(const fs::path& path) {
        std::ifstream file(path);
        return {std::istreambuf_iterator<char>(file), {}};
    }
    std::string written(const std::string& id, bool systemd_runs = true) {
        const auto path = cli::write_launcher({.id = id, .class_name = "games", .run = {"novpn", "run", "--"}},
                                              {root / "own", root / "system"}, systemd_runs);
        return path ? *path : "refused: " + to_string(path.error());
    }
    fs::path root;
};

TEST_F(WriteLauncher, StandsBeforeTheSystemsAndIsReplaced) {
    write("system/applications/spotify.desktop", "[Desktop Entry]\nExec=spotify\n");
    const std::string path = root / "own/applications/spotify.desktop";
    for (int count = 0; count < 2; ++count) {
        EXPECT_EQ(written("spotify"), path);
        EXPECT_EQ(text_of(path), "[Desktop Entry]\nX-Novpn-Class=games\nExec=novpn run -- spotify\n") << "never twice";
    }
    write("system/applications/kde/org.kde.foo.desktop", "[Desktop Entry]\nExec=foo\n");
    EXPECT_EQ(written("kde-org.kde.foo"), root / "own/applications/kde-org.kde.foo.desktop");
    EXPECT_EQ(std::distance(fs::directory_iterator(root / "own/applications"), {}), 2)
        << "nothing half-written is left";
}

TEST_F(WriteLauncher, LeavesAFileOfTheUsersOwnAlone) {
    write("system/applications/spotify.desktop", "[Desktop Entry]\nExec=spotify\n");
    const auto own = write("own/applications/spotify.desktop", "[Desktop Entry]\nExec=mine\n");
    EXPECT_NE(written("spotify").find("is a file of your own"), std::string::npos) << written("spotify");
    EXPECT_EQ(text_of(own), "[Desktop Entry]\nExec=mine\n");
}

TEST_F(WriteLauncher, KnowsNoOtherApplications) {
    write("system/applications/gone.desktop", "[Desktop Entry]\nExec=a\nHidden=true\n");
    write("system/secret.desktop", "[Desktop Entry]\nExec=a\n");
    write("own/applications/orphan.desktop", "[Desktop Entry]\nX-Novpn-Class=games\nExec=novpn run -- a\n");
    for (const char* id : {"absent", "gone", "../secret", "../../system/secret", "", ".", "orphan", "/etc/passwd"})
        EXPECT_NE(written(id).find("no such application is installed"), std::string::npos) << id << ": " << written(id);
}

TEST_F(WriteLauncher, IsOfNoUseWhereTheApplicationHasItsOwnScope) {
    write("system/applications/com.spotify.Client.desktop", "[Desktop Entry]\nX-Flatpak=x\nExec=flatpak run x\n");
    EXPECT_NE(written("com.spotify.Client").find("write 'apps: [com.spotify.Client]' in the config"),
              std::string::npos);
    EXPECT_EQ(written("com.spotify.Client", false), root / "own/applications/com.spotify.Client.desktop");
}

TEST(OwnScopeOf, FlatpakAndSnap) {
    using cli::OwnScope, cli::own_scope_of;
    EXPECT_EQ(own_scope_of({"flatpak", "run", "--branch=stable", "com.spotify.Client", "--x"}),
              (OwnScope{"flatpak", "com.spotify.Client"}));
    EXPECT_EQ(own_scope_of({"/usr/bin/flatpak", "--user", "run", "com.spotify.Client"}),
              (OwnScope{"flatpak", "com.spotify.Client"}));
    EXPECT_EQ(own_scope_of({"snap", "run", "vlc.tray"}), (OwnScope{"snap", "vlc"}));
    EXPECT_EQ(own_scope_of({"/snap/bin/firefox", "-P"}), (OwnScope{"snap", "firefox"}));
    EXPECT_EQ(own_scope_of({"/snap/bin/vlc.tray"}), (OwnScope{"snap", "vlc"}));
    for (const std::vector<std::string>& command : {std::vector<std::string>{"flatpak"},
                                                    {"flatpak", "list"},
                                                    {"flatpak", "run"},
                                                    {"firefox"},
                                                    {"snap", "list"},
                                                    {"./snap.sh", "run", "x"}})
        EXPECT_EQ(own_scope_of(command), std::nullopt) << command.front();
}

} // namespace novpn::test
