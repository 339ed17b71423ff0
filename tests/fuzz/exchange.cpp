// Any calls of root, whom no right keeps from any method, are answered by whole replies.
#include "agent/control/exchange.h"
#include "agent/control/methods.h"
#include "agent/spawn.h"
#include "tests/fuzz/fuzz.h"

#include <boost/asio/io_context.hpp>
#include <vector>

using namespace novpn;
using novpn::fuzz::require;

namespace {

/// An agent to whom everything happens that is asked for.
struct ObedientAgent : Service {
    boost::json::object status(const Caller&) override { return {{"summary", "All is well."}}; }
    Expected<std::vector<std::string>> plan() override { return std::vector<std::string>{"ip rule add"}; }
    bool has_class(const std::string& name) const override { return name == "novpn"; }
    bool is_steered(const std::string&) const override { return true; }
    Allow allow() const override { return {}; }
    bool heard_of_user(uid_t, bool) override { return false; }
    Expected<Placed> place(const std::string& class_name, pid_t pid) override {
        require(has_class(class_name), "a process is placed in a class that is there");
        require(pid > 0, "a process that is placed has a number");
        return Placed{};
    }
    Expected<Released> release(pid_t pid, const std::function<bool()>& is_that_one) override {
        require(pid > 0, "a process that is released has a number");
        if (!is_that_one()) return system_error(ESRCH, "releasing");
        return Released{};
    }
    std::optional<std::string> class_of(pid_t) override { return std::nullopt; }
    std::optional<std::string> selector_of(pid_t) override { return std::nullopt; }
    Expected<void> set_enabled(const std::string& class_name, bool,
                               std::optional<std::chrono::seconds> for_how_long) override {
        require(has_class(class_name), "a class that is switched is there");
        require(!for_how_long || for_how_long->count() > 0, "a while is longer than nothing");
        return {};
    }
    Expected<void> reload() override { return {}; }
    std::vector<OldSocket> old_sockets_of(pid_t) override { return {}; }
    Expected<boost::json::object> explain(const boost::asio::ip::address&, const std::string&) override {
        return boost::json::object();
    }
    std::string metrics() override { return "# EOF\n"; }
    void on_event(Subscriber) override {}
    Expected<void> down() override { return {}; }
    void stop() override {}
    void warn(const std::string&) override {}
};

std::vector<std::string> replies_to(const varlink::Call& call) {
    boost::asio::io_context io;
    ObedientAgent agent;
    Serving serving(io, agent, is_allowed);
    const Peer peer{.caller = {.uid = 0, .gid = 0, .pid = 1}, .pidfd = {}};
    std::vector<std::string> replies;
    Exchange exchange(
        serving, peer, call,
        [&](std::string reply) -> boost::asio::awaitable<bool> {
            replies.push_back(std::move(reply));
            co_return true;
        },
        []() -> boost::asio::awaitable<void> { co_return; });
    spawn(io, answer(exchange));
    io.run();
    return replies;
}

void require_answer(const varlink::Call& call) {
    const auto replies = replies_to(call);
    if (call.oneway) require(replies.empty(), "who wants no reply gets none");
    if (!call.oneway && !call.more) require(replies.size() == 1, "one call has one reply");
    for (const std::string& reply : replies) {
        require(reply.ends_with('\0') && reply.find('\0') + 1 == reply.size(), "a reply is one message");
        require(varlink::parse_reply(std::string_view(reply).substr(0, reply.size() - 1)).has_value(),
                "a reply is Varlink");
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    varlink::Messages messages(varlink::kMaxCallSize);
    messages.append({reinterpret_cast<const char*>(data), size});
    while (const auto message = messages.next())
        if (const auto call = varlink::parse_call(*message)) require_answer(*call);
    return 0;
}
