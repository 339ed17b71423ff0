// What holds at every step of any story: a laptop changes at random under a running agent, noticed or not. A story that
// breaks a law is told again in the language of tests/scenarios, without the lines that do not matter. NOVPN_SEED=N
// replays the story of a seed, with NOVPN_STORIES=N that many from it.
#include "agent/site.h"
#include "config/sites.h"
#include "tests/support/random_story.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <fnmatch.h>
#include <gtest/gtest.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <set>
#include <spdlog/spdlog.h>

namespace novpn::test {

namespace {

/// The same stories in each run, so that what fails is what changed. A hunt for new ones begins elsewhere.
constexpr std::uint32_t kFirstSeed = 1;
constexpr std::uint32_t kStories = 120;
constexpr int kSteps = 60;
constexpr int kFailuresShown = 3;

/// What a law says about a story.
struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A packet goes into a tunnel.
struct StrayPacket : Broken {
    StrayPacket(const std::string& what, std::string of_class)
        : Broken(what)
        , class_name(std::move(of_class)) {}
    std::string class_name;
};

/// Plays lines and holds every state against the laws.
class Witness {
  public:
    Witness() {
        player_.on_operation = [this](const Operation&) { check_amid_a_pass(); };
    }

    Player& player() { return player_; }

    /// False: the kernel does not take the line here. Broken: a law does not hold.
    bool play(const StoryLine& line) {
        bool is_pass = line.text.starts_with("agent ") || line.text.starts_with("on ") || line.text.starts_with("off ");
        if (line.text.starts_with("agent restarts")) in_force_ = false;
        try {
            player_.play(line.text, line.block);
        } catch (const std::invalid_argument&) {
            return false;
        } catch (const Broken&) {
            throw;
        } catch (const std::exception& error) {
            throw Broken(error.what());
        }
        if (line.text == "config") {
            in_force_ = false;
            return true;
        }
        if (is_pass && player_.agent().desired()) {
            judge_what_was_amid_the_pass();
            if (has_ppp()) settle();
            look_at_tunnels();
            in_force_ = true;
            damaged_ = false;
            check_installed();
            check_way_out();
            check_site();
        } else if (touches_ours(line.text)) {
            damaged_ = true;
        }
        check_packets("now");
        return true;
    }

  private:
    /// A rule may lead anywhere until the agent has seen it; so may what is left where something of ours is gone.
    static bool touches_ours(const std::string& text) {
        return text.starts_with("rule ") || text.starts_with("nft ") || text.starts_with("cgroup ") ||
               text.find("table 78") != std::string::npos;
    }

    bool has_ppp() {
        return std::ranges::find(player_.kernel().links(), ARPHRD_PPP, &Link::hardware) !=
               player_.kernel().links().end();
    }
    /// Whether ppp is a modem or a tunnel leans on our own defaults too, so that a second look may see it otherwise.
    void settle() {
        in_force_ = false;
        try {
            player_.play("agent runs");
        } catch (const std::exception& error) {
            throw Broken(error.what());
        }
    }

    Observed observe(const Config& config) {
        Scope scope{.tunnels = config.tunnels.links, .strays = true, .cgroup_root = kCgroupRoot};
        for (const ClassConfig& c : config.classes) {
            scope.tables.push_back(c.table);
            scope.cgroups.push_back(cgroup_of(c, kCgroupRoot));
        }
        return *player_.kernel().observe(scope);
    }

    void look_at_tunnels() {
        known_.clear();
        tunnels_.clear();
        Config config = player_.config_now();
        Observed observed = observe(config);
        const auto& ppp = player_.agent().desired()->memory.ppp_tunnels;
        for (const Link& link : observed.links) {
            known_[link.index] = link.name;
            bool tunnel = link.hardware == ARPHRD_PPP ? ppp.contains(link.index) : is_tunnel(link, observed, config);
            if (tunnel) tunnels_.insert(link.index);
        }
    }

    /// What is installed is what a decision with the same memory would install.
    void check_installed() {
        Config config = player_.config_now();
        Observed observed = observe(config);
        const Desired& desired = *player_.agent().desired();
        Desired again = decide(observed, config, desired.memory, kCgroupRoot);
        for (Family family : kFamilies)
            if (again.uplinks.at(family).uplink != desired.uplinks.at(family).uplink)
                throw Broken(fmt::format("decided otherwise at once: {} uplink {}, then {}", to_string(family),
                                         describe(desired.uplinks.at(family).uplink),
                                         describe(again.uplinks.at(family).uplink)));
        if (again.takeovers != desired.takeovers) throw Broken("another takeover at once");
        FakeKernel copy = player_.kernel();
        for (const Operation& operation : diff(observed, again)) {
            // The kernel does not take some of what main has a copy of.
            bool refused = is_dispensable(operation) && !copy.apply(operation);
            if (!refused) throw Broken("left to do: " + to_string(operation, observed));
        }
    }

    /// A chosen uplink can be one, and members' packets leave by it.
    void check_way_out() {
        Config config = player_.config_now();
        Observed observed = observe(config);
        const Desired& desired = *player_.agent().desired();
        for (const ClassConfig& c : config.classes) {
            if (!c.enabled) continue;
            for (Family family : kFamilies) {
                const auto& way = desired.classes.at(c.name).ways_out.at(family).uplink;
                if (way) check_plausible(*way, c, observed);
                if (!way && may_use_tunnel(c)) continue;
                if (!desired.rule_order.at(family).ahead.empty()) continue; // no room before a rival: the guard drops
                auto route = lookup(family, c);
                if (route && !is_default(*route)) continue; // a copy of main's
                IfIndex leaves_by = route ? route->link : IfIndex{};
                IfIndex wanted = way ? way->link : IfIndex{};
                if (leaves_by != wanted)
                    throw Broken(fmt::format("{} packets of class {} leave by {}, not by {}", to_string(family), c.name,
                                             player_.kernel().link_name(leaves_by),
                                             player_.kernel().link_name(wanted)));
            }
        }
    }
    void check_plausible(const Uplink& way, const ClassConfig& c, const Observed& observed) {
        const Link* link = find_link(observed, way.link);
        if (!link) throw Broken("a way out by a link that is gone");
        if (!can_carry(*link, way.family, observed))
            throw Broken(fmt::format("a way out by {} without carrier or address", link->name));
        if (tunnels_.contains(way.link) == c.via.empty())
            throw Broken(fmt::format("a way out of class {} by {}", c.name, link->name));
    }

    std::optional<Route> lookup(Family family, const ClassConfig& c) {
        const address& destination =
            *std::ranges::find(public_destinations(), family, [](const address& a) { return family_of(a); });
        return player_.kernel().lookup(
            {.destination = destination, .mark = c.mark.value, .ip_protocol = IPPROTO_UDP, .destination_port = 443});
    }

    /// No marked packet ends in a tunnel where the policy is `block`. Where a rule or damage was not seen yet the guard
    /// stands in.
    void check_packets(const char* when) {
        if (!in_force_) return;
        Config config = player_.config_now();
        for (const ClassConfig& c : config.classes) {
            if (!c.enabled || may_use_tunnel(c)) continue;
            for (Family family : kFamilies) {
                auto route = lookup(family, c);
                if (!route || !is_forbidden(route->link, c)) continue;
                std::string name = player_.kernel().link_name(route->link);
                const ObservedNft& nft = player_.kernel().nft();
                bool guarded = nft.present && !nft.links.contains({c.name, route->link});
                bool no_room = !player_.agent().desired()->rule_order.at(family).ahead.empty();
                if (!guarded && !damaged_)
                    throw StrayPacket(fmt::format("{}: nothing guards {} from {}", when, c.name, name), c.name);
                if (!damaged_ && !no_room)
                    throw StrayPacket(
                        fmt::format("{}: {} packets of class {} leave by {}", when, to_string(family), c.name, name),
                        c.name);
            }
        }
    }
    /// The config that a pass goes to is known at its end only, where the site changes: what is wrong by the one that
    /// it comes from counts unless that lets it be.
    void check_amid_a_pass() {
        try {
            check_packets("amid a pass");
        } catch (const StrayPacket& stray) {
            if (player_.config().sites.empty()) throw;
            if (lets_out(stray.class_name)) strays_.push_back(stray);
        }
    }
    void judge_what_was_amid_the_pass() {
        const Config config = player_.config_now();
        for (const StrayPacket& stray : std::exchange(strays_, {}))
            if (!may_use_tunnel(*std::ranges::find(config.classes, stray.class_name, &ClassConfig::name))) throw stray;
    }

    /// A packet of somebody gets the class's mark.
    bool lets_out(const std::string& class_name) {
        const ObservedNft& nft = player_.kernel().nft();
        const auto has = [&](const auto& elements) {
            return std::ranges::any_of(elements, [&](const auto& one) { return one.class_name == class_name; });
        };
        return nft.present && (has(nft.members) || has(nft.users) || has(nft.destinations));
    }

    /// A site that the agent names is where the laptop is, as the kernel has it; and nothing is let out that one of the
    /// sites where it may be keeps in.
    void check_site() {
        const Config& config = player_.config();
        if (config.sites.empty()) return;
        bool certain = false;
        for (const SiteVerdict& verdict : player_.agent().desired()->site.verdicts) {
            const SiteConfig& site = *std::ranges::find(config.sites, verdict.name, &SiteConfig::name);
            check_verdict(site, verdict.matches);
            if (certain || verdict.matches == Certainty::no) continue;
            certain = verdict.matches == Certainty::yes;
            for (const ClassConfig& c : config.classes) check_no_more_than(class_at(site, c), verdict.name);
        }
        if (certain) return;
        for (const ClassConfig& c : config.classes) check_no_more_than(c, "no site");
    }

    /// By Wi-Fi, addresses and links, which the kernel has; by gateways and domains a site may be less certain.
    void check_verdict(const SiteConfig& site, Certainty told) {
        const Certainty truth = as_the_kernel_has_it(site.match);
        const bool leans_on_others = !site.match.gateway_macs.empty() || !site.match.domains.empty();
        if (told == truth || (leans_on_others && told < truth)) return;
        static constexpr const char* kWords[] = {"is not", "may be", "is"};
        throw Broken(fmt::format("the laptop {} at site {}, and the agent says that it {}",
                                 kWords[static_cast<std::size_t>(truth)], site.name,
                                 kWords[static_cast<std::size_t>(told)]));
    }
    Certainty as_the_kernel_has_it(const SiteMatch& match) {
        const Observed observed = *player_.kernel().observe({.wifi = true, .bssids = true});
        const auto has_carrier = [](const Link& link) { return link.up && link.carrier && !link.loopback; };
        std::vector<Link> links, tunnels;
        for (const Link& link : observed.links)
            if (has_carrier(link)) (tunnels_.contains(link.index) ? tunnels : links).push_back(link);
        const auto is_here = [&](IfIndex index) {
            return std::ranges::find(links, index, &Link::index) != links.end();
        };
        std::vector<WifiLink> wifi = observed.wifi;
        std::erase_if(wifi, [&](const WifiLink& one) { return !is_here(one.link); });
        std::vector<Address> addresses = observed.addresses;
        std::erase_if(addresses, [&](const Address& a) {
            return !is_here(a.link) || (a.local.is_v6() && a.local.to_v6().is_link_local());
        });
        const auto has_no_address = [&](IfIndex link) {
            return std::ranges::find(addresses, link, &Address::link) == addresses.end();
        };
        const bool arrives =
            (addresses.empty() && !links.empty()) || std::ranges::any_of(wifi, has_no_address, &WifiLink::link);

        Certainty all = Certainty::yes;
        const auto ask = [&](const auto& wanted, const auto& values, auto by) {
            if (wanted.empty()) return;
            Certainty best = Certainty::no;
            for (const auto& value : values)
                for (const auto& one : wanted) best = std::max(best, by(one, value));
            all = std::min(all, best);
        };
        const auto fits = [](const std::string& glob, const std::string& text) {
            return fnmatch(glob.c_str(), text.c_str(), FNM_NOESCAPE) == 0 ? Certainty::yes : Certainty::no;
        };
        const auto by_name = [&](const std::string& glob, const Link& link) { return fits(glob, link.name); };
        ask(match.ssids, wifi, [&](const std::string& glob, const WifiLink& one) {
            return one.ssid.empty() ? Certainty::unknown : fits(glob, ssid_text(one.ssid));
        });
        ask(match.bssids, wifi, [&](const std::string& glob, const WifiLink& one) {
            return one.bssid ? fits(glob, to_string(*one.bssid)) : Certainty::unknown;
        });
        ask(match.links, links, by_name);
        ask(match.tunnels, tunnels, by_name);
        if (match.networks.empty()) return all;
        Certainty in_network = arrives ? Certainty::unknown : Certainty::no;
        for (const Address& a : addresses)
            for (const Prefix& network : match.networks)
                if (contains(network, prefix_of(a.local, a.prefix_length))) in_network = Certainty::yes;
        return std::min(all, in_network);
    }

    /// What the kernel does with the class's packets, against what the class may at one of the sites in question.
    void check_no_more_than(const ClassConfig& c, const std::string& site) {
        if (player_.is_switched(c.name)) return;
        const auto broken = [&](const std::string& what) {
            return Broken(fmt::format("class {} {}, which {} does not let it", c.name, what, site));
        };
        if (!c.via.empty()) {
            if (c.enabled && !lets_out(c.name)) throw broken("goes by any way");
            return;
        }
        if (!c.enabled && lets_out(c.name)) throw broken("is on");
        for (const Rule& rule : player_.kernel().rules()) {
            if (rule.protocol != kNovpnProtocol || rule.table != c.table || !rule.to) continue;
            if (!c.enabled || std::ranges::find(c.destinations, *rule.to) == c.destinations.end())
                throw broken("has destination " + to_string(*rule.to));
        }
        const DnsState dns = player_.agent().desired()->classes.at(c.name).dns.state;
        if (c.dns == Dns::vpn && dns == DnsState::uplink) throw broken("has its names resolved by the uplink");
        if (may_use_tunnel(c) || !lets_out(c.name)) return;
        for (Family family : kFamilies) {
            const auto route = lookup(family, c);
            const bool no_room = !player_.agent().desired()->rule_order.at(family).ahead.empty();
            if (route && is_forbidden(route->link, c) && !no_room) throw broken("goes into the VPN");
        }
    }

    bool is_forbidden(IfIndex link, const ClassConfig& c) {
        const auto& links = player_.kernel().links();
        auto found = std::ranges::find(links, link, &Link::index);
        if (found == links.end()) return false;
        // What a new ppp link is the agent learns at its next look; the other kinds say so.
        bool tunnel = known_.contains(link)
                          ? tunnels_.contains(link)
                          : found->hardware != ARPHRD_PPP && may_be_tunnel(*found, player_.config().tunnels.links);
        // Renamed since the agent looked: both of its names count, the one it saw and the one it sees amid its pass.
        bool is_via = matches({c.via}, found->name) || (known_.contains(link) && matches({c.via}, known_[link]));
        return tunnel && (c.via.empty() || !is_via);
    }

    Player player_;
    bool in_force_ = false;                ///< the agent has looked
    bool damaged_ = false;                 ///< since it looked
    std::map<IfIndex, std::string> known_; ///< links as it looked
    std::set<IfIndex> tunnels_;            ///< those of them that were tunnels
    std::vector<StrayPacket> strays_;      ///< amid the pass, while the class was still marked
};

/// Why the story breaks a law; nothing when it does not. Lines that the kernel does not take are left out.
std::optional<std::string> why_broken(Story& story) {
    Witness witness;
    Story taken;
    for (const StoryLine& line : story) {
        taken.push_back(line);
        try {
            if (!witness.play(line)) taken.pop_back();
        } catch (const Broken& broken) {
            story = std::move(taken); // what comes after is of no matter
            return broken.what();
        }
    }
    story = std::move(taken);
    return std::nullopt;
}

/// A story up to the end, or to where it breaks a law.
Story tell_story(std::uint32_t seed, bool& breaks) {
    StoryTeller teller(seed);
    Witness witness;
    Story story;
    auto tell = [&](const StoryLine& line) {
        story.push_back(line);
        if (!witness.play(line)) story.pop_back();
    };
    try {
        for (const StoryLine& line : teller.beginning()) tell(line);
        for (int step = 0; step < kSteps; ++step) tell(teller.next(witness.player()));
        tell({"agent runs", {}}); // a resync, after what nobody noticed
        breaks = false;
    } catch (const Broken&) { // it is played again
        breaks = true;
    }
    return story;
}

/// Leaves out what the breach does not need: halves of the story, quarters, … single lines.
Story shrunk(Story story) {
    for (std::size_t size = story.size() / 2; size > 0;) {
        bool shorter = false;
        for (std::size_t from = 0; from < story.size();) {
            Story without = story;
            without.erase(without.begin() + static_cast<std::ptrdiff_t>(from),
                          without.begin() + static_cast<std::ptrdiff_t>(std::min(from + size, story.size())));
            if (why_broken(without)) {
                story = std::move(without);
                shorter = true;
            } else {
                from += size;
            }
        }
        if (!shorter) size /= 2;
    }
    return story;
}

std::optional<std::uint32_t> number_from(const char* variable) {
    const char* text = std::getenv(variable);
    return text ? std::optional(static_cast<std::uint32_t>(std::stoul(text))) : std::nullopt;
}

} // namespace

TEST(Stories, KeepTheLawsAtEveryStep) {
    spdlog::set_level(spdlog::level::off);
    auto replayed = number_from("NOVPN_SEED");
    std::uint32_t first = replayed.value_or(kFirstSeed);
    std::uint32_t count = number_from("NOVPN_STORIES").value_or(replayed ? 1 : kStories);
    fmt::print("{} stories from NOVPN_SEED={}\n", count, first);
    std::fflush(stdout);
    int failed = 0;
    std::size_t lines = 0;
    for (std::uint32_t i = 0; i < count && failed < kFailuresShown; ++i) {
        bool breaks = false;
        Story story = tell_story(first + i, breaks);
        lines += story.size();
        if (!breaks) continue;
        ++failed;
        ASSERT_TRUE(why_broken(story)) << "NOVPN_SEED=" << first + i << ": told twice, broken once";
        story = shrunk(std::move(story));
        std::string why = *why_broken(story);
        ADD_FAILURE() << "NOVPN_SEED=" << first + i << ": " << why << "\n" << to_text(story);
    }
    if (!failed) {
        EXPECT_GT(lines, count * kSteps / 2) << "the kernel takes too few of the lines";
    }
}

} // namespace novpn::test
