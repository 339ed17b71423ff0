// What the agent says: lines of spdlog, which under systemd are entries of the journal with fields of their own
// (`journalctl -u novpnd EVENT=uplink`). Libraries do not log. Any thread; fields belong to the line they are given
// with.
#pragma once

#include "netlink/error.h"

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace novpn {

/// Fields of an entry, left out where they are empty.
struct LogFields {
    std::string event; ///< EVENT: operation, uplink, takeover, site
    std::string cause; ///< CAUSE: the notification
    std::string site;
    std::string class_name;
    std::string uplink; ///< its link
    std::optional<std::chrono::microseconds> reaction;
};

enum class LogTone : std::uint8_t { debug, info, warning };

void log_line(LogTone tone, std::string_view text, const LogFields& fields);

/// Sends what is logged to the journal, with priorities and fields, where stderr is the journal's (JOURNAL_STREAM in
/// systemd.exec(5)). False: it is not, and lines go where they went.
bool log_to_journal();

} // namespace novpn
