#include "agent/cli/settings.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

namespace novpn {
namespace {

namespace fs = std::filesystem;

/// The files in their order: networkd.conf, then the drop-ins by their names, of which /etc has the last word.
std::vector<fs::path> networkd_files(const fs::path& root) {
    std::map<fs::path, fs::path> drop_ins;
    for (const char* directory : {"usr/lib", "run", "etc"}) {
        std::error_code error;
        for (const auto& entry : fs::directory_iterator(root / directory / "systemd/networkd.conf.d", error))
            if (entry.path().extension() == ".conf") drop_ins[entry.path().filename()] = entry.path();
    }
    std::vector<fs::path> files{root / "etc/systemd/networkd.conf"};
    for (const auto& [name, path] : drop_ins) files.push_back(path);
    return files;
}

std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r");
    if (first == std::string::npos) return {};
    return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

bool is_no(std::string value) {
    std::ranges::transform(value, value.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return value == "no" || value == "n" || value == "false" || value == "f" || value == "off" || value == "0";
}

void read_network_section(const fs::path& path, NetworkdSettings& settings) {
    std::ifstream file(path);
    std::string section;
    for (std::string line; std::getline(file, line);) {
        line = trimmed(line);
        if (line.starts_with('[')) section = line;
        const auto equals = line.find('=');
        if (section != "[Network]" || equals == std::string::npos) continue;
        const std::string name = trimmed(line.substr(0, equals));
        const bool keeps = is_no(trimmed(line.substr(equals + 1)));
        if (name == "ManageForeignRoutingPolicyRules") settings.keeps_rules = keeps;
        if (name == "ManageForeignRoutes") settings.keeps_routes = keeps;
    }
}

int number_in(const fs::path& path) {
    int number = 0;
    std::ifstream(path) >> number;
    return number;
}

} // namespace

NetworkdSettings networkd_settings(const fs::path& root) {
    NetworkdSettings settings;
    std::error_code error;
    // Its own file: the directory is there without it too.
    settings.runs = fs::exists(root / "run/systemd/netif/state", error);
    for (const fs::path& file : networkd_files(root)) read_network_section(file, settings);
    return settings;
}

std::string asked_beside_dns(const fs::path& root) {
    std::error_code error;
    if (fs::exists(root / "run/nscd/socket", error)) return "nscd";
    std::ifstream file(root / "etc/nsswitch.conf");
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line.substr(0, line.find('#')));
        std::string word;
        if (!(words >> word) || word != "hosts:") continue;
        while (words >> word)
            if (word == "resolve") return "nss-resolve";
    }
    return {};
}

ReversePath reverse_path(const std::string& link, const fs::path& root) {
    const fs::path settings = root / "proc/sys/net/ipv4/conf";
    const auto value = [&](const std::string& of, const char* name) { return number_in(settings / of / name); };
    return {.rp_filter = std::max(value("all", "rp_filter"), value(link, "rp_filter")),
            .src_valid_mark = value("all", "src_valid_mark") != 0 || value(link, "src_valid_mark") != 0};
}

} // namespace novpn
