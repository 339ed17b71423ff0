#include "agent/kernel.h"

namespace novpn {

std::map<std::size_t, Error> Kernel::apply_each(std::span<const Operation> operations) {
    std::map<std::size_t, Error> refused;
    for (std::size_t i = 0; i < operations.size(); ++i)
        if (auto done = apply(operations[i]); !done) refused.emplace(i, std::move(done.error()));
    return refused;
}

} // namespace novpn
