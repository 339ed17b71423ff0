#include "agent/table_names.h"

#include <cerrno>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sstream>

namespace novpn {

namespace {

namespace fs = std::filesystem;

constexpr const char* kTables = "/etc/iproute2/rt_tables.d/novpn.conf";
constexpr const char* kProtocols = "/etc/iproute2/rt_protos.d/novpn.conf";

Expected<void> write_if_changed(const fs::path& path, const std::string& text) {
    std::error_code error;
    std::ostringstream before;
    if (std::ifstream existing(path); existing) before << existing.rdbuf();
    if (before.str() == text) return {};
    fs::create_directories(path.parent_path(), error);
    errno = 0; // a stream keeps no reason
    std::ofstream file(path, std::ios::trunc);
    file << text;
    file.flush();
    if (!file) return system_error(error ? error.value() : errno ? errno : EIO, "writing " + path.string());
    return {};
}

} // namespace

Expected<void> write_table_names(const Config& config) {
    std::string tables = "# Written by novpnd, removed by 'novpn down'.\n";
    for (const ClassConfig& c : config.classes) tables += fmt::format("{}\t{}\n", c.table.value, c.name);
    if (auto done = write_if_changed(kTables, tables); !done) return done;
    return write_if_changed(
        kProtocols, fmt::format("# Written by novpnd, removed by 'novpn down'.\n{}\tnovpn\n", kNovpnProtocol.value));
}

Expected<void> remove_table_names() {
    for (const char* path : {kTables, kProtocols}) {
        std::error_code error;
        fs::remove(path, error);
        if (error) return system_error(error.value(), fmt::format("removing {}", path));
    }
    return {};
}

} // namespace novpn
