#include "agent/cli/status.h"

#include "agent/cli/fields.h"
#include "config/text.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <fmt/format.h>
#include <optional>
#include <string_view>
#include <vector>

namespace novpn {
namespace {

namespace json = boost::json;

void line(std::string& out, std::string_view heading, std::string_view text) {
    out += fmt::format("{:<{}}{}\n", heading, kStatusHeading, text);
}

std::string_view source_words(std::string_view from) {
    if (from == "main") return "the main table";
    if (from == "table") return "the table of novpn itself";
    if (from == "host_route") return "the host route to the VPN's server";
    if (from == "networkd") return "systemd-networkd";
    if (from == "networkmanager") return "NetworkManager";
    if (from == "lease") return "the DHCP lease";
    if (from == "ra") return "the router's advertisement";
    if (from == "memory") return "memory: it was in use before";
    return from;
}

std::string_view shape_words(std::string_view shape) {
    if (shape == "replaced") return "replaced the default route";
    if (shape == "lower_metric") return "added a default route of a better metric";
    if (shape == "split") return "added routes that together cover everything";
    if (shape == "inverted_mark_rule") return "added a rule for all unmarked packets";
    if (shape == "catch_all_rule") return "added a rule for all packets";
    if (shape == "xfrm") return "added IPsec policies";
    return shape;
}

void write_family(std::string& out, std::string_view name, const json::object& family) {
    const json::object& uplink = object_of(family, "uplink");
    const std::string heading = fmt::format("{} uplink", name);
    if (uplink.empty()) {
        line(out, heading, "none");
    } else {
        std::string words = text_of(uplink, "link");
        if (const auto gateway = text_of(uplink, "gateway"); !gateway.empty()) words += ", gateway " + gateway;
        if (const auto source = text_of(uplink, "source"); !source.empty()) words += ", source " + source;
        line(out, heading, words);
        words.clear();
        if (const auto from = text_of(uplink, "from"); !from.empty())
            words = fmt::format("from {}", source_words(from));
        if (const auto reason = text_of(uplink, "reason"); !reason.empty())
            words += (words.empty() ? "" : "; ") + reason;
        if (!words.empty()) line(out, "", words);
    }
    const auto takeovers = objects_of(family, "takeovers");
    std::string_view said = "     takeover";
    if (takeovers.empty()) line(out, said, "none");
    for (const auto* takeover : takeovers) {
        const auto link = text_of(*takeover, "link");
        const auto shape = text_of(*takeover, "shape");
        std::string words = fmt::format("{} {}", link.empty() ? "a tunnel" : link, shape_words(shape));
        std::string where;
        if (const auto table = number_of(*takeover, "table")) where = table_words(*table);
        if (const auto preference = number_of(*takeover, "preference"))
            where += fmt::format("{}preference {}", where.empty() ? "" : ", ", *preference);
        if (!where.empty()) words += " (" + where + ")";
        line(out, said, words);
        said = "";
    }
}

std::string_view state_words(std::string_view state) {
    if (state == "steering") return "steering past the VPN";
    if (state == "blocked") return "blocked: no uplink, members have no network";
    if (state == "tunnel") return "in the tunnel: no uplink, members go with everything else";
    if (state == "off") return "off";
    return state;
}

std::string backends_of(const json::object& of_class) {
    std::string names;
    const json::value* backend = of_class.if_contains("backend");
    if (backend == nullptr || !backend->is_array()) return names;
    for (const auto& name : backend->get_array())
        if (name.is_string()) names += (names.empty() ? "" : ", ") + printable(name.get_string());
    return names;
}

std::string numbers_of_class(const json::object& of_class) {
    std::string words;
    const auto add = [&](std::string_view more) {
        if (!words.empty()) words += ", ";
        words += more;
    };
    if (const auto table = number_of(of_class, "table")) add(fmt::format("table {}", *table));
    const auto mark = number_of(of_class, "mark");
    const auto mask = number_of(of_class, "mask");
    if (mark && mask) add(fmt::format("mark {:#x}/{:#x}", *mark, *mask));
    if (const auto preference = number_of(of_class, "preference")) add(fmt::format("preference {}", *preference));
    if (const auto backends = backends_of(of_class); !backends.empty()) add("by " + backends);
    return words;
}

std::string member_words(const json::object& member) {
    std::string words = text_of(member, "cgroup");
    const std::string selector = text_of(member, "selector");
    if (words.empty())
        words = selector; // a user or destinations
    else if (!selector.empty())
        words += fmt::format(" ({})", selector);
    if (const auto sockets = number_of(member, "sockets"))
        words += ": " + counted(*sockets, "open socket", "open sockets");
    if (const auto processes = number_of(member, "processes"))
        words += ": " + counted(*processes, "process", "processes");
    if (const auto sockets = number_of(member, "old_sockets"); sockets && *sockets > 0)
        words += ", " + counted(*sockets, "socket", "sockets") + " from before it joined, still in the VPN";
    return words;
}

void write_class(std::string& out, const json::object& of_class) {
    line(out, fmt::format("class {}", text_of(of_class, "name")), state_words(text_of(of_class, "state")));
    if (const auto numbers = numbers_of_class(of_class); !numbers.empty()) line(out, "", numbers);
    const auto members = objects_of(of_class, "members");
    std::string_view said = "     members";
    if (members.empty()) line(out, said, "none");
    for (const auto* member : members) {
        line(out, said, member_words(*member));
        for (const auto& socket : old_socket_lines(*member)) line(out, "", "  " + socket);
        said = "";
    }
    if (const auto names = dns_words(object_of(of_class, "dns")); !names.empty()) line(out, "     names", names);
    const json::object& packets = object_of(of_class, "packets");
    if (packets.empty()) return;
    line(out, "     packets",
         fmt::format("{} marked, {} masqueraded, {} dropped", number_of(packets, "marked").value_or(0),
                     number_of(packets, "masqueraded").value_or(0), number_of(packets, "dropped").value_or(0)));
}

} // namespace

std::string to_text(const json::object& status) {
    std::string out = text_of(status, "summary") + "\n\n";
    const auto sites = objects_of(status, "sites");
    const bool may_be_one =
        std::ranges::any_of(sites, [](const auto* other) { return text_of(*other, "matches") == "unknown"; });
    if (const auto site = text_of(status, "site"); !site.empty())
        line(out, "site", site);
    else if (!sites.empty())
        line(out, "site", may_be_one ? "not known yet" : "none");
    for (const auto* other : sites) {
        const std::string matches = text_of(*other, "matches");
        if (matches == "yes") continue;
        std::string keys;
        std::size_t count = 0;
        if (const auto* failed = other->if_contains("failed"); failed != nullptr && failed->is_array())
            for (const auto& key : failed->get_array())
                if (key.is_string()) keys += (count++ == 0 ? "" : ", ") + printable(std::string(key.get_string()));
        line(out, "no site",
             fmt::format("{}: {} {}", text_of(*other, "name"), keys,
                         matches == "unknown" ? "not known yet"
                         : count > 1          ? "do not match"
                                              : "does not match"));
    }
    for (const auto* sign : objects_of(status, "place"))
        line(out, "place", fmt::format("{} {}", text_of(*sign, "key"), text_of(*sign, "value")));
    const json::object& families = object_of(status, "families");
    for (const std::string_view name : {"ipv4", "ipv6"})
        if (families.contains(name)) write_family(out, name, object_of(families, name));
    for (const auto* of_class : objects_of(status, "classes")) write_class(out, *of_class);

    if (const auto repairs = number_of(status, "repairs")) line(out, "repairs", std::to_string(*repairs));
    const auto reaction = number_of(status, "last_reaction_us");
    line(out, "last reaction", reaction ? reaction_words(*reaction) : "none yet");
    for (const auto* warning : objects_of(status, "warnings"))
        line(out, "warning", fmt::format("{} ({})", text_of(*warning, "text"), text_of(*warning, "code")));
    return out;
}

} // namespace novpn
