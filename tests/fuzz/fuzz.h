// What the fuzz targets share: a target takes any bytes, and what holds for any of them is required. libFuzzer calls
// it with bytes of its own making; replay.cpp with files of the corpus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace novpn::fuzz {

/// Ends the process where a law does not hold, so that libFuzzer keeps the bytes and the replay fails.
inline void require(bool holds, const char* law) {
    if (holds) return;
    std::fprintf(stderr, "fuzz: does not hold: %s\n", law);
    std::abort();
}

} // namespace novpn::fuzz
