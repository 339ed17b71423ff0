#include "agent/cli/explanation.h"

#include "agent/cli/fields.h"

#include <algorithm>
#include <boost/json/value.hpp>
#include <fmt/format.h>

namespace novpn {
namespace {

namespace json = boost::json;

/// "leaves by tun0", "has no way out"; `leave`: the verb in the number that its subject has.
std::string way(const json::object& answer, std::string_view leave, std::string_view have) {
    const auto link = text_of(answer, "link");
    return link.empty() ? fmt::format("{} no way out", have) : fmt::format("{} by {}", leave, link);
}

std::string sentence(const json::object& answer, const std::string& class_name) {
    const json::object& ordinary = object_of(answer, "ordinary");
    const json::object& member = object_of(answer, "member");
    const auto ordinary_way = way(ordinary, "leaves", "has");
    const auto member_way = way(member, "leaves", "has");
    if (ordinary_way == member_way)
        return fmt::format("To {} an ordinary process and a member of class {} both {}: the same way.",
                           text_of(answer, "destination"), class_name, way(ordinary, "leave", "have"));
    return fmt::format("To {} an ordinary process {}, and a member of class {} {}.", text_of(answer, "destination"),
                       ordinary_way, class_name, member_way);
}

/// "table 7866, by the rule preference 64 fwmark 0x4e000000/0xff000000 lookup 7866 (owner: novpn)"
std::string origin(const json::object& answer) {
    std::string words;
    if (const auto table = number_of(answer, "table")) words = table_words(*table);
    const auto rule = text_of(answer, "rule");
    if (rule.empty()) return words;
    words += (words.empty() ? "the rule " : ", by the rule ") + rule;
    if (const auto owner = text_of(answer, "owner"); !owner.empty()) words += fmt::format(" (owner: {})", owner);
    return words;
}

} // namespace

std::string to_explanation(const json::object& answer) {
    const auto class_name = text_of(answer, "class");
    std::string text = sentence(answer, class_name) + "\n\n";
    const auto member_heading = "class " + class_name;
    const auto width = std::max<std::size_t>(member_heading.size(), 8) + 2;
    const auto write = [&](std::string_view heading, const json::object& of) {
        const auto route = text_of(of, "route");
        text += fmt::format("{:<{}}{}\n", heading, width, route.empty() ? "no route" : route);
        if (const auto from = origin(of); !from.empty()) text += fmt::format("{:<{}}from {}\n", "", width, from);
    };
    write("ordinary", object_of(answer, "ordinary"));
    write(member_heading, object_of(answer, "member"));
    return text;
}

} // namespace novpn
