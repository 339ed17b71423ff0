// When to ask the sources (agent/sources/) for an uplink or its resolvers that are not known: at once when the question
// is new, then ever more seldom for as long as no answer helps. Known resolvers are asked for anew with each change of
// links, addresses and takeovers. Pure; time is passed in.
#pragma once

#include "agent/decide.h"
#include "agent/settle.h"

namespace novpn {

class Inquiry {
  public:
    static constexpr auto kFirstPause = std::chrono::seconds(1); ///< a lease may be written a moment after its address
    static constexpr auto kLongestPause = std::chrono::minutes(5);

    /// Nothing when there is nothing to ask now, else when to look again if the answer does not help.
    std::optional<Clock::time_point> ask_at(Clock::time_point now, const Observed& observed, const Desired& desired);

  private:
    /// What an answer depends on, so that a network without the other family is not asked about for ever.
    struct Question {
        std::set<Family> families;
        bool resolvers = false;
        std::vector<Link> links;
        std::vector<Address> addresses;
        std::map<Family, std::vector<Takeover>> takeovers;
        bool operator==(const Question&) const = default;
    };

    Question question_;
    Clock::duration pause_{};
    Clock::time_point next_;
};

} // namespace novpn
