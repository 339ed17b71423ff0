// Where libbpf was not there at build time.
#include "rules/birth_mark.h"

#include <cerrno>
#include <utility>

namespace novpn {
namespace {

constexpr char kReason[] = "this novpn was built without libbpf; build it again with libbpf-dev";

Expected<void> refused() { return system_error(ENOTSUP, "marking sockets at birth", kReason); }

} // namespace

BirthMarks::BirthMarks(std::string cgroup_mount, const std::string& directory)
    : cgroup_mount_(std::move(cgroup_mount))
    , directory_(directory)
    , unavailable_(kReason) {}

BirthMarks BirthMarks::open(std::string cgroup_mount, const std::string& directory) {
    return {std::move(cgroup_mount), directory};
}

bool BirthMarks::pinned() const { return false; }

Expected<ObservedBirthMarks> BirthMarks::observe(const std::vector<std::string>&) const {
    return ObservedBirthMarks{.unavailable = unavailable_, .directory = directory_};
}

Expected<void> BirthMarks::pin(const std::string&, const BirthMark&) const { return refused(); }
Expected<void> BirthMarks::attach(const std::string&, const std::string&) const { return refused(); }
Expected<void> BirthMarks::detach(const std::string&, const std::string&) const { return refused(); }
Expected<void> BirthMarks::unpin(const std::string&) const { return refused(); }

} // namespace novpn
