// `novpn status` for a person: text from the object that `status --json` prints. Pure.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <string>

namespace novpn {

/// The column where what is said of a heading begins.
inline constexpr std::size_t kStatusHeading = 15;

/// Fields that are missing, as between versions, are left out. Names chosen by others (cgroups, links) are printed
/// without control characters, which could otherwise rewrite the terminal.
std::string to_text(const boost::json::object& status);

} // namespace novpn
