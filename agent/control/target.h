// The process that a call names: the right one, and the caller's own.
#pragma once

#include "agent/control/exchange.h"

#include <boost/json/value.hpp>
#include <optional>

namespace novpn {

/// A process number, where the parameter can be one.
std::optional<pid_t> to_pid(const boost::json::value& number);

Refusal no_such_process(pid_t pid);
/// What to say of an error about this process.
Refusal refusal(const Error& error, pid_t pid);

/// The process, held. NotAllowed: the caller numbers processes otherwise than the agent, or is neither its owner in
/// each of its user ids nor root. `what_for`: "place it", for the message.
tl::expected<Process, Refusal> hold_own(const Peer& peer, pid_t pid, std::string_view what_for);

} // namespace novpn
