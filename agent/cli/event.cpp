#include "agent/cli/event.h"

#include "agent/cli/fields.h"
#include "agent/cli/terminal.h"

#include <fmt/format.h>

namespace novpn {

namespace json = boost::json;

std::string to_line(const json::object& event, std::optional<std::size_t> columns) {
    std::string line;
    if (const auto lost = number_of(event, "lost").value_or(0); lost > 0)
        line += "(" + counted(lost, "event", "events") + " missed before this one) ";
    line += text_of(event, "cause");
    const auto decisions = texts_of(event, "decisions");
    for (const std::string& decision : decisions) line += (&decision == &decisions.front() ? " → " : "; ") + decision;
    const auto operations = texts_of(event, "operations");
    const auto changes = static_cast<std::int64_t>(operations.size()) + number_of(event, "omitted").value_or(0);
    // What else there is to say is in the decisions and operations.
    if (decisions.empty() && changes == 0) return cut(line + ": " + text_of(event, "summary"), columns);
    if (changes == 0) return cut(line, columns);
    const auto reaction = number_of(event, "reaction_us");
    const std::string end = reaction ? " → " + reaction_words(*reaction) : "";
    std::string done;
    for (const std::string& operation : operations) done += (done.empty() ? "" : "; ") + operation;
    const auto more = changes - static_cast<std::int64_t>(operations.size());
    if (more > 0) done += fmt::format("; {} more", more);
    std::string whole = line + " → " + done + end;
    if (whole == cut(whole, columns)) return whole;
    // Too long for the terminal: how many they are, and as much of the decision as fits before how long it took.
    const std::string rest = " → " + counted(changes, "operation", "operations") + end;
    return cut(line, columns && *columns > width_of(rest) ? *columns - width_of(rest) : columns) + rest;
}

} // namespace novpn
