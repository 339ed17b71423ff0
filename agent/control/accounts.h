// Whether a user is in `allow`. Name services may block for long (LDAP, sssd), so they are asked on a thread of their
// own; a caller waits 200 ms at most, and no answer means no. All calls on the loop's thread.
#pragma once

#include "agent/control/service.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

namespace novpn {

/// Blocking: getpwuid_r, getgrouplist, getgrnam_r. The group that the kernel reports for the caller counts too.
bool is_allowed(const Caller& caller, const Allow& allow);

/// A user of whom no process is known: (gid_t)-1 is nobody's group.
Caller user_alone(uid_t uid);

/// The same, in 200 ms at most: nothing where no answer has come by then. For where no loop runs.
std::optional<bool> is_allowed_now(uid_t uid, const Allow& allow);

class Accounts {
  public:
    using Lookup = std::function<bool(const Caller&, const Allow&)>;
    static constexpr auto kMaxWait = std::chrono::milliseconds(200);
    static constexpr auto kKeepFor = std::chrono::seconds(60);

    explicit Accounts(boost::asio::io_context& io, Lookup lookup = is_allowed);
    Accounts(const Accounts&) = delete;
    Accounts& operator=(const Accounts&) = delete;
    /// Waits for no lookup: one that hangs must not keep the agent from ending.
    ~Accounts();
    /// Lets go of the loop, which may end from now on; later answers are dropped.
    void close();

    /// A late answer is kept too, so that the next call has it.
    boost::asio::awaitable<bool> allowed(Caller caller, Allow allow);
    /// For who can wait: as long as the name service takes.
    boost::asio::awaitable<bool> allowed_at_last(Caller caller, Allow allow);
    /// Nothing where no answer has come by then.
    boost::asio::awaitable<std::optional<bool>> ask(Caller caller, Allow allow,
                                                    std::chrono::steady_clock::time_point until);

  private:
    using Key = std::pair<uid_t, gid_t>;
    struct Answer {
        Allow to;
        bool allowed = false;
        std::chrono::steady_clock::time_point at;
    };
    struct Mailbox;

    const Answer* fresh(const Key& key, const Allow& allow) const;
    void start_lookup(const Caller& caller, const Allow& allow);
    void answered(const Key& key, Answer answer);

    boost::asio::io_context& io_;
    Lookup lookup_;
    std::map<Key, Answer> answers_;
    std::set<Key> looking_up_; ///< one lookup a key at a time, so that a flood of calls queues no more than that
    std::multimap<Key, boost::asio::steady_timer*> waiting_;
    std::shared_ptr<Mailbox> mailbox_;
    std::unique_ptr<boost::asio::thread_pool> thread_; ///< made at the first lookup
};

} // namespace novpn
