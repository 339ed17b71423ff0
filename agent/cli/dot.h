// `novpn status --dot`: where packets go now, as a graph for graphviz. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <string>

namespace novpn {

/// A digraph of the object that `status --json` prints: each class, its mark and rule, its table, and by family the
/// link that its packets leave by, or what ends them; beside it the way of everything else, into the tunnels.
std::string to_dot(const boost::json::object& status);

} // namespace novpn
