#include "agent/cli/launcher.h"

#include "agent/desktop_entry.h"
#include "agent/unique_fd.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <string_view>
#include <sys/stat.h>
#include <utility>

namespace novpn::cli {
namespace {

namespace fs = std::filesystem;

tl::unexpected<Error> failed(const std::string& doing, std::string reason) {
    return tl::make_unexpected(Error{.code = {}, .doing = doing, .detail = std::move(reason)});
}

Expected<void> write_all(int fd, std::string_view text, const std::string& doing) {
    while (!text.empty()) {
        const ssize_t size = ::write(fd, text.data(), text.size());
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return system_error(errno, doing);
        text.remove_prefix(static_cast<std::size_t>(size));
    }
    return {};
}

/// Whole or not at all: desktops read it at any moment.
Expected<void> replace_file(const std::string& path, std::string_view text) {
    const std::string doing = "writing " + path;
    std::error_code error;
    fs::create_directories(fs::path(path).parent_path(), error);
    if (error) return system_error(error.value(), doing);
    std::string beside = path + ".XXXXXX";
    const UniqueFd file(::mkostemp(beside.data(), O_CLOEXEC));
    if (!file) return system_error(errno, doing);
    auto written = write_all(file.get(), text, doing);
    if (written && ::fchmod(file.get(), 0644) != 0) written = system_error(errno, doing);
    if (written && ::rename(beside.c_str(), path.c_str()) != 0) written = system_error(errno, doing);
    if (!written) ::unlink(beside.c_str());
    return written;
}

/// The first that no launcher of ours hides; none where there is no other.
std::optional<std::string> text_of_original(const std::string& id, std::vector<std::string> directories,
                                            const std::string& own) {
    for (; !directories.empty(); directories.erase(directories.begin())) {
        const auto files = desktop_files(directories);
        const auto found = files.find(id);
        if (found == files.end()) return std::nullopt;
        auto text = read_desktop_file(found->second);
        if (!text) return std::nullopt;
        if (found->second != own || parse_desktop_entry(*text).class_name.empty()) return text;
    }
    return std::nullopt;
}

/// "flatpak", of "/usr/bin/flatpak" too.
std::string name_of(const std::string& program) { return program.substr(program.rfind('/') + 1); }

/// The first word that is no option.
std::optional<std::string> first_operand(std::vector<std::string>::const_iterator from,
                                         std::vector<std::string>::const_iterator end) {
    const auto found = std::find_if(from, end, [](const std::string& word) { return !word.starts_with('-'); });
    return found == end ? std::nullopt : std::optional(*found);
}

} // namespace

Expected<std::string> write_launcher(const LauncherRequest& request, const std::vector<std::string>& data_directories,
                                     bool with_systemd) {
    const std::string doing = "writing a launcher of " + request.id;
    const std::string directory = data_directories.front() + "/applications/";
    std::string path = directory + request.id + ".desktop";
    const auto text = text_of_original(request.id, data_directories, path);
    const DesktopEntry entry = text ? parse_desktop_entry(*text) : DesktopEntry{};
    // A name with a '/' is never that of an id, so that nothing is written elsewhere.
    if (!text || entry.hidden || request.id.find('/') != std::string::npos)
        return failed(doing, "no such application is installed; `novpn apps` lists those that are");
    const auto files = desktop_files({data_directories.front()});
    if (const auto own = files.find(request.id); own != files.end()) {
        const auto there = read_desktop_file(own->second);
        if (!there || parse_desktop_entry(*there).class_name.empty())
            return failed(doing, own->second + " is a file of your own: write `novpn run` before its Exec yourself");
    }
    if (with_systemd && !entry.owner.empty())
        return failed(doing,
                      fmt::format("{} starts it in a scope of its own, whatever the desktop: write 'apps: [{}]' in "
                                  "the config",
                                  entry.owner, to_yaml(request.id)));
    auto launcher = launcher_of(*text, request.run, request.class_name);
    if (!launcher) return failed(doing, launcher.error().detail);
    if (auto written = replace_file(path, *launcher); !written) return tl::make_unexpected(written.error());
    return path;
}

std::optional<OwnScope> own_scope_of(const std::vector<std::string>& command) {
    const std::string& program = command.front();
    const std::string name = name_of(program);
    // A snap's own command is a link in there to snap(8).
    if (program.starts_with("/snap/bin/")) return OwnScope{"snap", name.substr(0, name.find('.'))};
    if (name != "flatpak" && name != "snap") return std::nullopt;
    const auto run = std::find(command.begin() + 1, command.end(), "run");
    if (run == command.end()) return std::nullopt;
    const auto id = first_operand(run + 1, command.end());
    if (!id) return std::nullopt;
    return OwnScope{name, name == "snap" ? id->substr(0, id->find('.')) : *id};
}

bool systemd_runs() {
    struct stat directory {};
    return ::lstat("/run/systemd/system", &directory) == 0 && S_ISDIR(directory.st_mode);
}

} // namespace novpn::cli
