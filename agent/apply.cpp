#include "agent/apply.h"

#include "agent/plan.h"

#include <algorithm>
#include <fmt/format.h>

namespace novpn {

namespace {

/// A batch is many lines of nft; the log has one.
std::string first_line(std::string text) {
    if (auto end = text.find('\n'); end != std::string::npos) text.replace(end, text.size(), " …");
    return text;
}

/// The kernel's, or this process's, shortage of a moment, and not what the operation asks for.
bool is_passing(std::error_code code) {
    constexpr std::errc kPassing[] = {std::errc::no_buffer_space,
                                      std::errc::not_enough_memory,
                                      std::errc::interrupted,
                                      std::errc::device_or_resource_busy,
                                      std::errc::resource_unavailable_try_again,
                                      std::errc::timed_out,
                                      std::errc::bad_message,
                                      std::errc::too_many_files_open,
                                      std::errc::too_many_files_open_in_system};
    return std::ranges::any_of(kPassing, [&](std::errc passing) { return code == passing; });
}

} // namespace

bool is_of_bpf(const Operation& operation) {
    return std::holds_alternative<PinBirthMark>(operation) || std::holds_alternative<AttachBirthMark>(operation) ||
           std::holds_alternative<PinRedirect>(operation) || std::holds_alternative<SetResolvers>(operation) ||
           std::holds_alternative<AttachRedirect>(operation);
}

std::string class_of(const Operation& operation, const Config& config) {
    auto by = [&](auto member, const auto& value) {
        auto found = std::ranges::find(config.classes, value, member);
        return found == config.classes.end() ? std::string() : found->name;
    };
    return std::visit(
        [&](const auto& what) {
            if constexpr (requires { what.class_name; })
                return what.class_name;
            else if constexpr (requires { what.route.table; })
                return by(&ClassConfig::table, what.route.table);
            else if constexpr (requires { what.rule.mark; })
                return what.rule.mark ? by(&ClassConfig::mark, *what.rule.mark)
                                      : by(&ClassConfig::table, what.rule.table);
            else
                return std::string();
        },
        operation);
}

Applied apply_all(Kernel& kernel, const Plan& plan, const Observed& observed, std::string_view cause, Telling telling,
                  bool to_the_end) {
    Applied applied;
    telling.fields.event = "operation";
    telling.fields.cause = cause;
    for (const Operation& operation : plan) {
        std::string text = first_line(to_string(operation, observed));
        auto done = kernel.apply(operation);
        if (telling.config) telling.fields.class_name = class_of(operation, *telling.config);
        if (telling.since)
            telling.fields.reaction =
                std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - *telling.since);
        if (done) {
            log_line(telling.tone, fmt::format("{}: {}", cause, text), telling.fields);
            applied.operations.push_back(std::move(text));
            continue;
        }
        // An app has ended since the look: its end is told, and needs no word.
        const bool attaches =
            std::holds_alternative<AttachBirthMark>(operation) || std::holds_alternative<AttachRedirect>(operation);
        const bool has_ended = attaches && done.error().code == std::errc::no_such_file_or_directory;
        log_line(has_ended ? LogTone::debug : LogTone::warning,
                 fmt::format("{}: {}: {}", cause, text, to_string(done.error())), telling.fields);
        applied.bpf_refused = applied.bpf_refused || is_of_bpf(operation);
        if (is_dispensable(operation)) {
            applied.missed = applied.missed || is_passing(done.error().code);
            continue;
        }
        if (!applied.failure) applied.failure = done.error();
        if (!to_the_end) break;
    }
    return applied;
}

} // namespace novpn
