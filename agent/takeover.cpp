#include "agent/takeover.h"

#include "agent/uplink.h"

#include <algorithm>
#include <tuple>

namespace novpn {

namespace {

/// Metric of the best default that main has by a link that is no tunnel.
std::optional<std::uint32_t> physical_metric(Family family, const Observed& observed, const Config& config) {
    std::optional<std::uint32_t> best;
    for (const Route& route : observed.routes) {
        if (route.table != kMainTable || !is_default(route) || family_of(route) != family) continue;
        const Link* link = find_link(observed, route.link);
        if (link && !is_tunnel(*link, observed, config) && (!best || route.metric < *best)) best = route.metric;
    }
    return best;
}

/// An answer for a packet bound to a tunnel says that the tunnel would take over, were it not for another one before
/// it; unless it is main's default behind the physical one, such as that of a VPN which carries its own prefixes only.
bool stands_behind(const Route& answer, const Observed& observed, const Config& config) {
    if (answer.table != kMainTable || !is_default(answer)) return true;
    auto metric = physical_metric(family_of(answer), observed, config);
    return !metric || answer.metric < *metric;
}

Takeover classify(const Route& answer, const Link& tunnel, const Observed& observed, const Config& config) {
    Takeover takeover{.family = family_of(answer),
                      .shape = Shape::split,
                      .link = tunnel.index,
                      .link_name = tunnel.name,
                      .table = answer.table};
    if (answer.table == kMainTable) {
        // def1 adds 0.0.0.0/1 and 128.0.0.0/1 and leaves the default alone.
        if (is_default(answer))
            takeover.shape = physical_metric(takeover.family, observed, config) ? Shape::lower_metric : Shape::replaced;
        return takeover;
    }
    takeover.shape = Shape::catch_all_rule;
    auto leads_there = std::ranges::find_if(observed.rules, [&](const Rule& rule) {
        return rule.family == takeover.family && rule.action == RuleAction::to_table && rule.table == answer.table;
    });
    if (leads_there != observed.rules.end()) {
        takeover.preference = leads_there->preference;
        if (leads_there->invert && leads_there->mark) takeover.shape = Shape::inverted_mark_rule;
    }
    return takeover;
}

} // namespace

std::string to_string(Shape shape) {
    switch (shape) {
    case Shape::replaced: return "replaced";
    case Shape::lower_metric: return "lower_metric";
    case Shape::split: return "split";
    case Shape::inverted_mark_rule: return "inverted_mark_rule";
    case Shape::catch_all_rule: return "catch_all_rule";
    case Shape::xfrm: return "xfrm";
    }
    return {};
}

std::vector<Takeover> find_takeovers(Family family, const Observed& observed, const Config& config) {
    std::vector<Takeover> in_front;
    std::vector<Takeover> behind;
    for (const Lookup& lookup : observed.lookups) {
        if (!leaves_this_machine(lookup) || family_of(lookup.destination) != family) continue;
        const Link* link = find_link(observed, lookup.answer->link);
        if (!link || !is_tunnel(*link, observed, config)) continue;
        Takeover takeover = classify(*lookup.answer, *link, observed, config);
        if (!lookup.link)
            in_front.push_back(takeover);
        else if (stands_behind(*lookup.answer, observed, config))
            behind.push_back(takeover);
    }
    // A tunnel that is in front is not named once more for what it has behind.
    if (in_front.empty()) return {};
    std::erase_if(behind, [&](const Takeover& takeover) {
        return std::ranges::find(in_front, takeover.link, &Takeover::link) != in_front.end();
    });
    for (std::vector<Takeover>* takeovers : {&in_front, &behind}) {
        std::ranges::sort(*takeovers, {},
                          [](const Takeover& t) { return std::tuple(t.shape, t.link, t.table, t.preference); });
        auto same = std::ranges::unique(*takeovers);
        takeovers->erase(same.begin(), same.end());
    }
    in_front.insert(in_front.end(), behind.begin(), behind.end());
    return in_front;
}

} // namespace novpn
