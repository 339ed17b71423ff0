// `novpn watch` for a person: one line an event. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <optional>
#include <string>

namespace novpn {

/// "route changed → ipv4 takeover split by tun0 → ip route replace …; ip rule add … → 850 us", of a reply of Monitor:
/// cause, decisions, operations, and how long they took. On a narrow terminal the operations are counted.
std::string to_line(const boost::json::object& event, std::optional<std::size_t> columns = {});

} // namespace novpn
