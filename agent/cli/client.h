// The command line's side of control: one connection, one call at a time, plain blocking sockets with a deadline.
// Refuses a socket that somebody else than root or the caller itself listens on.
#pragma once

#include "agent/unique_fd.h"
#include "agent/varlink.h"
#include "netlink/error.h"

#include <boost/json/object.hpp>
#include <chrono>
#include <string>
#include <string_view>

namespace novpn {

class Client {
  public:
    /// Says "no agent runs there" where agent_runs() is false of the error.
    static Expected<Client> connect(const std::string& runtime_dir);

    /// The reply's parameters. `method` is one of io.novpn.Agent, `doing` what the person asked for, for the error.
    Expected<boost::json::object> call(std::string_view method, boost::json::object parameters, std::string doing,
                                       std::chrono::milliseconds at_most = std::chrono::seconds(5));

  private:
    explicit Client(UniqueFd fd)
        : fd_(std::move(fd)) {}
    UniqueFd fd_;
};

/// False for the errors of connect() that mean that nobody listens.
bool agent_runs(const Error& error);

} // namespace novpn
