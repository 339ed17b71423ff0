#include "agent/site.h"

#include "agent/uplink.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace novpn {

namespace {

/// What places are told by. Tunnels are apart: an address inside a VPN says nothing about where the laptop is.
struct Facts {
    std::vector<std::string> links; ///< up, with carrier
    std::vector<std::string> tunnels;
    std::vector<Prefix> networks; ///< on-link on those links
    bool arriving = false;        ///< a link has carrier, and none has an address of its network yet
};

Facts facts_of(const Observed& observed, const Config& config) {
    Facts facts;
    for (const Link& link : observed.links) {
        if (link.loopback || !link.up || !link.carrier) continue;
        const bool tunnel = is_tunnel(link, observed, config);
        (tunnel ? facts.tunnels : facts.links).push_back(link.name);
        for (const Address& a : observed.addresses) {
            const bool link_local = a.local.is_v6() && a.local.to_v6().is_link_local();
            if (a.link == link.index && !tunnel && !link_local)
                facts.networks.push_back(prefix_of(a.local, a.prefix_length));
        }
    }
    facts.arriving = !facts.links.empty() && facts.networks.empty();
    return facts;
}

Certainty holds(const std::vector<std::string>& globs, const std::vector<std::string>& names) {
    const auto fits = [&](const std::string& name) { return matches(globs, name); };
    return globs.empty() || std::ranges::any_of(names, fits) ? Certainty::yes : Certainty::no;
}

Certainty holds(const std::vector<Prefix>& wanted, const Facts& facts) {
    if (wanted.empty()) return Certainty::yes;
    for (const Prefix& prefix : wanted)
        for (const Prefix& network : facts.networks)
            if (contains(prefix, network)) return Certainty::yes;
    return facts.arriving ? Certainty::unknown : Certainty::no;
}

SiteVerdict judge(const SiteConfig& site, const Facts& facts) {
    SiteVerdict verdict{.name = site.name, .matches = Certainty::yes};
    const auto ask = [&](const char* key, Certainty certainty) {
        if (certainty != Certainty::yes) verdict.failed.emplace_back(key);
        verdict.matches = std::min(verdict.matches, certainty);
    };
    ask("network", holds(site.match.networks, facts));
    ask("link", holds(site.match.links, facts.links));
    ask("tunnel", holds(site.match.tunnels, facts.tunnels));
    return verdict;
}

Config with(const SiteConfig& site, Config config) {
    for (ClassConfig& c : config.classes) {
        const auto changes = site.classes.find(c.name);
        if (changes == site.classes.end()) continue;
        c.enabled = changes->second.enabled.value_or(c.enabled);
        c.when_no_uplink = changes->second.when_no_uplink.value_or(c.when_no_uplink);
    }
    if (site.prefer) config.uplinks.prefer = *site.prefer;
    if (site.ignore) config.uplinks.ignore = *site.ignore;
    return config;
}

} // namespace

SiteDecision find_site(const Observed& observed, const Config& config) {
    SiteDecision decision;
    const Facts facts = facts_of(observed, config);
    bool found = false;
    for (const SiteConfig& site : config.sites) {
        decision.verdicts.push_back(judge(site, facts));
        const SiteVerdict& verdict = decision.verdicts.back();
        if (found) continue;
        if (verdict.matches == Certainty::unknown) decision.known = false;
        found = verdict.matches == Certainty::yes;
        if (found) decision.name = verdict.name;
    }
    if (!decision.known) decision.name.reset();
    return decision;
}

Config config_at(const SiteDecision& site, const Config& config) {
    std::vector<Config> candidates;
    bool certain = false;
    for (const SiteVerdict& verdict : site.verdicts) {
        // After a reload the verdicts may be of sites that are no more, until the next pass.
        const auto named = std::ranges::find(config.sites, verdict.name, &SiteConfig::name);
        if (certain || verdict.matches == Certainty::no || named == config.sites.end()) continue;
        candidates.push_back(with(*named, config));
        certain = verdict.matches == Certainty::yes;
    }
    if (!certain) candidates.push_back(config);
    Config strictest = candidates.back();
    for (const Config& candidate : candidates) {
        for (std::size_t i = 0; i < strictest.classes.size(); ++i) {
            ClassConfig& c = strictest.classes[i];
            c.enabled = c.enabled && candidate.classes[i].enabled;
            if (candidate.classes[i].when_no_uplink == WhenNoUplink::block) c.when_no_uplink = WhenNoUplink::block;
        }
        for (const std::string& glob : candidate.uplinks.ignore)
            if (std::ranges::find(strictest.uplinks.ignore, glob) == strictest.uplinks.ignore.end())
                strictest.uplinks.ignore.push_back(glob);
    }
    return strictest;
}

std::string describe(const SiteDecision& site) {
    std::vector<std::string> others;
    for (const SiteVerdict& verdict : site.verdicts)
        if (!verdict.failed.empty())
            others.push_back(fmt::format("{}: {} {}", verdict.name, fmt::join(verdict.failed, ", "),
                                         verdict.matches == Certainty::unknown ? "not known yet" : "does not match"));
    std::string text = !site.known ? "not known yet" : site.name.value_or("none");
    return others.empty() ? text : fmt::format("{} ({})", text, fmt::join(others, "; "));
}

} // namespace novpn
