// The command line's side of control: one connection, one call at a time, plain blocking sockets with a deadline.
// Refuses a socket that somebody else than root or the caller itself listens on.
#pragma once

#include "agent/control/varlink.h"
#include "agent/unique_fd.h"
#include "netlink/error.h"

#include <boost/json/object.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace novpn {

class Client {
  public:
    /// Says "no agent runs there" where agent_runs() is false of the error. `patience`: for one whose socket is still
    /// there, as a restart or a crash leaves it.
    static Expected<Client> connect(const std::string& runtime_dir, std::chrono::milliseconds patience = {});

    /// The reply's parameters. `method` is one of io.novpn.Agent, `doing` what the person asked for, for the error.
    Expected<boost::json::object> call(std::string_view method, boost::json::object parameters,
                                       const std::string& doing,
                                       std::chrono::milliseconds at_most = std::chrono::seconds(5));

    /// Gives each reply of a method with several to `each`, for as long as it returns true and the agent answers; the
    /// first is waited for like the reply of call(), the others for ever. An error when the agent ends it.
    Expected<void> follow(std::string_view method, const std::string& doing,
                          const std::function<bool(const boost::json::object&)>& each);

  private:
    /// Far above the status of a busy machine; a bound all the same on what the other side may make us hold.
    static constexpr std::size_t kMaxReplySize = std::size_t{16} * 1024 * 1024;
    using Deadline = std::optional<std::chrono::steady_clock::time_point>;

    explicit Client(UniqueFd fd)
        : fd_(std::move(fd)) {}
    Expected<void> send(const varlink::Call& call, Deadline deadline, const std::string& doing);
    Expected<std::string> receive_message(Deadline deadline, const std::string& doing);
    /// An error of the method is an error here.
    Expected<varlink::Reply> receive(Deadline deadline, const std::string& doing);

    UniqueFd fd_;
    varlink::Messages messages_{kMaxReplySize};
};

/// False for the errors of connect() that mean that nobody listens.
bool agent_runs(const Error& error);

} // namespace novpn
