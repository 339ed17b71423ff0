// `novpn watch` for a person: one line an event. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <string>

namespace novpn {

/// "link tun0 up: 3 changes in 1.2 ms. SUMMARY", of a reply of Monitor.
std::string to_line(const boost::json::object& event);

} // namespace novpn
