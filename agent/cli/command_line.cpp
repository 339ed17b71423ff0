#include "agent/cli/command_line.h"

#include "agent/cli/duration.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <charconv>
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

/// Each word fills a value of its own; the one that was given becomes the command.
class Words {
  public:
    explicit Words(CLI::App& app)
        : app_(app) {
        add_run();
        add_membership();
        add_switch("off", "Turn a class off for a while", off_)
            ->add_option_function<std::string>(
                "--for", [this](const std::string& text) { off_.for_how_long = parse_duration(text); },
                "Turn it on again after this: 30s, 10m, 1h30m, 2d")
            ->type_name("TIME")
            ->check(is_duration);
        add_switch("on", "Turn a class on again", on_);
        json_flag(add("apps", "Say what can be written in apps: of a class: what runs, and what is installed", apps_),
                  apps_.json);
        CLI::App* launcher = add("desktop-entry", "Write a launcher that starts an application in a class", launcher_);
        class_option(launcher, launcher_.class_name);
        launcher->add_option("ID", launcher_.id, "The application, as 'novpn apps' has it")->type_name("")->required();
        CLI::App* status = add("status", "Say how things are", status_);
        json_flag(status, status_.json);
        status->add_flag("--dot", status_.dot, "As a graph for graphviz: novpn status --dot | dot -Tsvg > now.svg")
            ->excludes("--json");
        json_flag(add("watch", "Say what happens: one line an event, until interrupted", watch_), watch_.json);
        add_explain();
        add_plan();
        json_flag(add("doctor", "Look for what is wrong, prove the way of packets, and say how to mend it", doctor_),
                  doctor_.json);
        add("check", "Say whether a config file is right", check_)
            ->add_option("FILE", check_.file, "The file; drop-ins in conf.d beside it are read too")
            ->type_name("")
            ->required();
        add("reload", "Have the agent read its config again; one that is not right changes nothing", reload_);
        add("metrics", "Print OpenMetrics text, for Prometheus", metrics_);
        add("down", "Have the agent release everything and end", down_)
            ->add_flag("--force", down_.force, "Do it here, with no agent running (root)");
    }
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;

    std::optional<Command> given() const {
        for (const auto& [word, command] : commands_)
            if (*word) return command();
        return std::nullopt;
    }

  private:
    template<typename What>
    CLI::App* add(const std::string& name, const std::string& does, const What& what) {
        CLI::App* word = app_.add_subcommand(name, does);
        commands_.emplace_back(word, [&what] { return Command(what); });
        return word;
    }

    static std::string is_duration(const std::string& text) {
        return parse_duration(text) ? "" : text + " is no duration such as 30s, 10m, 1h30m or 2d, of a year at most";
    }
    static std::string is_pid(const std::string& text) {
        pid_t pid = 0;
        const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
        const bool whole = error == std::errc{} && rest == text.data() + text.size();
        return whole && pid > 0 ? "" : text + " is no process number";
    }
    static void class_option(CLI::App* word, std::string& name) {
        word->add_option("--class", name, "The class")->type_name("C")->capture_default_str();
    }
    static void json_flag(CLI::App* word, bool& json) { word->add_flag("--json", json, "For programs"); }
    static void pid_argument(CLI::App* word, pid_t& pid) {
        word->add_option("PID", pid, "The process")->type_name("")->required()->check(is_pid);
    }

    void add_run() {
        CLI::App* word = add("run", "Run a program outside the VPN", run_);
        word->add_flag("--anyway", run_.anyway, "Run it also where no agent does: the ordinary way, until one runs");
        word->add_flag("--shell", run_.shell, "Run your login shell");
        word->footer("novpn run [--class C] [--anyway] [--] CMD [ARG...]\nnovpn run [--class C] [--anyway] "
                     "--shell\nAll that follows CMD is its own.");
        class_option(word, run_.class_name);
    }
    void add_membership() {
        CLI::App* word = add("add", "Put a running process in a class", add_);
        class_option(word, add_.class_name);
        pid_argument(word, add_.pid);
        pid_argument(add("remove", "Take a process out of its class", remove_), remove_.pid);
    }
    CLI::App* add_switch(const std::string& name, const std::string& does, Switch& what) {
        CLI::App* word = add(name, does, what);
        word->add_option("CLASS", what.class_name, "The class")->type_name("")->capture_default_str();
        return word;
    }
    void add_explain() {
        CLI::App* word = add("explain", "Say which way packets to an address go, and why", explain_);
        word->add_option("DEST", explain_.destination, "An address, or a name")->type_name("")->required();
        CLI::Option* name = word->add_option("--class", explain_.class_name, "The class to compare with (novpn)");
        CLI::Option* pid = word->add_option("--pid", explain_.pid, "The process whose class is meant");
        name->type_name("C");
        pid->type_name("PID")->check(is_pid)->excludes(name);
        json_flag(word, explain_.json);
    }
    void add_plan() {
        CLI::App* word = add("plan", "Print what the agent would change now; change nothing", plan_);
        json_flag(word, plan_.json);
        word->add_option("--config", plan_.config_file, "Plan with this file, not as the running agent would")
            ->type_name("FILE");
    }

    CLI::App& app_;
    std::vector<std::pair<CLI::App*, std::function<Command()>>> commands_;
    Run run_;
    Add add_;
    Remove remove_;
    Switch off_{.enabled = false};
    Switch on_{.enabled = true};
    Status status_;
    Watch watch_;
    Explain explain_;
    Plan plan_;
    Doctor doctor_;
    Check check_;
    Reload reload_;
    Metrics metrics_;
    Apps apps_;
    Launcher launcher_;
    Down down_;
};

} // namespace

tl::expected<CommandLine, Instead> parse(const std::vector<std::string>& arguments) {
    CommandLine line;
    CLI::App app("Keeps chosen programs outside the VPN.", "novpn");
    app.fallthrough();
    // None is refused below, in words of our own; CLI11 would say it of an unknown one too.
    app.require_subcommand(0, 1);
    app.set_version_flag("--version", "novpn " NOVPN_VERSION);
    app.add_option("--runtime-dir", line.runtime_dir, "Where the agent's socket is")
        ->type_name("DIR")
        ->envname("NOVPN_RUNTIME_DIR")
        ->capture_default_str();
    const Words words(app);

    auto [own, program] = split(arguments);
    std::ranges::reverse(own); // CLI11 takes a vector last argument first.
    try {
        app.parse(std::move(own));
    } catch (const CLI::CallForHelp&) {
        const auto given = app.get_subcommands();
        return tl::make_unexpected(
            Instead{.exit = 0, .text = given.empty() ? app.help() : given.front()->help("novpn")});
    } catch (const CLI::CallForVersion& version) {
        return tl::make_unexpected(Instead{.exit = 0, .text = std::string(version.what()) + "\n"});
    } catch (const CLI::ParseError& error) {
        return wrong_usage(error.what());
    }

    auto command = words.given();
    if (!command) return wrong_usage("what to do is missing");
    if (Run* run = std::get_if<Run>(&*command)) {
        if (program.empty() && !run->shell) return wrong_usage("run needs a program to run, or --shell");
        if (!program.empty() && run->shell) return wrong_usage("run takes a program or --shell, not both");
        run->command = std::move(program);
    }
    line.command = std::move(*command);
    return line;
}

} // namespace novpn::cli
