// What can be written in `apps:`: the applications that run in the caller's session, and those that are installed.
// Reads the cgroup tree and desktop files; changes nothing.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

struct Application {
    std::string name;        ///< for a person; empty where no desktop file has one
    bool installed = false;  ///< has a desktop file
    std::size_t running = 0; ///< how many cgroups it has
    bool operator==(const Application&) const = default;
};
/// By the id that selects it.
using Applications = std::map<std::string, Application>;

/// The desktop file of an id that decides: its first below these directories (the Desktop Entry Specification:
/// "applications/kde/foo.desktop" is kde-foo).
using DesktopFiles = std::map<std::string, std::string>;
DesktopFiles desktop_files(const std::vector<std::string>& data_directories);

/// Adds what has a desktop file. What is not shown in menus is left out.
void add_installed(Applications& to, const DesktopFiles& files);

/// Adds what runs below the user's manager; root sees every user's. Without cgroup2 there is none.
void add_running(Applications& to, uid_t uid);

/// Where desktop files are, of the user, the system, flatpak and snap, by the environment (XDG Base Directory
/// Specification). The first is the user's own.
std::vector<std::string> data_directories();

/// A desktop file's text; none where it cannot be read, or is too long to be one.
std::optional<std::string> read_desktop_file(const std::string& path);

/// The id as YAML has to have it: in quotes where it is no plain word.
std::string to_yaml(const std::string& id);

} // namespace novpn
