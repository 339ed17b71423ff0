// Files that other programs keep, read by root: only what a program of the system can have put there, of a size that
// makes sense. Never follows a symbolic link in the last two steps of a path. Blocking.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <vector>

namespace novpn {

struct SourceFile {
    std::string name; ///< without its directory
    std::string content;
    std::chrono::system_clock::time_point written;
};

/// A regular file with one name that belongs to root or to the owner of its directory, and that nobody else may write;
/// in a directory that nobody else may write.
bool is_trusted(const struct stat& file, const struct stat& directory);

/// The trusted files of a directory whose name `wanted` takes, by name. None where the directory is missing or not to
/// be trusted; a file that is empty or larger than `max_size` is left out.
std::vector<SourceFile> read_files(const std::string& directory, std::size_t max_size,
                                   const std::function<bool(std::string_view)>& wanted);

/// The one file of this path, wherever links lead from there: resolv.conf(5) is one to a file of the program that keeps
/// it. Nobody but its owner may write it. None where it is missing, empty, larger than `max_size` or not to be trusted.
std::optional<std::string> read_file(const std::string& path, std::size_t max_size);

} // namespace novpn
