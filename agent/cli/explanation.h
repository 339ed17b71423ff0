// `novpn explain` for a person: text from the object that `explain --json` prints. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <string>

namespace novpn {

/// A sentence first, then for an ordinary process and for a member: the route, and how the kernel came to it.
/// The column where what is said of a heading begins.
std::size_t explanation_heading(const boost::json::object& answer);
std::string to_explanation(const boost::json::object& answer);

} // namespace novpn
