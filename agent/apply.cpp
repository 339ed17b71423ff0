#include "agent/apply.h"

#include "agent/plan.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>
#include <span>

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

namespace {

/// Copied routes that are told of each; thousands are all alike.
constexpr std::size_t kToldTogether = 50;

/// What stands alone at the beginning of the rest, or the one operation that does not.
std::span<const Operation> first_of(std::span<const Operation> rest) {
    const auto end = std::ranges::find_if_not(rest, stands_alone);
    return rest.first(static_cast<std::size_t>(std::max<std::ptrdiff_t>(end - rest.begin(), 1)));
}

/// What was refused, by its place.
std::map<std::size_t, Error> apply_some(Kernel& kernel, std::span<const Operation> some) {
    if (some.size() > 1) return kernel.apply_each(some);
    auto done = kernel.apply(some.front());
    return done ? std::map<std::size_t, Error>{} : std::map<std::size_t, Error>{{0, std::move(done.error())}};
}

class Account {
  public:
    Account(const Observed& observed, std::string_view cause, Telling& telling)
        : observed_(observed)
        , cause_(cause)
        , telling_(telling) {
        telling_.fields.event = "operation";
        telling_.fields.cause = cause;
    }
    /// `error`: null where it is done; `aloud`: in the log, and not only in its debug level.
    void tell(const Operation& operation, const Error* error, bool aloud) {
        std::string text = first_line(to_string(operation, observed_));
        if (telling_.config) telling_.fields.class_name = class_of(operation, *telling_.config);
        if (!error) {
            log_line(aloud ? telling_.tone : LogTone::debug, fmt::format("{}: {}", cause_, text), telling_.fields);
            applied.operations.push_back(std::move(text));
            return;
        }
        // An app has ended since the look: its end is told, and needs no word.
        const bool attaches =
            std::holds_alternative<AttachBirthMark>(operation) || std::holds_alternative<AttachRedirect>(operation);
        const bool has_ended = attaches && error->code == std::errc::no_such_file_or_directory;
        log_line(has_ended ? LogTone::debug : LogTone::warning,
                 fmt::format("{}: {}: {}", cause_, text, to_string(*error)), telling_.fields);
        applied.bpf_refused = applied.bpf_refused || is_of_bpf(operation);
        if (is_dispensable(operation))
            applied.missed = applied.missed || is_passing(error->code);
        else if (!applied.failure)
            applied.failure = *error;
    }

    Applied applied;

  private:
    const Observed& observed_;
    std::string_view cause_;
    Telling& telling_;
};

} // namespace

Applied apply_all(Kernel& kernel, const Plan& plan, const Observed& observed, std::string_view cause, Telling telling,
                  bool to_the_end) {
    Account account(observed, cause, telling);
    for (std::span<const Operation> rest(plan); !rest.empty();) {
        const auto some = first_of(rest);
        const auto refused = apply_some(kernel, some);
        if (telling.since)
            telling.fields.reaction =
                std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - *telling.since);
        for (std::size_t i = 0; i < some.size(); ++i) {
            const auto error = refused.find(i);
            account.tell(some[i], error == refused.end() ? nullptr : &error->second, i < kToldTogether);
        }
        if (some.size() > kToldTogether)
            log_line(telling.tone, fmt::format("{}: as many as {} of these", cause, some.size()), telling.fields);
        if (account.applied.failure && !to_the_end) break;
        rest = rest.subspan(some.size());
    }
    return std::move(account.applied);
}

} // namespace novpn
