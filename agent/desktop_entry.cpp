#include "agent/desktop_entry.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace novpn {
namespace {

constexpr std::string_view kEntryGroup = "[Desktop Entry]";
/// By this a launcher of ours is known.
constexpr std::string_view kClassKey = "X-Novpn-Class";

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kBlank = " \t\r";
    const auto begin = text.find_first_not_of(kBlank);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

/// Key and value of a line that has both; spaces around '=' are no part of either.
std::optional<std::pair<std::string_view, std::string_view>> key_and_value(std::string_view line) {
    const auto equals = line.find('=');
    if (equals == std::string_view::npos || trimmed(line).starts_with('#')) return std::nullopt;
    return std::pair(trimmed(line.substr(0, equals)), trimmed(line.substr(equals + 1)));
}

template<typename Take>
void each_line(std::string_view text, const Take& take) {
    while (!text.empty()) {
        const auto end = text.find('\n');
        take(text.substr(0, end));
        text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    }
}

/// What a value of type string stands for: \s is a space, \\ a backslash.
std::string unescaped(std::string_view value) {
    std::string plain;
    for (std::size_t i = 0; i < value.size(); ++i) {
        char c = value[i];
        if (c == '\\' && i + 1 < value.size()) {
            switch (value[++i]) {
            case 's': c = ' '; break;
            case 'n': c = '\n'; break;
            case 't': c = '\t'; break;
            case 'r': c = '\r'; break;
            default: c = value[i];
            }
        }
        plain += c;
    }
    return plain;
}

std::string escaped(std::string_view plain) {
    std::string value;
    for (const char c : plain) {
        switch (c) {
        case '\\': value += "\\\\"; break;
        case '\n': value += "\\n"; break;
        case '\t': value += "\\t"; break;
        case '\r': value += "\\r"; break;
        default: value += c;
        }
    }
    return value;
}

/// As one argument of an Exec. '%' begins a field code, in quotes too.
std::string to_argument(std::string_view word) {
    const bool is_plain = !word.empty() && std::ranges::all_of(word, [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::string_view("-_./:=@,+").find(c) != std::string_view::npos;
    });
    if (is_plain) return std::string(word);
    std::string argument = "\"";
    for (const char c : word) {
        if (std::string_view("\"`$\\").find(c) != std::string_view::npos) argument += '\\';
        argument += c == '%' ? "%%" : std::string(1, c);
    }
    return argument + "\"";
}

/// The arguments of an Exec; field codes stay as they are.
std::vector<std::string> arguments_of(std::string_view exec) {
    std::vector<std::string> arguments;
    bool in_quotes = false, in_word = false;
    for (std::size_t i = 0; i < exec.size(); ++i) {
        const char c = exec[i];
        if (!in_quotes && (c == ' ' || c == '\t')) {
            in_word = false;
            continue;
        }
        if (!std::exchange(in_word, true)) arguments.emplace_back();
        if (c == '"')
            in_quotes = !in_quotes;
        else if (in_quotes && c == '\\' && i + 1 < exec.size())
            arguments.back() += exec[++i];
        else
            arguments.back() += c;
    }
    return arguments;
}

bool is_variable(std::string_view word) {
    const auto equals = word.find('=');
    return equals != std::string_view::npos && equals > 0 && word.substr(0, equals).find('/') == std::string_view::npos;
}

} // namespace

DesktopEntry parse_desktop_entry(std::string_view text) {
    DesktopEntry entry;
    bool in_entry = false;
    each_line(text, [&](std::string_view line) {
        if (line.starts_with('[')) in_entry = trimmed(line) == kEntryGroup;
        const auto found = in_entry ? key_and_value(line) : std::nullopt;
        if (!found) return;
        const auto [key, value] = *found;
        if (key == "Type") entry.type = value;
        if (key == "Name") entry.name = unescaped(value);
        if (key == "Exec") entry.exec = value;
        if (key == "X-Flatpak") entry.owner = "flatpak";
        if (key == "X-SnapInstanceName") entry.owner = "snap";
        if (key == kClassKey) entry.class_name = value;
        if (key == "NoDisplay") entry.no_display = value == "true";
        if (key == "Hidden") entry.hidden = value == "true";
        if (key == "Terminal") entry.in_terminal = value == "true";
    });
    return entry;
}

std::string program_of(std::string_view exec) {
    auto words = arguments_of(unescaped(exec));
    auto word = words.begin();
    if (word != words.end() && (*word == "env" || word->ends_with("/env"))) {
        ++word;
        while (word != words.end() && is_variable(*word)) ++word;
    }
    return word == words.end() ? std::string() : *word;
}

Expected<std::string> launcher_of(std::string_view text, const std::vector<std::string>& words,
                                  const std::string& class_name) {
    const std::string doing = "writing a launcher";
    const DesktopEntry entry = parse_desktop_entry(text);
    if (entry.type != "Application")
        return tl::make_unexpected(
            Error{.code = {}, .doing = doing, .detail = "it starts no application, it is a " + entry.type});
    if (entry.exec.empty())
        return tl::make_unexpected(
            Error{.code = {}, .doing = doing, .detail = "it has no command: it is started over D-Bus alone"});
    std::string before;
    for (const std::string& word : words) before += to_argument(word) + " ";
    before = escaped(before);

    std::string launcher;
    each_line(text, [&](std::string_view line) {
        const auto found = key_and_value(line);
        const auto key = found ? found->first : std::string_view();
        if (key == kClassKey) return;
        if (key == "Exec" && !found->second.empty())
            launcher += "Exec=" + before + std::string(found->second);
        else if (key == "DBusActivatable")
            launcher += "DBusActivatable=false";
        else
            launcher += line;
        launcher += '\n';
        if (line.starts_with('[') && trimmed(line) == kEntryGroup)
            launcher += std::string(kClassKey) + "=" + class_name + "\n";
    });
    return launcher;
}

} // namespace novpn
