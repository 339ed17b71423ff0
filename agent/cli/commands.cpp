#include "agent/cli/commands.h"

#include "agent/applications.h"
#include "agent/cli/client.h"
#include "agent/cli/doctor.h"
#include "agent/cli/dot.h"
#include "agent/cli/duration.h"
#include "agent/cli/event.h"
#include "agent/cli/explanation.h"
#include "agent/cli/fields.h"
#include "agent/cli/handover.h"
#include "agent/cli/launcher.h"
#include "agent/cli/name.h"
#include "agent/cli/scope.h"
#include "agent/cli/status.h"
#include "agent/cli/terminal.h"
#include "agent/setup.h"
#include "agent/standalone.h"
#include "config/load.h"
#include "config/text.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <map>
#include <pwd.h>
#include <random>
#include <unistd.h>

namespace novpn::cli {
namespace {

namespace json = boost::json;

constexpr int kDone = 0;
constexpr int kFailed = 1;
// As env(1) and nohup(1) have them.
constexpr int kRunFailed = 125;
constexpr int kCannotExecute = 126;
constexpr int kNotFound = 127;

/// For what writes to the kernel as often as it has routes: thousands.
constexpr auto kSlow = std::chrono::seconds(30);

int fail(const Error& error, int exit_status = kFailed) {
    std::fprintf(stderr, "novpn: %s\n", printable(to_string(error)).c_str());
    return exit_status;
}

int print(const std::string& text) {
    if (std::fputs(text.c_str(), stdout) == EOF || std::fflush(stdout) == EOF)
        return fail(Error{.code = {errno, std::system_category()}, .doing = "writing to stdout", .detail = {}});
    return kDone;
}

int print_dressed(const std::string& text, std::size_t indent, Colour first) {
    const Terminal terminal = terminal_of_stdout();
    const std::string fitting = fit(text, terminal.columns, indent);
    return print(terminal.colour ? coloured(fitting, first) : fitting);
}

Expected<json::object> ask(const std::string& runtime_dir, std::string_view method, json::object parameters,
                           const std::string& doing, std::chrono::milliseconds at_most = std::chrono::seconds(5),
                           std::chrono::milliseconds patience = {}) {
    auto client = Client::connect(runtime_dir, patience);
    if (!client) return tl::make_unexpected(client.error());
    return client->call(method, std::move(parameters), doing, at_most);
}

Expected<json::object> place(const std::string& runtime_dir, const std::string& class_name, pid_t pid,
                             const std::string& who) {
    json::object parameters;
    parameters["class"] = class_name;
    parameters["pid"] = pid;
    // A launcher that is clicked amid an upgrade, or right after a crash, starts its program all the same.
    constexpr auto kRestart = std::chrono::seconds(2);
    return ask(runtime_dir, "Place", std::move(parameters), fmt::format("placing {} in class {}", who, class_name),
               std::chrono::seconds(5), kRestart);
}

/// "PID 1234 (curl)"; for the person only, as the name is the process's own choice.
std::string described(pid_t pid) {
    std::ifstream file(fmt::format("/proc/{}/comm", pid));
    std::string name;
    if (!std::getline(file, name) || name.empty()) return fmt::format("PID {}", pid);
    return fmt::format("PID {} ({})", pid, printable(name));
}

/// Several agents may run, each with a runtime directory of its own; systemd is the machine's, as is the agent of the
/// default one.
bool has_class_slices(const std::string& runtime_dir) { return runtime_dir == kDefaultRuntimeDir; }

/// False: no systemd answers, or it refuses, and the process is where it was.
bool enter_class_slice(const std::string& runtime_dir, const std::string& class_name, pid_t pid,
                       const std::string& description) {
    if (!has_class_slices(runtime_dir) || !is_class_name(class_name)) return false;
    std::random_device random;
    const std::uint64_t number = (std::uint64_t{random()} << 32) | random();
    return enter_scope(scope_for(class_name, pid, number, description)).has_value();
}

/// By the agent first, which says who may not and what is no class, before systemd is asked for anything; then by
/// systemd, as a unit with limits and a name of its own; then the agent again, which confirms that this is steered too,
/// or takes the process back.
Expected<json::object> join(const std::string& runtime_dir, const std::string& class_name, pid_t pid,
                            const std::string& who, const std::string& description) {
    auto placed = place(runtime_dir, class_name, pid, who);
    if (!placed || !enter_class_slice(runtime_dir, class_name, pid, description)) return placed;
    if (auto confirmed = place(runtime_dir, class_name, pid, who); !confirmed) return confirmed;
    return placed; // counts the sockets that were open before all this
}

/// The words, as they would be in the list of systemd's units.
std::string described(const std::vector<std::string>& command) {
    constexpr std::size_t kLongest = 200;
    std::string text = "novpn run";
    for (const std::string& word : command) text += " " + printable(word);
    if (text.size() > kLongest) text.resize(kLongest);
    return text;
}

/// The caller's, as the system's users have it (passwd(5)).
std::string login_shell() {
    const passwd* user = ::getpwuid(::geteuid());
    return user != nullptr && user->pw_shell != nullptr && *user->pw_shell != '\0' ? user->pw_shell : "/bin/sh";
}

/// What a person should know before the program starts; it starts all the same.
void note(const std::string& text) { std::fprintf(stderr, "novpn: %s\n", printable(text).c_str()); }

/// Of the instances that run already, one outside of the class; none where one is inside, which may be the one that
/// takes over.
std::optional<pid_t> instance_outside(const std::string& runtime_dir, const std::string& class_name,
                                      const std::vector<pid_t>& instances) {
    // More than that, and they are not one for all.
    constexpr std::size_t kMost = 4;
    if (instances.size() > kMost) return std::nullopt;
    for (const pid_t pid : instances) {
        const auto answer = ask(runtime_dir, "Explain", {{"destination", "192.0.2.1"}, {"pid", pid}}, "asking");
        if (!answer || text_of(*answer, "process_class") == class_name) return std::nullopt;
    }
    return instances.empty() ? std::nullopt : std::optional(instances.front());
}

HandoverWatch watch_for_handover(const std::string& runtime_dir, const std::string& class_name,
                                 const std::vector<std::string>& command) {
    const char* path = ::getenv("PATH");
    const Surroundings where{.data_directories = data_directories(), .path = path ? path : "/usr/bin:/bin"};
    const auto instances = [&command, where] { return running_instances(command, ::geteuid(), where); };
    const auto outside = instance_outside(runtime_dir, class_name, instances());
    if (!outside) return {};
    const std::string process = described(*outside);
    return HandoverWatch::start(*outside, instances, [=] {
        note(fmt::format("running {}: the window opened in {}, which is not in class {}; end that one first, or "
                         "'novpn add {}' for what it opens from now on",
                         command.front(), process, class_name, *outside));
    });
}

std::string time_of_day() {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    ::localtime_r(&now, &local);
    return fmt::format("{:02}:{:02}:{:02}", local.tm_hour, local.tm_min, local.tm_sec);
}

Expected<json::object> explanation(const std::string& runtime_dir, const Explain& what,
                                   const boost::asio::ip::address& destination) {
    const std::string doing = "explaining " + destination.to_string();
    json::object parameters;
    parameters["destination"] = destination.to_string();
    if (what.class_name) parameters["class"] = *what.class_name;
    if (what.pid) parameters["pid"] = *what.pid;
    auto answer = ask(runtime_dir, "Explain", std::move(parameters), doing);
    if (answer || agent_runs(answer.error())) return answer;
    if (what.pid)
        return tl::make_unexpected(
            Error{.code = {}, .doing = doing, .detail = "no agent runs that knows the process's class; try --class"});
    return explain_without_agent(destination, what.class_name.value_or(ClassConfig{}.name));
}

/// "example.com is 192.0.2.1, the first of its 3 addresses", a line where a name was given.
std::string address_line(const Explain& what, const Resolved& found) {
    if (!found.by_name) return {};
    std::string line = fmt::format("{} is {}", printable(what.destination), found.address.to_string());
    if (found.addresses > 1) line += fmt::format(", the first of its {} addresses", found.addresses);
    return line + ".\n";
}

/// A line where a process was given.
std::string process_line(const Explain& what, const json::object& answer) {
    if (!what.pid) return {};
    const auto of_class = text_of(answer, "process_class");
    const std::string process = described(*what.pid);
    if (of_class.empty()) return process + " is in no class: it goes the ordinary way.\n";
    const auto selector = text_of(answer, "selector");
    const bool is_matched = !selector.empty() && selector != "run";
    return fmt::format("{} is in class {}{}.\n", process, of_class, is_matched ? ", by " + selector : "");
}

/// An ordinary packet and a member's of each class that steers. This process ends as a member of the last.
Expected<std::vector<Finding>> prove_packets(const std::string& runtime_dir, const json::object& status) {
    const auto tap = PacketTap::open();
    if (!tap) return tl::make_unexpected(tap.error());
    std::map<std::string, Departure> ordinary;
    for (const std::string family : {"ipv4", "ipv6"}) {
        auto departure = tap->send(family);
        if (!departure) return tl::make_unexpected(departure.error());
        ordinary[family] = *departure;
    }
    std::vector<Finding> findings;
    std::vector<Proof> proofs;
    for (const auto* of_class : objects_of(status, "classes")) {
        if (text_of(*of_class, "state") == "off") continue;
        const auto placed = place(runtime_dir, text_of(*of_class, "name"), ::getpid(), "this process");
        if (!placed) return tl::make_unexpected(placed.error());
        for (const auto& [family, without] : ordinary) {
            auto departure = tap->send(family);
            if (!departure) return tl::make_unexpected(departure.error());
            Proof proof = expected_of(status, *of_class, family);
            proof.ordinary = without;
            proof.member = *departure;
            findings.push_back(judge_packets(proof));
            proofs.push_back(std::move(proof));
        }
    }
    if (const auto firewalls = firewalls_here())
        for (Finding& finding : judge_firewalls(proofs, *firewalls)) findings.push_back(std::move(finding));
    return findings;
}

/// Of a running agent: what it says, the settings of its uplink, and the packets.
std::vector<Finding> examine(const std::string& runtime_dir, const json::object& status) {
    auto findings = judge_status(status);
    const auto& ipv4 = object_of(object_of(status, "families"), "ipv4");
    if (const auto link = text_of(object_of(ipv4, "uplink"), "link"); !link.empty())
        findings.push_back(judge_reverse_path(link, reverse_path(link), !objects_of(ipv4, "takeovers").empty()));
    if (const auto filters = reverse_path_filters_here())
        for (Finding& finding : judge_filters(status, *filters)) findings.push_back(std::move(finding));
    if (auto names = judge_names(status, asked_beside_dns())) findings.push_back(std::move(*names));
    const auto proofs = prove_packets(runtime_dir, status);
    if (proofs) {
        findings.insert(findings.end(), proofs->begin(), proofs->end());
    } else if (proofs.error().code == std::errc::operation_not_permitted) {
        findings.push_back(
            {Finding::State::note, "packets", "only root can see where packets leave", "sudo novpn doctor"});
    } else {
        findings.push_back(
            {Finding::State::wrong, "packets", to_string(proofs.error()), "journalctl -u novpnd says more"});
    }
    return findings;
}

Expected<std::vector<std::string>> planned_commands(const std::string& runtime_dir, const Plan& how) {
    // The running agent has a config of its own, and cannot speak for another.
    if (!how.config_file.empty()) return plan_without_agent(how.config_file, runtime_dir);
    const std::string doing = "asking the agent for its plan";
    const auto answer = ask(runtime_dir, "Plan", {}, doing);
    if (!answer) {
        if (agent_runs(answer.error())) return tl::make_unexpected(answer.error());
        return plan_without_agent({}, runtime_dir);
    }
    std::vector<std::string> commands;
    const json::value* list = answer->if_contains("commands");
    bool sensible = list != nullptr && list->is_array();
    if (sensible) {
        for (const auto& command : list->get_array()) {
            sensible = sensible && command.is_string();
            if (sensible) commands.emplace_back(command.get_string());
        }
    }
    if (!sensible)
        return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = "the agent's answer makes no sense"});
    return commands;
}

} // namespace

int run(const std::string& runtime_dir, const Run& what) {
    const std::vector<std::string> command = what.shell ? std::vector{login_shell()} : what.command;
    const std::string description = described(command);
    if (const auto own = own_scope_of(command); own && systemd_runs())
        note(fmt::format("running {0}: {1} moves it into a scope of its own, which is in class {2} where the config "
                         "has 'apps: [{3}]' for that class",
                         command.front(), own->made_by, what.class_name, to_yaml(own->id)));
    // Before this process is a member, so that what watches is none.
    const HandoverWatch watch = watch_for_handover(runtime_dir, what.class_name, command);
    const auto joined = join(runtime_dir, what.class_name, ::getpid(), "this process", description);
    if (!joined) {
        const bool goes_on = what.anyway && !agent_runs(joined.error());
        fail(joined.error(), kRunFailed);
        if (!goes_on) return kRunFailed;
        // An agent that starts later finds it there.
        enter_class_slice(runtime_dir, what.class_name, ::getpid(), description);
    }
    if (::setenv("NOVPN_CLASS", what.class_name.c_str(), 1) != 0)
        return fail(system_error(errno, "setting NOVPN_CLASS").value(), kRunFailed);

    std::vector<std::string> words = command;
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    watch.program_starts();
    ::execvp(arguments.front(), arguments.data());
    const int reason = errno;
    watch.program_failed();
    return fail(system_error(reason, "running " + words.front()).value(),
                reason == ENOENT ? kNotFound : kCannotExecute);
}

int add(const std::string& runtime_dir, const Add& what) {
    // Named before, as it may end any moment.
    const std::string process = described(what.pid);
    const auto answer = join(runtime_dir, what.class_name, what.pid, process, "novpn add " + std::to_string(what.pid));
    if (!answer) return fail(answer.error());
    const auto old = number_of(*answer, "old_sockets").value_or(0);
    std::string text = fmt::format("{} is in class {}", process, what.class_name);
    if (old == 1) text += "; 1 of its open sockets was made before and keeps its path";
    if (old > 1) text += fmt::format("; {} of its open sockets were made before and keep their path", old);
    for (const auto& socket : old_socket_lines(*answer)) text += "\n  " + socket;
    return print(text + "\n");
}

int remove(const std::string& runtime_dir, const Remove& what) {
    const std::string process = described(what.pid);
    json::object parameters;
    parameters["pid"] = what.pid;
    const auto answer = ask(runtime_dir, "Release", std::move(parameters), "taking " + process + " out of its class");
    if (!answer) return fail(answer.error());
    const auto ended = number_of(*answer, "ended").value_or(0);
    const auto kept = number_of(*answer, "kept").value_or(0);
    std::string text = fmt::format("{} is out of class {}", process, text_of(*answer, "class"));
    if (ended > 0) text += fmt::format("; {} ended", counted(ended, "open socket was", "open sockets were"));
    if (kept > 0) text += "; " + counted(kept, "open socket keeps its path", "open sockets keep their path");
    return print(text + "\n");
}

int turn(const std::string& runtime_dir, const Switch& what) {
    const std::string state = what.enabled ? "on" : "off";
    json::object parameters;
    parameters["class"] = what.class_name;
    parameters["enabled"] = what.enabled;
    if (what.for_how_long) parameters["seconds"] = what.for_how_long->count();
    const auto answer = ask(runtime_dir, "SetEnabled", std::move(parameters),
                            fmt::format("turning class {} {}", what.class_name, state));
    if (!answer) return fail(answer.error());
    std::string text = fmt::format("class {} is {}", what.class_name, state);
    if (what.for_how_long) text += " for " + to_words(*what.for_how_long);
    if (!what.enabled) {
        const bool usual = what.class_name == Switch{}.class_name;
        text += fmt::format("; `novpn on{}` ends that", usual ? "" : " " + what.class_name);
    }
    return print(text + "\n");
}

int status(const std::string& runtime_dir, const Status& how) {
    const auto answer = ask(runtime_dir, "Status", {}, "asking the agent for its status");
    if (!answer) return fail(answer.error());
    if (how.dot) return print(to_dot(*answer));
    if (how.json) return print(json::serialize(*answer) + "\n");
    const std::string health = text_of(*answer, "health");
    return print_dressed(to_text(*answer), kStatusHeading,
                         health == "ok"         ? Colour::green
                         : health == "degraded" ? Colour::yellow
                                                : Colour::red);
}

int watch(const std::string& runtime_dir, const Watch& how) {
    auto client = Client::connect(runtime_dir);
    if (!client) return fail(client.error());
    int printed = kDone;
    const auto ended = client->follow("Monitor", "watching the agent", [&](const json::object& event) {
        const std::string time = time_of_day() + "  ";
        auto columns = terminal_of_stdout().columns; // at each event: a window may have another size by now
        if (columns) *columns -= time.size();
        printed = print((how.json ? json::serialize(event) : time + to_line(event, columns)) + "\n");
        return printed == kDone;
    });
    return ended ? printed : fail(ended.error());
}

int explain(const std::string& runtime_dir, const Explain& what) {
    const auto found = resolve(what.destination);
    if (!found) return fail(found.error());
    auto answer = explanation(runtime_dir, what, found->address);
    if (!answer) return fail(answer.error());
    if (what.json) return print(json::serialize(*answer) + "\n");
    return print(fit(address_line(what, *found) + process_line(what, *answer) + to_explanation(*answer),
                     terminal_of_stdout().columns, explanation_heading(*answer)));
}

int plan(const std::string& runtime_dir, const Plan& how) {
    const auto commands = planned_commands(runtime_dir, how);
    if (!commands) return fail(commands.error());
    if (how.json) {
        json::object object;
        object["commands"] = json::array(commands->begin(), commands->end());
        return print(json::serialize(object) + "\n");
    }
    std::string text;
    for (const auto& command : *commands) text += command + "\n";
    return print(text.empty() ? "nothing to change\n" : text);
}

int doctor(const std::string& runtime_dir, const Doctor& how) {
    std::vector<Finding> findings{judge_kernel(kernel_without_bpf())};
    if (auto networkd = judge_networkd(networkd_settings())) findings.push_back(std::move(*networkd));
    const auto status = ask(runtime_dir, "Status", {}, "asking the agent for its status");
    if (status) {
        const auto more = examine(runtime_dir, *status);
        findings.insert(findings.end(), more.begin(), more.end());
    } else {
        const bool runs = agent_runs(status.error());
        findings.push_back({Finding::State::wrong, "agent", runs ? to_string(status.error()) : "no agent runs",
                            runs ? "sudo systemctl restart novpnd" : "sudo systemctl start novpnd, or sudo novpnd"});
        // What would keep one from starting.
        if (const auto planned = plan_without_agent({}, runtime_dir);
            !planned && planned.error().code != std::errc::operation_not_permitted)
            findings.push_back({Finding::State::wrong, "agent", to_string(planned.error()),
                                "what it names stands in the way of a start; journalctl -u novpnd says when"});
    }
    const int printed = how.json ? print(json::serialize(to_json(findings)) + "\n")
                                 : print_dressed(to_diagnosis(findings), kDiagnosisHeading,
                                                 is_well(findings) ? Colour::green : Colour::red);
    return printed != kDone || is_well(findings) ? printed : kFailed;
}

int check(const Check& what) {
    const auto config = load_config(what.file);
    if (config) {
        for (const ConfigError& doubt : find_doubts(what.file)) std::fprintf(stderr, "%s\n", to_string(doubt).c_str());
        // What this machine can do is asked only where it matters.
        auto refused = find_dns_by_uplink(what.file, "");
        const auto obstacle = refused ? kernel_without_redirects() : Expected<std::string>();
        if (!obstacle)
            return print(
                fmt::format("{}: ok, as far as others than root can tell: whether this kernel does dns: uplink "
                            "says 'sudo novpn check'\n",
                            printable(what.file)));
        if (obstacle->empty()) return print(printable(what.file) + ": ok\n");
        refused = find_dns_by_uplink(what.file, *obstacle);
        std::fprintf(stderr, "%s\n", to_string(*refused).c_str());
        return kFailed;
    }
    // FILE:LINE:COL first, as compilers have it, so that editors can go there.
    std::fprintf(stderr, "%s\n", to_string(config.error()).c_str());
    return kFailed;
}

int reload(const std::string& runtime_dir) {
    const auto answer = ask(runtime_dir, "Reload", {}, "reloading the config", kSlow);
    return answer ? print("the config has been read again\n") : fail(answer.error());
}

int apps(const Apps& how) {
    Applications found;
    add_installed(found, desktop_files(data_directories()));
    add_running(found, ::geteuid());
    json::array list;
    std::string text;
    for (const bool running : {true, false}) {
        for (const auto& [id, app] : found) {
            if ((app.running > 0) != running) continue;
            list.push_back({{"id", id}, {"name", app.name}, {"running", app.running}, {"installed", app.installed}});
            text += fmt::format("{:<40} {:<10} {}\n", printable(to_yaml(id)), running ? "running" : "installed",
                                printable(app.name));
        }
    }
    if (how.json) return print(json::serialize(json::object{{"apps", std::move(list)}}) + "\n");
    if (text.empty()) return print("no application runs here, and none is installed\n");
    if (std::ranges::none_of(found, [](const auto& app) { return app.second.running > 0; }))
        text += "\nNone of them runs in a scope of its own. Where the desktop makes no scopes, 'apps:' finds nothing;\n"
                "'novpn desktop-entry ID' writes a launcher that starts one in a class.\n";
    return print(text);
}

int desktop_entry(const std::string& runtime_dir, const Launcher& what) {
    const std::string doing = "writing a launcher of " + what.id;
    if (!is_class_name(what.class_name))
        return fail(Error{.code = {}, .doing = doing, .detail = what.class_name + " is no name of a class"});
    std::error_code error;
    const std::string self = std::filesystem::read_symlink("/proc/self/exe", error).string();
    std::vector<std::string> run{error ? "novpn" : self, "run", "--class", what.class_name};
    if (!has_class_slices(runtime_dir)) run.insert(run.end(), {"--runtime-dir", runtime_dir});
    run.emplace_back("--");
    const auto path =
        write_launcher({.id = what.id, .class_name = what.class_name, .run = run}, data_directories(), systemd_runs());
    return path ? print(*path + "\n") : fail(path.error());
}

int metrics(const std::string& runtime_dir) {
    const std::string doing = "asking the agent for its metrics";
    const auto answer = ask(runtime_dir, "Metrics", {}, doing);
    if (!answer) return fail(answer.error());
    const json::value* text = answer->if_contains("text");
    if (text == nullptr || !text->is_string())
        return fail(Error{.code = {}, .doing = doing, .detail = "the agent's answer makes no sense"});
    return print(std::string(text->get_string()));
}

int down(const std::string& runtime_dir, const Down& how) {
    if (how.force) {
        if (::geteuid() != 0) return fail(system_error(EPERM, "releasing everything", "only root may").value());
        const auto released = force_down(runtime_dir);
        return released ? kDone : fail(released.error());
    }
    const auto answer = ask(runtime_dir, "Down", {}, "asking the agent to end", kSlow);
    return answer ? kDone : fail(answer.error());
}

} // namespace novpn::cli
