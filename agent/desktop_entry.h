// Desktop files (Desktop Entry Specification 1.5): what one says, and the launcher that starts its program in a class.
// Pure.
#pragma once

#include "netlink/error.h"

#include <string>
#include <string_view>
#include <vector>

namespace novpn {

/// Of the group [Desktop Entry], without its translations.
struct DesktopEntry {
    std::string type = "Application";
    std::string name;
    std::string exec;        ///< as it stands there, escaped and quoted
    std::string owner;       ///< "flatpak" or "snap", where that made it
    std::string class_name;  ///< of a launcher that launcher_of() wrote
    bool no_display = false; ///< not in menus; it opens files all the same
    bool hidden = false;     ///< as if it were not there
    bool in_terminal = false;
    bool operator==(const DesktopEntry&) const = default;
};

DesktopEntry parse_desktop_entry(std::string_view text);

/// The program that `exec` starts, env(1) and its variables left out; empty where there is none.
std::string program_of(std::string_view exec);

/// The same file with `words` before each command, its actions' too, and not to be started over D-Bus, which would pass
/// them by. An error: it has no command, or starts no application.
Expected<std::string> launcher_of(std::string_view text, const std::vector<std::string>& words,
                                  const std::string& class_name);

} // namespace novpn
