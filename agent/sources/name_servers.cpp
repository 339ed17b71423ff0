#include "agent/sources/name_servers.h"

#include <algorithm>
#include <optional>

namespace novpn {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

std::optional<address> to_address(std::string_view text) {
    // The link of a link-local address is known by where the address stands.
    boost::system::error_code error;
    auto parsed = boost::asio::ip::make_address(std::string(text.substr(0, text.find('%'))), error);
    if (error || parsed.is_unspecified() || text.find('\0') != std::string_view::npos) return std::nullopt;
    return parsed;
}

std::string_view next_word(std::string_view& rest) {
    rest.remove_prefix(std::min(rest.find_first_not_of(kBlanks), rest.size()));
    auto word = rest.substr(0, rest.find_first_of(kBlanks));
    rest.remove_prefix(word.size());
    return word;
}

std::optional<address> to_server(std::string_view word) {
    word = word.substr(0, word.find('#'));
    if (word.starts_with('[')) {
        const auto end = word.find(']');
        if (end == std::string_view::npos) return std::nullopt;
        const auto behind = word.substr(end + 1);
        return behind.empty() || behind.starts_with(":53%") || behind == ":53" || behind.starts_with('%')
                   ? to_address(word.substr(1, end - 1))
                   : std::nullopt;
    }
    const auto colon = word.find(':');
    // One colon: an IPv4 address with its port.
    if (colon != std::string_view::npos && word.find(':', colon + 1) == std::string_view::npos)
        return word.substr(colon) == ":53" ? to_address(word.substr(0, colon)) : std::nullopt;
    return to_address(word);
}

std::string_view next_line(std::string_view& rest) {
    auto line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    return line;
}

} // namespace

std::vector<address> parse_servers(std::string_view list) {
    std::vector<address> servers;
    for (auto word = next_word(list); !word.empty(); word = next_word(list))
        if (auto server = to_server(word)) servers.push_back(*server);
    return servers;
}

std::string_view value_of(std::string_view text, std::string_view key) {
    while (!text.empty()) {
        const auto line = next_line(text);
        if (line.starts_with(key) && line.substr(key.size()).starts_with('=')) return line.substr(key.size() + 1);
    }
    return {};
}

std::vector<address> parse_resolv_conf(std::string_view text) {
    constexpr std::size_t kMost = 3; // MAXNS of resolv.h
    std::vector<address> servers;
    while (!text.empty() && servers.size() < kMost) {
        auto line = next_line(text);
        if (next_word(line) != "nameserver") continue;
        if (auto server = to_address(next_word(line))) servers.push_back(*server);
    }
    return servers;
}

std::vector<std::string> parse_domains(std::string_view list) {
    constexpr std::size_t kMost = 64, kLongest = 253;
    std::vector<std::string> domains;
    while (!list.empty() && domains.size() < kMost) {
        auto word = list.substr(0, list.find_first_of(" \t\r\n,"));
        list.remove_prefix(std::min(word.size() + 1, list.size()));
        if (word.ends_with('.')) word.remove_suffix(1);
        std::string domain;
        for (const char c : word) domain += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        const auto fits = [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
        };
        if (domain.empty() || domain.size() > kLongest || !std::ranges::all_of(domain, fits)) continue;
        if (std::ranges::find(domains, domain) == domains.end()) domains.push_back(domain);
    }
    return domains;
}

std::vector<std::string> parse_search_domains(std::string_view text) {
    std::vector<std::string> domains;
    while (!text.empty()) {
        auto line = next_line(text);
        const auto key = next_word(line);
        if (key == "search" || key == "domain") domains = parse_domains(line);
    }
    return domains;
}

} // namespace novpn
