// Any bytes as what nf_tables answers. The reader's own nft::Socket has this file's body instead of nft_socket.cpp's: a
// question is answered by those messages of the input that are of the type it asks for.
#include "rules/nft_messages.h"
#include "tests/fuzz/fuzz.h"

#include <cstring>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <span>

struct mnl_socket {};

namespace novpn::nft {
namespace {

std::vector<std::uint32_t> answered; // aligned as netlink has its messages
int answered_bytes = 0;

} // namespace

void Socket::Close::operator()(mnl_socket* socket) const { delete socket; }

Expected<Socket> Socket::open() { return Socket(new mnl_socket); }

void Answer::append(const nlmsghdr* message) {
    const auto* bytes = reinterpret_cast<const char*>(message);
    bytes_.insert(bytes_.end(), bytes, bytes + message->nlmsg_len);
}

void Answer::for_each(const std::function<void(const nlmsghdr*)>& visit) const {
    int left = static_cast<int>(bytes_.size());
    const auto* message = reinterpret_cast<const nlmsghdr*>(bytes_.data());
    for (; is_whole(message, left); message = mnl_nlmsg_next(message, &left)) visit(message);
}

Expected<Answer> Socket::dump(std::uint16_t type, const std::function<void(nlmsghdr*)>&, const std::string&) {
    Answer answer;
    int left = answered_bytes;
    const auto* message = reinterpret_cast<const nlmsghdr*>(answered.data());
    for (; is_whole(message, left); message = mnl_nlmsg_next(message, &left)) {
        // NFT_MSG_NEWX is one less than NFT_MSG_GETX. The kernel's messages are padded, and have their family.
        const bool is_whole =
            message->nlmsg_len % NLMSG_ALIGNTO == 0 && mnl_nlmsg_get_payload_len(message) >= sizeof(nfgenmsg);
        if (is_whole && (message->nlmsg_type & 0xff) + 1 == type) answer.append(message);
    }
    return answer;
}

Expected<Answer> Socket::get(std::uint16_t type, const std::function<void(nlmsghdr*)>& fill, const std::string& doing) {
    return dump(type, fill, doing);
}

} // namespace novpn::nft

using namespace novpn;
using novpn::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    nft::answered.assign((size + 3) / 4, 0);
    if (size > 0) std::memcpy(nft::answered.data(), data, size);
    nft::answered_bytes = static_cast<int>(size);
    auto socket = nft::Socket::open();
    (void)nft::generation(*socket);
    (void)nft::table_header(*socket, "reading");
    const auto inventory = nft::observed_inventory(*socket, "reading");
    require(inventory.has_value(), "an inventory is read");
    const auto elements = nft::observed_elements(*socket, *inventory, "reading");
    require(elements.has_value(), "elements are read");
    for (const auto& [class_name, prefix] : elements->destinations)
        require(prefix_of(prefix.network, prefix.length) == prefix, "the bits of a prefix below its length are zero");
    return 0;
}
