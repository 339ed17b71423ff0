// A launcher of an installed application that starts it by `novpn run`: a desktop file of the user's own, under the
// same id, which so stands before the system's wherever the application is started from.
#pragma once

#include "agent/applications.h"
#include "netlink/error.h"

#include <string>
#include <vector>

namespace novpn::cli {

struct LauncherRequest {
    std::string id;
    std::string class_name;
    std::vector<std::string> run; ///< what stands before each command: "novpn", "run", ...
};

/// Writes it below the first of `data_directories` and returns its path; one that was written before is replaced. An
/// error: no such application, one that the user made, or one that systemd puts where `novpn run` does not.
Expected<std::string> write_launcher(const LauncherRequest& request, const std::vector<std::string>& data_directories,
                                     bool systemd_runs);

/// "flatpak" or "snap" where the command is that of one: it moves what it starts into a scope of its own, out of the
/// one of `novpn run`. `id` is what `apps:` takes.
struct OwnScope {
    std::string made_by;
    std::string id;
    bool operator==(const OwnScope&) const = default;
};
std::optional<OwnScope> own_scope_of(const std::vector<std::string>& command);

/// Whether systemd is the machine's service manager (sd_booted(3)).
bool systemd_runs();

} // namespace novpn::cli
