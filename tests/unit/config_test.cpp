// The configuration from YAML: every key, every error with its place, merging and bounds.
#include "config/document.h"
#include "config/load.h"
#include "config/numbers.h"
#include "config/schema.h"
#include "config/text.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <ostream>
#include <random>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace novpn {

// GoogleTest prints values by these.
void PrintTo(const Config& config, std::ostream* out) {
    const auto list = [&](const char* name, const std::vector<std::string>& globs) {
        *out << ' ' << name << '=';
        for (const auto& glob : globs) *out << glob << ',';
    };
    for (const auto& c : config.classes) {
        *out << c.name << " enabled=" << c.enabled << " uplink=" << c.uplink << " via=" << c.via
             << " tunnel=" << (c.when_no_uplink == WhenNoUplink::tunnel) << " keep=" << (c.on_leave == OnLeave::keep)
             << " table=" << c.table.value << " mark=" << to_string(c.mark) << " preference=" << c.preference.value
             << "; ";
    }
    list("users", config.allow.users);
    list("groups", config.allow.groups);
    *out << " marking=" << static_cast<int>(config.marking) << " stale=" << config.sockets.destroy_stale
         << " level=" << static_cast<int>(config.log_level);
    list("prefer", config.uplinks.prefer);
    list("ignore", config.uplinks.ignore);
    list("links", config.uplinks.links);
    list("tunnels", config.tunnels.links);
}
void PrintTo(const ConfigError& error, std::ostream* out) { *out << to_string(error); }

namespace {

namespace fs = std::filesystem;

const fs::path kSource = NOVPN_SOURCE_DIR;

std::string content(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    EXPECT_TRUE(in) << file;
    return {std::istreambuf_iterator<char>(in), {}};
}

std::string error_of(std::string_view text) {
    const auto config = parse_config(text, "f");
    return config ? "accepted" : to_string(config.error());
}

/// A directory of this test's own, removed with it.
class ConfigFiles : public testing::Test {
  protected:
    ConfigFiles() {
        std::string name = (fs::temp_directory_path() / "novpn-config-XXXXXX").native();
        if (::mkdtemp(name.data()) == nullptr) throw std::system_error(errno, std::generic_category(), name);
        directory_ = name;
    }
    ~ConfigFiles() override {
        std::error_code ignored;
        fs::remove_all(directory_, ignored);
    }

    void write(const std::string& name, std::string_view text) {
        fs::create_directories((directory_ / name).parent_path());
        std::ofstream(directory_ / name, std::ios::binary) << text;
    }
    std::string path(const std::string& name) const { return (directory_ / name).native(); }
    tl::expected<Config, ConfigError> load() const { return load_config(path("novpn.yaml")); }
    std::string load_error() const {
        const auto config = load();
        return config ? "accepted" : to_string(config.error());
    }

    fs::path directory_;
};

// ---- examples: the first line of a bad one is "# error: LINE:COL: message" ----

std::vector<fs::path> examples() {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(kSource / "tests/unit/config_examples"))
        files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
}

class ConfigExample : public testing::TestWithParam<fs::path> {};

TEST_P(ConfigExample, IsAcceptedOrRefusedAsItsFirstLineSays) {
    const std::string text = content(GetParam());
    const std::string first = text.substr(0, text.find('\n'));
    const std::string bad = "# error: ";
    if (first == "# good") {
        EXPECT_EQ(error_of(text), "accepted");
    } else {
        ASSERT_TRUE(first.starts_with(bad)) << "the first line is neither '# good' nor '# error: LINE:COL: message'";
        EXPECT_EQ(error_of(text), "f:" + first.substr(bad.size()));
    }
}

INSTANTIATE_TEST_SUITE_P(Examples, ConfigExample, testing::ValuesIn(examples()),
                         [](const auto& example) { return example.param.stem().native(); });

Prefix prefix(const char* network, unsigned length) { return {boost::asio::ip::make_address(network), length}; }

Config config_of_example(const std::string& name) {
    return parse_config(content(kSource / "tests/unit/config_examples" / name), name).value();
}

TEST(ParseConfig, ReadsEveryBuiltKey) {
    const Config expected{
        .classes = {{.name = "novpn",
                     .enabled = false,
                     .uplink = "wl*",
                     .on_leave = OnLeave::keep,
                     .when_no_uplink = WhenNoUplink::tunnel,
                     .dns = Dns::vpn,
                     .table = TableId{100},
                     .mark = {.value = 0x00c80000, .mask = 0x00ff0000},
                     .preference = Preference{5200},
                     .apps = {"spotify", "com.valvesoftware.Steam", "firefox*"},
                     .units = {"transmission-daemon.service"},
                     .slices = {"backup.slice"},
                     .cgroups = {"system.slice/nightly", "games.slice"},
                     .users = {{"daemon", 1}, {"1000", 1000}},
                     .destinations = {prefix("203.0.113.0", 24), prefix("192.0.2.7", 32), prefix("2001:db8::", 32)}}},
        .allow = {.users = {"alice", "_apt", "1000"}, .groups = {}},
        .marking = Marking::bpf,
        .sockets = {.destroy_stale = false},
        .log_level = LogLevel::debug,
        .uplinks = {.prefer = {"eth0", "wl*"}, .ignore = {"docker0", "veth*"}, .links = {"tap-lan"}},
        .tunnels = {.links = {"cscotun*"}}};
    EXPECT_EQ(config_of_example("good_all_built_keys.yaml"), expected);
}

TEST(ParseConfig, KeepsTheClassesInTheOrderOfTheFile) {
    const Config expected{.classes = {{.name = "music",
                                       .uplink = "wl*",
                                       .table = TableId{7867},
                                       .mark = {.value = 0x4f000000, .mask = 0xff000000},
                                       .preference = Preference{68}},
                                      {.name = "novpn", .enabled = false},
                                      {.name = "lab_2",
                                       .via = "tun0",
                                       .table = TableId{7868},
                                       .mark = {.value = 0x50000000, .mask = 0xff000000},
                                       .preference = Preference{72}}}};
    EXPECT_EQ(config_of_example("good_several_classes.yaml"), expected);
}

TEST(ParseConfig, GivesEveryClassAClassIdWithNetCls) {
    const Config expected{
        .classes = {{.table = TableId{3}, .mark = {.value = 2, .mask = 0xffffffff}, .classid = 0x100001},
                    {.name = "backup",
                     .table = TableId{4},
                     .mark = {.value = 4, .mask = 4},
                     .preference = Preference{70},
                     .classid = 0x100002}},
        .marking = Marking::net_cls,
        .net_cls_mount = "/run/net_cls"};
    EXPECT_EQ(config_of_example("good_net_cls.yaml"), expected);
    EXPECT_EQ(parse_config("marking: net_cls", "f")->classes.front().classid, kDefaultClassid);
    EXPECT_EQ(parse_config("classes: {novpn: {classid: null}}", "f").value(), Config{});
    for (const char* path : {"net_cls", "/run/../sys/fs/cgroup/x", "/run/net_cls/", "/sys/fs/cgroup", "/"})
        EXPECT_FALSE(parse_config(std::string("net_cls: {mount: ") + path + "}", "f")) << path;
}

TEST(ParseConfig, PutsTheClassNovpnFirstWhereNothingNamesIt) {
    const auto config = parse_config("classes: {m: {table: 1, mark: 1, preference: 3}}", "f");
    ASSERT_TRUE(config) << to_string(config.error());
    ASSERT_EQ(config->classes.size(), 2U);
    EXPECT_EQ(config->classes[0], ClassConfig{});
    EXPECT_EQ(config->classes[1].name, "m");
}

/// `count` classes besides novpn, each with numbers that no other has.
std::string classes_besides_novpn(std::size_t count) {
    std::string text = "classes:\n";
    for (std::size_t i = 1; i <= count; ++i) {
        text += "  c" + std::to_string(i) + ": {table: " + std::to_string(i) + ", mark: " + std::to_string(i) +
                "/0xffff, preference: " + std::to_string(100 + 3 * i) + "}\n";
    }
    return text;
}

TEST(ParseConfig, TakesSixtyFourClassesWithNovpnNamedOrNot) {
    const auto mark_elsewhere = "  novpn: {mark: 0xff00/0xff00}\n";
    for (const std::string& text : {classes_besides_novpn(63) + mark_elsewhere,
                                    "classes:\n" + std::string(mark_elsewhere) + classes_besides_novpn(63).substr(9)}) {
        const auto config = parse_config(text, "f");
        ASSERT_TRUE(config) << to_string(config.error());
        EXPECT_EQ(config->classes.size(), kMaxClasses);
    }
    for (const std::string& text : {classes_besides_novpn(64), classes_besides_novpn(64) + mark_elsewhere}) {
        EXPECT_EQ(error_of(text), "f:65:3: classes.c64: too many classes; allowed: 64, novpn among them");
    }
}

TEST(ParseConfig, TakesClassNamesOfThirtyOneCharacters) {
    const auto named = [](const std::string& name) {
        return error_of("classes: {" + name + ": {table: 1, mark: 1, preference: 3}}");
    };
    for (const std::string& good : {std::string("a"), std::string("a_0"), std::string(31, 'z')}) {
        EXPECT_EQ(named(good), "accepted") << good;
    }
    for (const std::string& bad : {std::string("''"), std::string("_a"), std::string("0a"), std::string("A"),
                                   std::string("a-b"), std::string("a.b"), std::string("é"), std::string(32, 'z')}) {
        EXPECT_NE(named(bad).find("cannot be the name of a class"), std::string::npos) << bad << ": " << named(bad);
    }
}

TEST(ParseConfig, TakesNamesAndNumbersOfUsers) {
    Config expected;
    expected.allow.users = {"a", "www-data", "0", "4294967294", "1000", std::string(32, 'a')};
    const auto config =
        parse_config("allow: {users: [a, www-data, 0, 4294967294, '1000', " + std::string(32, 'a') + "]}", "f");
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_EQ(*config, expected);
    for (const std::string bad : {"4294967295", "-1", "007", "0x1", "1a", "Alice", "a.b", "a b", "''", "~", "[a]", "ü",
                                  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}) {
        EXPECT_FALSE(parse_config("allow: {users: [" + bad + "]}", "f")) << bad;
    }
}

TEST(ParseConfig, TakesDestinationsThatCanBeInTheInternet) {
    const auto listed = [](const std::string& list) {
        return error_of("classes: {novpn: {destinations: [" + list + "]}}");
    };
    for (const char* good :
         {"", "0.0.0.0/1", "255.255.255.255", "'::/1'", "'2001:db8::1'", "'2001:db8::/127'", "10.0.0.0/8"})
        EXPECT_EQ(listed(good), "accepted") << good;
    for (const char* bad : {"0.0.0.0/0",
                            "'::/0'",
                            "192.0.2.0/33",
                            "192.0.2.0/-1",
                            "192.0.2.0/024",
                            "192.0.2.0/",
                            "192.0.2.0/0x18",
                            "192.0.2",
                            "192.0.2.1/24",
                            "'2001:db8::/129'",
                            "'2001:db8::1/64'",
                            "'fe80::1%eth0'",
                            "'fe80::/10'",
                            "127.0.0.1",
                            "127.0.0.0/8",
                            "'::1'",
                            "'::ffff:192.0.2.1'",
                            "example.org",
                            "''",
                            "~",
                            "[192.0.2.1]"})
        EXPECT_NE(listed(bad), "accepted") << bad;
    std::string many;
    for (int i = 0; i < 4096; ++i) many += "10.0." + std::to_string(i / 256) + "." + std::to_string(i % 256) + ", ";
    EXPECT_EQ(listed(many), "accepted");
    EXPECT_NE(listed(many + "192.0.2.1").find("4097 are too many prefixes"), std::string::npos);
}

TEST(ParseConfig, TakesNothingForTheDefaults) {
    for (const char* text : {"", "\n", "---\n", "# nothing\n", "null", "{}", "classes:\n", "\xef\xbb\xbf", "\r\n"}) {
        EXPECT_EQ(parse_config(text, "f"), (tl::expected<Config, ConfigError>(Config{}))) << text;
    }
    EXPECT_EQ(config_of_example("good_empty_sections.yaml"), Config{});
}

TEST(ParseConfig, GivesAPlainMarkAllBitsInItsMask) {
    Config expected;
    expected.classes[0].mark = {.value = 20000, .mask = 0xffffffff};
    EXPECT_EQ(config_of_example("good_plain_mark.yaml"), expected);
}

TEST(ParseConfig, TakesTheLimitsOfARangeAndNothingBeyond) {
    const auto accepts = [](const std::string& setting) {
        return parse_config("classes: {novpn: {" + setting + "}}", "f").has_value();
    };
    for (const char* good :
         {"table: 1", "table: 252", "table: 256", "table: 4294967295", "table: 0x1eba", "preference: 3",
          "preference: 32764", "mark: 1", "mark: 0xffffffff", "mark: \"1/1\"", "mark: 4294967295"}) {
        EXPECT_TRUE(accepts(good)) << good;
    }
    for (const char* bad : {"table: 0",          "table: 253",          "table: 254",
                            "table: 255",        "table: 4294967296",   "table: 99999999999999999999999",
                            "table: -1",         "table: +1",           "table: 1.5",
                            "table: 07866",      "table: 0x",           "table: 7866x",
                            "table: main",       "table: []",           "preference: 2",
                            "preference: 32766", "preference: ~",       "mark: 0",
                            "mark: 0x100000000", "mark: 1/0x100000000", "mark: 1/0",
                            "mark: /1",          "mark: 1/1/1",         "mark: ''",
                            "mark: 1 / 1",       "mark: [1]",           "mark: -1"}) {
        EXPECT_FALSE(accepts(bad)) << bad;
    }
}

TEST(ParseConfig, TakesLinkNamesOfFifteenCharactersAtMost) {
    Config expected;
    expected.tunnels.links = {"123456789012345", "7", "[[:digit:]]*"};
    EXPECT_EQ(parse_config("tunnels: {links: ['123456789012345', 7, '[[:digit:]]*']}", "f").value(), expected);
    EXPECT_FALSE(parse_config("tunnels: {links: ['1234567890123456']}", "f"));
    EXPECT_FALSE(parse_config("tunnels: {links: ['a b']}", "f"));
    EXPECT_FALSE(parse_config("tunnels: {links: [~]}", "f"));
    EXPECT_FALSE(parse_config("tunnels: {links: [[tun0]]}", "f"));
    EXPECT_FALSE(parse_config("tunnels: {links: }", "f"));
}

TEST(ParseConfig, TakesDotsAndStarsInKeysForLetters) {
    EXPECT_EQ(error_of("uplinks.prefer: [eth0]"), "f:1:1: unknown key 'uplinks.prefer'; allowed here: allow, classes, "
                                                  "log, marking, net_cls, sites, sockets, tunnels, uplinks");
    EXPECT_EQ(error_of("classes: {'*': {}}"),
              "f:1:11: '*' cannot be the name of a class; allowed: a to z first, then up to 30 of a to z, 0 to 9, _");
}

TEST(ConfigBounds, HoldDepth) {
    const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
    EXPECT_TRUE(read_document(nested(kMaxDepth)));
    EXPECT_EQ(error_of(nested(kMaxDepth + 1)), "f:1:17: nested too deeply; allowed: 16 levels");
    EXPECT_EQ(error_of(nested(500)), "f:1:17: nested too deeply; allowed: 16 levels");
    EXPECT_TRUE(error_of(std::string(1000000, '[')).starts_with("f:1:"));
    std::string blocks;
    for (int i = 0; i < 100000; ++i) blocks += "- ";
    EXPECT_EQ(error_of(blocks), "f:1:33: nested too deeply; allowed: 16 levels");
}

TEST(ConfigBounds, HoldTheNumberOfValues) {
    std::string values = "-\n";
    for (std::size_t i = 1; i < kMaxNodes - 1; ++i) values += "-\n";
    EXPECT_TRUE(read_document(values));
    EXPECT_EQ(error_of(values + "- a"), "f:10000:3: too many values; allowed: 10000");
}

TEST(ConfigBounds, HoldTheSize) {
    std::string text(kMaxConfigBytes, '\n');
    EXPECT_EQ(error_of(text), "accepted");
    EXPECT_EQ(error_of(text + "\n"), "f:1:1: larger than 1 MiB, which is the most that is allowed");
}

TEST(ConfigBounds, KeepMessagesShortAndPrintable) {
    const std::string text = "classes: {novpn: {dns: \"\\e]0;\\u202e\\u0085" + std::string(500000, 'x') + "\"}}";
    EXPECT_EQ(error_of(text), "f:1:24: classes.novpn.dns: '\\x1b]0;\\u{202e}\\u{85}" + std::string(54, 'x') +
                                  "…' is unknown; allowed: vpn, uplink");
    EXPECT_EQ(to_string(ConfigError{.file = "a\n\xff", .line = 0, .column = 0, .message = "m"}), "a\\x0a\\xff: m");
}

TEST(ConfigBounds, RefuseBytesThatAreNotText) {
    EXPECT_EQ(error_of(std::string_view("a: \0b", 5)), "f:1:4: control character 0x00 is not allowed");
    EXPECT_EQ(error_of("a\rb"), "f:1:2: control character 0x0d is not allowed");
    EXPECT_EQ(error_of("\xff\xfe"
                       "a"),
              "f:1:1: byte 0xff is not UTF-8");
    EXPECT_EQ(error_of("# \xc0\xaf"), "f:1:3: byte 0xc0 is not UTF-8");         // overlong '/'
    EXPECT_EQ(error_of("# \xe0\x80\xaf"), "f:1:3: byte 0xe0 is not UTF-8");     // overlong, three bytes
    EXPECT_EQ(error_of("# \xed\xa0\x80"), "f:1:3: byte 0xed is not UTF-8");     // surrogate
    EXPECT_EQ(error_of("# \xf4\x90\x80\x80"), "f:1:3: byte 0xf4 is not UTF-8"); // above U+10FFFF
    EXPECT_EQ(error_of("# \xe2\x82"), "f:1:3: byte 0xe2 is not UTF-8");         // cut short
}

TEST_F(ConfigFiles, DropInsAreBesideTheFile) {
    EXPECT_EQ(config_source("/etc/novpn/novpn.yaml"),
              (ConfigSource{.main_file = "/etc/novpn/novpn.yaml", .drop_in_directory = "/etc/novpn/conf.d"}));
    EXPECT_EQ(config_source("novpn.yaml"), (ConfigSource{.main_file = "novpn.yaml", .drop_in_directory = "conf.d"}));
}

TEST_F(ConfigFiles, MapsMergeListsReplaceAndTheLaterNameWins) {
    write("novpn.yaml",
          "classes: {novpn: {table: 100, preference: 50}}\nuplinks: {prefer: [eth0, eth1], ignore: [usb0]}\n");
    write("conf.d/20-site.yaml", "classes: {novpn: {preference: 70}}\n");
    write("conf.d/10-vendor.yaml",
          "classes: {novpn: {preference: 60, when_no_uplink: tunnel}}\nuplinks: {prefer: [wlan0]}\n");
    write("conf.d/30-empty.yaml", "");
    write("conf.d/note.txt", "not: yaml: at: all");
    write("conf.d/.99-hidden.yaml", "classes: {novpn: {table: 1}}\n");
    const Config expected{
        .classes = {{.when_no_uplink = WhenNoUplink::tunnel, .table = TableId{100}, .preference = Preference{70}}},
        .uplinks = {.prefer = {"wlan0"}, .ignore = {"usb0"}, .links = {}},
        .tunnels = {}};
    const auto loaded = load();
    ASSERT_TRUE(loaded) << to_string(loaded.error());
    EXPECT_EQ(*loaded, expected);
}

TEST_F(ConfigFiles, AnErrorNamesTheFileItIsIn) {
    write("novpn.yaml", "classes: {novpn: {table: 100}}\n");
    write("conf.d/10.yaml", "\nuplink: {}\n");
    EXPECT_EQ(load_error(), path("conf.d/10.yaml") +
                                ":2:1: unknown key 'uplink'; did you mean 'uplinks'? allowed "
                                "here: allow, classes, log, marking, net_cls, sites, sockets, tunnels, uplinks");
}

TEST_F(ConfigFiles, AWrongValueIsRefusedAlsoWhereALaterFileReplacesIt) {
    write("novpn.yaml", "classes: {novpn: {table: 254}}\n");
    write("conf.d/10.yaml", "classes: {novpn: {table: 100}}\n");
    EXPECT_TRUE(load_error().starts_with(path("novpn.yaml") + ":1:26: ")) << load_error();
}

constexpr auto kMusicClass = "classes: {music: {table: 100, mark: 0x4f000000/0xff000000, preference: 70}}\n";

TEST_F(ConfigFiles, AClassMayBeCompletedByADropIn) {
    write("novpn.yaml", "classes: {music: {table: 100, preference: 70}}\n");
    EXPECT_EQ(load_error(), path("novpn.yaml") +
                                ":1:11: classes.music: missing: mark; every class but novpn needs table, "
                                "mark and preference of its own");
    write("conf.d/10.yaml", "classes: {music: {mark: 0x4f000000/0xff000000}, novpn: {enabled: false}}\n");
    const Config expected{.classes = {{.name = "music",
                                       .table = TableId{100},
                                       .mark = {.value = 0x4f000000, .mask = 0xff000000},
                                       .preference = Preference{70}},
                                      {.enabled = false}}};
    const auto loaded = load();
    ASSERT_TRUE(loaded) << to_string(loaded.error());
    EXPECT_EQ(*loaded, expected);
}

TEST_F(ConfigFiles, AClashIsShownInTheFileThatIsReadLater) {
    write("novpn.yaml", kMusicClass);
    write("conf.d/10.yaml", "classes: {novpn: {table: 100}}\n");
    EXPECT_EQ(load_error(), path("conf.d/10.yaml") +
                                ":1:26: classes.novpn.table: table 100 is the table of class 'music' (" +
                                path("novpn.yaml") + ":1:26); allowed: another number");
}

TEST_F(ConfigFiles, AClashIsShownWhereTheNumberWasSetLastWhateverTheOrderOfTheClasses) {
    write("novpn.yaml",
          "classes:\n  novpn: {table: 99}\n  music: {table: 100, mark: 0x4f000000/0xff000000, preference: "
          "70}\n");
    write("conf.d/10.yaml", "classes: {novpn: {table: 100}}\n");
    EXPECT_EQ(load_error(), path("conf.d/10.yaml") +
                                ":1:26: classes.novpn.table: table 100 is the table of class 'music' (" +
                                path("novpn.yaml") + ":3:18); allowed: another number");
}

TEST_F(ConfigFiles, ADropInTurnsAnUplinkIntoATunnelByTakingItBack) {
    write("novpn.yaml", "classes: {novpn: {uplink: eth0}}\n");
    write("conf.d/10.yaml", "classes: {novpn: {via: tun0}}\n");
    EXPECT_EQ(load_error(),
              path("conf.d/10.yaml") + ":1:24: classes.novpn.via: the class has 'uplink' already (" +
                  path("novpn.yaml") +
                  ":1:27); uplink pins it to a physical way out, via sends it by a tunnel always; allowed: "
                  "one of them");
    write("conf.d/10.yaml", "classes: {novpn: {via: tun0, uplink: null}}\n");
    const auto loaded = load();
    ASSERT_TRUE(loaded) << to_string(loaded.error());
    EXPECT_EQ(*loaded, (Config{.classes = {{.via = "tun0"}}}));
}

TEST_F(ConfigFiles, DropInsCountWithoutAMainFileWhereItMayBeMissing) {
    const auto load_if_there = [&] { return load_config(path("novpn.yaml"), Missing::is_empty); };
    EXPECT_EQ(load_if_there().value(), Config{});
    write("conf.d/10.yaml", "classes: {novpn: {table: 100}}\n");
    EXPECT_EQ(load_if_there().value(), (Config{.classes = {{.table = TableId{100}}}}));
    EXPECT_EQ(load_error(), path("novpn.yaml") + ": No such file or directory");
    write("conf.d/10.yaml", "classes: {novpn: {table: 0}}\n");
    EXPECT_FALSE(load_if_there());
}

TEST_F(ConfigFiles, AMainFileThatCannotBeReadIsNotMissing) {
    fs::create_symlink("nowhere.yaml", path("novpn.yaml"));
    const auto config = load_config(path("novpn.yaml"), Missing::is_empty);
    ASSERT_FALSE(config);
    EXPECT_EQ(to_string(config.error()), path("novpn.yaml") + ": No such file or directory");
    write("file", "");
    EXPECT_FALSE(load_config(path("file/novpn.yaml"), Missing::is_empty)); // not a directory
}

TEST_F(ConfigFiles, AMissingFileIsAnErrorAndAMissingDirectoryIsNot) {
    EXPECT_EQ(load_error(), path("novpn.yaml") + ": No such file or directory");
    write("novpn.yaml", "");
    EXPECT_EQ(load().value(), Config{});
}

TEST_F(ConfigFiles, WhatIsNoFileIsRefusedWithTheReason) {
    fs::create_directory(path("novpn.yaml"));
    EXPECT_EQ(load_error(), path("novpn.yaml") + ": Is a directory");
    fs::remove(path("novpn.yaml"));
    ASSERT_EQ(::mkfifo(path("novpn.yaml").c_str(), 0600), 0);
    EXPECT_EQ(load_error(), path("novpn.yaml") + ": not a regular file");
    fs::remove(path("novpn.yaml"));
    write("novpn.yaml", "");
    write("conf.d", "");
    EXPECT_EQ(load_error(), path("conf.d") + ": Not a directory");
}

TEST_F(ConfigFiles, AFileAboveTheLimitIsRefused) {
    write("novpn.yaml", std::string(kMaxConfigBytes + 1, '#'));
    EXPECT_EQ(load_error(), path("novpn.yaml") + ":1:1: larger than 1 MiB, which is the most that is allowed");
}

// ---- numbers of several classes ----

const ClassConfig kNovpn;
const ClassConfig kMusic{.name = "music",
                         .table = TableId{100},
                         .mark = {.value = 0x4f000000, .mask = 0xff000000},
                         .preference = Preference{61}};

TEST(FindClash, LetsDifferentNumbersBe) { EXPECT_EQ(find_clash({kNovpn, kMusic}), std::nullopt); }

TEST(FindClash, FindsEachKey) {
    const auto with = [](auto change) {
        ClassConfig other = kMusic;
        change(other);
        return other;
    };
    const auto same_table = with([](ClassConfig& c) { c.table = kNovpn.table; });
    const auto disjoint_masks = with([](ClassConfig& c) { c.mark = {.value = 0x4e00, .mask = 0xff00}; });
    const auto too_near = with([](ClassConfig& c) { c.preference = Preference{66}; });
    const auto near_enough = with([](ClassConfig& c) { c.preference = Preference{67}; });
    EXPECT_EQ(find_clash({kNovpn, same_table}), (NumberClash{.first = 0, .second = 1, .key = "table"}));
    EXPECT_EQ(find_clash({kNovpn, disjoint_masks}), (NumberClash{.first = 0, .second = 1, .key = "mark"}));
    EXPECT_EQ(find_clash({kNovpn, too_near}), (NumberClash{.first = 0, .second = 1, .key = "preference"}));
    EXPECT_EQ(find_clash({kNovpn, near_enough}), std::nullopt);
    ClassConfig third = kMusic;
    third.table = TableId{101};
    EXPECT_EQ(find_clash({kNovpn, kMusic, third}), (NumberClash{.first = 1, .second = 2, .key = "mark"}));
}

TEST(MarksOverlap, IsWhereOnePacketCanMatchBoth) {
    const Mark ours{.value = 0x4e000000, .mask = 0xff000000};
    EXPECT_TRUE(marks_overlap(ours, ours));
    EXPECT_TRUE(marks_overlap(ours, {.value = 0x40000000, .mask = 0xf0000000}));
    EXPECT_TRUE(marks_overlap(ours, {.value = 0x4e000001, .mask = 0xffffffff}));
    EXPECT_FALSE(marks_overlap(ours, {.value = 0x50000000, .mask = 0xf0000000}));
    EXPECT_FALSE(marks_overlap(ours, {.value = 0xca6c, .mask = 0xffffffff}));
}

// ---- any bytes ----

class Mutations {
  public:
    explicit Mutations(std::uint64_t seed)
        : random_(seed) {
        for (const auto& file : examples()) {
            auto& texts = file.filename().native().starts_with("good_") ? good_ : bad_;
            texts.push_back(content(file));
        }
        good_.push_back(content(kSource / "packaging/novpn.yaml"));
    }

    std::string next() {
        std::string text = one_of_all();
        // The expected message of a bad example is a comment that mutations would mostly end up in.
        text.erase(0, text.find('\n') + 1);
        for (std::size_t steps = below(4) + 1; steps > 0; --steps) mutate(text);
        return text;
    }

  private:
    std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random_); }
    const std::string& one_of(const std::vector<std::string>& texts) { return texts[below(texts.size())]; }
    const std::string& one_of_all() { return one_of(below(2) == 0 ? good_ : bad_); }

    void mutate(std::string& text) {
        const std::size_t at = below(text.size() + 1);
        const std::size_t length = below(std::min<std::size_t>(text.size() - at, 80) + 1);
        switch (below(7)) {
        case 0: // another byte
            if (at < text.size()) text[at] = static_cast<char>(below(256));
            return;
        case 1: text.insert(at, 1, static_cast<char>(below(256))); return;
        case 2: text.erase(at, length); return;
        case 3: // some of it twice
            text.insert(at, text.substr(at, length));
            return;
        case 4: { // a piece of another file
            const std::string& other = one_of_all();
            const std::size_t from = below(other.size() + 1);
            text.insert(at, other.substr(from, below(200)));
            return;
        }
        case 5: // lines lose their '#', as people do it
            if (const auto hash = text.find('#', at); hash != std::string::npos) text.erase(hash, 1);
            return;
        default: text.insert(at, one_of(words_));
        }
    }

    std::mt19937_64 random_;
    std::vector<std::string> good_;
    std::vector<std::string> bad_;
    const std::vector<std::string> words_{"classes:",
                                          "novpn:",
                                          "music: {table: 1, mark: 1, preference: 3}",
                                          "uplink: ",
                                          "via: ",
                                          "allow: {users: [",
                                          "]",
                                          "[",
                                          "{",
                                          "}",
                                          "- ",
                                          ": ",
                                          "? ",
                                          "|\n",
                                          ">-\n",
                                          "&a ",
                                          "*a",
                                          "!!str ",
                                          "!<x> ",
                                          "<<: ",
                                          "---\n",
                                          "...\n",
                                          "%YAML 1.2\n",
                                          "%TAG ! x\n",
                                          "\"",
                                          "'",
                                          "\\x",
                                          "\\uD800",
                                          "\t",
                                          "\r\n",
                                          "\r",
                                          "\n  ",
                                          "~",
                                          "null",
                                          "true",
                                          "0x",
                                          "/",
                                          "4294967296",
                                          "\xef\xbb\xbf",
                                          "\xe2\x80\xae",
                                          "\xc2\x85",
                                          "\xff"};
};

/// NOVPN_SEED replays a run.
std::uint64_t seed_of_this_run() {
    const char* given = std::getenv("NOVPN_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device()();
}

/// What holds for any bytes: nothing where it does, or what does not.
std::string broken_by(const std::string& text) {
    const auto config = parse_config(text, "f");
    if (!config) {
        const ConfigError& error = config.error();
        const auto lines = std::count(text.begin(), text.end(), '\n') + 1;
        if (error.file != "f" || error.line < 1 || error.line > lines + 1 || error.column < 1) return "no such place";
        if (error.message.empty() || error.message.size() > 1000) return "too short or too long a message";
        if (printable(error.message) != error.message) return "the message is not printable";
        return {};
    }
    const auto& classes = config->classes;
    const auto novpn =
        std::count_if(classes.begin(), classes.end(), [](const ClassConfig& c) { return c.name == kDefaultClass; });
    if (novpn != 1 || classes.size() > kMaxClasses) return "accepted without novpn, or with too many classes";
    if (find_clash(classes)) return "accepted with a clash of numbers";
    for (const ClassConfig& c : classes) {
        if (!c.uplink.empty() && !c.via.empty()) return "accepted with uplink and via";
    }
    return {};
}

/// Found by the test below: U+008E in the name of a class, and a wrong value behind it.
TEST(AnyBytes, InTheNameOfASitesClassArePrintableToo) {
    const std::string text =
        "sites:\n  - name: a\n    match: {link: eth0}\n    classes:\n      \xc2\x8e novpn: {add: {units: [a]}}\n";
    EXPECT_EQ(broken_by(text), "") << error_of(text);
    EXPECT_NE(error_of(text).find("a.classes.\\u{8e} novpn.add.units"), std::string::npos) << error_of(text);
}

TEST(AnyBytes, GiveAConfigOrAnErrorWithAPlaceAndAPrintableMessage) {
    constexpr int kDocuments = 2000;
    const std::uint64_t seed = seed_of_this_run();
    Mutations mutations(seed);
    int accepted = 0;
    for (int i = 0; i < kDocuments; ++i) {
        const std::string text = mutations.next();
        const std::string broken = broken_by(text);
        ASSERT_EQ(broken, "") << error_of(text) << "\nNOVPN_SEED=" << seed << ", document " << i << ":\n" << text;
        accepted += parse_config(text, "f") ? 1 : 0;
    }
    // Mutations that make all of them good, or none, would try nothing.
    EXPECT_GT(accepted, kDocuments / 50) << "NOVPN_SEED=" << seed;
    EXPECT_LT(accepted, kDocuments / 2) << "NOVPN_SEED=" << seed;
}

} // namespace
} // namespace novpn
