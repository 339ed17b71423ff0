#include "agent/sources/sources.h"

#include <boost/asio/post.hpp>
#include <mutex>
#include <utility>

namespace novpn {

namespace asio = boost::asio;

/// Where the thread leaves its answer. Outlives Sources when a look hangs.
struct Sources::Mailbox {
    std::mutex mutex;
    Sources* owner = nullptr; ///< none once Sources is gone
};

Sources::Sources(asio::io_context& io, Look look, Heard heard)
    : io_(io)
    , look_(std::move(look))
    , heard_(std::move(heard))
    , mailbox_(std::make_shared<Mailbox>()) {
    mailbox_->owner = this;
}

Sources::~Sources() {
    {
        const std::lock_guard lock(mailbox_->mutex);
        mailbox_->owner = nullptr;
    }
    // Its destructor would join the thread, and that one sits in a look that does not end.
    if (looking_) (void)thread_.release();
}

std::chrono::steady_clock::duration Sources::ask() {
    const auto now = std::chrono::steady_clock::now();
    if (looking_) {
        again_ = true;
        return now - asked_;
    }
    looking_ = true;
    asked_ = now;
    if (!thread_) thread_ = std::make_unique<asio::thread_pool>(1);
    asio::post(*thread_, [mailbox = mailbox_, look = look_] {
        Hints hints = look();
        const std::lock_guard lock(mailbox->mutex);
        if (mailbox->owner == nullptr) return;
        asio::post(mailbox->owner->io_, [mailbox, hints = std::move(hints)]() mutable {
            // On the loop's thread, where the owner lives and ends.
            if (mailbox->owner == nullptr) return;
            mailbox->owner->looking_ = false;
            if (std::exchange(mailbox->owner->again_, false)) mailbox->owner->ask();
            mailbox->owner->heard_(std::move(hints));
        });
    });
    return {};
}

} // namespace novpn
