// Asks the sources on a thread of its own: a bus or a disk may take its time, and the loop waits for neither. All calls
// on the loop's thread.
#pragma once

#include "agent/hint.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <memory>

namespace novpn {

class Sources {
  public:
    using Look = std::function<Hints()>;      ///< on the other thread; may block
    using Heard = std::function<void(Hints)>; ///< on the loop's thread

    Sources(boost::asio::io_context& io, Look look, Heard heard);
    Sources(const Sources&) = delete;
    Sources& operator=(const Sources&) = delete;
    /// Waits for no look: one that hangs must not keep the agent from ending.
    ~Sources();

    /// Returns at once. One look at a time: while one is under way the next begins when that has ended, and how long it
    /// has taken so far is the answer.
    std::chrono::steady_clock::duration ask();

  private:
    struct Mailbox;

    boost::asio::io_context& io_;
    Look look_;
    Heard heard_;
    bool looking_ = false;
    bool again_ = false;
    std::chrono::steady_clock::time_point asked_; ///< the look under way
    std::shared_ptr<Mailbox> mailbox_;
    std::unique_ptr<boost::asio::thread_pool> thread_; ///< made when it is first needed
};

} // namespace novpn
