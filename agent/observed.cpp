#include "agent/observed.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>

namespace novpn {

const std::vector<address>& public_destinations() {
    static const std::vector<address> kDestinations = [] {
        std::vector<address> result;
        // The last eighth, 224.0.0.0/3, is multicast and reserved.
        for (const char* text : {"16.0.0.1", "48.0.0.1", "80.0.0.1", "112.0.0.1", "144.0.0.1", "176.0.0.1", "208.0.0.1",
                                 "2001:500::1", "2600::1", "2a00::1"})
            result.push_back(boost::asio::ip::make_address(text));
        return result;
    }();
    return kDestinations;
}

const Link* find_link(const Observed& observed, IfIndex index) {
    auto found = std::ranges::find(observed.links, index, &Link::index);
    return found == observed.links.end() ? nullptr : &*found;
}

} // namespace novpn
