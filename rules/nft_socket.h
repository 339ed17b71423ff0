// Requests to nf_tables over one netlink socket: a batch, a dump, one question. Synchronous: the kernel has done a
// batch when sendmsg() returns. Knows netlink framing and errors, not what the messages say. Internal to rules/.
#pragma once

#include "netlink/error.h"

#include <cstdint>
#include <functional>
#include <libmnl/libmnl.h>
#include <memory>
#include <string>
#include <vector>

namespace novpn::nft {

/// The messages of one transaction: all happen or none.
class Batch {
  public:
    Batch();
    /// Adds a message of `type` (NFT_MSG_*); `fill` puts its attributes.
    void add(std::uint16_t type, std::uint16_t flags, const std::function<void(nlmsghdr*)>& fill);
    std::uint32_t last_sequence() const { return sequence_; }
    /// The whole transaction as it is sent. The last message asks for an acknowledgement.
    std::vector<char> finish();

  private:
    std::vector<char> bytes_;
    std::vector<char> scratch_;
    std::size_t last_ = 0; ///< where the last message begins
    std::uint32_t sequence_ = 0;
};

/// Whether a message of the `left` bytes begins at `message`, all of it. mnl_nlmsg_ok() compares lengths as int, so
/// that one of 2^31 and more passes, and mnl_nlmsg_next() then may stay where it is.
inline bool is_whole(const nlmsghdr* message, int left) {
    return mnl_nlmsg_ok(message, left) && message->nlmsg_len <= static_cast<unsigned>(left);
}

/// What the kernel answered: whole netlink messages, one after the other.
class Answer {
  public:
    void append(const nlmsghdr* message);
    void for_each(const std::function<void(const nlmsghdr*)>& visit) const;

  private:
    std::vector<char> bytes_;
};

class Socket {
  public:
    static Expected<Socket> open();
    std::uint32_t port_id() const;
    /// Transactions of this socket so far: the kernel counts its generation up with each.
    std::uint32_t commits() const { return commits_; }

    /// `failed_at`, when given, gets the sequence number of the first message that the kernel refused.
    Expected<void> commit(Batch batch, const std::string& doing, std::uint32_t* failed_at = nullptr);
    /// A dump of `type`; an interrupted one is repeated.
    Expected<Answer> dump(std::uint16_t type, const std::function<void(nlmsghdr*)>& fill, const std::string& doing);
    /// One question with one answer.
    Expected<Answer> get(std::uint16_t type, const std::function<void(nlmsghdr*)>& fill, const std::string& doing);

  private:
    struct Close {
        void operator()(mnl_socket* socket) const;
    };
    explicit Socket(mnl_socket* socket)
        : socket_(socket) {}
    Expected<void> send(const std::vector<char>& bytes, const std::string& doing);
    Expected<Answer> ask(std::uint16_t type, std::uint16_t flags, const std::function<void(nlmsghdr*)>& fill,
                         const std::string& doing);

    std::unique_ptr<mnl_socket, Close> socket_;
    std::uint32_t sequence_ = 0;
    std::uint32_t commits_ = 0;
    std::vector<char> received_;
};

} // namespace novpn::nft
