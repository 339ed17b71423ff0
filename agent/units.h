// Asks systemd to start a unit, for a site that is entered or left: on a thread of its own, as a bus may take its time.
// All calls on the loop's thread. Knows libsystemd; without it at build every start fails.
#pragma once

#include "netlink/error.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace novpn {

/// org.freedesktop.systemd1.Manager.StartUnit on the system bus (DBUS_SYSTEM_BUS_ADDRESS where it is set): the job is
/// queued when this returns. timed_out, or an error of the bus: systemd was not reached; an error without a code: it
/// refuses.
Expected<void> start_unit(const std::string& unit, std::chrono::microseconds at_most);

class UnitStarter {
  public:
    using Heard = std::function<void(const std::string& unit, std::optional<Error> failure)>; ///< on the loop's thread

    UnitStarter(boost::asio::io_context& io, Heard heard);
    UnitStarter(const UnitStarter&) = delete;
    UnitStarter& operator=(const UnitStarter&) = delete;
    /// Waits for a start under way, which is short.
    ~UnitStarter();

    /// Returns at once; starts follow one another in their order. Where systemd is not reached, as early at boot, it is
    /// asked again each second for half a minute.
    void start(const std::string& unit);

  private:
    void ask(const std::string& unit, int tries_left);

    boost::asio::io_context& io_;
    Heard heard_;
    std::optional<boost::asio::thread_pool> thread_; ///< made when it is first needed
};

} // namespace novpn
