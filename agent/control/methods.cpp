#include "agent/control/methods.h"

#include "agent/control/changing.h"
#include "agent/control/reading.h"
#include "agent/interface_text.h"

#include <algorithm>
#include <array>
#include <boost/json/value.hpp>
#include <optional>
#include <span>

namespace novpn {

namespace json = boost::json;
using boost::asio::awaitable;

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

# The method has several replies: it is to be called with `more`.
error ExpectedMore ()
)";

enum class Type { string, integer, boolean };
enum class Presence { required, optional };

struct Parameter {
    std::string_view name;
    Type type;
    Presence presence = Presence::required;
};

struct Method {
    std::string_view name;
    std::span<const Parameter> parameters;
    awaitable<void> (*run)(Exchange&); ///< called with parameters of these names and types, and no others
};

constexpr std::array kExplainParameters{Parameter{"destination", Type::string},
                                        Parameter{"class", Type::string, Presence::optional},
                                        Parameter{"pid", Type::integer, Presence::optional}};
constexpr std::array kPlaceParameters{Parameter{"class", Type::string}, Parameter{"pid", Type::integer}};
constexpr std::array kReleaseParameters{Parameter{"pid", Type::integer}};
constexpr std::array kSetEnabledParameters{Parameter{"class", Type::string}, Parameter{"enabled", Type::boolean},
                                           Parameter{"seconds", Type::integer, Presence::optional}};

constexpr std::array kAgentMethods{
    Method{"Status", {}, methods::status},
    Method{"Monitor", {}, methods::monitor},
    Method{"Plan", {}, methods::plan},
    Method{"Explain", kExplainParameters, methods::explain},
    Method{"Metrics", {}, methods::metrics},
    Method{"Place", kPlaceParameters, methods::place},
    Method{"Release", kReleaseParameters, methods::release},
    Method{"SetEnabled", kSetEnabledParameters, methods::set_enabled},
    Method{"Reload", {}, methods::reload},
    Method{"Down", {}, methods::down},
};

constexpr std::array kAgentErrors{"NotAllowed", "NoSuchClass",   "NoSuchProcess",
                                  "NotSteered", "InvalidConfig", "Failed"};

awaitable<void> get_info(Exchange& exchange) {
    json::object parameters;
    parameters["vendor"] = "novpn";
    parameters["product"] = "novpnd";
    parameters["version"] = NOVPN_VERSION;
    parameters["url"] = "";
    parameters["interfaces"] = {kServiceInterface, kAgentInterface};
    co_await exchange.reply(std::move(parameters));
}

awaitable<void> interface_not_found(Exchange& exchange, std::string_view name) {
    json::object parameters;
    parameters["interface"] = name;
    co_await exchange.fail_service("InterfaceNotFound", std::move(parameters));
}

awaitable<void> get_interface_description(Exchange& exchange) {
    const std::string name = exchange.text("interface");
    if (name != kAgentInterface && name != kServiceInterface) {
        co_await interface_not_found(exchange, name);
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
    case Type::string: return value.is_string();
    case Type::integer: return value.is_int64();
    case Type::boolean: return value.is_bool();
    }
    return false;
}

std::string_view name_of(Type type) {
    switch (type) {
    case Type::string: return "string";
    case Type::integer: return "int";
    case Type::boolean: return "bool";
    }
    return {};
}

bool fits(const json::value* value, const Parameter& wanted) {
    // A nullable field of Varlink may be left out.
    if (value == nullptr || value->is_null()) return wanted.presence == Presence::optional;
    return has_type(*value, wanted.type);
}

/// The name of the first parameter that is missing, unknown or of a wrong type.
std::optional<std::string> wrong_parameter(const Method& method, const json::object& parameters) {
    for (const auto& wanted : method.parameters)
        if (!fits(parameters.if_contains(wanted.name), wanted)) return std::string(wanted.name);
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
        co_await interface_not_found(exchange, interface);
        co_return;
    }
    const auto method =
        std::ranges::find(methods, std::string_view(exchange.call.method).substr(interface.size() + 1), &Method::name);
    if (method == methods.end()) {
        json::object parameters;
        parameters["method"] = exchange.call.method;
        co_await exchange.fail_service("MethodNotFound", std::move(parameters));
        co_return;
    }
    // No method turns its connection into something else.
    if (exchange.call.upgrade) {
        co_await exchange.invalid_parameter("upgrade");
        co_return;
    }
    if (auto wrong = wrong_parameter(*method, exchange.call.parameters)) {
        co_await exchange.invalid_parameter(std::move(*wrong));
        co_return;
    }
    co_await method->run(exchange);
}

std::vector<MethodShape> agent_methods() {
    std::vector<MethodShape> shapes;
    for (const auto& method : kAgentMethods) {
        MethodShape shape{.name = std::string(method.name), .parameters = {}};
        for (const auto& parameter : method.parameters)
            shape.parameters.emplace_back(parameter.name, (parameter.presence == Presence::optional ? "?" : "") +
                                                              std::string(name_of(parameter.type)));
        shapes.push_back(std::move(shape));
    }
    return shapes;
}

std::vector<std::string> agent_errors() { return {kAgentErrors.begin(), kAgentErrors.end()}; }

} // namespace novpn
