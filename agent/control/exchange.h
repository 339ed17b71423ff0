// One call on its way: who called, what all calls share, and the ways to answer. Knows no sockets: control.h brings
// calls and carries replies.
#pragma once

#include "agent/control/accounts.h"
#include "agent/control/events.h"
#include "agent/control/service.h"
#include "agent/control/statuses.h"
#include "agent/control/turns.h"
#include "agent/control/varlink.h"
#include "agent/process.h"

#include <boost/asio/awaitable.hpp>
#include <functional>
#include <string>
#include <utility>

namespace novpn {

/// The process at the other end of a connection.
struct Peer {
    Caller caller;
    UniqueFd pidfd; ///< SO_PEERPIDFD; none before Linux 6.5, or when the process was gone already
};

/// What all calls share.
struct Serving {
    Serving(boost::asio::io_context& io, Service& agent, Accounts::Lookup lookup)
        : service(agent)
        , accounts(io, std::move(lookup))
        , turns(io)
        , events(io) {}

    Service& service;
    Accounts accounts;
    Turns turns;
    Events events;
    Statuses statuses;
};

/// An error of io.novpn.Agent, decided but not yet sent: "NotAllowed" and what a person should read.
struct Refusal {
    std::string error;
    std::string message;
};

/// Of the connection's coroutine, which outlives it.
class Exchange {
  public:
    /// Carries a message to the caller; false when the caller is gone or does not read.
    using Send = std::function<boost::asio::awaitable<bool>(std::string)>;
    /// Returns when the caller is gone.
    using Gone = std::function<boost::asio::awaitable<void>()>;

    Exchange(Serving& shared, const Peer& from, varlink::Call what, Send send, Gone gone)
        : serving(shared)
        , service(shared.service)
        , peer(from)
        , call(std::move(what))
        , send_(std::move(send))
        , gone_(std::move(gone)) {}

    Serving& serving;
    Service& service;
    const Peer& peer;
    const varlink::Call call;

    /// Parameters of the call, whose types have been checked.
    std::string text(std::string_view name) const;
    /// None where the call leaves it out, or says null.
    const boost::json::value* given(std::string_view name) const;

    /// The last reply. Nothing is sent when the caller wants none (oneway).
    boost::asio::awaitable<bool> reply(boost::json::object parameters);
    /// One of several replies, for a caller that said `more`.
    boost::asio::awaitable<bool> reply_and_continue(boost::json::object parameters);
    boost::asio::awaitable<bool> fail(std::string error, std::string message);
    /// An error of org.varlink.service, with the parameter it defines.
    boost::asio::awaitable<bool> fail_service(std::string error, boost::json::object parameters);
    boost::asio::awaitable<bool> invalid_parameter(std::string name);

    boost::asio::awaitable<void> gone() { return gone_(); }

  private:
    boost::asio::awaitable<bool> send(varlink::Reply reply);

    Send send_;
    Gone gone_;
};

} // namespace novpn
