// `novpn`, the command line.
#include "agent/cli/command_line.h"
#include "agent/cli/commands.h"

#include <cstdio>
#include <exception>

namespace {

template<typename... Cases>
struct Overloaded : Cases... {
    using Cases::operator()...;
};
template<typename... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

} // namespace

int main(int argc, char** argv) try {
    using namespace novpn;
    const auto line = cli::parse({argv + 1, argv + argc});
    if (!line) {
        const auto& [status, text] = line.error();
        std::fputs(text.c_str(), status == 0 ? stdout : stderr);
        return status;
    }
    const std::string& dir = line->runtime_dir;
    return std::visit(Overloaded{[&](const cli::Run& what) { return cli::run(dir, what); },
                                 [&](const cli::Add& what) { return cli::add(dir, what); },
                                 [&](const cli::Remove& what) { return cli::remove(dir, what); },
                                 [&](const cli::Switch& what) { return cli::turn(dir, what); },
                                 [&](const cli::Status& how) { return cli::status(dir, how); },
                                 [&](const cli::Watch& how) { return cli::watch(dir, how); },
                                 [&](const cli::Explain& what) { return cli::explain(dir, what); },
                                 [&](const cli::Plan& how) { return cli::plan(dir, how); },
                                 [&](const cli::Doctor& how) { return cli::doctor(dir, how); },
                                 [&](const cli::Check& what) { return cli::check(what); },
                                 [&](const cli::Reload&) { return cli::reload(dir); },
                                 [&](const cli::Apps& how) { return cli::apps(how); },
                                 [&](const cli::Launcher& what) { return cli::desktop_entry(dir, what); },
                                 [&](const cli::Metrics&) { return cli::metrics(dir); },
                                 [&](const cli::Down& how) { return cli::down(dir, how); }},
                      line->command);
} catch (const std::exception& bug) {
    std::fprintf(stderr, "novpn: %s\n", bug.what());
    return 1;
}
