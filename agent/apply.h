// Does what a plan says, operation by operation, and tells it in the log.
#pragma once

#include "agent/kernel.h"
#include "agent/log.h"
#include "agent/settle.h"
#include "config/config.h"

#include <string_view>

namespace novpn {

struct Applied {
    std::vector<std::string> operations; ///< as their text
    bool bpf_refused = false;
    std::optional<Error> failure; ///< the first
    bool missed = false;          ///< something dispensable failed that may work in a moment
};

/// How what is done is told.
struct Telling {
    LogFields fields; ///< of every line
    const Config* config = nullptr;
    std::optional<Clock::time_point> since; ///< the notification that this is the reaction to
    LogTone tone = LogTone::info;
};

/// Marks at birth and redirects: dispensable where the kernel refuses them, and put back where it does not.
bool is_of_bpf(const Operation& operation);

/// The class that an operation is for; empty for what all of them share.
std::string class_of(const Operation& operation, const Config& config);

/// Applies in order. Stops at a failure, since what follows leans on what came before; `to_the_end`: on the way out.
Applied apply_all(Kernel& kernel, const Plan& plan, const Observed& observed, std::string_view cause,
                  Telling telling = {}, bool to_the_end = false);

} // namespace novpn
