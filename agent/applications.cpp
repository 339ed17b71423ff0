#include "agent/applications.h"

#include "agent/desktop_entry.h"
#include "rules/cgroup.h"
#include "rules/cgroup_watch.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

namespace novpn {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".desktop";

/// Far above any that is one.
constexpr std::size_t kMaxDesktopFile = std::size_t{1} << 20;

void add_files_in(DesktopFiles& to, const fs::path& directory) {
    std::error_code error;
    fs::recursive_directory_iterator at(directory, fs::directory_options::skip_permission_denied, error);
    for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
        // By its own place: flatpak's are symbolic links to elsewhere.
        std::string id = at->path().lexically_relative(directory).string();
        std::error_code dangling;
        if (!id.ends_with(kSuffix) || !at->is_regular_file(dangling)) continue;
        id.resize(id.size() - kSuffix.size());
        std::ranges::replace(id, '/', '-');
        if (!id.empty()) to.try_emplace(id, at->path().string());
    }
}

std::string variable(const char* name, const std::string& otherwise) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : otherwise;
}

/// The id that is installed; else the first.
std::string best_of(const std::vector<std::string>& ids, const Applications& known) {
    const auto installed = std::ranges::find_if(ids, [&](const std::string& id) { return known.contains(id); });
    return installed == ids.end() ? ids.front() : *installed;
}

} // namespace

std::optional<std::string> read_desktop_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string text(kMaxDesktopFile + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (file.bad() || file.gcount() <= 0) return std::nullopt;
    text.resize(static_cast<std::size_t>(file.gcount()));
    return text.size() > kMaxDesktopFile ? std::nullopt : std::optional(std::move(text));
}

DesktopFiles desktop_files(const std::vector<std::string>& data_directories) {
    DesktopFiles files;
    for (const std::string& directory : data_directories) add_files_in(files, directory + "/applications");
    return files;
}

void add_installed(Applications& to, const DesktopFiles& files) {
    for (const auto& [id, path] : files) {
        const auto text = read_desktop_file(path);
        if (!text) continue;
        const DesktopEntry entry = parse_desktop_entry(*text);
        if (entry.type == "Application" && !entry.no_display && !entry.hidden)
            to.try_emplace(id, Application{.name = entry.name, .installed = true});
    }
}

void add_running(Applications& to, uid_t uid) {
    const auto tree = CgroupTree::find();
    if (!tree) return;
    auto watch = CgroupWatch::open(tree->mount());
    if (!watch) return;
    watch->scan();
    const auto managers = managers_in(watch->seen());
    for (const auto& [path, _] : matched_cgroups({{.class_name = {}, .apps = {"*"}}}, watch->seen(), managers)) {
        if (uid != 0 && manager_of(path) != uid) continue;
        const auto ids = application_ids(path.substr(path.rfind('/') + 1));
        ++to[best_of(ids, to)].running;
    }
}

std::vector<std::string> data_directories() {
    const std::string home = variable("HOME", "/nonexistent");
    const std::string own = variable("XDG_DATA_HOME", home + "/.local/share");
    std::vector<std::string> directories{own, own + "/flatpak/exports/share"};
    std::string rest = variable("XDG_DATA_DIRS", "/usr/local/share:/usr/share");
    for (;;) {
        const auto colon = rest.find(':');
        directories.push_back(rest.substr(0, colon));
        if (colon == std::string::npos) break;
        rest.erase(0, colon + 1);
    }
    for (const char* always : {"/var/lib/flatpak/exports/share", "/var/lib/snapd/desktop"})
        if (std::ranges::find(directories, always) == directories.end()) directories.emplace_back(always);
    std::erase(directories, "");
    return directories;
}

std::string to_yaml(const std::string& id) {
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    const bool is_plain = !id.empty() && is_letter(id.front()) && std::ranges::all_of(id, [&](char c) {
        return is_letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    });
    // Words that YAML takes for something else than text.
    const bool is_word = id == "true" || id == "false" || id == "null" || id == "yes" || id == "no";
    if (is_plain && !is_word) return id;
    std::string quoted = "'";
    for (const char c : id) quoted += c == '\'' ? "''" : std::string(1, c);
    return quoted + "'";
}

} // namespace novpn
