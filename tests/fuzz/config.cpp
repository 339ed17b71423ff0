// Any bytes are a config, or an error with a place in them and a printable message.
#include "config/load.h"
#include "config/numbers.h"
#include "config/schema.h"
#include "config/text.h"
#include "tests/fuzz/fuzz.h"

#include <algorithm>

using namespace novpn;
using novpn::fuzz::require;

namespace {

void require_place(const ConfigError& error, std::string_view text) {
    const auto lines = std::count(text.begin(), text.end(), '\n') + 1;
    require(error.file == "f", "the error is in the file");
    require(error.line >= 1 && error.line <= lines + 1 && error.column >= 1, "the error has a place in the file");
    require(!error.message.empty() && error.message.size() <= 1000, "the message is short");
    require(printable(error.message) == error.message, "the message is printable");
}

void require_sound(const Config& config) {
    const auto& classes = config.classes;
    require(std::ranges::count(classes, kDefaultClass, &ClassConfig::name) == 1, "there is one class novpn");
    require(classes.size() <= kMaxClasses, "the number of classes is bounded");
    require(!find_clash(classes), "no two classes have a number in common");
    for (const ClassConfig& one : classes) {
        require(one.uplink.empty() || one.via.empty(), "no class has uplink and via");
        for (const Prefix& to : one.destinations)
            require(prefix_of(to.network, to.length) == to, "a destination has no host bits");
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    if (const auto config = parse_config(text, "f"))
        require_sound(*config);
    else
        require_place(config.error(), text);
    return 0;
}
