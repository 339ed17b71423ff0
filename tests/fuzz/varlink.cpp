// Any bytes as a stream of Varlink: messages are cut the same wherever the stream is broken, and a call comes back as
// it was written. What the agent answers is exchange.cpp's.
#include "agent/control/varlink.h"
#include "tests/fuzz/fuzz.h"

#include <algorithm>
#include <vector>

using namespace novpn;
using novpn::fuzz::require;

namespace {

std::vector<std::string> cut(std::string_view stream, std::size_t at_a_time) {
    varlink::Messages messages(varlink::kMaxCallSize);
    std::vector<std::string> all;
    while (!stream.empty()) {
        messages.append(stream.substr(0, at_a_time));
        stream.remove_prefix(std::min(at_a_time, stream.size()));
        while (auto message = messages.next()) all.push_back(std::move(*message));
    }
    return all;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view stream(reinterpret_cast<const char*>(data), size);
    const auto messages = cut(stream, std::max<std::size_t>(size, 1));
    require(messages == cut(stream, 7), "a stream is cut the same wherever it is broken");
    for (const std::string& message : messages) {
        (void)varlink::parse_reply(message);
        const auto call = varlink::parse_call(message);
        if (!call) continue;
        const std::string written = varlink::to_message(*call);
        const auto again = varlink::parse_call(std::string_view(written).substr(0, written.size() - 1));
        require(again && *again == *call, "a call comes back as it was written");
    }
    return 0;
}
