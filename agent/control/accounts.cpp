#include "agent/control/accounts.h"

#include "agent/spawn.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <grp.h>
#include <mutex>
#include <optional>
#include <pwd.h>
#include <vector>

namespace novpn {
namespace {

namespace asio = boost::asio;

/// More callers than this in a minute begin with an empty cache.
constexpr std::size_t kMaxAnswers = 1024;

/// Calls one of the get*_r functions with a growing buffer, 1 MiB at most; false when there is no such entry.
template<typename Call>
bool with_growing_buffer(std::vector<char>& buffer, Call call) {
    for (buffer.resize(4096); buffer.size() <= std::size_t{1} << 20; buffer.resize(buffer.size() * 2)) {
        const int error = call();
        if (error == 0) return true;
        if (error != ERANGE && error != EINTR) return false;
    }
    return false;
}

std::optional<gid_t> group_named(const std::string& name) {
    group entry{};
    group* found = nullptr;
    std::vector<char> buffer;
    if (!with_growing_buffer(
            buffer, [&] { return ::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found); }) ||
        found == nullptr)
        return std::nullopt;
    return found->gr_gid;
}

std::vector<gid_t> groups_of(const char* user, gid_t primary) {
    std::vector<gid_t> groups(64);
    auto count = static_cast<int>(groups.size());
    // -1: the array is too small, and `count` says how many there are (NGROUPS_MAX is 65536).
    while (::getgrouplist(user, primary, groups.data(), &count) < 0) {
        if (count <= static_cast<int>(groups.size()) || count > 65536) return {primary};
        groups.resize(static_cast<std::size_t>(count));
    }
    groups.resize(static_cast<std::size_t>(count));
    return groups;
}

bool contains(const auto& list, const auto& value) { return std::ranges::find(list, value) != std::ranges::end(list); }

} // namespace

bool is_allowed(const Caller& caller, const Allow& allow) {
    if (contains(allow.users, std::to_string(caller.uid))) return true;

    passwd entry{};
    passwd* found = nullptr;
    std::vector<char> buffer;
    std::vector<gid_t> groups;
    if (with_growing_buffer(buffer,
                            [&] { return ::getpwuid_r(caller.uid, &entry, buffer.data(), buffer.size(), &found); }) &&
        found != nullptr) {
        if (contains(allow.users, std::string(found->pw_name))) return true;
        if (!allow.groups.empty()) groups = groups_of(found->pw_name, found->pw_gid);
    }
    groups.push_back(caller.gid);
    return std::ranges::any_of(allow.groups, [&](const std::string& name) {
        if (const auto gid = group_named(name)) return contains(groups, *gid);
        return std::ranges::any_of(groups, [&](gid_t gid) { return std::to_string(gid) == name; });
    });
}

Caller user_alone(uid_t uid) { return {.uid = uid, .gid = static_cast<gid_t>(-1), .pid = 0}; }

/// Where the lookups' thread leaves its answers. Outlives Accounts when a lookup hangs.
struct Accounts::Mailbox {
    std::mutex mutex;
    Accounts* owner = nullptr; ///< none once Accounts is gone
};

Accounts::Accounts(asio::io_context& io, Lookup lookup)
    : io_(io)
    , lookup_(std::move(lookup))
    , mailbox_(std::make_shared<Mailbox>()) {
    mailbox_->owner = this;
}

void Accounts::close() {
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->owner = nullptr;
}

Accounts::~Accounts() {
    close();
    // Its destructor would join the thread, and that one sits in a name service that does not answer.
    if (!looking_up_.empty()) (void)thread_.release();
}

asio::awaitable<bool> Accounts::allowed(Caller caller, Allow allow) {
    const auto answer = co_await ask(caller, std::move(allow), std::chrono::steady_clock::now() + kMaxWait);
    co_return answer.value_or(false);
}

asio::awaitable<bool> Accounts::allowed_at_last(Caller caller, Allow allow) {
    for (;;) {
        // None: what came was asked for another `allow`.
        const auto answer = co_await ask(caller, allow, std::chrono::steady_clock::time_point::max());
        if (answer) co_return *answer;
    }
}

asio::awaitable<std::optional<bool>> Accounts::ask(Caller caller, Allow allow,
                                                   std::chrono::steady_clock::time_point until) {
    if (caller.uid == 0) co_return true;
    const Key key{caller.uid, caller.gid};
    if (const Answer* answer = fresh(key, allow)) co_return answer->allowed;

    start_lookup(caller, allow);
    asio::steady_timer timer(io_, until);
    const auto place = waiting_.emplace(key, &timer);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    waiting_.erase(place);
    const Answer* answer = fresh(key, allow);
    co_return answer != nullptr ? std::optional(answer->allowed) : std::nullopt;
}

const Accounts::Answer* Accounts::fresh(const Key& key, const Allow& allow) const {
    const auto found = answers_.find(key);
    if (found == answers_.end() || found->second.to != allow) return nullptr;
    return std::chrono::steady_clock::now() - found->second.at < kKeepFor ? &found->second : nullptr;
}

void Accounts::start_lookup(const Caller& caller, const Allow& allow) {
    const Key key{caller.uid, caller.gid};
    if (!looking_up_.insert(key).second) return;
    if (!thread_) thread_ = std::make_unique<asio::thread_pool>(1);
    asio::post(*thread_, [mailbox = mailbox_, lookup = lookup_, caller, allow, key] {
        Answer answer{.to = allow, .allowed = lookup(caller, allow), .at = std::chrono::steady_clock::now()};
        const std::lock_guard lock(mailbox->mutex);
        if (mailbox->owner == nullptr) return;
        asio::post(mailbox->owner->io_, [mailbox, key, answer = std::move(answer)]() mutable {
            // On the loop's thread, where the owner lives and ends.
            if (mailbox->owner != nullptr) mailbox->owner->answered(key, std::move(answer));
        });
    });
}

std::optional<bool> is_allowed_now(uid_t uid, const Allow& allow) {
    asio::io_context loop(1);
    Accounts accounts(loop);
    std::optional<bool> allowed;
    spawn(loop, [](Accounts& of, uid_t user, const Allow& to, std::optional<bool>& answer) -> asio::awaitable<void> {
        answer = co_await of.ask(user_alone(user), to, std::chrono::steady_clock::now() + Accounts::kMaxWait);
    }(accounts, uid, allow, allowed));
    loop.run();
    return allowed;
}

void Accounts::answered(const Key& key, Answer answer) {
    looking_up_.erase(key);
    if (answers_.size() >= kMaxAnswers) answers_.clear();
    answers_[key] = std::move(answer);
    const auto [first, last] = waiting_.equal_range(key);
    for (auto waiting = first; waiting != last; ++waiting) waiting->second->cancel();
}

} // namespace novpn
