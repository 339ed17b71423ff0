#include "agent/cli/fields.h"

#include "config/text.h"

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <fmt/format.h>

namespace novpn {

namespace json = boost::json;

std::string text_of(const json::object& object, std::string_view name) {
    const json::value* value = object.if_contains(name);
    return value != nullptr && value->is_string() ? printable(value->get_string()) : std::string();
}

std::vector<std::string> texts_of(const json::object& object, std::string_view name) {
    std::vector<std::string> texts;
    const json::value* value = object.if_contains(name);
    if (value == nullptr || !value->is_array()) return texts;
    for (const auto& element : value->get_array())
        texts.push_back(element.is_string() ? printable(element.get_string()) : std::string());
    return texts;
}

std::optional<std::int64_t> number_of(const json::object& object, std::string_view name) {
    const json::value* value = object.if_contains(name);
    if (value == nullptr) return std::nullopt;
    json::error_code error;
    const auto number = value->to_number<std::int64_t>(error);
    if (error) return std::nullopt;
    return number;
}

const json::object& object_of(const json::object& object, std::string_view name) {
    static const json::object kNone;
    const json::value* value = object.if_contains(name);
    return value != nullptr && value->is_object() ? value->get_object() : kNone;
}

std::vector<const json::object*> objects_of(const json::object& object, std::string_view name) {
    std::vector<const json::object*> objects;
    const json::value* value = object.if_contains(name);
    if (value == nullptr || !value->is_array()) return objects;
    for (const auto& element : value->get_array())
        if (element.is_object()) objects.push_back(&element.get_object());
    return objects;
}

std::string dns_words(const json::object& dns) {
    auto by = text_of(dns, "by");
    if (by == "vpn") return "by the name servers of the rest of the machine";
    if (by == "machine") return "by the name servers of the rest of the machine: no VPN has taken over";
    if (by == "none") return "not at all: nobody says what the uplink's resolver is";
    if (by != "uplink") return by;
    std::string servers;
    if (const json::value* list = dns.if_contains("servers"); list != nullptr && list->is_array())
        for (const auto& server : list->get_array())
            if (server.is_string()) servers += (servers.empty() ? "" : ", ") + printable(server.get_string());
    const auto from = text_of(dns, "from");
    const char* words = from == "resolved"         ? "systemd-resolved"
                        : from == "networkd"       ? "systemd-networkd"
                        : from == "networkmanager" ? "NetworkManager"
                        : from == "lease"          ? "the DHCP lease"
                        : from == "resolv_conf"    ? "resolv.conf before the VPN"
                                                   : nullptr;
    return fmt::format("by {} of the uplink (from {})", servers, words != nullptr ? words : from);
}

std::string counted(std::int64_t count, std::string_view singular, std::string_view plural) {
    return fmt::format("{} {}", count, count == 1 ? singular : plural);
}

std::string reaction_words(std::int64_t microseconds) {
    if (microseconds < 1000) return fmt::format("{} us", microseconds);
    if (microseconds < 1'000'000) return fmt::format("{:.1f} ms", static_cast<double>(microseconds) / 1e3);
    return fmt::format("{:.1f} s", static_cast<double>(microseconds) / 1e6);
}

std::vector<std::string> old_socket_lines(const boost::json::object& object) {
    std::vector<std::string> lines;
    for (const auto* socket : objects_of(object, "old")) {
        std::string line = text_of(*socket, "protocol") + " " + text_of(*socket, "local");
        if (const auto remote = text_of(*socket, "remote"); !remote.empty()) line += " to " + remote;
        if (const auto pid = number_of(*socket, "pid"))
            line += fmt::format(", of {} ({})", text_of(*socket, "process"), *pid);
        lines.push_back(std::move(line));
    }
    const auto all = number_of(object, "old_sockets").value_or(0);
    if (const auto more = all - static_cast<std::int64_t>(lines.size()); !lines.empty() && more > 0)
        lines.push_back(fmt::format("and {} more", more));
    return lines;
}

std::string table_words(std::int64_t table) {
    if (table == 254) return "table main";
    return table == 255 ? "table local" : fmt::format("table {}", table);
}

} // namespace novpn
