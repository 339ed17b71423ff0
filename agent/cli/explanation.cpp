#include "agent/cli/explanation.h"

#include "agent/cli/fields.h"

#include <algorithm>
#include <boost/json/value.hpp>
#include <fmt/format.h>

namespace novpn {
namespace {

namespace json = boost::json;

/// An address of this machine: its packets go by no link, whatever the route names.
bool is_local(const json::object& answer) { return text_of(answer, "route").starts_with("local "); }

/// "leaves by tun0", "has no way out"
std::string way(const json::object& answer) {
    if (is_local(answer)) return "stays on this machine";
    const auto link = text_of(answer, "link");
    return link.empty() ? "has no way out" : "leaves by " + link;
}

std::string sentence(const json::object& answer, const std::string& class_name) {
    const json::object& ordinary = object_of(answer, "ordinary");
    const json::object& member = object_of(answer, "member");
    const auto ordinary_way = way(ordinary);
    const auto member_way = way(member);
    if (is_local(ordinary) && is_local(member))
        return fmt::format("{} is an address of this machine: no packet to it leaves.", text_of(answer, "destination"));
    if (text_of(ordinary, "link").empty() && text_of(member, "link").empty())
        return fmt::format("To {} there is no way out, neither for an ordinary process nor for a member of class {}.",
                           text_of(answer, "destination"), class_name);
    if (ordinary_way == member_way)
        return fmt::format("To {} an ordinary process and a member of class {} both leave by {}: the same way.",
                           text_of(answer, "destination"), class_name, text_of(ordinary, "link"));
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

std::size_t explanation_heading(const json::object& answer) {
    return std::max<std::size_t>(("class " + text_of(answer, "class")).size(), 8) + 2;
}

std::string to_explanation(const json::object& answer) {
    const auto class_name = text_of(answer, "class");
    std::string text = sentence(answer, class_name) + "\n\n";
    const auto member_heading = "class " + class_name;
    const auto width = explanation_heading(answer);
    const auto write = [&](std::string_view heading, const json::object& of) {
        const auto route = text_of(of, "route");
        text += fmt::format("{:<{}}{}\n", heading, width, route.empty() ? "no route" : route);
        if (const auto from = origin(of); !from.empty()) text += fmt::format("{:<{}}from {}\n", "", width, from);
    };
    write("ordinary", object_of(answer, "ordinary"));
    write(member_heading, object_of(answer, "member"));
    const auto old = old_socket_lines(answer);
    if (!old.empty())
        text += fmt::format("{:<{}}but these sockets from before it joined keep their path:\n", "", width);
    for (const auto& socket : old) text += fmt::format("{:<{}}  {}\n", "", width, socket);
    const json::object& dns = object_of(answer, "dns");
    if (const auto names = dns_words(dns); !names.empty())
        text += fmt::format("{:<{}}names are resolved {}\n", "", width, names);
    if (text_of(dns, "by") == "uplink")
        text += fmt::format(
            "{:<{}}but for those that a program asks systemd-resolved for without a DNS query (nss-resolve, "
            "D-Bus), or any server over HTTPS or TLS\n",
            "", width);
    return text;
}

} // namespace novpn
