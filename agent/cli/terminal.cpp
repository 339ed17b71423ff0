#include "agent/cli/terminal.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>

namespace novpn {
namespace {

constexpr std::size_t kFewestColumns = 60;

std::string_view sequence_of(Colour colour) {
    switch (colour) {
    case Colour::green: return "\033[32m";
    case Colour::yellow: return "\033[33m";
    case Colour::red: return "\033[31m";
    }
    return "";
}

std::string painted(std::string_view text, Colour colour) {
    return text.empty() ? std::string() : std::string(sequence_of(colour)) + std::string(text) + "\033[0m";
}

bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }

/// How many bytes the first `columns` characters have.
std::size_t bytes_of(std::string_view text, std::size_t columns) {
    std::size_t at = 0;
    for (; at < text.size(); ++at)
        if (begins_character(text[at]) && columns-- == 0) break;
    return at;
}

std::string fit_line(std::string_view line, std::size_t columns, std::size_t indent) {
    // Blanks pad a heading; a sentence has one between two words.
    const bool has_heading = indent >= 2 && line.size() > indent && line.substr(indent - 2, 2) == "  ";
    const std::string margin(has_heading ? indent : 0, ' ');
    std::string out;
    std::string_view rest = line;
    std::size_t first = margin.size(); // where a break may be: never within the heading
    while (width_of(rest) + (out.empty() ? 0 : margin.size()) > columns) {
        const std::size_t room = out.empty() ? columns : columns - margin.size();
        const std::size_t most = bytes_of(rest, room);
        std::size_t end = rest.rfind(' ', most);
        // A word that is longer than the line stays whole: a path is to be copied.
        if (end == std::string_view::npos || end <= first) end = rest.find(' ', std::max(most, first));
        if (end == std::string_view::npos) break;
        out += std::string(out.empty() ? "" : margin) + std::string(rest.substr(0, end)) + "\n";
        rest.remove_prefix(end + 1);
        first = 0;
    }
    return out + std::string(out.empty() ? "" : margin) + std::string(rest);
}

template<typename Change>
std::string each_line(std::string_view text, Change change) {
    std::string out;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        out += change(text.substr(0, end));
        if (end < text.size()) out += '\n';
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return out;
}

} // namespace

std::size_t width_of(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, begins_character));
}

Terminal terminal_of_stdout() {
    Terminal terminal;
    if (::isatty(STDOUT_FILENO) == 0) return terminal;
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        terminal.columns = std::max<std::size_t>(size.ws_col, kFewestColumns);
    const char* no_colour = std::getenv("NO_COLOR");
    const char* kind = std::getenv("TERM");
    terminal.colour =
        (no_colour == nullptr || *no_colour == '\0') && kind != nullptr && std::string_view(kind) != "dumb";
    return terminal;
}

std::string fit(std::string_view text, std::optional<std::size_t> columns, std::size_t indent) {
    if (!columns || *columns <= indent) return std::string(text);
    return each_line(text, [&](std::string_view line) { return fit_line(line, *columns, indent); });
}

std::string cut(std::string_view line, std::optional<std::size_t> columns) {
    if (!columns || width_of(line) <= *columns) return std::string(line);
    return std::string(line.substr(0, bytes_of(line, *columns - 1))) + "…";
}

std::string coloured(std::string_view text, Colour first) {
    static constexpr std::array kHeadings{
        std::pair{std::string_view("ok "), Colour::green}, std::pair{std::string_view("note "), Colour::yellow},
        std::pair{std::string_view("warning "), Colour::yellow}, std::pair{std::string_view("wrong "), Colour::red}};
    bool in_first = true;
    return each_line(text, [&](std::string_view line) -> std::string {
        in_first = in_first && !line.empty();
        if (in_first) return painted(line, first);
        for (const auto& [heading, colour] : kHeadings)
            if (line.starts_with(heading))
                return painted(line.substr(0, heading.size() - 1), colour) +
                       std::string(line.substr(heading.size() - 1));
        return std::string(line);
    });
}

} // namespace novpn
