// The methods of io.novpn.Agent that only read. Anyone may call them; nobody learns of another user's processes.
#pragma once

#include "agent/control/exchange.h"

#include <boost/asio/awaitable.hpp>

namespace novpn::methods {

boost::asio::awaitable<void> status(Exchange& exchange);
/// First what is, then each event, until the caller is gone.
boost::asio::awaitable<void> monitor(Exchange& exchange);
boost::asio::awaitable<void> plan(Exchange& exchange);
boost::asio::awaitable<void> explain(Exchange& exchange);
boost::asio::awaitable<void> metrics(Exchange& exchange);

} // namespace novpn::methods
