// Settings of the network namespace that rtnetlink does not tell: net.ipv4.conf.all, by /proc/sys. Those of each link
// come with the link (netlink/rtnetlink.h). Reads only; owns its files, whose answers stay those of the namespace that
// open() was called in; not thread-safe.
#pragma once

#include "netlink/error.h"
#include "netlink/values.h"

namespace novpn {

class Sysctls {
  public:
    static Expected<Sysctls> open();
    Sysctls(Sysctls&&) noexcept;
    Sysctls& operator=(Sysctls&&) noexcept;
    ~Sysctls();

    /// sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.all.src_valid_mark; `tag` is of no use there, and 0.
    Expected<Ipv4Settings> ipv4_of_all() const;
    /// Of a link, or "all": whoever writes it by sysctl(8) is told of by inotify(7) and by nothing else. The kernel
    /// tells of rp_filter alone (RTM_NEWNETCONF).
    static std::string src_valid_mark_file(const std::string& link);

  private:
    Sysctls(int rp_filter, int src_valid_mark);
    int rp_filter_ = -1;
    int src_valid_mark_ = -1;
};

} // namespace novpn
