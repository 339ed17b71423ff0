#include "agent/control/events.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>

namespace novpn {
namespace {

namespace json = boost::json;

/// The event with as many of its operations as fit, and the number of the others.
json::object bounded(const json::object& event) {
    json::object kept = event;
    json::value& operations = kept["operations"];
    if (!operations.is_array()) operations = json::array();
    json::array& list = operations.get_array();
    std::size_t text = 0;
    const auto fits = [&](const json::value& operation) {
        text += operation.is_string() ? operation.get_string().size() : Events::kMaxText;
        return text <= Events::kMaxText;
    };
    const auto end = std::ranges::find_if_not(list, fits);
    const auto omitted = static_cast<std::size_t>(list.end() - end);
    list.erase(end, list.end());
    kept["omitted"] = omitted;
    return kept;
}

} // namespace

void Events::add(const json::object& event) {
    ring_.push_back(bounded(event));
    if (ring_.size() > kMaxEvents) {
        ring_.pop_front();
        ++first_;
    }
    for (auto* timer : waiting_) timer->cancel();
}

boost::asio::awaitable<void> Events::Reader::wait() {
    if (ready()) co_return;
    boost::asio::steady_timer timer(events_.io_, boost::asio::steady_timer::time_point::max());
    events_.waiting_.insert(&timer);
    co_await timer.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
    events_.waiting_.erase(&timer);
}

json::object Events::Reader::take() {
    const std::uint64_t lost = next_ < events_.first_ ? events_.first_ - next_ : 0;
    next_ += lost;
    json::object event = events_.ring_[next_ - events_.first_];
    ++next_;
    event["lost"] = lost;
    return event;
}

} // namespace novpn
