// What each method of io.novpn.Agent and org.varlink.service does, and who may call it. One coroutine a method; a new
// one is an entry in the table of methods.cpp and in io.novpn.Agent.varlink, held equal by a test.
// Knows no sockets: control.h brings calls and carries replies.
#pragma once

#include "agent/accounts.h"
#include "agent/process.h"
#include "agent/service.h"
#include "agent/varlink.h"

#include <boost/asio/awaitable.hpp>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace novpn {

/// The process at the other end of a connection.
struct Peer {
    Caller caller;
    UniqueFd pidfd; ///< SO_PEERPIDFD; none before Linux 6.5, or when the process was gone already
};

/// One call and the way to answer it. Of the connection's coroutine, which outlives it.
class Exchange {
  public:
    /// Carries a message to the caller; false when the caller is gone or does not read.
    using Send = std::function<boost::asio::awaitable<bool>(std::string)>;

    Exchange(Service& agent, Accounts& users, const Peer& from, varlink::Call what, Send send)
        : service(agent)
        , accounts(users)
        , peer(from)
        , call(std::move(what))
        , send_(std::move(send)) {}

    Service& service;
    Accounts& accounts;
    const Peer& peer;
    const varlink::Call call;

    /// The last reply. Nothing is sent when the caller wants none (oneway).
    boost::asio::awaitable<bool> reply(boost::json::object parameters);
    /// One of several replies, for a caller that said `more`.
    boost::asio::awaitable<bool> reply_and_continue(boost::json::object parameters);
    /// An error of io.novpn.Agent: "NotAllowed" and what a person should read.
    boost::asio::awaitable<bool> fail(std::string error, std::string message);
    /// An error of org.varlink.service, with the parameter it defines.
    boost::asio::awaitable<bool> fail_service(std::string error, std::string parameter, std::string value);

  private:
    boost::asio::awaitable<bool> send(varlink::Reply reply);

    Send send_;
};

/// Answers one call with one last reply, whatever it asks for.
boost::asio::awaitable<void> answer(Exchange& exchange);

/// As the interface file has them, for the test that compares: "Place" with {"class", "string"}, {"pid", "int"}.
struct MethodShape {
    std::string name;
    std::vector<std::pair<std::string, std::string>> parameters;
    auto operator<=>(const MethodShape&) const = default;
};
std::vector<MethodShape> agent_methods();
std::vector<std::string> agent_errors();

} // namespace novpn
