// The Varlink protocol (https://varlink.org/Method-Call): JSON objects ended by NUL over a stream.
// Pure: bytes to values and back; sockets are control.h's and cli/client.h's, methods are methods.h's.
#pragma once

#include "netlink/error.h"

#include <boost/json/object.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace novpn::varlink {

/// Bounds on what a client may make the agent hold: the text of a call, and how deep its JSON nests.
inline constexpr std::size_t kMaxCallSize = std::size_t{64} * 1024;
inline constexpr std::size_t kMaxDepth = 32;

struct Call {
    std::string method; ///< "io.novpn.Agent.Status"
    boost::json::object parameters;
    bool oneway = false;  ///< wants no reply
    bool more = false;    ///< takes several replies
    bool upgrade = false; ///< wants another protocol on the connection afterwards
    bool operator==(const Call&) const = default;
};

struct Reply {
    boost::json::object parameters;
    bool continues = false; ///< another reply to the same call follows
    std::string error;      ///< "io.novpn.Agent.NotAllowed"; empty when there is none
    bool operator==(const Reply&) const = default;
};

/// Of one message without its NUL. An error means that the peer does not speak Varlink: its connection is closed.
/// Members that the protocol does not have are ignored, as newer peers may send them.
Expected<Call> parse_call(std::string_view text);
Expected<Reply> parse_reply(std::string_view text);

/// The message with its NUL.
std::string to_message(const Call& call);
std::string to_message(const Reply& reply);

/// "io.novpn.Agent" of "io.novpn.Agent.Status"; empty when there is no dot.
std::string_view interface_of(std::string_view method);

/// Cuts a stream of bytes into messages. Holds at most `limit` bytes and what one append() brought.
class Messages {
  public:
    explicit Messages(std::size_t limit)
        : limit_(limit) {}

    void append(std::string_view bytes);
    /// The next whole message without its NUL; none when more bytes are needed.
    std::optional<std::string> next();
    /// The peer sent a message longer than `limit`: nothing good can follow.
    bool too_long() const { return too_long_; }

  private:
    std::size_t limit_;
    std::string bytes_;
    std::size_t searched_ = 0; ///< no NUL before this, so that a message sent byte by byte is searched once
    bool too_long_ = false;
};

} // namespace novpn::varlink
