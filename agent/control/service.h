// What control asks of the agent. Implemented by the agent, called on its one thread between two awaits, so that a
// call may look at anything; it must not block longer than a look at the kernel does.
#pragma once

#include "config/config.h"
#include "netlink/error.h"
#include "netlink/sockets.h"

#include <boost/asio/ip/address.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

/// Who called, as the kernel says (SO_PEERCRED), in the agent's own namespaces.
struct Caller {
    uid_t uid = 0;
    gid_t gid = 0;
    pid_t pid = 0; ///< 0: not visible from the agent's pid namespace
    bool operator==(const Caller&) const = default;
};

/// An open socket that was made before its process joined, and keeps the path it began on: as a person knows it.
struct OldSocket {
    std::string protocol; ///< "tcp", "udp"
    std::string local;    ///< "10.8.0.2:40112", "[2001:db8::2]:443"
    std::string remote;
    pid_t pid = 0;       ///< who holds it; 0: not known
    std::string process; ///< its name (proc_pid_comm(5)), which is of its own choice
    bool operator==(const OldSocket&) const = default;
};
/// Of how many the names are told, at most; all are counted.
inline constexpr std::size_t kMaxNamedSockets = 20;

/// What joining a class left as it was.
struct Placed {
    std::size_t old_sockets = 0;  ///< open sockets of the process, made before: they keep their path
    std::vector<OldSocket> named; ///< of those
    bool operator==(const Placed&) const = default;
};

/// What leaving a class did.
struct Released {
    std::string class_name;
    std::size_t ended = 0; ///< open sockets that were ended
    std::size_t kept = 0;  ///< open sockets that were left as they are
    bool operator==(const Released&) const = default;
};

/// Who may what, checked by control: place and release root, and callers in `allow` for processes of their own;
/// set_enabled, reload, down root; the rest, which only reads, anyone.
class Service {
  public:
    using Subscriber = std::function<void(const boost::json::object& event)>;

    virtual ~Service() = default;

    /// The object of `novpn status --json`; members as far as `caller` may see them: its own, all of them for root.
    virtual boost::json::object status(const Caller& caller) = 0;
    /// What the agent would change now, one ip or nft command each.
    virtual Expected<std::vector<std::string>> plan() = 0;

    virtual bool has_class(const std::string& name) const = 0;
    /// False for a class that is off: nothing would be steered.
    virtual bool is_steered(const std::string& name) const = 0;
    virtual Allow allow() const = 0;
    /// That a user is in `allow`, or is not, has been found out. True: a pass is due for it.
    virtual bool heard_of_user(uid_t uid, bool allowed) = 0;
    /// Moves the process, unless it is in the class's slice of its systemd already; looks at what steers it, and mends
    /// it, in any case. Who may and which process it is has been checked. no_such_process: it is gone.
    virtual Expected<Placed> place(const std::string& class_name, pid_t pid) = 0;
    /// Moves the process back to where ordinary ones are. no_such_process: it is gone. invalid_argument: it is in no
    /// class, or in one by a selector, as `detail` says: nothing is moved out of where it belongs. `is_that_one` is asked
    /// once it has been moved, before its sockets end, which may be what ends it: else none of them ends.
    virtual Expected<Released> release(pid_t pid, const std::function<bool()>& is_that_one) = 0;
    /// The class whose member this process is; none for an ordinary process and for one that is gone.
    virtual std::optional<std::string> class_of(pid_t pid) = 0;
    /// By what it is in that class: "app spotify", "run"; none for an ordinary process and for one that is gone.
    virtual std::optional<std::string> selector_of(pid_t pid) = 0;
    /// Open sockets of a member that keep the path they began on; none of an ordinary process.
    virtual std::vector<OldSocket> old_sockets_of(pid_t pid) = 0;
    /// Until the next call, the end of `for_how_long` or the end of the agent; touches no file.
    virtual Expected<void> set_enabled(const std::string& class_name, bool enabled,
                                       std::optional<std::chrono::seconds> for_how_long) = 0;
    /// Re-reads the config. Where that fails nothing has changed, and the detail is its FILE:LINE:COL text.
    virtual Expected<void> reload() = 0;

    /// The kernel's own answer for a packet to `destination`, of an ordinary process and of a member of the class:
    /// {destination, class, ordinary: A, member: A}, where A is {route: its `ip route` text or null, link, table,
    /// rule: its `ip rule` text, preference, owner: which tool's rule it is}; what is not known is null.
    virtual Expected<boost::json::object> explain(const boost::asio::ip::address& destination,
                                                  const std::string& class_name) = 0;
    /// OpenMetrics text, its "# EOF" included.
    virtual std::string metrics() = 0;
    /// Called once, by control. The agent calls `subscriber` after each pass that changed something, on its thread:
    /// {cause, decisions: [a sentence each], operations: [one ip or nft command each], reaction_us, summary}.
    virtual void on_event(Subscriber subscriber) = 0;

    /// Releases everything; the kernel is clean when it returns. Nothing is put back afterwards.
    virtual Expected<void> down() = 0;
    /// Ends the loop: called once the caller of down() has its reply.
    virtual void stop() = 0;

    /// For the log and for the warnings of status: something a person should know about a call.
    virtual void warn(const std::string& text) = 0;
};

} // namespace novpn
