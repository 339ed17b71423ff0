// Reading the agent's answers for a person: fields that another version may not have, or have otherwise, and names that
// somebody else chose. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// Fit for a terminal; empty when there is no such string.
std::string text_of(const boost::json::object& object, std::string_view name);
std::optional<std::int64_t> number_of(const boost::json::object& object, std::string_view name);
/// Empty when there is no such object.
const boost::json::object& object_of(const boost::json::object& object, std::string_view name);
std::vector<const boost::json::object*> objects_of(const boost::json::object& object, std::string_view name);

/// As text_of(), of each string of a list.
std::vector<std::string> texts_of(const boost::json::object& object, std::string_view name);

/// "1 process", "2 processes"
std::string counted(std::int64_t count, std::string_view singular, std::string_view plural);
/// "tcp 10.8.0.2:40112 to 203.0.113.1:443, of firefox (1234)": what `old` of a reply names, and how many more there
/// are.
std::vector<std::string> old_socket_lines(const boost::json::object& object);
/// "table main", "table 7866"
std::string table_words(std::int64_t table);
/// "850 us", "1.2 ms", "2.5 s"
std::string reaction_words(std::int64_t microseconds);

/// "by 192.168.10.1 of the uplink (from the DHCP lease)": who resolves names, of the `dns` of status and of explain;
/// empty where that is not said.
std::string dns_words(const boost::json::object& dns);

} // namespace novpn
