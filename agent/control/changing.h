// The methods of io.novpn.Agent that change something. Place and Release are for root, and for whom `allow` names with
// processes of their own; the rest is root's.
#pragma once

#include "agent/control/exchange.h"

#include <boost/asio/awaitable.hpp>

namespace novpn::methods {

boost::asio::awaitable<void> place(Exchange& exchange);
boost::asio::awaitable<void> release(Exchange& exchange);
boost::asio::awaitable<void> set_enabled(Exchange& exchange);
boost::asio::awaitable<void> reload(Exchange& exchange);
/// Ends the agent once the caller has its reply.
boost::asio::awaitable<void> down(Exchange& exchange);

} // namespace novpn::methods
