// Which methods io.novpn.Agent and org.varlink.service have, and what they take. A new one is a coroutine in reading.h
// or changing.h, an entry in the table of methods.cpp, and one in io.novpn.Agent.varlink, held equal by a test.
#pragma once

#include "agent/control/exchange.h"

#include <boost/asio/awaitable.hpp>
#include <string>
#include <utility>
#include <vector>

namespace novpn {

/// Answers one call with one last reply, whatever it asks for.
boost::asio::awaitable<void> answer(Exchange& exchange);

/// As the interface file has them, for the test that compares: "Place" with {"class", "string"}, {"pid", "int"}.
struct MethodShape {
    std::string name;
    std::vector<std::pair<std::string, std::string>> parameters;
    auto operator<=>(const MethodShape&) const = default;
};
std::vector<MethodShape> agent_methods();
std::vector<std::string> agent_errors();

} // namespace novpn
