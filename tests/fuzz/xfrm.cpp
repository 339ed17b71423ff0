// Any bytes as a message of xfrm are a policy that the agent can go on with, or none.
#include "netlink/xfrm.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/netlink_bytes.h"

using namespace novpn;
using novpn::fuzz::require;

namespace {

void read(std::span<const std::byte> message) {
    const auto policy = to_policy(message);
    if (!policy) return;
    for (const Prefix& prefix : {policy->source, policy->destination})
        require(prefix_of(prefix.network, prefix.length) == prefix, "the bits of a prefix below its length are zero");
    require(policy->source.network.is_v4() == policy->destination.network.is_v4(), "a policy is of one family");
    require(same_key(*policy, *policy), "a policy has its own key");
    require(!owned_by_us(*policy) || !policy->block, "ours never block");
    require(!to_string(*policy).empty() && !identity(*policy).empty(), "a policy can be named");
    (void)selects(*policy, {.source = policy->source.network, .destination = policy->destination.network, .link = {}});
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span message(reinterpret_cast<const std::byte*>(data), size);
    read(message);
    read(fuzz::with_true_length(message));
    return 0;
}
