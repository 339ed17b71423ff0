#include "agent/takeover.h"

#include "agent/uplink.h"

#include <algorithm>
#include <tuple>

namespace novpn {

namespace {

bool has_physical_default(Family family, const Observed& observed, const Config& config) {
    return std::ranges::any_of(observed.routes, [&](const Route& route) {
        if (route.table != kMainTable || !is_default(route) || family_of(route) != family) return false;
        const Link* link = find_link(observed, route.link);
        return link && !is_tunnel(*link, observed, config);
    });
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
            takeover.shape =
                has_physical_default(takeover.family, observed, config) ? Shape::lower_metric : Shape::replaced;
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
    }
    return {};
}

std::vector<Takeover> find_takeovers(Family family, const Observed& observed, const Config& config) {
    std::vector<Takeover> takeovers;
    for (const Lookup& lookup : observed.lookups) {
        if (!lookup.answer || family_of(lookup.destination) != family) continue;
        const Link* link = find_link(observed, lookup.answer->link);
        if (!link || !is_tunnel(*link, observed, config)) continue;
        Takeover takeover = classify(*lookup.answer, *link, observed, config);
        if (std::ranges::find(takeovers, takeover) == takeovers.end()) takeovers.push_back(takeover);
    }
    std::ranges::sort(takeovers, {},
                      [](const Takeover& t) { return std::tuple(t.shape, t.link, t.table, t.preference); });
    return takeovers;
}

} // namespace novpn
