#include "agent/log.h"

#include <spdlog/spdlog.h>

#ifdef NOVPN_HAVE_SYSTEMD
#include <array>
#include <cstdlib>
#include <fmt/format.h>
#include <mutex>
#include <spdlog/sinks/base_sink.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <unistd.h>
#include <vector>
#endif

namespace novpn {
namespace {

/// Of the line that this thread is logging.
thread_local const LogFields* fields_of_line = nullptr;

spdlog::level::level_enum level_of(LogTone tone) {
    switch (tone) {
    case LogTone::debug: return spdlog::level::debug;
    case LogTone::info: return spdlog::level::info;
    case LogTone::warning: return spdlog::level::warn;
    }
    return spdlog::level::info;
}

#ifdef NOVPN_HAVE_SYSTEMD
int priority_of(spdlog::level::level_enum level) {
    switch (level) {
    case spdlog::level::critical: return LOG_CRIT;
    case spdlog::level::err: return LOG_ERR;
    case spdlog::level::warn: return LOG_WARNING;
    case spdlog::level::info: return LOG_INFO;
    default: return LOG_DEBUG;
    }
}

class Journal : public spdlog::sinks::base_sink<std::mutex> {
    void sink_it_(const spdlog::details::log_msg& line) override {
        std::vector<std::string> fields{
            fmt::format("MESSAGE={}", std::string_view(line.payload.data(), line.payload.size())),
            fmt::format("PRIORITY={}", priority_of(line.level)), "SYSLOG_IDENTIFIER=novpnd"};
        if (fields_of_line != nullptr) {
            const LogFields& given = *fields_of_line;
            for (const auto& [name, value] :
                 {std::pair{"EVENT", &given.event}, std::pair{"CAUSE", &given.cause}, std::pair{"SITE", &given.site},
                  std::pair{"CLASS", &given.class_name}, std::pair{"UPLINK", &given.uplink}})
                if (!value->empty()) fields.push_back(fmt::format("{}={}", name, *value));
            if (given.reaction) fields.push_back(fmt::format("REACTION_US={}", given.reaction->count()));
        }
        std::vector<iovec> parts;
        for (std::string& field : fields) parts.push_back({field.data(), field.size()});
        // A journal that is away takes nothing; there is nobody else to tell.
        (void)sd_journal_sendv(parts.data(), static_cast<int>(parts.size()));
    }
    void flush_() override {}
};
#endif

} // namespace

void log_line(LogTone tone, std::string_view text, const LogFields& fields) {
    fields_of_line = &fields;
    spdlog::log(level_of(tone), "{}", text);
    fields_of_line = nullptr;
}

bool log_to_journal() {
#ifdef NOVPN_HAVE_SYSTEMD
    const char* stream = std::getenv("JOURNAL_STREAM");
    struct stat seen {};
    if (stream == nullptr || fstat(STDERR_FILENO, &seen) != 0) return false;
    if (fmt::format("{}:{}", seen.st_dev, seen.st_ino) != stream) return false; // somebody redirected it since
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("novpnd", std::make_shared<Journal>()));
    return true;
#else
    return false;
#endif
}

} // namespace novpn
