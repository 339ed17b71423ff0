// The Varlink server on RUNTIME_DIR/io.novpn.Agent: connections, their bounds and the callers' credentials.
// On the agent's one io_context and thread. What the methods do is methods.h's.
#pragma once

#include "agent/control/accounts.h"
#include "agent/control/service.h"
#include "agent/unique_fd.h"
#include "netlink/error.h"

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

namespace novpn {

/// How much of the agent its clients can take. A connection holds one call and one reply; the next call is read once
/// the reply is out.
struct ControlLimits {
    std::size_t connections_per_uid = 64;
    std::size_t connections = 256;
    std::size_t reserved_for_root = 16;           ///< of `connections`
    std::chrono::milliseconds send_timeout{5000}; ///< a client that reads slower than a reply in this time is dropped
};

class Control {
  public:
    static constexpr const char* kSocketName = "io.novpn.Agent";

    /// Listens at once, mode 0666; serves while `io` runs. A socket that nobody listens on any more is replaced.
    /// address_in_use: an agent answers there. `service` must live as long as `io` runs.
    static Expected<Control> listen(boost::asio::io_context& io, Service& service, const std::string& runtime_dir,
                                    ControlLimits limits = {}, Accounts::Lookup lookup = is_allowed);
    Control(Control&&) noexcept;
    Control& operator=(Control&&) = delete;
    /// Closes every connection and removes the socket. Before the end of `io`.
    ~Control();
    /// The next agent will replace the socket: until then who connects is refused, and can tell a restart from an end.
    void leave_socket();

  private:
    struct State;
    struct Connection;
    explicit Control(std::shared_ptr<State> state);
    static boost::asio::awaitable<void> accept(std::shared_ptr<State> state);
    static void admit(const std::shared_ptr<State>& state, UniqueFd fd);
    static boost::asio::awaitable<void> serve(std::unique_ptr<Connection> connection);

    std::shared_ptr<State> state_;
};

} // namespace novpn
