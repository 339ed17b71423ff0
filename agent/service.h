// What control asks of the agent. Implemented by the agent, called on its one thread between two awaits, so that a
// call may look at anything; it must not block longer than a look at the kernel does.
#pragma once

#include "config/config.h"
#include "netlink/error.h"

#include <boost/json/object.hpp>
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

class Service {
  public:
    virtual ~Service() = default;

    /// The object of `novpn status --json`; members as far as `caller` may see them: its own, all of them for root.
    virtual boost::json::object status(const Caller& caller) = 0;
    /// What the agent would change now, one ip or nft command each.
    virtual Expected<std::vector<std::string>> plan() = 0;

    virtual bool has_class(const std::string& name) const = 0;
    /// False for a class that is off: nothing would be steered.
    virtual bool is_steered(const std::string& name) const = 0;
    virtual Allow allow() const = 0;
    /// Moves the process; who may and which process it is has been checked. no_such_process: it is gone.
    virtual Expected<void> place(const std::string& class_name, pid_t pid) = 0;

    /// Releases everything; the kernel is clean when it returns. Nothing is put back afterwards.
    virtual Expected<void> down() = 0;
    /// Ends the loop: called once the caller of down() has its reply.
    virtual void stop() = 0;

    /// For the log and for the warnings of status: something a person should know about a call.
    virtual void warn(const std::string& text) = 0;
};

} // namespace novpn
