// Which cgroups belong to which class, by what their paths say: pure. Names of cgroups are chosen by users, paths are
// not; so a name counts only where all that it lies in was made by whom it is believed. The rules are DESIGN section
// 7's, and they are the security boundary.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn {

/// A cgroup that somebody else made.
struct SeenCgroup {
    std::uint64_t id = 0;
    uid_t owner = 0; ///< of its directory: who may make cgroups in it
    bool operator==(const SeenCgroup&) const = default;
};
/// By path below the cgroup2 mount.
using SeenCgroups = std::map<std::string, SeenCgroup>;

/// By what a class selects cgroups.
struct CgroupSelectors {
    std::string class_name;
    std::vector<std::string> apps;    ///< ids, or globs (fnmatch(3))
    std::vector<std::string> units;   ///< names of services and scopes of the system manager
    std::vector<std::string> slices;  ///< names of slices of the system manager
    std::vector<std::string> cgroups; ///< paths
    bool own_slice = false;           ///< the class's own, of the system manager and of users' managers
    bool operator==(const CgroupSelectors&) const = default;
};

/// A cgroup that is in a class.
struct MatchedCgroup {
    std::string class_name;
    std::string selector; ///< "app spotify", "unit transmission-daemon.service", "slice backup.slice", "cgroup PATH"
    std::uint64_t id = 0;
    bool operator==(const MatchedCgroup&) const = default;
};

/// Those of `seen` that a class selects; where two do, the first of them. `allowed`: whose apps count, besides root's.
std::map<std::string, MatchedCgroup> matched_cgroups(const std::vector<CgroupSelectors>& classes,
                                                     const SeenCgroups& seen, const std::set<uid_t>& allowed);

/// novpn-CLASS.slice: what `novpn run` starts is in a scope below it, and a service may name it as its Slice=.
std::string class_slice(const std::string& class_name);
/// The path of the class's slice that this path is in; whether it counts is matched_cgroups()' to say.
std::optional<std::string> class_slice_above(const std::string& path, const std::string& class_name);
/// Of the names of scopes that `novpn run` and `novpn add` ask systemd for.
inline constexpr const char* kRunScopePrefix = "novpn-";
/// Whether it is in such a scope, directly below `slice`.
bool is_run_scope(const std::string& path, const std::string& slice);
/// As in the config: no other can be part of a slice's name.
bool is_class_name(const std::string& name);

/// Whether something directly below may be matched: the tree's root (""), slices, and users' managers. Everything below
/// another unit was named by whom the unit was delegated to.
bool may_hold_matches(const std::string& path);

/// The user whose manager this cgroup is, or is below; none in the system manager's tree.
std::optional<uid_t> manager_of(const std::string& path);

/// Users whose managers are there.
std::set<uid_t> managers_in(const SeenCgroups& seen);

/// The ids of the application that a unit of a user's manager is named for, as GNOME, KDE, flatpak and snap name them;
/// none where it is named for none. Several where the name does not tell where the id ends, or has two ways to write
/// it.
std::vector<std::string> application_ids(const std::string& unit);

} // namespace novpn
