// Where libbpf was not there at build time.
#include "rules/redirect.h"

#include <cerrno>
#include <utility>

namespace novpn {
namespace {

Expected<void> refused() { return system_error(ENOTSUP, "redirecting DNS", "built without libbpf"); }

} // namespace

Redirects::Redirects(std::string cgroup_mount, const std::string& directory)
    : cgroup_mount_(std::move(cgroup_mount))
    , directory_(directory) {}

Redirects Redirects::open(std::string cgroup_mount, const std::string& directory, const std::string& no_birth_marks) {
    Redirects made(std::move(cgroup_mount), directory);
    made.unavailable_ = no_birth_marks;
    return made;
}

Expected<ObservedRedirects> Redirects::observe(const std::vector<std::string>&) const {
    return ObservedRedirects{.unavailable = unavailable_};
}

Expected<void> Redirects::pin(const std::string&, Mark) const { return refused(); }
Expected<void> Redirects::set(const std::string&, const Resolvers&) const { return refused(); }
Expected<void> Redirects::attach(const std::string&, const std::string&) const { return refused(); }
Expected<void> Redirects::detach(const std::string&, const std::string&) const { return refused(); }
Expected<void> Redirects::unpin(const std::string&) const { return refused(); }

} // namespace novpn
