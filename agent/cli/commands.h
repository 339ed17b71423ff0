// What each word of the command line does. Each returns the exit status: 0 done, 1 failed (run: 125, 126, 127), and
// has said why on stderr as "novpn: doing: reason".
#pragma once

#include "agent/cli/command_line.h"

#include <string>

namespace novpn::cli {

/// Becomes the program, so that its terminal, signals and exit status are its own. Returns only where it cannot.
int run(const std::string& runtime_dir, const Run& what);
int status(const std::string& runtime_dir, const Status& how);
int plan(const std::string& runtime_dir, const Plan& how);
int down(const std::string& runtime_dir, const Down& how);
int check(const Check& what);

} // namespace novpn::cli
