// Notices by inotify that something in a directory of ours goes, or that a file of ours is written: the classes'
// cgroups, pins of BPF programs, settings. No thread; the caller waits for `fd()` to be readable, then drains it. What
// was removed is for a look to find.
#pragma once

#include "netlink/error.h"

#include <set>
#include <string>

namespace novpn {

class RemovalWatch {
  public:
    static Expected<RemovalWatch> open();
    RemovalWatch(RemovalWatch&& other) noexcept;
    RemovalWatch& operator=(RemovalWatch&&) = delete;
    ~RemovalWatch();

    int fd() const { return fd_; }
    /// A look begins: what it sees is no news for is_silent().
    void look_begins() { heard_ = false; }
    /// These are watched from now on, and nothing else; what is not there is left out. A directory that was made again
    /// is another one: call it after each look. True where all directories were watched before.
    bool follow(const std::set<std::string>& directories, const std::set<std::string>& files);
    /// Nothing was told since the last look began, nor is queued.
    bool is_silent() const;
    /// Reads what is queued, never blocks. True when something went or was written, also after an overrun; also by
    /// ourselves, which costs a look that finds nothing.
    bool drain();

  private:
    explicit RemovalWatch(int fd)
        : fd_(fd) {}

    int fd_ = -1;
    std::set<int> watches_;
    bool heard_ = true; ///< since the last look began
};

} // namespace novpn
