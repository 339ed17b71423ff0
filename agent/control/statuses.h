// The last status of each user, for those who ask again within 50 ms: a client that asks in a loop makes the agent look
// twenty times a second at most. Root always gets a look of its own, as scripts of root compare one with the next.
#pragma once

#include "agent/control/service.h"

#include <chrono>
#include <map>
#include <optional>

namespace novpn {

class Statuses {
  public:
    static constexpr auto kFreshFor = std::chrono::milliseconds(50);

    std::optional<boost::json::object> fresh(const Caller& caller) const {
        const auto found = answers_.find(caller.uid);
        if (found == answers_.end() || Clock::now() - found->second.at >= kFreshFor) return std::nullopt;
        return found->second.status;
    }

    void keep(const Caller& caller, const boost::json::object& status) {
        if (caller.uid == 0) return;
        if (answers_.size() >= kMaxUsers) answers_.clear();
        answers_.insert_or_assign(caller.uid, Answer{.status = status, .at = Clock::now()});
    }

    /// Something changed: what was said is old.
    void forget() { answers_.clear(); }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::size_t kMaxUsers = 64;
    struct Answer {
        boost::json::object status;
        Clock::time_point at;
    };
    std::map<uid_t, Answer> answers_;
};

} // namespace novpn
