// What the agent did, kept for those who watch: one ring for all of them, in which each reader has only a place. A
// reader that falls behind loses the oldest events and is told how many; nobody makes the agent hold more than the
// ring. On the loop's thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/object.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>

namespace novpn {

class Events {
  public:
    static constexpr std::size_t kMaxEvents = 64;
    /// Of the operations of one event; those beyond are counted in its `omitted`.
    static constexpr std::size_t kMaxText = std::size_t{16} * 1024;

    explicit Events(boost::asio::io_context& io)
        : io_(io) {}

    /// An event of Service::on_event().
    void add(const boost::json::object& event);

    /// Reads what is added from its making on.
    class Reader {
      public:
        explicit Reader(Events& events)
            : events_(events)
            , next_(events.end()) {}

        bool ready() const { return next_ < events_.end(); }
        /// Until ready(), or cancelled.
        boost::asio::awaitable<void> wait();
        /// The next event, with `lost`: how many were missed before it. Only when ready().
        boost::json::object take();

      private:
        Events& events_;
        std::uint64_t next_;
    };

  private:
    std::uint64_t end() const { return first_ + ring_.size(); }

    boost::asio::io_context& io_;
    std::deque<boost::json::object> ring_;
    std::uint64_t first_ = 0; ///< the number of the ring's oldest event
    std::set<boost::asio::steady_timer*> waiting_;
};

} // namespace novpn
