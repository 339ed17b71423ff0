// `novpn explain` for a person: text from the object that `explain --json` prints. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <string>

namespace novpn {

/// A sentence first, then for an ordinary process and for a member: the route, and how the kernel came to it.
std::string to_explanation(const boost::json::object& answer);

} // namespace novpn
