#include "agent/cli/handover.h"

#include "agent/applications.h"
#include "agent/desktop_entry.h"
#include "agent/process.h"

#include <algorithm>
#include <charconv>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <poll.h>
#include <set>
#include <string_view>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>

namespace novpn::cli {
namespace {

namespace fs = std::filesystem;

/// What hands over has ended by then, on a slow machine too; what runs on has not handed over.
constexpr int kAtOnceMs = 5'000;

/// Where a program lies, symbolic links resolved; empty where there is none.
std::string location_of(const std::string& program, const std::string& path) {
    std::error_code error;
    const auto resolved = [&](const std::string& file) {
        return ::access(file.c_str(), X_OK) == 0 ? fs::canonical(file, error).string() : std::string();
    };
    if (program.find('/') != std::string::npos) return resolved(program);
    for (std::size_t begin = 0; begin <= path.size();) {
        const auto end = std::min(path.find(':', begin), path.size());
        if (auto found = resolved(path.substr(begin, end - begin) + "/" + program); !found.empty()) return found;
        begin = end + 1;
    }
    return {};
}

std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string directory_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

bool is_script(const std::string& path) {
    char begin[2] = {};
    std::ifstream(path, std::ios::binary).read(begin, sizeof begin);
    return begin[0] == '#' && begin[1] == '!';
}

/// Whether a desktop file starts it, and not in a terminal.
bool has_windows(const std::string& program, const Surroundings& where) {
    for (const auto& [_, path] : desktop_files(where.data_directories)) {
        const auto text = read_desktop_file(path);
        if (!text) continue;
        const DesktopEntry entry = parse_desktop_entry(*text);
        if (entry.in_terminal || entry.type != "Application") continue;
        const std::string started = program_of(entry.exec);
        if (started.empty()) continue;
        if (name_of(started) == name_of(program)) return true;
        if (location_of(started, where.path) == location_of(program, where.path)) return true;
    }
    return false;
}

/// Empty where it is not told: of another user's, and of one that is gone.
std::string executable_of(const std::string& process) {
    std::error_code error;
    std::string executable = fs::read_symlink(process + "/exe", error).string();
    // A browser that has been upgraded since.
    constexpr std::string_view kDeleted = " (deleted)";
    if (executable.ends_with(kDeleted)) executable.resize(executable.size() - kDeleted.size());
    return executable;
}

/// The script, of an interpreter's.
std::string first_argument_of(const std::string& process) {
    std::ifstream words(process + "/cmdline", std::ios::binary);
    std::string program, argument;
    std::getline(words, program, '\0');
    std::getline(words, argument, '\0');
    return argument;
}

pid_t parent_of(const std::string& process) {
    std::ifstream file(process + "/stat");
    std::string stat;
    std::getline(file, stat);
    // "PID (name) state PPID": the name may have a ')'.
    const auto end = stat.rfind(") ");
    pid_t parent = 0;
    if (end != std::string::npos && end + 4 < stat.size())
        std::from_chars(stat.data() + end + 4, stat.data() + stat.size(), parent);
    return parent;
}

std::optional<pid_t> number_of(const fs::path& process) {
    const std::string name = process.filename().string();
    pid_t pid = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
    return error == std::errc() && end == name.data() + name.size() ? std::optional(pid) : std::nullopt;
}

} // namespace

std::vector<pid_t> running_instances(const std::vector<std::string>& command, uid_t uid, const Surroundings& where) {
    const std::string location = location_of(command.front(), where.path);
    if (location.empty()) return {};
    // A script starts the program proper, which has its name, or lies beside it; in a directory of programs nothing
    // lies beside another.
    const bool script = is_script(location);
    const bool beside = script && !directory_of(location).ends_with("bin");
    const auto is_one = [&](const std::string& process) {
        const std::string executable = executable_of(process);
        if (executable.empty()) return false;
        if (executable == location || name_of(executable) == name_of(location)) return true;
        if (name_of(executable) == name_of(command.front())) return true;
        if (!script) return false;
        if (beside && directory_of(executable) == directory_of(location)) return true;
        const std::string argument = first_argument_of(process);
        return argument.starts_with('/') && location_of(argument, where.path) == location;
    };
    std::map<pid_t, pid_t> found; // by its parent
    std::error_code error;
    for (fs::directory_iterator at(where.proc, error); !error && at != fs::directory_iterator(); at.increment(error)) {
        const auto pid = number_of(at->path());
        const std::string& process = at->path().native();
        struct stat status {};
        if (!pid || *pid == ::getpid() || ::stat(process.c_str(), &status) != 0 || status.st_uid != uid) continue;
        if (is_one(process)) found[*pid] = parent_of(process);
    }
    std::vector<pid_t> first;
    for (const auto& [pid, parent] : found)
        if (!found.contains(parent)) first.push_back(pid);
    if (!first.empty() && !has_windows(command.front(), where)) first.clear();
    return first;
}

namespace {

constexpr char kStarts = 's';
constexpr char kFailed = 'f';

/// The words that the program's process wrote until it became the program, or ended.
std::string all_told(int fd) {
    std::string told;
    for (char c = 0;;) {
        const ssize_t size = ::read(fd, &c, 1);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return told;
        told += c;
    }
}

bool ends_within(int pidfd, int milliseconds) {
    pollfd ended{.fd = pidfd, .events = POLLIN, .revents = 0};
    return ::poll(&ended, 1, milliseconds) == 1;
}

/// Holds nothing open of what the program may hold, but stderr.
void let_go_of_all_but(int told, int program, int instance) {
    [[maybe_unused]] const int moved = ::chdir("/");
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO}) {
        if (null >= 0)
            (void)::dup2(null, fd);
        else
            (void)::close(fd);
    }
    int kept[] = {told, program, instance};
    std::ranges::sort(kept);
    unsigned from = STDERR_FILENO + 1;
    for (const int fd : kept) {
        if (static_cast<unsigned>(fd) > from) (void)::close_range(from, static_cast<unsigned>(fd) - 1, 0);
        from = static_cast<unsigned>(fd) + 1;
    }
    (void)::close_range(from, ~0U, 0);
}

} // namespace

HandoverWatch HandoverWatch::start(pid_t instance, const std::function<std::vector<pid_t>()>& instances,
                                   const std::function<void()>& say) {
    int ends[2];
    const auto program = Process::open(::getpid());
    const auto other = Process::open(instance);
    if (!program || !other || ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return {};
    UniqueFd listening(ends[0]), telling(ends[1]);
    const auto before = instances();
    const pid_t child = ::fork();
    if (child < 0) return {};
    if (child > 0) {
        while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
        }
        return HandoverWatch(std::move(telling));
    }
    // In a session of its own, no signal of the terminal ends it; as nobody's child, the program never waits for it.
    if (::setsid() < 0 || ::fork() != 0) ::_exit(0);
    telling = UniqueFd();
    let_go_of_all_but(listening.get(), program->fd(), other->fd());
    if (all_told(listening.get()) != std::string{kStarts}) ::_exit(0);
    if (!ends_within(program->fd(), kAtOnceMs) || !other->alive()) ::_exit(0);
    // What the program started and left behind, in the class, has its windows.
    const auto after = instances();
    if (std::ranges::includes(before, after)) say();
    ::_exit(0);
}

void HandoverWatch::program_starts() const {
    if (told_) (void)::send(told_.get(), &kStarts, 1, MSG_NOSIGNAL);
}

void HandoverWatch::program_failed() const {
    if (told_) (void)::send(told_.get(), &kFailed, 1, MSG_NOSIGNAL);
}

} // namespace novpn::cli
