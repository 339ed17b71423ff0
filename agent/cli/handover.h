// A program that hands what it is asked for over to an instance of itself that is running already, as browsers do: the
// window then opens there, and not in the class. Reads /proc and desktop files.
#pragma once

#include "agent/unique_fd.h"

#include <functional>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace novpn::cli {

/// Where to look, so that a test can say.
struct Surroundings {
    std::string proc = "/proc";
    std::vector<std::string> data_directories;
    std::string path; ///< $PATH
};

/// The processes of `uid` that run the application which `command` starts, ascending, without those that another of
/// them started. Empty for what is no application with windows: only that has one instance for all.
std::vector<pid_t> running_instances(const std::vector<std::string>& command, uid_t uid, const Surroundings& where);

/// A process beside the program: says so when the program has ended at once while the instance goes on. The program
/// itself has neither a child nor a descriptor of it.
class HandoverWatch {
  public:
    /// `say` is called in that process, where it was so. `instances` are running_instances() of before.
    static HandoverWatch start(pid_t instance, const std::function<std::vector<pid_t>()>& instances,
                               const std::function<void()>& say);
    HandoverWatch() = default; ///< watches nothing
    /// The very next thing is exec(3). Where this has not been called, or the exec failed, nothing is said.
    void program_starts() const;
    void program_failed() const;

  private:
    explicit HandoverWatch(UniqueFd told)
        : told_(std::move(told)) {}
    UniqueFd told_;
};

} // namespace novpn::cli
