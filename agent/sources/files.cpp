#include "agent/sources/files.h"

#include "agent/unique_fd.h"

#include <algorithm>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <optional>
#include <unistd.h>

namespace novpn {

namespace {

/// More than a machine has links and networks; a directory with more is not what it is taken for.
constexpr std::size_t kMaxFiles = 256;

struct DirectoryDeleter {
    void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, DirectoryDeleter>;

Directory open_directory(const std::string& path) {
    int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return nullptr;
    Directory directory(fdopendir(fd)); // takes ownership
    if (!directory) ::close(fd);
    return directory;
}

std::vector<std::string> names_in(DIR* directory, const std::function<bool(std::string_view)>& wanted) {
    std::vector<std::string> names;
    while (const dirent* entry = readdir(directory)) {
        if (!wanted(entry->d_name)) continue;
        if (names.size() == kMaxFiles) return {};
        names.emplace_back(entry->d_name);
    }
    std::ranges::sort(names);
    return names;
}

/// What there is, one byte more than `max_size` at most: the file may grow while it is read.
std::optional<std::string> read_all(int fd, std::size_t max_size) {
    std::string content(max_size + 1, '\0');
    std::size_t size = 0;
    while (size < content.size()) {
        ssize_t got = ::read(fd, content.data() + size, content.size() - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return std::nullopt;
        if (got == 0) break;
        size += static_cast<std::size_t>(got);
    }
    if (size == 0 || size > max_size) return std::nullopt;
    content.resize(size);
    return content;
}

} // namespace

bool is_trusted(const struct stat& file, const struct stat& directory) {
    constexpr mode_t kOthersWrite = S_IWGRP | S_IWOTH;
    if (!S_ISREG(file.st_mode) || file.st_nlink != 1) return false;
    if ((file.st_mode & kOthersWrite) || (directory.st_mode & kOthersWrite)) return false;
    return file.st_uid == 0 || file.st_uid == directory.st_uid;
}

std::vector<SourceFile> read_files(const std::string& path, std::size_t max_size,
                                   const std::function<bool(std::string_view)>& wanted) {
    std::vector<SourceFile> files;
    Directory directory = open_directory(path);
    const int directory_fd = directory ? dirfd(directory.get()) : -1;
    struct stat directory_status {};
    if (directory_fd < 0 || fstat(directory_fd, &directory_status) < 0) return files;
    for (std::string& name : names_in(directory.get(), wanted)) {
        // O_NONBLOCK: a FIFO must not hold up whoever opens it.
        UniqueFd fd(openat(directory_fd, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
        struct stat status {};
        if (!fd || fstat(fd.get(), &status) < 0 || !is_trusted(status, directory_status)) continue;
        if (auto content = read_all(fd.get(), max_size))
            files.push_back({std::move(name), std::move(*content),
                             std::chrono::system_clock::time_point(std::chrono::seconds(status.st_mtim.tv_sec))});
    }
    return files;
}

std::optional<std::string> read_file(const std::string& path, std::size_t max_size) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    struct stat status {};
    if (!fd || fstat(fd.get(), &status) < 0) return std::nullopt;
    if (!S_ISREG(status.st_mode) || (status.st_mode & (S_IWGRP | S_IWOTH))) return std::nullopt;
    return read_all(fd.get(), max_size);
}

} // namespace novpn
