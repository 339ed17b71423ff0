#include "agent/control/control.h"

#include "agent/control/methods.h"
#include "agent/control/varlink.h"
#include "agent/spawn.h"

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

// Linux 6.5; the value of asm-generic/socket.h, which Debian 12's headers do not have yet.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace novpn {

namespace asio = boost::asio;
using namespace asio::experimental::awaitable_operators;
constexpr auto kUse = asio::as_tuple(asio::use_awaitable);

/// Shared with every connection's coroutine, so that it is there when the last of them ends.
struct Control::State {
    State(asio::io_context& loop, Service& agent, ControlLimits bounds, Accounts::Lookup lookup, std::string where)
        : io(loop)
        , limits(bounds)
        , serving(loop, agent, std::move(lookup))
        , path(std::move(where))
        , listener(loop) {}

    asio::io_context& io;
    const ControlLimits limits;
    Serving serving;
    const std::string path;
    bool leaves_socket = false;
    asio::posix::stream_descriptor listener;
    std::map<uid_t, std::size_t> connections_of;
    std::set<Connection*> connections;
    bool closed = false; ///< Control is gone: nothing new is served
};

struct Control::Connection {
    Connection(std::shared_ptr<State> of, Peer who, UniqueFd fd)
        : state(std::move(of))
        , peer(std::move(who))
        , socket(state->io, asio::local::stream_protocol(), fd.get()) {
        (void)fd.release();
        state->connections.insert(this);
        ++state->connections_of[peer.caller.uid];
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() {
        state->connections.erase(this);
        if (--state->connections_of[peer.caller.uid] == 0) state->connections_of.erase(peer.caller.uid);
    }

    /// False when the client is gone, or did not take the message in time: its connection is closed then.
    asio::awaitable<bool> send(std::string message) {
        asio::steady_timer deadline(state->io, state->limits.send_timeout);
        const auto first =
            co_await (asio::async_write(socket, asio::buffer(message), kUse) || deadline.async_wait(kUse));
        if (first.index() == 0 && !std::get<0>(std::get<0>(first))) co_return true;
        close();
        co_return false;
    }

    /// Returns when the client has closed, or this side has. What it may still send stays in the kernel, unread.
    asio::awaitable<void> gone() { co_await socket.async_wait(asio::socket_base::wait_error, kUse); }

    void close() {
        boost::system::error_code ignored; // The descriptor is gone after close(2), whatever it says.
        (void)socket.close(ignored);
    }

    std::shared_ptr<State> state;
    Peer peer;
    asio::local::stream_protocol::socket socket;
};

namespace {

Expected<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return system_error(ENAMETOOLONG, "listening on " + path);
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

const sockaddr* generic(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

/// Removes a socket that a dead agent left. Anything else at `path` stays, and bind(2) will say so.
Expected<void> remove_stale(const std::string& path, const sockaddr_un& address) {
    struct stat there {};
    if (::lstat(path.c_str(), &there) != 0 || !S_ISSOCK(there.st_mode)) return {};
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe) return system_error(errno, "making a socket");
    // Only "connection refused" means that nobody listens; a full queue (EAGAIN) has a live agent behind it.
    if (::connect(probe.get(), generic(address), sizeof address) == 0 || errno != ECONNREFUSED)
        return system_error(EADDRINUSE, "listening on " + path, "another agent runs there");
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return system_error(errno, "removing " + path);
    return {};
}

Expected<UniqueFd> listen_on(const std::string& path) {
    const auto address = address_of(path);
    if (!address) return tl::make_unexpected(address.error());
    if (auto removed = remove_stale(path, *address); !removed) return tl::make_unexpected(removed.error());
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return system_error(errno, "making a socket");
    if (::bind(fd.get(), generic(*address), sizeof *address) != 0) return system_error(errno, "listening on " + path);
    // bind(2) applied the umask. Anyone may connect: who may do what is decided a call.
    if (::chmod(path.c_str(), 0666) != 0 || ::listen(fd.get(), SOMAXCONN) != 0)
        return system_error(errno, "listening on " + path);
    return fd;
}

std::optional<Peer> peer_of(int fd) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return std::nullopt;
    Peer peer{.caller = {.uid = credentials.uid, .gid = credentials.gid, .pid = credentials.pid}, .pidfd = {}};
    int pidfd = -1;
    size = sizeof pidfd;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) peer.pidfd = UniqueFd(pidfd);
    return peer;
}

} // namespace

Expected<Control> Control::listen(asio::io_context& io, Service& service, const std::string& runtime_dir,
                                  ControlLimits limits, Accounts::Lookup lookup) {
    const std::string path = runtime_dir + "/" + kSocketName;
    auto fd = listen_on(path);
    if (!fd) return tl::make_unexpected(fd.error());
    auto state = std::make_shared<State>(io, service, limits, std::move(lookup), path);
    state->listener.assign(fd->release());
    spawn(io, accept(state));
    service.on_event([listening = std::weak_ptr<State>(state)](const boost::json::object& event) {
        const auto there = listening.lock();
        if (!there) return;
        there->serving.statuses.forget();
        there->serving.events.add(event);
    });
    return Control(std::move(state));
}

Control::Control(std::shared_ptr<State> state)
    : state_(std::move(state)) {}
Control::Control(Control&&) noexcept = default;

void Control::leave_socket() { state_->leaves_socket = true; }

Control::~Control() {
    if (!state_) return;
    state_->closed = true;
    if (!state_->leaves_socket) ::unlink(state_->path.c_str());
    boost::system::error_code ignored;
    (void)state_->listener.close(ignored);
    for (Connection* connection : state_->connections) connection->close();
    state_->serving.accounts.close();
}

asio::awaitable<void> Control::accept(std::shared_ptr<State> state) {
    // In turns, so that a flood of connections leaves the loop to others in between.
    constexpr int kTurn = 16;
    for (;;) {
        co_await state->listener.async_wait(asio::posix::stream_descriptor::wait_read, kUse);
        if (state->closed) co_return;
        for (int i = 0; i < kTurn; ++i) {
            // Asio's own accept would leave the descriptor open across exec for a moment.
            UniqueFd fd(::accept4(state->listener.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
            if (fd) {
                admit(state, std::move(fd));
                continue;
            }
            if (errno == EAGAIN) break;
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
                throw std::system_error(errno, std::system_category(), "accepting on " + state->path);
            // The connection stays queued and readable; nothing tells when there is room again.
            asio::steady_timer later(state->io, std::chrono::milliseconds(100));
            co_await later.async_wait(kUse);
            break;
        }
    }
}

void Control::admit(const std::shared_ptr<State>& state, UniqueFd fd) {
    auto peer = peer_of(fd.get());
    if (!peer) return;
    const uid_t uid = peer->caller.uid;
    const auto& limits = state->limits;
    const std::size_t room = limits.connections - (uid == 0 ? 0 : limits.reserved_for_root);
    const auto own = state->connections_of.find(uid);
    if (state->connections.size() >= room) return;
    if (own != state->connections_of.end() && own->second >= limits.connections_per_uid) return;
    spawn(state->io, serve(std::make_unique<Connection>(state, std::move(*peer), std::move(fd))));
}

asio::awaitable<void> Control::serve(std::unique_ptr<Connection> connection) {
    State& state = *connection->state;
    varlink::Messages messages(varlink::kMaxCallSize);
    std::array<char, 4096> chunk;
    const Exchange::Send send = [&](std::string message) { return connection->send(std::move(message)); };
    const Exchange::Gone gone = [&] { return connection->gone(); };
    while (!state.closed && connection->socket.is_open()) {
        if (const auto message = messages.next()) {
            auto call = varlink::parse_call(*message);
            if (!call) co_return;
            const bool oneway = call->oneway;
            Exchange exchange(state.serving, connection->peer, std::move(*call), send, gone);
            co_await answer(exchange);
            // A row of calls without replies would otherwise never let others have the loop.
            if (oneway) co_await asio::post(state.io, asio::use_awaitable);
            continue;
        }
        if (messages.too_long()) co_return;
        const auto [error, size] = co_await connection->socket.async_read_some(asio::buffer(chunk), kUse);
        if (error) co_return;
        messages.append({chunk.data(), size});
    }
}

} // namespace novpn
