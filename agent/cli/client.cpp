#include "agent/cli/client.h"

#include <array>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

namespace novpn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kConnectTimeout = std::chrono::seconds(5);
/// An agent is back after some tens of milliseconds, or after systemd's RestartSec=, 100 ms.
constexpr auto kRestartStep = std::chrono::milliseconds(20);
constexpr auto kReplyTimeout = std::chrono::seconds(5);

tl::unexpected<Error> failed(std::string doing, std::string reason, std::error_code code = {}) {
    return tl::make_unexpected(Error{.code = code, .doing = std::move(doing), .detail = std::move(reason)});
}

/// Waits until the socket is ready for `events`, not beyond `deadline`.
Expected<void> wait_for(int fd, short events, std::optional<Clock::time_point> deadline, const std::string& doing) {
    for (;;) {
        int left = -1;
        if (deadline) {
            left = static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now()).count());
            if (left <= 0) return failed(doing, "the agent does not answer");
        }
        pollfd ready{.fd = fd, .events = events, .revents = 0};
        const int count = ::poll(&ready, 1, left);
        if (count > 0) return {};
        if (count < 0 && errno != EINTR) return system_error(errno, doing);
    }
}

varlink::Call call_of(std::string_view method, boost::json::object parameters) {
    varlink::Call call;
    call.method = "io.novpn.Agent." + std::string(method);
    call.parameters = std::move(parameters);
    return call;
}

std::string reason_of(const varlink::Reply& reply) {
    if (const auto* message = reply.parameters.if_contains("message"); message != nullptr && message->is_string())
        return std::string(message->get_string());
    return reply.error + " " + boost::json::serialize(reply.parameters);
}

} // namespace

bool agent_runs(const Error& error) {
    return error.code != std::errc::no_such_file_or_directory && error.code != std::errc::connection_refused;
}

Expected<Client> Client::connect(const std::string& runtime_dir, std::chrono::milliseconds patience) {
    const std::string path = runtime_dir + "/io.novpn.Agent";
    const std::string doing = "connecting to " + path;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return system_error(ENAMETOOLONG, doing);
    std::memcpy(address.sun_path, path.data(), path.size());

    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return system_error(errno, doing);
    // connect(2) waits while the listener's queue is full, for as long as it may send (unix(7)).
    const timeval timeout{.tv_sec = kConnectTimeout.count(), .tv_usec = 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    const auto until = std::chrono::steady_clock::now() + patience;
    const auto is_worth_another_try = [&] {
        if (errno == EINTR) return true;
        if (errno != ECONNREFUSED || std::chrono::steady_clock::now() >= until) return false;
        std::this_thread::sleep_for(kRestartStep);
        return true;
    };
    int result = 0;
    do {
        result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    } while (result != 0 && is_worth_another_try());
    if (result != 0) {
        if (errno == EAGAIN) return failed(doing, "the agent does not answer");
        return system_error(errno, doing, errno == ENOENT || errno == ECONNREFUSED ? "no agent runs there" : "");
    }

    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return system_error(errno, doing);
    if (peer.uid != 0 && peer.uid != ::geteuid())
        return failed(doing, "uid " + std::to_string(peer.uid) + " listens there, who is neither root nor you");
    return Client(std::move(fd));
}

Expected<void> Client::send(const varlink::Call& call, Deadline deadline, const std::string& doing) {
    const std::string message = to_message(call);
    for (std::string_view bytes = message; !bytes.empty();) {
        const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        } else if (errno == EAGAIN) {
            if (auto ready = wait_for(fd_.get(), POLLOUT, deadline, doing); !ready) return ready;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return failed(doing, "the agent closed the connection (too many are open?)");
        } else if (errno != EINTR) {
            return system_error(errno, doing);
        }
    }
    return {};
}

Expected<std::string> Client::receive_message(Deadline deadline, const std::string& doing) {
    std::array<char, 16384> chunk;
    for (;;) {
        if (auto message = messages_.next()) return std::move(*message);
        if (messages_.too_long()) return failed(doing, "the agent's answer is too long");
        if (auto ready = wait_for(fd_.get(), POLLIN, deadline, doing); !ready)
            return tl::make_unexpected(ready.error());
        const ssize_t size = ::recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
        if (size > 0)
            messages_.append({chunk.data(), static_cast<std::size_t>(size)});
        else if (size == 0 || errno == ECONNRESET)
            return failed(doing, deadline ? "the agent closed the connection (too many are open?)"
                                          : "the agent ended, or closed the connection");
        else if (errno != EINTR && errno != EAGAIN)
            return system_error(errno, doing);
    }
}

Expected<varlink::Reply> Client::receive(Deadline deadline, const std::string& doing) {
    const auto message = receive_message(deadline, doing);
    if (!message) return tl::make_unexpected(message.error());
    auto reply = varlink::parse_reply(*message);
    if (!reply) return failed(doing, "the agent's answer makes no sense: " + reply.error().detail);
    if (!reply->error.empty()) return failed(doing, reason_of(*reply));
    return reply;
}

Expected<boost::json::object> Client::call(std::string_view method, boost::json::object parameters,
                                           const std::string& doing, std::chrono::milliseconds at_most) {
    const auto deadline = Clock::now() + at_most;
    if (auto sent = send(call_of(method, std::move(parameters)), deadline, doing); !sent)
        return tl::make_unexpected(sent.error());
    auto reply = receive(deadline, doing);
    if (!reply) return tl::make_unexpected(reply.error());
    return std::move(reply->parameters);
}

Expected<void> Client::follow(std::string_view method, const std::string& doing,
                              const std::function<bool(const boost::json::object&)>& each) {
    Deadline deadline = Clock::now() + kReplyTimeout;
    varlink::Call call = call_of(method, {});
    call.more = true;
    if (auto sent = send(call, deadline, doing); !sent) return sent;
    for (;;) {
        const auto reply = receive(deadline, doing);
        if (!reply) return tl::make_unexpected(reply.error());
        if (!each(reply->parameters) || !reply->continues) return {};
        deadline.reset();
    }
}

} // namespace novpn
