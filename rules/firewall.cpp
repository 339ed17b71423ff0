#include "rules/firewall.h"

#include "rules/nft_structure.h"

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

/// The kernel lists those that somebody has used.
std::vector<std::string> legacy_tables(const char* family) {
    std::vector<std::string> tables;
    std::ifstream names(fmt::format("/proc/self/net/{}_tables_names", family));
    for (std::string table; std::getline(names, table);) tables.push_back(table);
    return tables;
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

bool is_early(const ReversePathFilter& filter) {
    return filter.goes_by_mark && filter.priority > nft::kEarlyPriority && filter.priority <= nft::kAnswerPriority;
}

bool drops_answers(const ReversePathFilter& filter) {
    return !filter.goes_by_mark || filter.priority <= nft::kEarlyPriority;
}

std::string to_string(const ReversePathFilter& filter) {
    return fmt::format("table {} {}, chain {}", filter.family, filter.table, filter.chain);
}

std::string to_let_pass(const ReversePathFilter& filter) {
    if (!filter.goes_by_mark)
        return filter.of_iptables ? "have its rule say `-m rpfilter --validmark`"
                                  : "have its rule say `fib saddr . mark . iif` in the place of `fib saddr . iif`";
    return fmt::format("give its chain a priority above {}", nft::kEarlyPriority);
}

std::vector<Firewall> legacy_firewalls() {
    std::vector<Firewall> found;
    for (const char* family : {"ip", "ip6"})
        for (const std::string& table : legacy_tables(family))
            for (const char* chain : {"OUTPUT", "POSTROUTING"})
                if (table == "mangle" || (table != "nat" && std::string_view(chain) == "OUTPUT"))
                    found.push_back(
                        {.family = family, .table = table, .chain = chain, .drops = Firewall::Drops::unread});
    return found;
}

bool legacy_may_filter_early() {
    const auto is_early_table = [](const std::string& table) { return table == "raw" || table == "mangle"; };
    return std::ranges::any_of(legacy_tables("ip"), is_early_table) ||
           std::ranges::any_of(legacy_tables("ip6"), is_early_table);
}

} // namespace novpn
