// The fuzz target on files instead of libFuzzer's bytes, for any compiler.   Usage: fuzz_NAME FILE_OR_DIRECTORY...
#include "tests/fuzz/fuzz.h"

#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

namespace {

namespace fs = std::filesystem;

void replay(const fs::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw fs::filesystem_error("reading", file, std::make_error_code(std::errc::io_error));
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    // Of exactly that size, so that a sanitizer sees a read behind it.
    const auto exact = std::make_unique<std::uint8_t[]>(bytes.size());
    std::copy(bytes.begin(), bytes.end(), exact.get());
    std::fprintf(stderr, "%s\n", file.c_str());
    LLVMFuzzerTestOneInput(exact.get(), bytes.size());
}

std::size_t replay_all(const fs::path& path) {
    if (!fs::is_directory(path)) {
        replay(path);
        return 1;
    }
    std::size_t files = 0;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
        if (!entry.is_regular_file()) continue;
        replay(entry.path());
        ++files;
    }
    return files;
}

} // namespace

int main(int argc, char** argv) {
    try {
        for (int i = 1; i < argc; ++i) {
            if (replay_all(argv[i]) > 0) continue;
            std::fprintf(stderr, "fuzz: nothing to replay in %s\n", argv[i]);
            return 1;
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fuzz: %s\n", error.what());
        return 1;
    }
    return argc > 1 ? 0 : 2;
}
