// Who may include what: DESIGN section 5. Reads the sources; a third-party library has one folder that knows it.
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <set>

namespace novpn::test {

namespace {

namespace fs = std::filesystem;

struct Include {
    std::string file; ///< below the source directory
    std::string header;
};

std::vector<Include> includes_of(const std::string& folder) {
    std::vector<Include> includes;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(NOVPN_SOURCE_DIR) / folder)) {
        if (entry.path().extension() != ".h" && entry.path().extension() != ".cpp") continue;
        std::ifstream stream(entry.path());
        for (std::string line; std::getline(stream, line);) {
            if (!line.starts_with("#include ")) continue;
            auto begin = line.find_first_of("<\"") + 1;
            auto end = line.find_first_of(">\"", begin);
            includes.push_back({fs::relative(entry.path(), NOVPN_SOURCE_DIR), line.substr(begin, end - begin)});
        }
    }
    return includes;
}

std::string folder_of(const std::string& header) { return header.substr(0, header.find('/')); }

const std::set<std::string> kFolders{"agent", "netlink", "rules", "config"};

} // namespace

TEST(Includes, FoldersKnowOnlyWhatTheyMay) {
    const std::map<std::string, std::set<std::string>> may{
        {"netlink", {"netlink"}},
        {"rules", {"rules", "netlink"}},
        {"config", {"config", "netlink"}},
        {"agent", {"agent", "netlink", "rules", "config"}},
    };
    for (const auto& [folder, allowed] : may) {
        auto includes = includes_of(folder);
        ASSERT_FALSE(includes.empty()) << folder;
        for (const Include& include : includes) {
            std::string of = folder_of(include.header);
            bool allowed_there = !kFolders.contains(of) || allowed.contains(of);
            EXPECT_TRUE(allowed_there) << include.file << " includes " << include.header;
        }
    }
}

/// rules and config take values from netlink, never its sockets.
TEST(Includes, OnlyTheAgentTalksRtnetlink) {
    for (const char* folder : {"rules", "config"})
        for (const Include& include : includes_of(folder))
            for (const char* talks : {"netlink/rtnetlink.h", "netlink/route_monitor.h", "netlink/xfrm.h"})
                EXPECT_NE(include.header, talks) << include.file;
}

TEST(Includes, AThirdPartyLibraryHasOneFolder) {
    // The prefix of a library's headers, and the folder that may name them.
    const std::vector<std::pair<std::string, std::string>> homes{
        {"netlink/addr", "netlink"},
        {"netlink/attr", "netlink"},
        {"netlink/genl/", "netlink"},
        {"netlink/msg", "netlink"},
        {"netlink/netlink", "netlink"},
        {"netlink/route/", "netlink"},
        {"netlink/socket.h", "netlink"},
        {"libmnl/", "rules"},
        {"libnftnl/", "rules"},
        {"bpf/", "rules"},
        {"yaml-cpp/", "config"},
        {"CLI/", "agent"},
        {"spdlog/", "agent"},
        {"boost/json", "agent"},
        {"systemd/", "agent"},
    };
    for (const std::string& folder : kFolders)
        for (const Include& include : includes_of(folder))
            for (const auto& [prefix, home] : homes)
                EXPECT_TRUE(!include.header.starts_with(prefix) || folder == home)
                    << include.file << " includes " << include.header;
}

TEST(Includes, NoProgramIsStartedButTheUsersCommand) {
    const char* starts[] = {" system(", " popen(", " execl", " execv", " posix_spawn"};
    for (const std::string& folder : kFolders) {
        for (const auto& entry : fs::recursive_directory_iterator(fs::path(NOVPN_SOURCE_DIR) / folder)) {
            if (entry.path().extension() != ".cpp" || entry.path().parent_path().filename() == "cli") continue;
            std::ifstream stream(entry.path());
            for (std::string line; std::getline(stream, line);)
                for (const char* start : starts)
                    EXPECT_EQ(line.find(start), std::string::npos) << entry.path() << ": " << line;
        }
    }
}

} // namespace novpn::test
