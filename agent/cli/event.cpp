#include "agent/cli/event.h"

#include "agent/cli/fields.h"

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>

namespace novpn {

namespace json = boost::json;

std::string to_line(const json::object& event) {
    std::string line;
    if (const auto lost = number_of(event, "lost").value_or(0); lost > 0)
        line += "(" + counted(lost, "event", "events") + " missed before this one) ";
    line += text_of(event, "cause");
    const json::value* operations = event.if_contains("operations");
    const auto listed = operations != nullptr && operations->is_array() ? operations->get_array().size() : 0;
    const auto changes = static_cast<std::int64_t>(listed) + number_of(event, "omitted").value_or(0);
    if (changes > 0) {
        line += ": " + counted(changes, "change", "changes");
        if (const auto reaction = number_of(event, "reaction_us")) line += " in " + reaction_words(*reaction) + ".";
    } else {
        line += ":";
    }
    if (const auto summary = text_of(event, "summary"); !summary.empty()) line += " " + summary;
    return line;
}

} // namespace novpn
