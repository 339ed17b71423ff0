// Netlink sockets: opening them, taking datagrams apart, and one request with the whole of its answer. Shared by the
// protocols of this folder (rtnetlink, sock_diag); others see their classes. Synchronous; not thread-safe.
#pragma once

#include "netlink/error.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

struct nl_msg;
struct nl_sock;
struct nlmsghdr;

namespace novpn {

struct NlDeleter {
    void operator()(nl_sock* socket) const;
    void operator()(nl_msg* message) const;
};
using NlSocket = std::unique_ptr<nl_sock, NlDeleter>;
using NlMessage = std::unique_ptr<nl_msg, NlDeleter>;

/// A socket of `protocol` (NETLINK_ROUTE, ...) in those multicast groups; `name` is for errors ("rtnetlink").
Expected<NlSocket> open_netlink(int protocol, std::string_view name, std::initializer_list<int> groups = {});

/// The kernel fills at most 32 KiB of a dump into one datagram (net/netlink/af_netlink.c).
inline constexpr std::size_t kNetlinkDatagram = 65536;
/// recv(2) of one datagram; EINTR is repeated. Negative: errno.
ssize_t receive(const nl_sock* socket, std::span<std::byte> buffer, int flags);

/// A request that begins with the protocol's fixed header.
NlMessage make_request(int type, const void* header, std::size_t size);
template<typename Header>
NlMessage make_request(int type, const Header& header) {
    return make_request(type, &header, sizeof header);
}

/// A socket for requests, one at a time.
class RequestSocket {
  public:
    static Expected<RequestSocket> open(int protocol, std::string_view name);

    using Visit = std::function<void(std::span<const std::byte> message)>;
    /// Sends and shows every message of the answer, but its last, to `visit`. An answer that takes 5 s is an error.
    Expected<void> ask(nl_msg& request, const Visit& visit, const std::string& doing);
    /// The same of a request that is built elsewhere, with its whole length behind the header.
    Expected<void> ask(nlmsghdr& request, const Visit& visit, const std::string& doing);
    /// Many in a datagram, each as built elsewhere. The errno and reason of what the kernel refused, by its place; it
    /// goes on behind that. Where an answer is lost, those that went with it have its error.
    std::map<std::size_t, Error> ask_each(std::span<nlmsghdr* const> requests);
    /// A question that has one message for an answer, which `visit` is shown, or an error.
    Expected<void> get(nlmsghdr& request, const Visit& visit, const std::string& doing);
    /// What `convert` makes of the messages of a dump, which is taken again when the kernel's state changed under it.
    template<typename T, typename Convert>
    Expected<std::vector<T>> dump(nl_msg& request, const Convert& convert, const std::string& doing) {
        std::vector<T> found;
        auto visit = [&](std::span<const std::byte> message) { append(found, convert(message)); };
        auto done = dump(
            request, [&] { found.clear(); }, visit, doing);
        if (!done) return tl::make_unexpected(std::move(done.error()));
        return found;
    }

    std::uint32_t port() const;

  private:
    explicit RequestSocket(NlSocket socket);
    struct Answer {
        int failure = 0; ///< errno
        std::string reason;
        bool interrupted = false; ///< NLM_F_DUMP_INTR
    };
    template<typename T>
    static void append(std::vector<T>& found, std::optional<T> value) {
        if (value) found.push_back(std::move(*value));
    }
    template<typename T>
    static void append(std::vector<T>& found, std::vector<T> values) {
        found.insert(found.end(), std::make_move_iterator(values.begin()), std::make_move_iterator(values.end()));
    }
    Expected<void> dump(nl_msg& request, const std::function<void()>& begin, const Visit& visit,
                        const std::string& doing);
    Expected<void> send(const void* data, std::size_t size, const std::string& doing);
    Expected<Answer> exchange(nlmsghdr& request, const Visit& visit, const std::string& doing);
    Expected<void> exchange(std::span<nlmsghdr* const> requests, const std::function<void(std::size_t, Error)>& refuse);
    NlSocket socket_;
    std::uint32_t sequence_ = 0; ///< of the last request
    std::vector<std::byte> buffer_;
};

} // namespace novpn
