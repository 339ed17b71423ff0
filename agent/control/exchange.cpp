#include "agent/control/exchange.h"

#include <boost/json/value.hpp>

namespace novpn {

namespace json = boost::json;
using boost::asio::awaitable;

const json::value* Exchange::given(std::string_view name) const {
    const json::value* value = call.parameters.if_contains(name);
    return value != nullptr && !value->is_null() ? value : nullptr;
}

std::string Exchange::text(std::string_view name) const { return std::string(call.parameters.at(name).as_string()); }

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

awaitable<bool> Exchange::fail_service(std::string error, json::object parameters) {
    varlink::Reply failed{
        .parameters = std::move(parameters), .continues = false, .error = "org.varlink.service." + error};
    co_return co_await send(std::move(failed));
}

awaitable<bool> Exchange::invalid_parameter(std::string name) {
    json::object parameters;
    parameters["parameter"] = name;
    co_return co_await fail_service("InvalidParameter", std::move(parameters));
}

} // namespace novpn
