#include "rules/nft_socket.h"

#include <cerrno>
#include <chrono>
#include <libmnl/libmnl.h>
#include <libnftnl/common.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <optional>
#include <sys/socket.h>
#include <sys/time.h>

namespace novpn::nft {
namespace {

// One message holds one object, or kElementsAMessage set elements: far below this.
constexpr std::size_t kMaxMessage = 64UL * 1024;
// The kernel makes dump messages of at most 32 KB.
constexpr std::size_t kReceive = 64UL * 1024;
constexpr int kSocketBuffer = 1024 * 1024;
constexpr time_t kReplySeconds = 5;
constexpr int kDumpAttempts = 10;

struct Refusal {
    int number = 0;
    std::string detail;
};

/// The error of an NLMSG_ERROR or NLMSG_DONE message, 0 for an acknowledgement, with the extended ACK's text.
Refusal refusal_in(const nlmsghdr* message) {
    if (message->nlmsg_type == NLMSG_DONE) {
        if (mnl_nlmsg_get_payload_len(message) < sizeof(int)) return {};
        return {.number = -*static_cast<const int*>(mnl_nlmsg_get_payload(message)), .detail = {}};
    }
    if (mnl_nlmsg_get_payload_len(message) < sizeof(nlmsgerr)) return {.number = EBADMSG, .detail = {}};
    const auto* error = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(message));
    Refusal refusal{.number = -error->error, .detail = {}};
    if ((message->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return refusal;
    std::size_t offset = sizeof(nlmsgerr);
    if ((message->nlmsg_flags & NLM_F_CAPPED) == 0) offset += error->msg.nlmsg_len - sizeof(nlmsghdr);
    if (offset > mnl_nlmsg_get_payload_len(message)) return refusal;
    const auto take = [](const nlattr* attribute, void* detail) -> int {
        if (mnl_attr_get_type(attribute) == NLMSGERR_ATTR_MSG &&
            mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) >= 0) {
            *static_cast<std::string*>(detail) = mnl_attr_get_str(attribute);
        }
        return MNL_CB_OK;
    };
    mnl_attr_parse(message, static_cast<unsigned>(offset), take, &refusal.detail);
    return refusal;
}

} // namespace

Batch::Batch()
    : scratch_(kMaxMessage) {
    nftnl_batch_begin(scratch_.data(), ++sequence_);
    const auto* header = reinterpret_cast<const nlmsghdr*>(scratch_.data());
    bytes_.assign(scratch_.data(), scratch_.data() + header->nlmsg_len);
}

void Batch::add(std::uint16_t type, std::uint16_t flags, const std::function<void(nlmsghdr*)>& fill) {
    nlmsghdr* header = nftnl_nlmsg_build_hdr(scratch_.data(), type, NFPROTO_INET, flags, ++sequence_);
    fill(header);
    last_ = bytes_.size();
    bytes_.insert(bytes_.end(), scratch_.data(), scratch_.data() + header->nlmsg_len);
}

std::vector<char> Batch::finish() {
    // Linux before 6.10 ignores NLM_F_ACK on the batch's end, so the last request carries it.
    reinterpret_cast<nlmsghdr*>(bytes_.data() + last_)->nlmsg_flags |= NLM_F_ACK;
    nftnl_batch_end(scratch_.data(), sequence_ + 1);
    const auto* header = reinterpret_cast<const nlmsghdr*>(scratch_.data());
    bytes_.insert(bytes_.end(), scratch_.data(), scratch_.data() + header->nlmsg_len);
    return std::move(bytes_);
}

void Answer::append(const nlmsghdr* message) {
    const auto* first = reinterpret_cast<const char*>(message);
    bytes_.insert(bytes_.end(), first, first + message->nlmsg_len);
    bytes_.resize(MNL_ALIGN(bytes_.size()));
}

void Answer::for_each(const std::function<void(const nlmsghdr*)>& visit) const {
    int left = static_cast<int>(bytes_.size());
    const auto* message = reinterpret_cast<const nlmsghdr*>(bytes_.data());
    for (; is_whole(message, left); message = mnl_nlmsg_next(message, &left)) visit(message);
}

void Socket::Close::operator()(mnl_socket* socket) const { mnl_socket_close(socket); }

Expected<Socket> Socket::open() {
    const std::string doing = "opening the nf_tables socket";
    mnl_socket* raw = mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC);
    if (raw == nullptr) return system_error(errno, doing, errno == EPROTONOSUPPORT ? "NF_TABLES: nf_tables" : "");
    Socket socket(raw);
    if (mnl_socket_bind(raw, 0, MNL_SOCKET_AUTOPID) < 0) return system_error(errno, doing);

    const int fd = mnl_socket_get_fd(raw);
    const int on = 1;
    const timeval timeout{.tv_sec = kReplySeconds, .tv_usec = 0};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) < 0) return system_error(errno, doing);
    // Without these two the errors lack their text, and the buffers may be too small for a thousand members:
    // survivable.
    (void)mnl_socket_setsockopt(raw, NETLINK_EXT_ACK, const_cast<int*>(&on), sizeof on);
    (void)mnl_socket_setsockopt(raw, NETLINK_CAP_ACK, const_cast<int*>(&on), sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kSocketBuffer, sizeof kSocketBuffer);
    socket.received_.resize(kReceive);
    return socket;
}

std::uint32_t Socket::port_id() const { return mnl_socket_get_portid(socket_.get()); }

Expected<void> Socket::send(const std::vector<char>& bytes, const std::string& doing) {
    // Every batch has the same numbers: what one that failed left unread would be taken for the answer to this one. And
    // a dump that was not read to its end makes the kernel refuse the next one.
    while (recv(mnl_socket_get_fd(socket_.get()), received_.data(), received_.size(), MSG_DONTWAIT) >= 0 ||
           errno == ENOBUFS) {
    }
    while (mnl_socket_sendto(socket_.get(), bytes.data(), bytes.size()) < 0) {
        if (errno != EINTR) return system_error(errno, doing);
    }
    return {};
}

Expected<void> Socket::commit(Batch batch, const std::string& doing, std::uint32_t* failed_at) {
    const std::uint32_t last = batch.last_sequence();
    if (auto sent = send(batch.finish(), doing); !sent) return sent;

    std::optional<Refusal> first;
    bool acknowledged = false;
    // Every answer is queued by now. The first refusal is the cause; later ones may only follow from it.
    while (true) {
        const ssize_t size = recv(mnl_socket_get_fd(socket_.get()), received_.data(), received_.size(), MSG_DONTWAIT);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && errno == EAGAIN) break;
        if (size < 0) return system_error(errno, doing);
        int left = static_cast<int>(size);
        const auto* message = reinterpret_cast<const nlmsghdr*>(received_.data());
        for (; is_whole(message, left); message = mnl_nlmsg_next(message, &left)) {
            if (message->nlmsg_type != NLMSG_ERROR) continue;
            const Refusal refusal = refusal_in(message);
            if (refusal.number == 0) acknowledged |= message->nlmsg_seq == last;
            if (refusal.number != 0 && !first) {
                first = refusal;
                if (failed_at != nullptr) *failed_at = message->nlmsg_seq;
            }
        }
    }
    if (first) return system_error(first->number, doing, first->detail);
    if (!acknowledged) return system_error(EPROTO, doing, "the kernel did not acknowledge the batch");
    ++commits_;
    return {};
}

Expected<Answer> Socket::ask(std::uint16_t type, std::uint16_t flags, const std::function<void(nlmsghdr*)>& fill,
                             const std::string& doing) {
    std::vector<char> request(kMaxMessage / 8);
    const std::uint32_t sequence = ++sequence_;
    nlmsghdr* header = nftnl_nlmsg_build_hdr(request.data(), type, NFPROTO_INET, flags, sequence);
    fill(header);
    request.resize(header->nlmsg_len);
    if (auto sent = send(request, doing); !sent) return tl::make_unexpected(sent.error());

    Answer answer;
    bool interrupted = false;
    while (true) {
        const ssize_t size = recv(mnl_socket_get_fd(socket_.get()), received_.data(), received_.size(), MSG_TRUNC);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return system_error(errno == EAGAIN ? ETIMEDOUT : errno, doing);
        if (static_cast<std::size_t>(size) > received_.size()) return system_error(EMSGSIZE, doing);
        int left = static_cast<int>(size);
        const auto* message = reinterpret_cast<const nlmsghdr*>(received_.data());
        for (; is_whole(message, left); message = mnl_nlmsg_next(message, &left)) {
            // What is left of an earlier request that timed out.
            if (message->nlmsg_seq != sequence) continue;
            interrupted |= (message->nlmsg_flags & NLM_F_DUMP_INTR) != 0;
            if (message->nlmsg_type == NLMSG_ERROR || message->nlmsg_type == NLMSG_DONE) {
                const Refusal refusal = refusal_in(message);
                if (refusal.number != 0) return system_error(refusal.number, doing, refusal.detail);
                if (interrupted) return system_error(EINTR, doing);
                return answer;
            }
            answer.append(message);
            if ((flags & NLM_F_DUMP) == 0) return answer;
        }
        // What is missing of a dump would be taken for gone.
        if (left > 0) return system_error(EBADMSG, doing);
    }
}

Expected<Answer> Socket::dump(std::uint16_t type, const std::function<void(nlmsghdr*)>& fill,
                              const std::string& doing) {
    for (int attempt = 1;; ++attempt) {
        auto answer = ask(type, NLM_F_DUMP, fill, doing);
        // Somebody's transaction changed the ruleset amid the dump: it may miss or repeat entries.
        const bool again = !answer && answer.error().code == std::errc::interrupted;
        if (!again || attempt == kDumpAttempts) return answer;
    }
}

Expected<Answer> Socket::get(std::uint16_t type, const std::function<void(nlmsghdr*)>& fill, const std::string& doing) {
    return ask(type, 0, fill, doing);
}

} // namespace novpn::nft
