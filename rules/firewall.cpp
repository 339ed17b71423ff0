#include "rules/firewall.h"

#include <algorithm>
#include <cctype>
#include <fmt/format.h>
#include <fstream>

namespace novpn {
namespace {

bool is_upper(const std::string& text) {
    return std::ranges::all_of(text, [](unsigned char c) { return std::isupper(c) || c == '_' || c == '-'; });
}

/// Whether iptables-nft made it: its tables and chains have the names of iptables.
bool is_of_iptables(const Firewall& firewall) {
    return firewall.family != "inet" && is_upper(firewall.chain) &&
           (firewall.table == "filter" || firewall.table == "mangle" || firewall.table == "raw" ||
            firewall.table == "security");
}

} // namespace

std::vector<Firewall> likeliest(std::vector<Firewall> firewalls) {
    if (firewalls.empty()) return firewalls;
    // Rules that cannot be read are as likely as one that drops under a condition.
    const auto rank = [](const Firewall& f) { return std::min(f.drops, Firewall::Drops::some); };
    const auto best = rank(*std::ranges::min_element(firewalls, {}, rank));
    std::erase_if(firewalls, [&](const Firewall& f) { return rank(f) != best; });
    return firewalls;
}

std::string to_string(const Firewall& firewall) {
    if (firewall.drops == Firewall::Drops::unread)
        return fmt::format("table {} of {}-legacy", firewall.table,
                           firewall.family == "ip6" ? "ip6tables" : "iptables");
    const char* how = firewall.drops == Firewall::Drops::by_policy ? " (policy drop)" : "";
    return fmt::format("table {} {}, chain {}{}", firewall.family, firewall.table, firewall.chain, how);
}

std::string to_let_pass(const Firewall& firewall, Mark mark) {
    const bool is_legacy = firewall.drops == Firewall::Drops::unread;
    if (is_legacy || is_of_iptables(firewall))
        return fmt::format("sudo {}{} -t {} -I {} -m mark --mark {} -j ACCEPT",
                           firewall.family == "ip6" ? "ip6tables" : "iptables", is_legacy ? "-legacy" : "",
                           firewall.table, firewall.chain, to_string(mark));
    return fmt::format("sudo nft insert rule {} {} {} meta mark and {:#010x} == {:#010x} accept", firewall.family,
                       firewall.table, firewall.chain, mark.mask, mark.value);
}

std::vector<Firewall> legacy_firewalls() {
    std::vector<Firewall> found;
    for (const auto& [family, file] : {std::pair{"ip", "ip"}, std::pair{"ip6", "ip6"}}) {
        std::ifstream names(fmt::format("/proc/self/net/{}_tables_names", file));
        // The kernel lists the tables that somebody has used.
        for (std::string table; std::getline(names, table);)
            if (table != "nat")
                found.push_back(
                    {.family = family, .table = table, .chain = "OUTPUT", .drops = Firewall::Drops::unread});
    }
    return found;
}

} // namespace novpn
