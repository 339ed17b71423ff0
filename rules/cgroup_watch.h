// The cgroups of others as far as a class may select them, kept up to date by inotify: one watch a directory, since a
// watch sees direct children only. No thread, no timer; files only. The caller waits for `fd()` to be readable, then
// drains it.
#pragma once

#include "netlink/error.h"
#include "rules/membership.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace novpn {

class CgroupWatch {
  public:
    /// `mount`: where cgroup2 is. Watches nothing yet.
    static Expected<CgroupWatch> open(std::string mount);
    CgroupWatch(CgroupWatch&& other) noexcept;
    CgroupWatch& operator=(CgroupWatch&&) = delete;
    ~CgroupWatch();

    int fd() const { return fd_; }
    /// Forgets what it knew, watches and reads the whole tree: at the start, after an overrun, and as an audit.
    void scan();
    /// Watches nothing any more.
    void stop();
    bool is_watching() const { return !path_of_.empty(); }
    /// Reads what is queued, never blocks. True when a cgroup has come, gone or changed its owner.
    bool drain();
    /// Counts what was read: the same number and is_silent() say that nothing has come or gone in between.
    std::uint64_t heard() const { return heard_; }
    bool is_silent() const;

    const SeenCgroups& seen() const { return seen_; }
    /// Why some cgroups are not watched, and the mend; the last scan met it.
    const std::optional<Error>& problem() const { return problem_; }

  private:
    CgroupWatch(std::string mount, int fd)
        : mount_(std::move(mount))
        , fd_(fd) {}
    void enter(const std::string& path);
    void add(const std::string& path);
    void remove(const std::string& path);
    bool refresh(const std::string& path);

    std::string mount_;
    int fd_ = -1;
    SeenCgroups seen_;
    std::map<int, std::string> path_of_; ///< by watch
    std::map<std::string, int> watch_of_;
    std::optional<Error> problem_;
    std::uint64_t heard_ = 0;
};

} // namespace novpn
