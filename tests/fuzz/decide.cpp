// Any bytes as the choices that make a laptop: whatever it is like, the laws of decide() and diff() hold of it.
#include "tests/fuzz/fuzz.h"
#include "tests/laws/laws.h"

using namespace novpn;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::size_t at = 0;
    auto next = [&]() -> std::uint32_t {
        constexpr std::uint32_t kNo = 99; // of a hundred: what is left to chance does not happen
        if (size - at < 2) return kNo;
        const auto low = data[at], high = data[at + 1];
        at += 2;
        return static_cast<std::uint32_t>(low | high << 8);
    };
    if (auto broken = test::broken_law(test::random_state(next))) fuzz::require(false, broken->c_str());
    return 0;
}
