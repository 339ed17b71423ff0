#include "agent/control/changing.h"

#include "agent/control/target.h"
#include "agent/old_sockets.h"

#include <boost/json/value.hpp>

namespace novpn::methods {

namespace json = boost::json;
using boost::asio::awaitable;

namespace {

/// A class is off for a year at most: longer is what the config is for.
constexpr std::int64_t kMaxSeconds = std::int64_t{365} * 24 * 60 * 60;

using Answer = tl::expected<json::object, Refusal>;

awaitable<void> answer_with(Exchange& exchange, Answer answer) {
    if (answer)
        co_await exchange.reply(std::move(*answer));
    else
        co_await exchange.fail(answer.error().error, answer.error().message);
}

/// False when the caller is not root, and has been told.
awaitable<bool> root_only(Exchange& exchange, std::string_view what) {
    if (exchange.peer.caller.uid == 0) co_return true;
    co_await exchange.fail("NotAllowed", "only root may " + std::string(what));
    co_return false;
}

/// False when the caller is neither root nor in `allow`, and has been told.
awaitable<bool> allowed_only(Exchange& exchange) {
    const Caller& caller = exchange.peer.caller;
    const bool allowed = co_await exchange.serving.accounts.allowed(caller, exchange.service.allow());
    if (allowed) co_return true;
    co_await exchange.fail("NotAllowed", "uid " + std::to_string(caller.uid) +
                                             " is neither in allow.users nor in a group of allow.groups "
                                             "(by default the group novpn)");
    co_return false;
}

/// cgroup.procs takes a number, not a pidfd: what was moved is the process that was checked only if that one still
/// lives, as its number is free for another once it has been reaped.
Refusal ended_meanwhile(Exchange& exchange, const Process& process, std::string_view moved) {
    const std::string ended = "process " + std::to_string(process.pid()) + " ended while it was " + std::string(moved);
    exchange.service.warn(ended + ": if its number was reused in that moment, that was done to another process");
    return Refusal{"NoSuchProcess", ended};
}

/// After the waits: from here to the last check nothing else runs on the loop.
Answer place_now(Exchange& exchange, const std::string& class_name, pid_t pid) {
    if (!exchange.service.has_class(class_name))
        return tl::make_unexpected(Refusal{"NoSuchClass", "there is no class " + class_name});
    if (!exchange.service.is_steered(class_name))
        return tl::make_unexpected(
            Refusal{"NotSteered", "class " + class_name + " is off: nothing in it would be steered"});
    const auto process = hold_own(exchange.peer, pid, "place it");
    if (!process) return tl::make_unexpected(process.error());

    const auto placed = exchange.service.place(class_name, pid);
    exchange.serving.statuses.forget();
    if (!placed) return tl::make_unexpected(refusal(placed.error(), pid));
    if (!process->alive())
        return tl::make_unexpected(ended_meanwhile(exchange, *process, "placed in class " + class_name));
    json::object parameters;
    parameters["class"] = class_name;
    parameters["old_sockets"] = placed->old_sockets;
    parameters["old"] = to_json(placed->named);
    return parameters;
}

/// As place_now().
Answer release_now(Exchange& exchange, pid_t pid) {
    const auto process = hold_own(exchange.peer, pid, "release it");
    if (!process) return tl::make_unexpected(process.error());
    bool lived = true; // and may end by the end of its sockets
    const auto released = exchange.service.release(pid, [&] { return lived = process->alive(); });
    exchange.serving.statuses.forget();
    if (!lived) return tl::make_unexpected(ended_meanwhile(exchange, *process, "released"));
    if (!released) {
        if (released.error().code == std::errc::invalid_argument) {
            const std::string& why = released.error().detail;
            return tl::make_unexpected(
                Refusal{"NotSteered", "process " + std::to_string(pid) + " " + (why.empty() ? "is in no class" : why)});
        }
        return tl::make_unexpected(refusal(released.error(), pid));
    }
    json::object parameters;
    parameters["class"] = released->class_name;
    parameters["ended"] = released->ended;
    parameters["kept"] = released->kept;
    return parameters;
}

} // namespace

awaitable<void> place(Exchange& exchange) {
    const auto pid = to_pid(exchange.call.parameters.at("pid"));
    if (!pid) {
        co_await exchange.invalid_parameter("pid");
        co_return;
    }
    const bool allowed = co_await allowed_only(exchange);
    if (!allowed) co_return;
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    // So that the slice in the caller's own systemd counts now. The pass that is due is the one of place().
    (void)exchange.service.heard_of_user(exchange.peer.caller.uid, true);
    Answer answer = place_now(exchange, exchange.text("class"), *pid);
    co_await answer_with(exchange, std::move(answer));
}

awaitable<void> release(Exchange& exchange) {
    const auto pid = to_pid(exchange.call.parameters.at("pid"));
    if (!pid) {
        co_await exchange.invalid_parameter("pid");
        co_return;
    }
    const bool allowed = co_await allowed_only(exchange);
    if (!allowed) co_return;
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    Answer answer = release_now(exchange, *pid);
    co_await answer_with(exchange, std::move(answer));
}

awaitable<void> set_enabled(Exchange& exchange) {
    std::optional<std::chrono::seconds> for_how_long;
    if (const json::value* seconds = exchange.given("seconds")) {
        for_how_long = std::chrono::seconds(seconds->as_int64());
        if (for_how_long->count() < 1 || for_how_long->count() > kMaxSeconds) {
            co_await exchange.invalid_parameter("seconds");
            co_return;
        }
    }
    const bool enabled = exchange.call.parameters.at("enabled").as_bool();
    const bool allowed = co_await root_only(exchange, enabled ? "turn a class on" : "turn a class off");
    if (!allowed) co_return;
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    const std::string class_name = exchange.text("class");
    if (!exchange.service.has_class(class_name)) {
        co_await exchange.fail("NoSuchClass", "there is no class " + class_name);
        co_return;
    }
    const auto done = exchange.service.set_enabled(class_name, enabled, for_how_long);
    exchange.serving.statuses.forget();
    Answer answer;
    if (!done) answer = tl::make_unexpected(Refusal{"Failed", to_string(done.error())});
    co_await answer_with(exchange, std::move(answer));
}

awaitable<void> reload(Exchange& exchange) {
    const bool allowed = co_await root_only(exchange, "have the config read again");
    if (!allowed) co_return;
    co_await exchange.serving.turns.take(exchange.peer.caller.uid);
    const auto done = exchange.service.reload();
    exchange.serving.statuses.forget();
    Answer answer;
    if (!done) {
        // An error with a code is the kernel's, which took a good config ill.
        if (done.error().code)
            answer = tl::make_unexpected(Refusal{"Failed", to_string(done.error())});
        else
            answer = tl::make_unexpected(Refusal{"InvalidConfig", done.error().detail});
    }
    co_await answer_with(exchange, std::move(answer));
}

awaitable<void> down(Exchange& exchange) {
    const bool allowed = co_await root_only(exchange, "end the agent");
    if (!allowed) co_return;
    const auto released = exchange.service.down();
    Answer answer;
    if (!released) answer = tl::make_unexpected(Refusal{"Failed", to_string(released.error())});
    co_await answer_with(exchange, std::move(answer));
    // Also when something could not be released: an agent that stays would put the rest back.
    exchange.service.stop();
}

} // namespace novpn::methods
