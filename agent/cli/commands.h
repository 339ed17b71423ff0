// What each word of the command line does. Each returns the exit status: 0 done, 1 failed (run: 125, 126, 127), and
// has said why on stderr as "novpn: doing: reason".
#pragma once

#include "agent/cli/command_line.h"

#include <string>

namespace novpn::cli {

/// Becomes the program, so that its terminal, signals and exit status are its own. Returns only where it cannot.
int run(const std::string& runtime_dir, const Run& what);
int add(const std::string& runtime_dir, const Add& what);
int remove(const std::string& runtime_dir, const Remove& what);
int turn(const std::string& runtime_dir, const Switch& what);
int status(const std::string& runtime_dir, const Status& how);
/// Until it is interrupted, or the agent ends.
int watch(const std::string& runtime_dir, const Watch& how);
int explain(const std::string& runtime_dir, const Explain& what);
int plan(const std::string& runtime_dir, const Plan& how);
/// Failed where something is wrong.
int doctor(const std::string& runtime_dir, const Doctor& how);
int check(const Check& what);
int reload(const std::string& runtime_dir);
int apps(const Apps& how);
/// Prints the path of what it has written.
int desktop_entry(const std::string& runtime_dir, const Launcher& what);
int metrics(const std::string& runtime_dir);
int down(const std::string& runtime_dir, const Down& how);

} // namespace novpn::cli
