#include "agent/inquiry.h"

#include <algorithm>

namespace novpn {

std::optional<Clock::time_point> Inquiry::ask_at(Clock::time_point now, const Observed& observed,
                                                 const Desired& desired) {
    Question question{.families = desired.wanted_uplinks, .resolvers = desired.asks_resolvers};
    const bool is_any = !question.families.empty() || question.resolvers;
    if (is_any) {
        question.links = observed.links;
        question.addresses = observed.addresses;
        question.takeovers = desired.takeovers;
    }
    bool is_new = question != question_;
    question_ = std::move(question);
    const bool is_open = !question_.families.empty() || desired.wants_resolvers;
    if (!is_any || (!is_new && (!is_open || now < next_))) return std::nullopt;
    pause_ = is_new ? kFirstPause : std::min<Clock::duration>(pause_ * 2, kLongestPause);
    return next_ = now + pause_;
}

} // namespace novpn
