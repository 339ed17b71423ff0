// Any bytes as a DHCP client's lease are a lease with a gateway, or none.
#include "agent/sources/lease.h"
#include "tests/fuzz/fuzz.h"

using namespace novpn;
using novpn::fuzz::require;

namespace {

const auto kWritten = WallClock::from_time_t(1'795'475'930);

void require_sound(const Lease& lease) {
    for (const address& one : {lease.local, lease.gateway})
        require(one.is_v4() && !one.is_unspecified(), "a lease has an address and a gateway");
}

/// "NAME=VALUE" a line.
std::map<std::string, std::string> options_of(std::string_view text) {
    std::map<std::string, std::string> options;
    while (!text.empty()) {
        const auto line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        if (const auto sign = line.find('='); sign != std::string_view::npos)
            options.insert_or_assign(std::string(line.substr(0, sign)), std::string(line.substr(sign + 1)));
    }
    return options;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    for (const auto& lease : {parse_networkd_lease(text, kWritten), parse_dhcpcd_lease(bytes, kWritten),
                              parse_networkmanager_lease(options_of(text))})
        if (lease) require_sound(*lease);
    for (const LinkLease& found : parse_dhclient_leases(text)) {
        require(!found.link.empty(), "a lease is of a link");
        require_sound(found.lease);
    }
    return 0;
}
