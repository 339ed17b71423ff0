// What was typed, as a value. The only user of CLI11.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <sys/types.h>
#include <tl/expected.hpp>
#include <variant>
#include <vector>

namespace novpn::cli {

struct Run {
    std::string class_name = "novpn";
    std::vector<std::string> command; ///< empty with `shell` only
    bool anyway = false;              ///< also where no agent runs
    bool shell = false;               ///< the caller's login shell
    bool operator==(const Run&) const = default;
};

struct Add {
    std::string class_name = "novpn";
    pid_t pid = 0;
    bool operator==(const Add&) const = default;
};

struct Remove {
    pid_t pid = 0;
    bool operator==(const Remove&) const = default;
};

/// `on` and `off`.
struct Switch {
    bool enabled = true;
    std::string class_name = "novpn";
    std::optional<std::chrono::seconds> for_how_long; ///< none: until the other word
    bool operator==(const Switch&) const = default;
};

struct Status {
    bool json = false;
    bool dot = false; ///< never with json
    bool operator==(const Status&) const = default;
};

struct Watch {
    bool json = false;
    bool operator==(const Watch&) const = default;
};

struct Explain {
    std::string destination; ///< an address, or a name
    std::optional<std::string> class_name;
    std::optional<pid_t> pid; ///< then there is no class_name
    bool json = false;
    bool operator==(const Explain&) const = default;
};

struct Plan {
    bool json = false;
    std::string config_file; ///< empty: not given
    bool operator==(const Plan&) const = default;
};

struct Doctor {
    bool json = false;
    bool operator==(const Doctor&) const = default;
};

struct Down {
    bool force = false;
    bool operator==(const Down&) const = default;
};

struct Check {
    std::string file;
    bool operator==(const Check&) const = default;
};

struct Reload {
    bool operator==(const Reload&) const = default;
};

struct Apps {
    bool json = false;
    bool operator==(const Apps&) const = default;
};

/// `desktop-entry`.
struct Launcher {
    std::string id;
    std::string class_name = "novpn";
    bool operator==(const Launcher&) const = default;
};

struct Metrics {
    bool operator==(const Metrics&) const = default;
};

using Command = std::variant<Run, Add, Remove, Switch, Status, Watch, Explain, Plan, Doctor, Check, Reload, Metrics,
                             Down, Apps, Launcher>;

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
