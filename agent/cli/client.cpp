#include "agent/cli/client.h"

#include <array>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace novpn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kConnectTimeout = std::chrono::seconds(5);
/// Far above the status of a busy machine; a bound all the same on what the other side may make us hold.
constexpr std::size_t kMaxReplySize = std::size_t{16} * 1024 * 1024;

tl::unexpected<Error> failed(std::string doing, std::string reason, std::error_code code = {}) {
    return tl::make_unexpected(Error{.code = code, .doing = std::move(doing), .detail = std::move(reason)});
}

/// Waits until the socket is ready for `events`, not beyond `deadline`.
Expected<void> wait_for(int fd, short events, Clock::time_point deadline, const std::string& doing) {
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        if (left <= 0) return failed(doing, "the agent does not answer");
        pollfd ready{.fd = fd, .events = events, .revents = 0};
        const int count = ::poll(&ready, 1, static_cast<int>(left));
        if (count > 0) return {};
        if (count < 0 && errno != EINTR) return system_error(errno, doing);
    }
}

Expected<void> send_all(int fd, std::string_view bytes, Clock::time_point deadline, const std::string& doing) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        } else if (errno == EAGAIN) {
            if (auto ready = wait_for(fd, POLLOUT, deadline, doing); !ready) return ready;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return failed(doing, "the agent closed the connection (too many are open?)");
        } else if (errno != EINTR) {
            return system_error(errno, doing);
        }
    }
    return {};
}

Expected<std::string> receive_message(int fd, Clock::time_point deadline, const std::string& doing) {
    varlink::Messages messages(kMaxReplySize);
    std::array<char, 16384> chunk;
    for (;;) {
        if (auto message = messages.next()) return std::move(*message);
        if (messages.too_long()) return failed(doing, "the agent's answer is too long");
        if (auto ready = wait_for(fd, POLLIN, deadline, doing); !ready) return tl::make_unexpected(ready.error());
        const ssize_t size = ::recv(fd, chunk.data(), chunk.size(), MSG_DONTWAIT);
        if (size > 0)
            messages.append({chunk.data(), static_cast<std::size_t>(size)});
        else if (size == 0 || errno == ECONNRESET)
            return failed(doing, "the agent closed the connection (too many are open?)");
        else if (errno != EINTR && errno != EAGAIN)
            return system_error(errno, doing);
    }
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

Expected<Client> Client::connect(const std::string& runtime_dir) {
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
    int result = 0;
    do {
        result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    } while (result != 0 && errno == EINTR);
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

Expected<boost::json::object> Client::call(std::string_view method, boost::json::object parameters, std::string doing,
                                           std::chrono::milliseconds at_most) {
    const auto deadline = Clock::now() + at_most;
    varlink::Call call;
    call.method = "io.novpn.Agent." + std::string(method);
    call.parameters = std::move(parameters);
    if (auto sent = send_all(fd_.get(), to_message(call), deadline, doing); !sent)
        return tl::make_unexpected(sent.error());
    const auto message = receive_message(fd_.get(), deadline, doing);
    if (!message) return tl::make_unexpected(message.error());
    auto reply = varlink::parse_reply(*message);
    if (!reply) return failed(std::move(doing), "the agent's answer makes no sense: " + reply.error().detail);
    if (!reply->error.empty()) return failed(std::move(doing), reason_of(*reply));
    return std::move(reply->parameters);
}

} // namespace novpn
