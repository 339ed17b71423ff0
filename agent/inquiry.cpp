#include "agent/inquiry.h"

#include <algorithm>

namespace novpn {

std::optional<Clock::time_point> Inquiry::ask_at(Clock::time_point now, const Observed& observed,
                                                 const Desired& desired) {
    Question question{.families = desired.wanted_uplinks};
    if (!question.families.empty()) {
        question.links = observed.links;
        question.addresses = observed.addresses;
        question.takeovers = desired.takeovers;
    }
    bool is_new = question != question_;
    question_ = std::move(question);
    if (question_.families.empty() || (!is_new && now < next_)) return std::nullopt;
    pause_ = is_new ? kFirstPause : std::min<Clock::duration>(pause_ * 2, kLongestPause);
    return next_ = now + pause_;
}

} // namespace novpn
