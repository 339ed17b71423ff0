// Any names of cgroups: only what lies where the managers put it is a member. The first line of the input is globs of
// apps between blanks; each other line is a cgroup, "OWNER PATH".
#include "rules/membership.h"
#include "tests/fuzz/fuzz.h"

#include <algorithm>
#include <charconv>
#include <string_view>

using namespace novpn;
using novpn::fuzz::require;

namespace {

constexpr uid_t kAllowed = 1000;

std::string_view take_until(std::string_view& rest, char separator) {
    const auto end = rest.find(separator);
    const auto taken = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return taken;
}

SeenCgroups cgroups_of(std::string_view lines) {
    SeenCgroups seen;
    while (!lines.empty()) {
        auto line = take_until(lines, '\n');
        const auto owner = take_until(line, ' ');
        uid_t uid = 0;
        std::from_chars(owner.data(), owner.data() + owner.size(), uid);
        seen.insert_or_assign(std::string(line), SeenCgroup{.id = seen.size() + 1, .owner = uid});
    }
    return seen;
}

void require_ids(const std::string& path) {
    const auto slash = path.rfind('/');
    for (const std::string& id : application_ids(slash == std::string::npos ? path : path.substr(slash + 1))) {
        require(!id.empty(), "an id is something");
        require(std::ranges::none_of(id, [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '/'; }),
                "an id is a name");
    }
}

/// Whoever could have made a cgroup above could have chosen the name.
void require_made_by_managers(const std::string& path, std::optional<uid_t> manager, const SeenCgroups& seen) {
    for (auto slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
        const auto above = seen.find(path.substr(0, slash));
        require(above != seen.end(), "all above a member is known");
        require(may_hold_matches(above->first), "all above a member may hold members");
        const uid_t owner = above->second.owner;
        require(owner == 0 || owner == manager, "all above a member is root's, or its manager's user's");
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string_view text(reinterpret_cast<const char*>(data), size);
    CgroupSelectors by{.class_name = "novpn",
                       .apps = {},
                       .units = {"a.service"},
                       .slices = {"b.slice"},
                       .cgroups = {"system.slice/c"}};
    auto apps = take_until(text, '\n').substr(0, 64); // fnmatch(3) is slow on globs that no config may have
    while (!apps.empty()) by.apps.emplace_back(take_until(apps, ' '));
    const SeenCgroups seen = cgroups_of(text);
    for (const auto& [path, cgroup] : seen) require_ids(path);
    (void)managers_in(seen);
    for (const auto& [path, matched] : matched_cgroups({by}, seen, {kAllowed})) {
        require(seen.contains(path) && seen.at(path).id == matched.id, "a member is one that was seen");
        const auto manager = manager_of(path);
        require(matched.selector.starts_with("app ") == manager.has_value(), "apps are users', units are root's");
        require(!manager || *manager == 0 || *manager == kAllowed, "apps are of users who are allowed");
        require_made_by_managers(path, manager, seen);
    }
    return 0;
}
