// The decision: from what is observed, the config and the memory to what should be. Pure; the same input gives the same
// answer, whatever the order in which the kernel listed things.
#pragma once

#include "agent/dns.h"
#include "agent/observed.h"
#include "agent/rule_order.h"
#include "agent/site.h"
#include "agent/takeover.h"
#include "agent/uplink.h"
#include "config/config.h"
#include "netlink/sockets.h"

#include <set>

namespace novpn {

/// Worst metric there is: the backstop is consulted after every other route of the table.
inline constexpr std::uint32_t kBackstopMetric = 4294967295;
/// Cgroups of others have maps for these levels from the start: an app's scope is at the fifth (user.slice,
/// user-1000.slice, user@1000.service, app.slice), or further down where slices are nested. One beyond costs a new
/// structure, once.
inline constexpr unsigned kLevelsInAdvance = 8;
/// Where classes' own slices are: novpn.slice/novpn-CLASS.slice of the system's manager, and of a user's.
inline constexpr unsigned kLevelsOfClassSlices[] = {2, 5};
/// Routes copied from main into a class's table, at most.
inline constexpr std::size_t kMaxCopiedRoutes = 4096;

/// Destinations of a class that have a policy rule, and so the right source address, at most; those beyond are marked
/// by nft alone, and masqueraded.
inline constexpr std::size_t kMaxDestinationRules = 64;

enum class ClassState { steering, blocked, tunnel, off };
std::string to_string(ClassState state); ///< the word of `status`

struct ClassDecision {
    ClassState state = ClassState::off;
    Mark mark;
    OnLeave on_leave = OnLeave::end; ///< also when the config no longer has the class
    std::string cgroup;
    std::map<Family, Selection> ways_out;         ///< its uplinks, or its tunnel
    std::set<std::uint32_t> users;                ///< none where it is off
    std::vector<Prefix> destinations;             ///< none where it is off
    std::map<std::string, MatchedCgroup> matched; ///< cgroups of others, by path; none where it is off
    std::optional<std::uint32_t> classid;         ///< in net_cls, of its cgroup there
    bool off_by_site = false;                     ///< or as the site is not known yet: nobody else has said so
    DnsDecision dns;                              ///< in force; `vpn` where the config's `uplink` cannot be done
    bool operator==(const ClassDecision&) const = default;
};

struct Desired {
    SiteDecision site;                   ///< that the config is of; decide() is given the config as it is there
    Place place;                         ///< that the site was found by
    std::map<Family, Selection> uplinks; ///< of a class that asks for none in particular
    std::map<Family, std::vector<Takeover>> takeovers;
    std::map<std::string, ClassDecision> classes;
    std::map<Family, RuleOrder> rule_order;
    /// Taken over, and a class that is on knows no uplink: the sources may (agent/inquiry.h).
    std::set<Family> wanted_uplinks;
    bool asks_resolvers = false;  ///< of a class whose names are its uplink's: what the sources say is of use
    bool wants_resolvers = false; ///< and of one of these nobody has said who they are

    // Steering, as the kernel should have it.
    std::vector<Route> routes; ///< of the classes' tables, all with our protocol
    std::vector<Rule> rules;   ///< all with our protocol
    std::vector<std::string> cgroups;
    std::set<IfIndex> src_valid_mark;                  ///< links that need it and have it of nobody else
    std::vector<XfrmPolicy> policies;                  ///< without an index: the plan gives them one of ours
    NftTable nft;                                      ///< no class: no table
    std::map<std::string, ClassBirthMark> birth_marks; ///< by class, those whose sockets are marked when they are made
    std::map<std::string, ClassRedirect> redirects;    ///< by class, those whose names are their uplink's
    std::vector<Neighbour> asked_gateways;             ///< whose link-layer address is to be found out, for the site
    NetClsSteering net_cls;

    Memory memory; ///< for the next decision
    bool operator==(const Desired&) const = default;
};

/// `cgroup_root`: the parent of the classes' cgroups ("novpn-4026531840").
Desired decide(const Observed& observed, const Config& config, const Memory& memory, const std::string& cgroup_root);

/// `when_no_uplink: tunnel` gives up the backstop and the guard. A class that is bound to a tunnel goes nowhere else.
bool may_use_tunnel(const ClassConfig& c);

/// Strict reverse path filtering drops what comes in by another link than the way back to its source, which under a
/// VPN is the tunnel, but for packets of the mark. Also while there is none: the first replies under one count too.
bool needs_src_valid_mark(const Link& link, const Observed& observed);
/// Where somebody else has set it, it is theirs; where somebody else uses the tag, ours could not be told from theirs.
bool may_set_src_valid_mark(const Link& link);

/// Its destinations, without those inside another of them, in the order of the config.
std::vector<Prefix> outermost_destinations(const ClassConfig& c);

/// Whether a class selects cgroups that are not ours.
bool selects_cgroups(const Config& config);
/// Cgroups of others that are in a class, by the config or, with `class_slices`, by being its slice, whether or not
/// that class is on; by path.
std::map<std::string, MatchedCgroup> matched_cgroups(const Config& config, const SeenCgroups& seen,
                                                     const std::set<uid_t>& allowed_users, bool class_slices);

/// Whether a socket is one of the class's users, or connected to one of its destinations.
bool selects(const ClassDecision& decision, const OpenSocket& socket);

/// No class is on, nor goes on with flows that it had.
bool is_all_off(const Desired& desired);

/// Path of a class's own cgroup below the cgroup2 mount.
std::string cgroup_of(const ClassConfig& class_config, const std::string& cgroup_root);

/// Numbers of the config that somebody else uses already, a sentence each with the owner's name; empty when none. A
/// preference counts as used only while no rule of ours is there: beside ours, order_rules() sees to the place.
std::vector<std::string> conflicts(const Observed& observed, const Config& config);

} // namespace novpn
