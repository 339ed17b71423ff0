#include "netlink/nl_socket.h"

#include "netlink/attributes.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <new>
#include <sys/socket.h>
#include <sys/time.h>

namespace novpn {

namespace {

constexpr int kDumpAttempts = 10;
/// Of a request; the longest has a header and half a dozen numbers and addresses. libnl clears all of it.
constexpr std::size_t kRequestRoom = 512;
/// As many refusals fit in the socket's queue, whatever they say.
constexpr std::size_t kRequestsOfADatagram = 64;

/// The text of NLMSGERR_ATTR_MSG; the socket asks for capped ACKs, so the attributes follow the fixed part at once.
std::string extended_ack(const nlmsghdr& header) {
    constexpr unsigned kFixed = NLMSG_LENGTH(sizeof(nlmsgerr));
    if (!(header.nlmsg_flags & NLM_F_ACK_TLVS) || header.nlmsg_len <= kFixed) return {};
    auto* head = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(const_cast<nlmsghdr*>(&header)) + kFixed);
    auto* text = nla_find(head, static_cast<int>(header.nlmsg_len - kFixed), NLMSGERR_ATTR_MSG);
    if (!text) return {};
    const char* data = static_cast<const char*>(nla_data(text));
    return {data, strnlen(data, static_cast<std::size_t>(nla_len(text)))};
}

/// What is left of an answer: a dump that was not read to its end makes the kernel refuse the next one (EBUSY).
void drop_unread(const nl_sock* socket, std::span<std::byte> buffer) {
    ssize_t size = 0;
    do size = receive(socket, buffer, MSG_DONTWAIT);
    while (size >= 0 || errno == ENOBUFS);
}

} // namespace

void NlDeleter::operator()(nl_sock* socket) const { nl_socket_free(socket); }
void NlDeleter::operator()(nl_msg* message) const { nlmsg_free(message); }

Expected<NlSocket> open_netlink(int protocol, std::string_view name, std::initializer_list<int> groups) {
    NlSocket socket(nl_socket_alloc());
    if (!socket) throw std::bad_alloc();
    // nl_connect() opens with SOCK_CLOEXEC. Its own error codes lose errno, which is still set after it.
    if (nl_connect(socket.get(), protocol) < 0) return system_error(errno, fmt::format("opening the {} socket", name));
    int fd = nl_socket_get_fd(socket.get());
    int one = 1;
    // All three are older than Linux 5.0; without them errors have no text and dumps no filter.
    for (int option : {NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK}) {
        if (setsockopt(fd, SOL_NETLINK, option, &one, sizeof one) < 0)
            return system_error(errno, fmt::format("setting up the {} socket", name), "Linux 5.0 or newer is needed");
    }
    for (int group : groups) {
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
            return system_error(errno, fmt::format("subscribing to {} group {}", name, group));
    }
    return socket;
}

ssize_t receive(const nl_sock* socket, std::span<std::byte> buffer, int flags) {
    ssize_t size = 0;
    do size = recv(nl_socket_get_fd(socket), buffer.data(), buffer.size(), flags);
    while (size < 0 && errno == EINTR);
    return size;
}

NlMessage make_request(int type, const void* header, std::size_t size) {
    NlMessage message(nlmsg_alloc_size(kRequestRoom));
    if (!message || !nlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, type, 0, NLM_F_REQUEST))
        throw std::bad_alloc();
    // nlmsg_append() takes no const but does not write.
    if (nlmsg_append(message.get(), const_cast<void*>(header), size, NLMSG_ALIGNTO) < 0) throw std::bad_alloc();
    return message;
}

Expected<RequestSocket> RequestSocket::open(int protocol, std::string_view name) {
    auto socket = open_netlink(protocol, name);
    if (!socket) return tl::make_unexpected(socket.error());
    // A request is answered at once; a kernel that does not answer is an error, never a hang.
    timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(nl_socket_get_fd(socket->get()), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return RequestSocket(std::move(*socket));
}

RequestSocket::RequestSocket(NlSocket socket)
    : socket_(std::move(socket))
    , buffer_(kNetlinkDatagram) {}

std::uint32_t RequestSocket::port() const { return nl_socket_get_local_port(socket_.get()); }

Expected<void> RequestSocket::send(const void* data, std::size_t size, const std::string& doing) {
    constexpr sockaddr_nl kKernel{.nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = 0, .nl_groups = 0};
    if (sendto(nl_socket_get_fd(socket_.get()), data, size, 0, reinterpret_cast<const sockaddr*>(&kKernel),
               sizeof kKernel) < 0)
        return system_error(errno, doing);
    return {};
}

Expected<RequestSocket::Answer> RequestSocket::exchange(nlmsghdr& request, const Visit& visit,
                                                        const std::string& doing) {
    const std::uint32_t sequence = ++sequence_;
    const bool has_end = request.nlmsg_flags & (NLM_F_ACK | NLM_F_DUMP);
    request.nlmsg_flags |= NLM_F_REQUEST; // what libnl builds for rules has not got it
    request.nlmsg_seq = sequence;
    request.nlmsg_pid = port();
    if (auto sent = send(&request, request.nlmsg_len, doing); !sent) return tl::make_unexpected(sent.error());
    auto fail = [&](int error) {
        drop_unread(socket_.get(), buffer_);
        return system_error(error, doing);
    };
    Answer answer;
    for (bool done = false; !done;) {
        ssize_t size = receive(socket_.get(), buffer_, MSG_TRUNC);
        // SO_RCVTIMEO ends in EAGAIN (socket(7)), which is also what the lookup of a throw route answers.
        if (size < 0) return fail(errno == EAGAIN ? ETIMEDOUT : errno);
        const auto length = static_cast<std::size_t>(size);
        if (length > buffer_.size()) return fail(EMSGSIZE);
        std::size_t understood = 0;
        for_each_message({buffer_.data(), length}, [&](const nlmsghdr& message) {
            understood += NLMSG_ALIGN(message.nlmsg_len);
            if (message.nlmsg_seq != sequence) return; // what an earlier, failed request left behind
            if (message.nlmsg_flags & NLM_F_DUMP_INTR) answer.interrupted = true;
            if (message.nlmsg_type == NLMSG_DONE || message.nlmsg_type == NLMSG_ERROR) {
                done = true;
                // Both begin with a negative errno; an ACK has 0.
                if (message.nlmsg_len >= NLMSG_LENGTH(sizeof(int)))
                    answer.failure = -*static_cast<const int*>(NLMSG_DATA(&message));
                else if (message.nlmsg_type == NLMSG_ERROR)
                    answer.failure = EBADMSG;
                if (message.nlmsg_type == NLMSG_ERROR) answer.reason = extended_ack(message);
            } else {
                visit({reinterpret_cast<const std::byte*>(&message), message.nlmsg_len});
                done = done || !has_end;
            }
        });
        // What is missing of a dump would be taken for gone.
        if (understood < length) return fail(EBADMSG);
    }
    // A dump that was given up by a timeout was answered after that.
    if (answer.failure == EBUSY) drop_unread(socket_.get(), buffer_);
    return answer;
}

Expected<void> RequestSocket::ask(nl_msg& request, const Visit& visit, const std::string& doing) {
    return ask(*nlmsg_hdr(&request), visit, doing);
}

Expected<void> RequestSocket::ask(nlmsghdr& request, const Visit& visit, const std::string& doing) {
    request.nlmsg_flags |= NLM_F_ACK; // so that every answer has an end
    auto answer = exchange(request, visit, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    if (answer->failure) return system_error(answer->failure, doing, std::move(answer->reason));
    return {};
}

std::map<std::size_t, Error> RequestSocket::ask_each(std::span<nlmsghdr* const> requests) {
    std::map<std::size_t, Error> refused;
    for (std::size_t begun = 0; begun < requests.size(); begun += kRequestsOfADatagram) {
        const auto some = requests.subspan(begun, std::min(kRequestsOfADatagram, requests.size() - begun));
        auto done = exchange(some, [&](std::size_t at, Error error) { refused.emplace(begun + at, std::move(error)); });
        for (std::size_t at = 0; !done && at < some.size(); ++at) refused.insert_or_assign(begun + at, done.error());
    }
    return refused;
}

/// The kernel takes the messages of a datagram one after another, and answers those that it refuses and the last.
Expected<void> RequestSocket::exchange(std::span<nlmsghdr* const> requests,
                                       const std::function<void(std::size_t, Error)>& refuse) {
    const std::uint32_t first = sequence_ + 1;
    std::vector<std::byte> datagram;
    for (nlmsghdr* request : requests) {
        request->nlmsg_seq = ++sequence_;
        request->nlmsg_pid = port();
        if (request == requests.back()) request->nlmsg_flags |= NLM_F_ACK;
        const auto* bytes = reinterpret_cast<const std::byte*>(request);
        datagram.insert(datagram.end(), bytes, bytes + request->nlmsg_len);
        datagram.resize(NLMSG_ALIGN(datagram.size()));
    }
    if (auto sent = send(datagram.data(), datagram.size(), {}); !sent) return sent;
    for (bool done = false; !done;) {
        const ssize_t size = receive(socket_.get(), buffer_, MSG_TRUNC);
        const auto fail = [&](int error) {
            drop_unread(socket_.get(), buffer_);
            return system_error(error, {});
        };
        if (size < 0) return fail(errno == EAGAIN ? ETIMEDOUT : errno);
        bool is_understood = true;
        for_each_message({buffer_.data(), static_cast<std::size_t>(size)}, [&](const nlmsghdr& message) {
            const std::uint32_t at = message.nlmsg_seq - first;
            if (at >= requests.size() || message.nlmsg_type != NLMSG_ERROR) return;
            if (message.nlmsg_len < NLMSG_LENGTH(sizeof(int))) return void(is_understood = false);
            const int failure = -*static_cast<const int*>(NLMSG_DATA(&message));
            if (failure) refuse(at, system_error(failure, {}, extended_ack(message)).value());
            done = done || at + 1 == requests.size();
        });
        if (!is_understood) return fail(EBADMSG);
    }
    return {};
}

Expected<void> RequestSocket::get(nlmsghdr& request, const Visit& visit, const std::string& doing) {
    auto answer = exchange(request, visit, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    if (answer->failure) return system_error(answer->failure, doing, std::move(answer->reason));
    return {};
}

Expected<void> RequestSocket::dump(nl_msg& request, const std::function<void()>& begin, const Visit& visit,
                                   const std::string& doing) {
    nlmsg_hdr(&request)->nlmsg_flags |= NLM_F_DUMP;
    for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
        begin();
        auto answer = exchange(*nlmsg_hdr(&request), visit, doing);
        if (!answer) return tl::make_unexpected(answer.error());
        if (answer->failure) return system_error(answer->failure, doing, std::move(answer->reason));
        if (!answer->interrupted) return {};
    }
    return system_error(EINTR, doing, "the kernel's state kept changing during the dump");
}

} // namespace novpn
