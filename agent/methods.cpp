#include "agent/methods.h"

#include "agent/interface_text.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <limits>
#include <span>

namespace novpn {

namespace json = boost::json;
using boost::asio::awaitable;

awaitable<bool> Exchange::send(varlink::Reply reply) {
    if (call.oneway) co_return true;
    co_return co_await send_(varlink::to_message(reply));
}

awaitable<bool> Exchange::reply(json::object parameters) {
    varlink::Reply last{.parameters = std::move(parameters), .continues = false, .error = {}};
    co_return co_await send(std::move(last));
}

awaitable<bool> Exchange::reply_and_continue(json::object parameters) {
    varlink::Reply one{.parameters = std::move(parameters), .continues = true, .error = {}};
    co_return co_await send(std::move(one));
}

awaitable<bool> Exchange::fail(std::string error, std::string message) {
    varlink::Reply failed{.parameters = {}, .continues = false, .error = "io.novpn.Agent." + error};
    failed.parameters["message"] = message;
    co_return co_await send(std::move(failed));
}

awaitable<bool> Exchange::fail_service(std::string error, std::string parameter, std::string value) {
    varlink::Reply failed{.parameters = {}, .continues = false, .error = "org.varlink.service." + error};
    failed.parameters[parameter] = value;
    co_return co_await send(std::move(failed));
}

namespace {

constexpr std::string_view kAgentInterface = "io.novpn.Agent";
constexpr std::string_view kServiceInterface = "org.varlink.service";

/// https://varlink.org/Service. Part of the protocol, which is why it has no file of its own.
constexpr std::string_view kServiceInterfaceText = R"(# The Varlink service interface, of every Varlink service.
interface org.varlink.service

# What the service is, and the interfaces it has.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# The description of one interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)
)";

enum class Type { string, integer };

struct Parameter {
    std::string_view name;
    Type type;
};

struct Method {
    std::string_view name;
    std::span<const Parameter> parameters; ///< all of them required
    awaitable<void> (*run)(Exchange&);     ///< called with parameters of these names and types, and no others
};

std::string string_parameter(const Exchange& exchange, std::string_view name) {
    return std::string(exchange.call.parameters.at(name).as_string());
}

awaitable<void> status(Exchange& exchange) {
    json::object parameters = exchange.service.status(exchange.peer.caller);
    co_await exchange.reply(std::move(parameters));
}

awaitable<void> plan(Exchange& exchange) {
    const auto commands = exchange.service.plan();
    if (!commands) {
        co_await exchange.fail("Failed", to_string(commands.error()));
        co_return;
    }
    json::object parameters;
    parameters["commands"] = json::array(commands->begin(), commands->end());
    co_await exchange.reply(std::move(parameters));
}

/// An error of this interface, decided but not yet sent.
struct Refusal {
    std::string error;
    std::string message;
};

Refusal no_such_process(pid_t pid) { return {"NoSuchProcess", "there is no process " + std::to_string(pid)}; }

Refusal refusal(const Error& error, pid_t pid) {
    if (error.code == std::errc::no_such_process) return no_such_process(pid);
    return {"Failed", to_string(error)};
}

/// The peer's own number is only meaningful, and `pid` only means what the caller thinks, in the agent's pid namespace.
tl::expected<void, Refusal> check_caller(const Peer& peer) {
    const Refusal elsewhere{"NotAllowed", "the caller is in another pid namespace than the agent (a container?), "
                                          "where process numbers mean something else"};
    if (peer.caller.pid <= 0) return tl::make_unexpected(elsewhere);
    auto caller = Process::open(peer.caller.pid);
    if (!caller) return tl::make_unexpected(refusal(caller.error(), peer.caller.pid));
    const auto status = caller->status();
    if (!status) return tl::make_unexpected(refusal(status.error(), peer.caller.pid));
    if (status->pid_namespaces != 1) return tl::make_unexpected(elsewhere);
    return {};
}

/// The process to move, held: by the peer's own pidfd where that is the one, so that its number was never looked up.
Expected<Process> hold(const Peer& peer, pid_t pid) {
    if (pid == peer.caller.pid && peer.pidfd) {
        UniqueFd own(::dup(peer.pidfd.get()));
        if (!own) return system_error(errno, "holding process " + std::to_string(pid));
        Process process(pid, std::move(own));
        if (!process.alive()) return system_error(ESRCH, "holding process " + std::to_string(pid));
        return process;
    }
    return Process::open(pid);
}

tl::expected<void, Refusal> check_owner(const Process& process, const Caller& caller) {
    const auto status = process.status();
    if (!status) return tl::make_unexpected(refusal(status.error(), process.pid()));
    const bool own = std::ranges::all_of(status->uids, [&](uid_t uid) { return uid == caller.uid; });
    if (own || caller.uid == 0) return {};
    return tl::make_unexpected(Refusal{"NotAllowed", "process " + std::to_string(process.pid()) + " is not uid " +
                                                         std::to_string(caller.uid) +
                                                         "'s own, in each of its user ids; only root may place it"});
}

/// After the waits: from here to the last check nothing else runs on the loop.
tl::expected<void, Refusal> place_now(Exchange& exchange, const std::string& class_name, pid_t pid) {
    if (auto checked = check_caller(exchange.peer); !checked) return checked;
    const auto process = hold(exchange.peer, pid);
    if (!process) return tl::make_unexpected(refusal(process.error(), pid));
    if (auto checked = check_owner(*process, exchange.peer.caller); !checked) return checked;

    if (const auto placed = exchange.service.place(class_name, pid); !placed)
        return tl::make_unexpected(refusal(placed.error(), pid));
    // cgroup.procs takes a number, not a pidfd: what was moved is the process that was checked only if that one still
    // lives, as its number is free for another once it has been reaped.
    if (!process->alive()) {
        exchange.service.warn("process " + std::to_string(pid) + " ended while it was placed in class " + class_name +
                              ": if its number was reused in that moment, another process is in the class now");
        return tl::make_unexpected(
            Refusal{"NoSuchProcess", "process " + std::to_string(pid) + " ended while it was placed"});
    }
    return {};
}

awaitable<void> place(Exchange& exchange) {
    const Caller& caller = exchange.peer.caller;
    const std::string class_name = string_parameter(exchange, "class");
    const std::int64_t number = exchange.call.parameters.at("pid").as_int64();
    if (number < 1 || number > std::numeric_limits<pid_t>::max()) {
        co_await exchange.fail_service("InvalidParameter", "parameter", "pid");
        co_return;
    }
    const bool allowed = co_await exchange.accounts.allowed(caller, exchange.service.allow());
    if (!allowed) {
        co_await exchange.fail("NotAllowed", "uid " + std::to_string(caller.uid) +
                                                 " is neither in allow.users nor in a group of allow.groups "
                                                 "(by default the group novpn)");
        co_return;
    }
    if (!exchange.service.has_class(class_name)) {
        co_await exchange.fail("NoSuchClass", "there is no class " + class_name);
        co_return;
    }
    if (!exchange.service.is_steered(class_name)) {
        co_await exchange.fail("NotSteered", "class " + class_name + " is off: nothing in it would be steered");
        co_return;
    }
    const auto placed = place_now(exchange, class_name, static_cast<pid_t>(number));
    if (!placed) {
        co_await exchange.fail(placed.error().error, placed.error().message);
        co_return;
    }
    co_await exchange.reply({});
}

awaitable<void> down(Exchange& exchange) {
    if (exchange.peer.caller.uid != 0) {
        co_await exchange.fail("NotAllowed", "only root may end the agent");
        co_return;
    }
    const auto released = exchange.service.down();
    if (released)
        co_await exchange.reply({});
    else
        co_await exchange.fail("Failed", to_string(released.error()));
    // Also when something could not be released: an agent that stays would put the rest back.
    exchange.service.stop();
}

constexpr std::array kPlaceParameters{Parameter{"class", Type::string}, Parameter{"pid", Type::integer}};

constexpr std::array kAgentMethods{
    Method{"Status", {}, status},
    Method{"Plan", {}, plan},
    Method{"Place", kPlaceParameters, place},
    Method{"Down", {}, down},
};

constexpr std::array kAgentErrors{"NotAllowed", "NoSuchClass", "NoSuchProcess", "NotSteered", "Failed"};

awaitable<void> get_info(Exchange& exchange) {
    json::object parameters;
    parameters["vendor"] = "novpn";
    parameters["product"] = "novpnd";
    parameters["version"] = NOVPN_VERSION;
    parameters["url"] = "";
    parameters["interfaces"] = {kServiceInterface, kAgentInterface};
    co_await exchange.reply(std::move(parameters));
}

awaitable<void> get_interface_description(Exchange& exchange) {
    const std::string name = string_parameter(exchange, "interface");
    if (name != kAgentInterface && name != kServiceInterface) {
        co_await exchange.fail_service("InterfaceNotFound", "interface", name);
        co_return;
    }
    json::object parameters;
    parameters["description"] = name == kAgentInterface ? kInterfaceText : kServiceInterfaceText;
    co_await exchange.reply(std::move(parameters));
}

constexpr std::array kDescriptionParameters{Parameter{"interface", Type::string}};

constexpr std::array kServiceMethods{
    Method{"GetInfo", {}, get_info},
    Method{"GetInterfaceDescription", kDescriptionParameters, get_interface_description},
};

bool has_type(const json::value& value, Type type) {
    switch (type) {
    case Type::string:
        return value.is_string();
    case Type::integer:
        return value.is_int64();
    }
    return false;
}

/// The name of the first parameter that is missing, unknown or of a wrong type.
std::optional<std::string> wrong_parameter(const Method& method, const json::object& parameters) {
    for (const auto& wanted : method.parameters) {
        const json::value* value = parameters.if_contains(wanted.name);
        if (value == nullptr || !has_type(*value, wanted.type)) return std::string(wanted.name);
    }
    for (const auto& given : parameters) {
        if (std::ranges::find(method.parameters, std::string_view(given.key()), &Parameter::name) ==
            method.parameters.end())
            return std::string(given.key());
    }
    return std::nullopt;
}

} // namespace

awaitable<void> answer(Exchange& exchange) {
    const std::string_view interface = varlink::interface_of(exchange.call.method);
    std::span<const Method> methods;
    if (interface == kAgentInterface)
        methods = kAgentMethods;
    else if (interface == kServiceInterface)
        methods = kServiceMethods;
    else {
        co_await exchange.fail_service("InterfaceNotFound", "interface", std::string(interface));
        co_return;
    }
    const auto method =
        std::ranges::find(methods, std::string_view(exchange.call.method).substr(interface.size() + 1), &Method::name);
    if (method == methods.end()) {
        co_await exchange.fail_service("MethodNotFound", "method", exchange.call.method);
        co_return;
    }
    // No method turns its connection into something else.
    if (exchange.call.upgrade) {
        co_await exchange.fail_service("InvalidParameter", "parameter", "upgrade");
        co_return;
    }
    if (const auto wrong = wrong_parameter(*method, exchange.call.parameters)) {
        co_await exchange.fail_service("InvalidParameter", "parameter", *wrong);
        co_return;
    }
    co_await method->run(exchange);
}

std::vector<MethodShape> agent_methods() {
    std::vector<MethodShape> shapes;
    for (const auto& method : kAgentMethods) {
        MethodShape shape{.name = std::string(method.name), .parameters = {}};
        for (const auto& parameter : method.parameters)
            shape.parameters.emplace_back(parameter.name, parameter.type == Type::string ? "string" : "int");
        shapes.push_back(std::move(shape));
    }
    return shapes;
}

std::vector<std::string> agent_errors() { return {kAgentErrors.begin(), kAgentErrors.end()}; }

} // namespace novpn
