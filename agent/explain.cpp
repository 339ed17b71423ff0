#include "agent/explain.h"

namespace novpn {

namespace {

namespace json = boost::json;

bool has_unknown_selectors(const Rule& rule) {
    bool by_iif = !rule.iif.empty() && rule.iif != "lo"; // what this machine sends comes in by lo
    return rule.from || by_iif || !rule.oif.empty() || rule.ip_protocol || rule.source_port || rule.destination_port ||
           rule.uids || rule.l3mdev;
}

bool selects(const Rule& rule, const Lookup& lookup) {
    std::uint32_t mark = lookup.mark ? lookup.mark->value : 0;
    bool matches = (!rule.mark || (mark & rule.mark->mask) == rule.mark->value) &&
                   (!rule.to || contains(*rule.to, lookup.destination));
    return matches != rule.invert;
}

json::object answer(const Observed& observed, const Lookup& lookup) {
    json::object object{{"route", nullptr}, {"link", nullptr},       {"table", nullptr},
                        {"rule", nullptr},  {"preference", nullptr}, {"owner", nullptr}};
    if (lookup.answer) {
        LinkNames names{&observed.links};
        object["route"] = to_string(*lookup.answer, names);
        object["link"] = names(lookup.answer->link);
        object["table"] = lookup.answer->table.value;
    }
    if (const Rule* rule = leading_rule(observed, lookup)) {
        object["rule"] = to_string(*rule);
        object["preference"] = rule->preference.value;
        object["owner"] = owner_of(*rule);
    }
    return object;
}

} // namespace

const Rule* leading_rule(const Observed& observed, const Lookup& lookup) {
    if (!lookup.answer) return nullptr;
    for (const Rule& rule : observed.rules) {
        if (rule.family != family_of(lookup.destination) || rule.action != RuleAction::to_table) continue;
        if (rule.table == lookup.answer->table && !has_unknown_selectors(rule) && selects(rule, lookup)) return &rule;
    }
    return nullptr;
}

std::string owner_of(const Rule& rule) {
    // Numbers by which these tools are known; none of them sets a protocol of its own.
    constexpr std::uint32_t kWgQuickMark = 0xca6c;
    constexpr TableId kTailscaleTable{52};
    constexpr TableId kStrongSwanTable{220};
    if (rule.protocol == kNovpnProtocol) return "novpn";
    if (rule.invert && rule.mark && rule.mark->value == kWgQuickMark) return "wg-quick";
    if (rule.table == kTailscaleTable) return "Tailscale";
    if (rule.table == kStrongSwanTable) return "strongSwan";
    // wg-quick's second rule says nothing of itself, nor do rules that most scripts add.
    if (rule.protocol == Protocol{}) return "a program that does not say its name";
    return to_string(rule.protocol);
}

json::object explain(const Observed& observed, const std::string& class_name, const Lookup& ordinary,
                     const Lookup& member) {
    return {{"destination", ordinary.destination.to_string()},
            {"class", class_name},
            {"ordinary", answer(observed, ordinary)},
            {"member", answer(observed, member)}};
}

} // namespace novpn
