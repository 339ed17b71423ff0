#include "agent/control/reading.h"

#include "agent/control/target.h"
#include "agent/old_sockets.h"

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>

namespace novpn::methods {

namespace json = boost::json;
using namespace boost::asio::experimental::awaitable_operators;
using boost::asio::awaitable;

namespace {

awaitable<json::object> current_status(Exchange& exchange) {
    const Caller& caller = exchange.peer.caller;
    if (auto known = exchange.serving.statuses.fresh(caller)) co_return std::move(*known);
    co_await exchange.serving.turns.take(caller.uid);
    // Another of the user's calls may have had the turn before.
    if (auto known = exchange.serving.statuses.fresh(caller)) co_return std::move(*known);
    json::object status = exchange.service.status(caller);
    exchange.serving.statuses.keep(caller, status);
    co_return status;
}

std::optional<boost::asio::ip::address> to_address(const std::string& text) {
    // inet_pton(3) would stop at a NUL.
    if (text.find('\0') != std::string::npos) return std::nullopt;
    boost::system::error_code error;
    auto address = boost::asio::ip::make_address(text, error);
    if (error) return std::nullopt;
    // The kernel routes a mapped address as the IPv4 address that it is.
    if (address.is_v6() && address.to_v6().is_v4_mapped())
        return boost::asio::ip::make_address_v4(boost::asio::ip::v4_mapped, address.to_v6());
    return address;
}

} // namespace

awaitable<void> status(Exchange& exchange) {
    json::object parameters = co_await current_status(exchange);
    co_await exchange.reply(std::move(parameters));
}

awaitable<void> monitor(Exchange& exchange) {
    if (!exchange.call.more) {
        co_await exchange.fail_service("ExpectedMore", json::object());
        co_return;
    }
    // Before the first look, so that nothing is missed between the two.
    Events::Reader reader(exchange.serving.events);
    const json::object status = co_await current_status(exchange);
    const json::value* summary = status.if_contains("summary");
    json::object event{{"cause", "now"},
                       {"decisions", json::array()},
                       {"operations", json::array()},
                       {"omitted", 0},
                       {"reaction_us", nullptr}};
    event["summary"] = summary != nullptr ? *summary : json::value("");
    const json::value* site = status.if_contains("site");
    event["site"] = site != nullptr ? *site : json::value(nullptr);
    event["lost"] = 0;
    while (co_await exchange.reply_and_continue(std::move(event))) {
        while (!reader.ready()) {
            const auto first = co_await (reader.wait() || exchange.gone());
            if (first.index() == 1) co_return;
        }
        event = reader.take();
    }
}

awaitable<void> plan(Exchange& exchange) {
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    const auto commands = exchange.service.plan();
    if (!commands) {
        co_await exchange.fail("Failed", to_string(commands.error()));
        co_return;
    }
    json::object parameters;
    parameters["commands"] = json::array(commands->begin(), commands->end());
    co_await exchange.reply(std::move(parameters));
}

awaitable<void> explain(Exchange& exchange) {
    const auto destination = to_address(exchange.text("destination"));
    if (!destination) {
        co_await exchange.invalid_parameter("destination");
        co_return;
    }
    const json::value* number = exchange.given("pid");
    const auto pid = number != nullptr ? to_pid(*number) : std::nullopt;
    if (number != nullptr && (!pid || exchange.given("class") != nullptr)) {
        co_await exchange.invalid_parameter(pid ? "class" : "pid");
        co_return;
    }

    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    std::string class_name = exchange.given("class") != nullptr ? exchange.text("class") : ClassConfig{}.name;
    std::optional<std::string> class_of_process;
    if (pid) {
        const auto process = hold_own(exchange.peer, *pid, "look at it");
        if (!process) {
            co_await exchange.fail(process.error().error, process.error().message);
            co_return;
        }
        class_of_process = exchange.service.class_of(*pid);
        if (!process->alive()) {
            const Refusal gone = no_such_process(*pid);
            co_await exchange.fail(gone.error, gone.message);
            co_return;
        }
        class_name = class_of_process.value_or(class_name);
    }
    if (!exchange.service.has_class(class_name)) {
        co_await exchange.fail("NoSuchClass", "there is no class " + class_name);
        co_return;
    }
    auto explanation = exchange.service.explain(*destination, class_name);
    if (!explanation) {
        co_await exchange.fail("Failed", to_string(explanation.error()));
        co_return;
    }
    if (pid) {
        const auto selector = exchange.service.selector_of(*pid);
        (*explanation)["selector"] = selector ? json::value(*selector) : json::value(nullptr);
        (*explanation)["old"] = to_json(exchange.service.old_sockets_of(*pid));
    }
    if (pid) (*explanation)["process_class"] = class_of_process ? json::value(*class_of_process) : json::value(nullptr);
    co_await exchange.reply(std::move(*explanation));
}

awaitable<void> metrics(Exchange& exchange) {
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    json::object parameters;
    parameters["text"] = exchange.service.metrics();
    co_await exchange.reply(std::move(parameters));
}

} // namespace novpn::methods
