#include "agent/rule_order.h"

#include <algorithm>

namespace novpn {

namespace {

/// The way around, the lookup, and where the way around ends.
constexpr std::uint32_t kRulesOfAClass = 3;

/// A packet that the class is to have: with its mark, or with none of a class.
bool could_carry_from(const ClassConfig& c, const Rule& rule) {
    if (could_carry(rule, c.mark)) return true;
    return selects_unmarked(c) && could_carry(rule, Mark{.value = 0, .mask = c.mark.mask});
}

bool names_nothing_but_a_mark(const Rule& rule) {
    return rule.mark && !rule.from && !rule.to && rule.iif.empty() && rule.oif.empty() && !rule.ip_protocol &&
           !rule.source_port && !rule.destination_port && !rule.uids && !rule.l3mdev;
}

} // namespace

bool could_carry(const Rule& rule, Mark mark) {
    if (rule.protocol == kNovpnProtocol || rule.action == RuleAction::nop) return false;
    if (rule.action == RuleAction::to_table && rule.table == kLocalTable) return false;
    if (!rule.invert) {
        if (!rule.iif.empty() && rule.iif != "lo") return false; // what this machine sends comes in by lo
        if (!rule.mark) return true;
        std::uint32_t common = rule.mark->mask & mark.mask;
        return (rule.mark->value & common) == (mark.value & common);
    }
    // "not fwmark X" passes over our packets only where it surely means them.
    bool surely_ours = names_nothing_but_a_mark(rule) && (rule.mark->mask & ~mark.mask) == 0 &&
                       rule.mark->value == (mark.value & rule.mark->mask);
    return !surely_ours;
}

bool selects_unmarked(const ClassConfig& c) { return !c.users.empty() || !c.destinations.empty(); }

RuleOrder order_rules(Family family, const std::vector<Rule>& observed, const std::vector<ClassConfig>& classes) {
    RuleOrder order;
    std::uint32_t last = 0; // preference that the last of our rules has at the config's places
    for (const ClassConfig& c : classes) {
        order.lookups[c.name] = c.preference;
        last = std::max(last, c.preference.value + 1);
    }
    std::vector<Rule> rivals;
    for (const Rule& rule : observed) {
        bool rival = rule.family == family && rule.preference.value <= last &&
                     std::ranges::any_of(classes, [&](const ClassConfig& c) { return could_carry_from(c, rule); });
        if (rival) rivals.push_back(rule);
    }
    if (rivals.empty()) return order;

    std::uint32_t room = kRulesOfAClass * static_cast<std::uint32_t>(classes.size());
    auto leaves_room = [&](const Rule& rule) { return rule.preference.value >= kLowestPreference.value + room; };
    auto lowest = std::ranges::find_if(rivals, leaves_room); // the kernel's order is that of preferences
    if (lowest != rivals.end()) {
        std::vector<const ClassConfig*> in_order;
        for (const ClassConfig& c : classes) in_order.push_back(&c);
        std::ranges::stable_sort(in_order, {}, [](const ClassConfig* c) { return c->preference; });
        std::uint32_t first = lowest->preference.value - room;
        for (const ClassConfig* c : in_order) {
            order.lookups[c->name] = Preference{first + 1};
            first += kRulesOfAClass;
        }
    }
    order.ahead.assign(rivals.begin(), lowest);
    return order;
}

} // namespace novpn
