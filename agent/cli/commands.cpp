#include "agent/cli/commands.h"

#include "agent/cli/client.h"
#include "agent/cli/status.h"
#include "agent/standalone.h"
#include "config/load.h"

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
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

int fail(const Error& error, int exit_status = kFailed) {
    std::fprintf(stderr, "novpn: %s\n", to_string(error).c_str());
    return exit_status;
}

int print(const std::string& text) {
    if (std::fputs(text.c_str(), stdout) == EOF || std::fflush(stdout) == EOF)
        return fail(Error{.code = {errno, std::system_category()}, .doing = "writing to stdout", .detail = {}});
    return kDone;
}

Expected<json::object> ask(const std::string& runtime_dir, std::string_view method, std::string doing,
                           std::chrono::milliseconds at_most = std::chrono::seconds(5)) {
    auto client = Client::connect(runtime_dir);
    if (!client) return tl::make_unexpected(client.error());
    return client->call(method, {}, std::move(doing), at_most);
}

Expected<void> place_myself(const std::string& runtime_dir, const std::string& class_name) {
    auto client = Client::connect(runtime_dir);
    if (!client) return tl::make_unexpected(client.error());
    json::object parameters;
    parameters["class"] = class_name;
    parameters["pid"] = ::getpid();
    const auto placed = client->call("Place", std::move(parameters), "placing this process in class " + class_name);
    if (!placed) return tl::make_unexpected(placed.error());
    return {};
}

Expected<std::vector<std::string>> planned_commands(const std::string& runtime_dir, const Plan& how) {
    // The running agent has a config of its own, and cannot speak for another.
    if (!how.config_file.empty()) return plan_without_agent(how.config_file);
    const std::string doing = "asking the agent for its plan";
    const auto answer = ask(runtime_dir, "Plan", doing);
    if (!answer) {
        if (agent_runs(answer.error())) return tl::make_unexpected(answer.error());
        return plan_without_agent({});
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
    if (auto placed = place_myself(runtime_dir, what.class_name); !placed) return fail(placed.error(), kRunFailed);
    if (::setenv("NOVPN_CLASS", what.class_name.c_str(), 1) != 0)
        return fail(system_error(errno, "setting NOVPN_CLASS").value(), kRunFailed);

    std::vector<std::string> words = what.command;
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    ::execvp(arguments.front(), arguments.data());
    const int reason = errno;
    return fail(system_error(reason, "running " + words.front()).value(),
                reason == ENOENT ? kNotFound : kCannotExecute);
}

int status(const std::string& runtime_dir, const Status& how) {
    const auto answer = ask(runtime_dir, "Status", "asking the agent for its status");
    if (!answer) return fail(answer.error());
    return print(how.json ? json::serialize(*answer) + "\n" : to_text(*answer));
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

int down(const std::string& runtime_dir, const Down& how) {
    if (how.force) {
        if (::geteuid() != 0) return fail(system_error(EPERM, "releasing everything", "only root may").value());
        const auto released = force_down(runtime_dir);
        return released ? kDone : fail(released.error());
    }
    // The reply comes when the kernel is clean, which takes longer with thousands of routes.
    const auto answer = ask(runtime_dir, "Down", "asking the agent to end", std::chrono::seconds(30));
    return answer ? kDone : fail(answer.error());
}

int check(const Check& what) {
    const auto config = load_config(what.file);
    if (config) return kDone;
    // FILE:LINE:COL first, as compilers have it, so that editors can go there.
    std::fprintf(stderr, "%s\n", to_string(config.error()).c_str());
    return kFailed;
}

} // namespace novpn::cli
