// What was typed, as a value. The only user of CLI11.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <variant>
#include <vector>

namespace novpn::cli {

struct Run {
    std::string class_name = "novpn";
    std::vector<std::string> command; ///< never empty
    bool operator==(const Run&) const = default;
};

struct Status {
    bool json = false;
    bool operator==(const Status&) const = default;
};

struct Plan {
    bool json = false;
    std::string config_file; ///< empty: not given
    bool operator==(const Plan&) const = default;
};

struct Down {
    bool force = false;
    bool operator==(const Down&) const = default;
};

struct Check {
    std::string file;
    bool operator==(const Check&) const = default;
};

using Command = std::variant<Run, Status, Plan, Down, Check>;

struct CommandLine {
    std::string runtime_dir = "/run/novpn";
    Command command;
    bool operator==(const CommandLine&) const = default;
};

/// Text to print instead of doing something: --help and --version (exit 0), or what is wrong with the words (exit 2).
struct Instead {
    int exit = 0;
    std::string text;
};

/// Of main()'s arguments without the program's name. Reads NOVPN_RUNTIME_DIR.
tl::expected<CommandLine, Instead> parse(const std::vector<std::string>& arguments);

} // namespace novpn::cli
