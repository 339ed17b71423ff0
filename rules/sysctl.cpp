#include "rules/sysctl.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <string>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

std::string path_of(const std::string& link, const char* name) {
    return "/proc/sys/net/ipv4/conf/" + link + "/" + name;
}
std::string path_of(const char* name) { return path_of("all", name); }

Expected<int> open_setting(const char* name) {
    const int fd = ::open(path_of(name).c_str(), O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? Expected<int>(fd) : system_error(errno, "opening " + path_of(name));
}

Expected<std::uint32_t> read_setting(int fd, const char* name) {
    std::array<char, 16> text;
    const ssize_t size = ::pread(fd, text.data(), text.size(), 0);
    if (size < 0) return system_error(errno, "reading " + path_of(name));
    std::uint32_t number = 0;
    if (std::from_chars(text.data(), text.data() + size, number).ec != std::errc{})
        return system_error(EBADMSG, "reading " + path_of(name));
    return number;
}

constexpr const char* kRpFilter = "rp_filter";
constexpr const char* kSrcValidMark = "src_valid_mark";

} // namespace

Sysctls::Sysctls(int rp_filter, int src_valid_mark)
    : rp_filter_(rp_filter)
    , src_valid_mark_(src_valid_mark) {}

Sysctls::Sysctls(Sysctls&& from) noexcept
    : rp_filter_(std::exchange(from.rp_filter_, -1))
    , src_valid_mark_(std::exchange(from.src_valid_mark_, -1)) {}

Sysctls& Sysctls::operator=(Sysctls&& from) noexcept {
    std::swap(rp_filter_, from.rp_filter_);
    std::swap(src_valid_mark_, from.src_valid_mark_);
    return *this;
}

Sysctls::~Sysctls() {
    for (const int fd : {rp_filter_, src_valid_mark_})
        if (fd >= 0) ::close(fd);
}

Expected<Sysctls> Sysctls::open() {
    auto rp_filter = open_setting(kRpFilter);
    if (!rp_filter) return tl::make_unexpected(rp_filter.error());
    Sysctls opened(*rp_filter, -1);
    auto src_valid_mark = open_setting(kSrcValidMark);
    if (!src_valid_mark) return tl::make_unexpected(src_valid_mark.error());
    opened.src_valid_mark_ = *src_valid_mark;
    return opened;
}

std::string Sysctls::src_valid_mark_file(const std::string& link) { return path_of(link, kSrcValidMark); }

Expected<Ipv4Settings> Sysctls::ipv4_of_all() const {
    auto rp_filter = read_setting(rp_filter_, kRpFilter);
    if (!rp_filter) return tl::make_unexpected(rp_filter.error());
    auto src_valid_mark = read_setting(src_valid_mark_, kSrcValidMark);
    if (!src_valid_mark) return tl::make_unexpected(src_valid_mark.error());
    return Ipv4Settings{.rp_filter = *rp_filter, .src_valid_mark = *src_valid_mark};
}

} // namespace novpn
