#include "agent/sources/file_watch.h"

#include <array>
#include <cstddef>
#include <string_view>
#include <sys/inotify.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

/// Also those in which one of the others is made later.
constexpr const char* kDirectories[] = {"/run/systemd",
                                        "/run/systemd/resolve",
                                        "/run/systemd/resolve/netif",
                                        "/run/systemd/netif",
                                        "/run/systemd/netif/links",
                                        "/run/systemd/netif/leases",
                                        "/run/NetworkManager",
                                        "/var/lib/dhcp",
                                        "/var/lib/dhclient",
                                        "/var/lib/dhcpcd"};
constexpr std::string_view kResolvConf = "resolv.conf";

} // namespace

FileWatch::FileWatch(boost::asio::io_context& io, std::string root, std::function<void()> changed)
    : fd_(io)
    , root_(std::move(root))
    , changed_(std::move(changed)) {}

void FileWatch::watch(bool wanted) {
    if (wanted == fd_.is_open()) return;
    if (!wanted) {
        boost::system::error_code ignored;
        (void)fd_.close(ignored);
        return;
    }
    const int fd = ::inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd < 0) return;
    fd_.assign(fd);
    add_watches();
    wait();
}

/// What is watched already stays so: a watch is an inode's.
void FileWatch::add_watches() {
    constexpr std::uint32_t kComesOrGoes = IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE | IN_ONLYDIR;
    const int fd = fd_.native_handle();
    for (const char* directory : kDirectories)
        ::inotify_add_watch(fd, (root_ + directory).c_str(), kComesOrGoes | IN_CREATE);
    etc_ = ::inotify_add_watch(fd, (root_ + "/etc").c_str(), kComesOrGoes | IN_CREATE);
    // The file that it is a link to.
    ::inotify_add_watch(fd, (root_ + "/etc/" + std::string(kResolvConf)).c_str(), IN_CLOSE_WRITE);
}

void FileWatch::wait() {
    fd_.async_wait(fd_.wait_read, [this](const boost::system::error_code& error) {
        if (error) return;
        const bool of_use = drain();
        add_watches();
        wait();
        if (of_use) changed_();
    });
}

/// Whether something was among it that may name servers: /etc has other files too.
bool FileWatch::drain() {
    alignas(inotify_event) std::array<char, 4096> buffer{};
    bool of_use = false;
    for (;;) {
        const ssize_t size = ::read(fd_.native_handle(), buffer.data(), buffer.size());
        if (size <= 0) return of_use;
        for (std::size_t at = 0; at < static_cast<std::size_t>(size);) {
            const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
            const std::string_view name = event->len != 0 ? event->name : "";
            at += sizeof(inotify_event) + event->len;
            of_use = of_use || event->wd != etc_ || name.starts_with(kResolvConf);
        }
    }
}

} // namespace novpn
