#include "agent/control/target.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <unistd.h>

namespace novpn {
namespace {

/// `pid` only means what the caller thinks in the agent's pid namespace.
tl::expected<void, Refusal> check_caller(const Peer& peer) {
    const Refusal elsewhere{"NotAllowed", "the caller is in another pid namespace than the agent (a container?), "
                                          "where process numbers mean something else"};
    if (peer.caller.pid <= 0) return tl::make_unexpected(elsewhere);
    auto caller = Process::open(peer.caller.pid);
    if (!caller) return tl::make_unexpected(refusal(caller.error(), peer.caller.pid));
    const auto status = caller->status();
    if (!status) return tl::make_unexpected(refusal(status.error(), peer.caller.pid));
    if (status->pid_namespaces != 1) return tl::make_unexpected(elsewhere);
    return {};
}

/// By the peer's own pidfd where that is the one, so that its number was never looked up.
Expected<Process> hold(const Peer& peer, pid_t pid) {
    if (pid == peer.caller.pid && peer.pidfd) {
        UniqueFd own(::dup(peer.pidfd.get()));
        if (!own) return system_error(errno, "holding process " + std::to_string(pid));
        Process process(pid, std::move(own));
        if (!process.alive()) return system_error(ESRCH, "holding process " + std::to_string(pid));
        return process;
    }
    return Process::open(pid);
}

} // namespace

std::optional<pid_t> to_pid(const boost::json::value& number) {
    const std::int64_t value = number.as_int64();
    if (value < 1 || value > std::numeric_limits<pid_t>::max()) return std::nullopt;
    return static_cast<pid_t>(value);
}

Refusal no_such_process(pid_t pid) { return {"NoSuchProcess", "there is no process " + std::to_string(pid)}; }

Refusal refusal(const Error& error, pid_t pid) {
    if (error.code == std::errc::no_such_process) return no_such_process(pid);
    return {"Failed", to_string(error)};
}

tl::expected<Process, Refusal> hold_own(const Peer& peer, pid_t pid, std::string_view what_for) {
    if (auto checked = check_caller(peer); !checked) return tl::make_unexpected(checked.error());
    auto process = hold(peer, pid);
    if (!process) return tl::make_unexpected(refusal(process.error(), pid));
    const auto status = process->status();
    if (!status) return tl::make_unexpected(refusal(status.error(), pid));
    const uid_t caller = peer.caller.uid;
    const bool own = std::ranges::all_of(status->uids, [&](uid_t uid) { return uid == caller; });
    if (!own && caller != 0)
        return tl::make_unexpected(
            Refusal{"NotAllowed", "process " + std::to_string(pid) + " is not uid " + std::to_string(caller) +
                                      "'s own, in each of its user ids; only root may " + std::string(what_for)});
    return std::move(*process);
}

} // namespace novpn
