// Plays every scenario of this folder; a file is a test.
#include "tests/support/scenario.h"

#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace novpn::test {

namespace {

std::vector<std::string> scenario_files() {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(NOVPN_SOURCE_DIR "/tests/scenarios"))
        if (entry.path().extension() == ".txt") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
    std::string name = std::filesystem::path(info.param).stem();
    std::ranges::replace(name, '-', '_');
    return name;
}

} // namespace

class Scenarios : public testing::TestWithParam<std::string> {};

TEST_P(Scenarios, Hold) {
    auto failures = play_scenario(GetParam());
    EXPECT_TRUE(failures.empty()) << fmt::format("{}", fmt::join(failures, "\n"));
}

INSTANTIATE_TEST_SUITE_P(All, Scenarios, testing::ValuesIn(scenario_files()), test_name);

} // namespace novpn::test
