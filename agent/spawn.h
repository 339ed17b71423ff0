// How a coroutine is started. Its exception leaves io_context::run(), so that a bug ends the process with a message
// instead of ending one task in silence, as asio::detached would have it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <exception>
#include <utility>

namespace novpn {

template<typename ExecutionContext>
void spawn(ExecutionContext& where, boost::asio::awaitable<void> work) {
    boost::asio::co_spawn(where, std::move(work), [](const std::exception_ptr& bug) {
        if (bug) std::rethrow_exception(bug);
    });
}

} // namespace novpn
