// Any bytes as a message of rtnetlink are a value that the agent can go on with, or none.
#include "netlink/rtnetlink.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/netlink_bytes.h"

using namespace novpn;
using novpn::fuzz::require;

namespace {

unsigned width(const address& of) { return of.is_v4() ? 32 : 128; }

void require_sound(const Prefix& prefix) {
    require(prefix.length <= width(prefix.network), "a prefix is not longer than its address");
    require(prefix_of(prefix.network, prefix.length) == prefix, "the bits of a prefix below its length are zero");
}

void read(std::span<const std::byte> message) {
    if (const auto link = to_link(message)) {
        require(link->index.value != 0, "a link has an index");
        require(link->name.find('\0') == std::string::npos, "a name ends at its NUL");
    }
    if (const auto found = to_address(message))
        require(found->prefix_length <= width(found->local), "a prefix is not longer than its address");
    for (const Route& route : to_routes(message)) {
        require_sound(route.destination);
        require(route.next_hops >= 1, "a route has a next hop");
        require(!to_string(route, LinkNames{}).empty(), "a route can be named");
        (void)key(route);
    }
    if (const auto rule = to_rule(message)) {
        if (rule->from) require_sound(*rule->from);
        if (rule->to) require_sound(*rule->to);
        require(!to_string(*rule).empty(), "a rule can be named");
    }
    if (const auto neighbour = to_neighbour(message)) require(neighbour->link.value != 0, "a neighbour is on a link");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span message(reinterpret_cast<const std::byte*>(data), size);
    read(message);
    read(fuzz::with_true_length(message));
    return 0;
}
