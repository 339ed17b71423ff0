// Any bytes as a message of nl80211 or of the controller of generic netlink are values that the agent can go on with,
// or none.
#include "netlink/nl80211.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/netlink_bytes.h"

using namespace novpn;
using novpn::fuzz::require;

namespace {

constexpr std::size_t kMaxSsid = 32;

void read(std::span<const std::byte> message) {
    for (const auto& link : {to_wifi_link(message), to_network_in_use(message)}) {
        if (!link) continue;
        require(link->link.value != 0, "a Wi-Fi link has an index");
        require(link->ssid.size() <= kMaxSsid, "a Wi-Fi name has 32 bytes at most");
        require(link->ssid.empty() || link->ssid.find_first_not_of('\0') != std::string::npos, "no name is all zeros");
    }
    if (const auto link = to_wifi_link(message)) require(!link->bssid, "the link's own address is no BSSID");
    require(to_wifi_cause(message).size() < 20, "a notification is a cause or none");
    if (const auto family = to_generic_family(message))
        require(family->name.find('\0') == std::string::npos, "a family's name is text");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span message(reinterpret_cast<const std::byte*>(data), size);
    read(message);
    read(fuzz::with_true_length(message));
    return 0;
}
