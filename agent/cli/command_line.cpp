#include "agent/cli/command_line.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <string_view>

namespace novpn::cli {
namespace {

constexpr std::array<std::string_view, 2> kOptionsWithValue{"--runtime-dir", "--class"};

/// The arguments up to the CMD of `run`, and CMD with all that follows, which is not ours to read. Without `run` or
/// without a CMD the second is empty.
struct Split {
    std::vector<std::string> own;
    std::vector<std::string> command;
};

Split split(const std::vector<std::string>& arguments) {
    bool run = false;
    for (auto it = arguments.begin(); it != arguments.end(); ++it) {
        if (run && *it == "--") return {{arguments.begin(), it}, {it + 1, arguments.end()}};
        if (std::ranges::find(kOptionsWithValue, *it) != kOptionsWithValue.end()) {
            if (++it == arguments.end()) break;
        } else if (it->starts_with("-") && it->size() > 1) {
            continue;
        } else if (run) {
            return {{arguments.begin(), it}, {it, arguments.end()}};
        } else if (*it == "run") {
            run = true;
        } else {
            break;
        }
    }
    return {arguments, {}};
}

tl::unexpected<Instead> wrong_usage(const std::string& reason) {
    return tl::make_unexpected(
        Instead{.exit = 2, .text = "novpn: reading the command line: " + reason + " (see novpn --help)\n"});
}

} // namespace

tl::expected<CommandLine, Instead> parse(const std::vector<std::string>& arguments) {
    CommandLine line;
    Run run;
    Status status;
    Plan plan;
    Down down;
    Check check;

    CLI::App app("Keeps chosen programs outside the VPN.", "novpn");
    app.fallthrough();
    // None is refused below, in words of our own; CLI11 would say it of an unknown one too.
    app.require_subcommand(0, 1);
    app.set_version_flag("--version", "novpn " NOVPN_VERSION);
    app.add_option("--runtime-dir", line.runtime_dir, "Where the agent's socket is")
        ->type_name("DIR")
        ->envname("NOVPN_RUNTIME_DIR")
        ->capture_default_str();

    auto* on_run = app.add_subcommand("run", "Run a program outside the VPN");
    on_run->footer("novpn run [--class C] [--] CMD [ARG...]\nAll that follows CMD is its own.");
    on_run->add_option("--class", run.class_name, "The class to run it in")->type_name("C")->capture_default_str();
    auto* on_status = app.add_subcommand("status", "Say how things are");
    on_status->add_flag("--json", status.json, "For programs");
    auto* on_plan = app.add_subcommand("plan", "Print what the agent would change now; change nothing");
    on_plan->add_flag("--json", plan.json, "For programs");
    on_plan->add_option("--config", plan.config_file, "Plan with this file, not as the running agent would")
        ->type_name("FILE");
    auto* on_down = app.add_subcommand("down", "Have the agent release everything and end");
    on_down->add_flag("--force", down.force, "Do it here, with no agent running (root)");

    auto* on_check = app.add_subcommand("check", "Say whether a config file is right");
    on_check->add_option("FILE", check.file, "The file; drop-ins in conf.d beside it are read too")
        ->type_name("")
        ->required();

    auto [own, command] = split(arguments);
    std::ranges::reverse(own); // CLI11 takes a vector last argument first.
    try {
        app.parse(std::move(own));
    } catch (const CLI::CallForHelp&) {
        const auto words = app.get_subcommands();
        return tl::make_unexpected(
            Instead{.exit = 0, .text = words.empty() ? app.help() : words.front()->help("novpn")});
    } catch (const CLI::CallForVersion& version) {
        return tl::make_unexpected(Instead{.exit = 0, .text = std::string(version.what()) + "\n"});
    } catch (const CLI::ParseError& error) {
        return wrong_usage(error.what());
    }

    if (*on_run) {
        if (command.empty()) return wrong_usage("run needs a program to run");
        run.command = std::move(command);
        line.command = std::move(run);
    } else if (*on_status) {
        line.command = status;
    } else if (*on_plan) {
        line.command = std::move(plan);
    } else if (*on_check) {
        line.command = std::move(check);
    } else if (*on_down) {
        line.command = down;
    } else {
        return wrong_usage("what to do is missing");
    }
    return line;
}

} // namespace novpn::cli
