#include "config/load.h"

#include "config/check.h"
#include "config/document.h"
#include "config/schema.h"
#include "config/text.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <optional>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

namespace novpn {
namespace {

class OwnedFd {
  public:
    explicit OwnedFd(int fd)
        : fd_(fd) {}
    OwnedFd(const OwnedFd&) = delete;
    OwnedFd& operator=(const OwnedFd&) = delete;
    ~OwnedFd() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }

  private:
    int fd_;
};

tl::unexpected<ConfigError> unreadable(const std::string& file, std::string reason) {
    return tl::unexpected(ConfigError{.file = file, .line = 0, .column = 0, .message = std::move(reason)});
}

tl::unexpected<ConfigError> unreadable(const std::string& file, int number) {
    return unreadable(file, std::generic_category().message(number));
}

tl::expected<std::string, ConfigError> read_file(const std::string& file) {
    // O_NONBLOCK: a FIFO in the place of the file must not stop the agent.
    const OwnedFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd.get() < 0) return unreadable(file, errno);
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return unreadable(file, errno);
    if (S_ISDIR(status.st_mode)) return unreadable(file, EISDIR);
    if (!S_ISREG(status.st_mode)) return unreadable(file, "not a regular file");

    std::string text(kMaxConfigBytes + 1, '\0'); // One byte more than allowed, for read_document() to see that.
    std::size_t size = 0;
    while (size < text.size()) {
        const ssize_t count = ::read(fd.get(), text.data() + size, text.size() - size);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return unreadable(file, errno);
        if (count == 0) break;
        size += static_cast<std::size_t>(count);
    }
    text.resize(size);
    return text;
}

/// Also where it cannot be read, or is a symbolic link to nothing: that is a mistake to report.
bool is_there(const std::string& file) {
    std::error_code failed;
    return std::filesystem::symlink_status(file, failed).type() != std::filesystem::file_type::not_found;
}

/// Full names in the order they are applied; none where there is no such directory.
tl::expected<std::vector<std::string>, ConfigError> drop_ins(const std::string& directory) {
    namespace fs = std::filesystem;
    std::vector<std::string> files;
    std::error_code failed;
    for (fs::directory_iterator entry(directory, failed), end; !failed && entry != end; entry.increment(failed)) {
        const fs::path& file = entry->path();
        // path::extension() of ".yaml" is empty, but editors leave ".novpn.yaml" behind.
        if (file.extension() == ".yaml" && !file.filename().native().starts_with('.')) files.push_back(file.native());
    }
    if (failed && failed != std::errc::no_such_file_or_directory) return unreadable(directory, failed.value());
    std::sort(files.begin(), files.end());
    return files;
}

std::optional<ConfigError> apply_text(std::string_view text, const std::string& file, Config& config,
                                      Origins& origins) {
    const auto document = read_document(text);
    if (document) return apply_document(*document, file, config, origins);
    const Problem& problem = document.error();
    return ConfigError{.file = file, .line = problem.at.line, .column = problem.at.column, .message = problem.what};
}

std::optional<ConfigError> apply_file(const std::string& file, Config& config, Origins& origins) {
    const auto text = read_file(file);
    return text ? apply_text(*text, file, config, origins) : text.error();
}

} // namespace

std::string to_string(const ConfigError& error) {
    return fmt::format("{}: {}", location(error.file, error.line, error.column), error.message);
}

std::string location(const std::string& file, int line, int column) {
    return line == 0 ? printable(file) : fmt::format("{}:{}:{}", printable(file), line, column);
}

ConfigSource config_source(const std::string& file) {
    return {.main_file = file, .drop_in_directory = (std::filesystem::path(file).parent_path() / "conf.d").native()};
}

namespace {

tl::expected<Config, ConfigError> load_with_origins(const std::string& file, Missing main_file, Origins& origins) {
    Config config{.classes = {}};
    if (main_file == Missing::is_error || is_there(file)) {
        if (auto error = apply_file(file, config, origins)) return tl::unexpected(std::move(*error));
    }
    const auto files = drop_ins(config_source(file).drop_in_directory);
    if (!files) return tl::unexpected(files.error());
    for (const std::string& drop_in : *files) {
        if (auto error = apply_file(drop_in, config, origins)) return tl::unexpected(std::move(*error));
    }
    return checked(std::move(config), origins);
}

} // namespace

tl::expected<Config, ConfigError> load_config(const std::string& file, Missing main_file) {
    Origins origins;
    return load_with_origins(file, main_file, origins);
}

std::optional<ConfigError> find_dns_by_uplink(const std::string& file, std::string_view why_not) {
    Origins origins;
    const auto config = load_with_origins(file, Missing::is_error, origins);
    if (!config) return config.error();
    for (const ClassConfig& c : config->classes) {
        if (c.dns != Dns::uplink || !c.enabled) continue;
        const std::string path = "classes." + c.name + ".dns";
        const Origin& origin = *origins.find(path);
        return ConfigError{
            .file = origin.file,
            .line = origin.at.line,
            .column = origin.at.column,
            .message = fmt::format("{}: uplink cannot be done on this machine: {}; allowed here: vpn", path, why_not)};
    }
    for (const SiteConfig& site : config->sites)
        for (const auto& [name, changes] : site.classes) {
            if (changes.dns != Dns::uplink) continue;
            const Origin& origin = *origins.find("sites." + site.name);
            return ConfigError{
                .file = origin.file,
                .line = origin.at.line,
                .column = origin.at.column,
                .message = fmt::format("sites.{}.classes.{}.dns: uplink cannot be done on this machine: {}; allowed "
                                       "here: vpn",
                                       site.name, name, why_not)};
        }
    return std::nullopt;
}

std::vector<ConfigError> find_doubts(const std::string& file) {
    Origins origins;
    const auto config = load_with_origins(file, Missing::is_error, origins);
    return config ? doubts(*config, origins) : std::vector<ConfigError>{};
}

tl::expected<Config, ConfigError> parse_config(std::string_view text, const std::string& name) {
    Config config{.classes = {}};
    Origins origins;
    if (auto error = apply_text(text, name, config, origins)) return tl::unexpected(std::move(*error));
    return checked(std::move(config), origins);
}

} // namespace novpn
