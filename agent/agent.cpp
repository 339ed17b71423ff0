#include "agent/agent.h"

#include "agent/apply.h"
#include "agent/dns.h"
#include "agent/explain.h"
#include "agent/log.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <cstring>
#include <fmt/format.h>
#include <malloc.h>
#include <spdlog/spdlog.h>

namespace novpn {

namespace {

Scope scope_of(const Config& wanted, const std::string& cgroup_root, Depth depth) {
    const Config config = at_all_sites(wanted);
    Scope scope{.strays = depth == Depth::everything, .trusts_watches = depth <= Depth::news};
    // Wi-Fi that has no address yet is about to get one; another port without one may be of no use.
    scope.wifi = tells_by_wifi(config) || tells_by_lease(config);
    scope.bssids = tells_by_bssid(config);
    scope.place_gateways = tells_by_gateway(config);
    scope.tunnels = config.tunnels.links;
    if (scope.strays) scope.cgroup_root = cgroup_root;
    scope.others = selects_cgroups(config);
    scope.net_cls = config.marking == Marking::net_cls;
    for (const ClassConfig& c : config.classes) {
        scope.tables.push_back(c.table);
        scope.cgroups.push_back(cgroup_of(c, cgroup_root));
        scope.destinations.insert(scope.destinations.end(), c.destinations.begin(), c.destinations.end());
    }
    return scope;
}

/// Stands for routes that are compared and nothing else: thousands of copies are not kept for that.
std::uint64_t digest(const std::vector<Route>& routes) {
    std::uint64_t sum = routes.size();
    const auto add = [&](std::uint64_t number) {
        sum = (sum ^ number) * 0x9e3779b97f4a7c15;
        sum ^= sum >> 32;
    };
    const auto add_address = [&](const std::optional<address>& a) {
        add(!a ? 0 : a->is_v4() ? 4 : 6);
        if (a && a->is_v4()) add(a->to_v4().to_uint());
        if (!a || a->is_v4()) return;
        const auto bytes = a->to_v6().to_bytes();
        std::array<std::uint64_t, 2> halves{};
        std::memcpy(halves.data(), bytes.data(), bytes.size());
        for (const std::uint64_t half : halves) add(half);
    };
    for (const Route& route : routes) {
        add(route.table.value);
        add(static_cast<std::uint64_t>(route.type) | std::uint64_t{route.destination.length} << 8 |
            std::uint64_t{route.scope} << 16 | std::uint64_t{route.protocol.value} << 24 |
            std::uint64_t{route.onlink} << 32 | std::uint64_t{route.link_down} << 33 |
            std::uint64_t{route.next_hops} << 34);
        add(std::uint64_t{route.metric} << 32 | route.link.value);
        for (const auto& a : {std::optional(route.destination.network), route.gateway, route.source}) add_address(a);
    }
    return sum;
}

/// But for their routes.
bool same_steering(const Desired& a, const Desired& b) {
    return a.rules == b.rules && a.policies == b.policies && a.cgroups == b.cgroups && a.nft == b.nft &&
           a.src_valid_mark == b.src_valid_mark && a.birth_marks == b.birth_marks && a.redirects == b.redirects &&
           a.net_cls == b.net_cls;
}

/// The same rules, wherever they stand: no class is new, gone or renumbered.
bool same_but_for_order(const Desired& a, const Desired& b) {
    auto without_place = [](Rule rule) {
        rule.preference = {};
        rule.target.reset();
        return rule;
    };
    return std::ranges::equal(a.rules, b.rules, {}, without_place, without_place);
}

std::optional<Rule> first_rival(const Observed& observed, const Config& config) {
    auto found = std::ranges::find_if(observed.rules, [&](const Rule& rule) {
        return std::ranges::any_of(config.classes, [&](const ClassConfig& c) { return could_carry(rule, c.mark); });
    });
    return found == observed.rules.end() ? std::nullopt : std::optional(*found);
}

/// Code of the warning that a rival keeps moving its rules before ours.
constexpr const char* kRivalWarning = "rival_rule";

/// Begins the code of the warning that a site's unit was not started.
constexpr const char* kUnitWarning = "unit ";

/// A program for a cgroup of others: one that has ended and come back since its news was read looks as it did, and has
/// no program any more.
bool is_for_cgroup_of_others(const Operation& operation, const Observed& observed) {
    if (const auto* attach = std::get_if<AttachBirthMark>(&operation)) return observed.others.contains(attach->cgroup);
    const auto* attach = std::get_if<AttachRedirect>(&operation);
    return attach && observed.others.contains(attach->cgroup);
}

/// Puts back a route that the kernel took away by itself: with its link or its source address, or with the link's last.
bool is_lost(const Operation& operation, const Losses& losses, const Observed& observed) {
    const auto* replace = std::get_if<ReplaceRoute>(&operation);
    if (!replace) return false;
    const Route& route = replace->route;
    if (losses.links_down.contains(route.link)) return true;
    const auto is_its_source = [&](const auto& gone) { return route.source == gone.second; };
    if (std::ranges::any_of(losses.addresses, is_its_source)) return true;
    const auto is_of_its_link = [&](const auto& gone) { return gone.first == route.link; };
    const auto stays = [&](const Address& a) {
        return a.link == route.link && a.local.is_v4() && !losses.addresses.contains({a.link, a.local});
    };
    return family_of(route) == Family::ipv4 && std::ranges::any_of(losses.addresses, is_of_its_link) &&
           std::ranges::none_of(observed.addresses, stays);
}

/// More routes than this are not dumped for the sake of a default: a dump of as many takes a third of a millisecond.
constexpr std::ptrdiff_t kLargeMain = 1000;

constexpr auto kAnotherTry = std::chrono::seconds(1);

/// Of the lines of a pass. The uplink is the one of IPv4, or of IPv6 where there is none.
LogFields fields_of(const Desired& desired) {
    LogFields fields;
    if (desired.site.name) fields.site = *desired.site.name;
    for (Family family : kFamilies)
        if (const auto& uplink = desired.uplinks.at(family).uplink; uplink && fields.uplink.empty())
            fields.uplink = uplink->link_name;
    return fields;
}

} // namespace

Agent::Agent(Kernel& kernel, Config config, AgentSetup setup)
    : kernel_(kernel)
    , config_(std::move(config))
    , setup_(std::move(setup)) {}

Scope Agent::scope(Depth depth) const {
    Scope scope = scope_of(config_, setup_.cgroup_root, depth);
    scope.attached = attached_;
    scope.gateways = remembered_gateways(memory_);
    scope.others = scope.others || uses_class_slices();
    return scope;
}

/// As a look, where main is what the mirror has of it, and the kernel's answers agree; else nothing.
std::optional<Observed> Agent::look_at_defaults(Scope scope) {
    if (!mirror_.is_trusted()) return std::nullopt;
    const std::vector<Route>& defaults = mirror_.observed().routes;
    scope.main = false;
    for (const Route& route : defaults) scope.defaults_of.insert({family_of(route), route.link});
    auto observed = kernel_.observe(scope);
    if (!observed || !agrees(mirror_, *observed)) return std::nullopt;
    auto& routes = observed->routes;
    std::erase_if(routes, [](const Route& route) { return route.table == kMainTable; });
    routes.insert(routes.end(), defaults.begin(), defaults.end());
    routes.insert(routes.end(), others_of_main_.begin(), others_of_main_.end());
    return std::move(*observed);
}

Expected<Observed> Agent::look(Depth depth) {
    Expected<Observed> observed;
    const bool main_is_large = std::ssize(others_of_main_) > kLargeMain;
    const bool by_mirror = depth == Depth::flood || (depth == Depth::defaults && main_is_large);
    if (auto quick = by_mirror ? look_at_defaults(scope(Depth::news)) : std::nullopt)
        observed = std::move(*quick);
    else
        observed = kernel_.observe(scope(depth));
    if (!observed) return observed;
    ask_about_users(managers_in(observed->others));
    observed->allowed_users = allowed_users();
    observed->class_slices = uses_class_slices();
    observed->name_servers = name_servers_;
    observed->heard = heard_;
    return observed;
}

/// Whether main's defaults, as the mirror has them, leave the laptop where it was. A gateway and a domain tell of them.
bool Agent::is_at_the_same_site() const {
    if (tells_by_gateway(config_) || tells_by_domain(config_)) return false;
    return find_site(look_around(mirror_.observed(), config_, memory_), config_) == desired_->site;
}

/// What the mirror has of such a link may be long over.
bool Agent::leads_by_idle_link(const RouteChange& change) const {
    return std::ranges::any_of(change.hops, [&](const Route& hop) { return idle_links_.contains(hop.link); });
}

bool Agent::heard_of_default_late(const RouteChange& change) {
    if (!leads_by_idle_link(change)) return mirror_.take_again(change);
    mirror_.doubt();
    return false;
}

Heard Agent::heard_of_default(const RouteChange& change, Clock::time_point since) {
    if (released_ || incomplete_ || leads_by_idle_link(change) || !mirror_.take(change)) return Heard::doubtful;
    if (!change.added || !config_.sites.empty() || !switches_.empty()) return Heard::unanswered;
    const Route& route = change.hops.front();
    const auto replies = mirror_.reply_to(route);
    if (!replies) return Heard::unanswered;
    for (const Route& reply : *replies)
        if (!replace_ahead(reply, since)) return Heard::doubtful;
    mirror_.remember_reply_to(route, memory_);
    return Heard::answered;
}

bool Agent::catch_up(const std::set<Family>& families, Clock::time_point since) {
    if (released_ || incomplete_) return false;
    return std::ranges::all_of(families, [&](Family family) { return answer_new_defaults(family, since); });
}

bool Agent::answer_new_defaults(Family family, Clock::time_point since) {
    const bool same_site = config_.sites.empty() || is_at_the_same_site();
    std::optional<Config> changed; // a copy takes its time
    if (!config_.sites.empty() || !switches_.empty()) changed = config_at(desired_->site, desired_->place);
    std::optional<std::vector<Route>> to_replace;
    if (same_site) to_replace = defaults_to_replace(mirror_, family, changed ? *changed : config_, memory_);
    if (!to_replace) {
        mirror_.doubt();
        return false;
    }
    // What else follows a change of link, and classes that follow other routes than main's defaults, need the look now.
    bool can_wait = std::ranges::all_of(config_.classes, [](const ClassConfig& c) { return c.via.empty(); });
    for (const Route& route : *to_replace) {
        const Route* before = mirror_.default_of(route.table, family);
        can_wait = can_wait && before && before->link == route.link;
        if (!replace_ahead(route, since)) return false;
    }
    return can_wait;
}

void Agent::heard_of_losses(Losses losses) {
    losses_.links_down.merge(losses.links_down);
    losses_.addresses.merge(losses.addresses);
}

/// Ahead of the look, which tells of it, or says why not.
bool Agent::replace_ahead(const Route& route, Clock::time_point since) {
    ReplaceRoute operation{route};
    if (!kernel_.apply(operation)) {
        mirror_.doubt();
        return false;
    }
    answered_in_ = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since);
    mirror_.take(route);
    answered_.push_back(std::move(operation));
    return true;
}

/// A person's switch stands above what the site says.
Config Agent::config_at(const SiteDecision& site, const Place& place) const {
    const auto& before = before_reload_;
    const bool is_where_it_was = before && (!before->place || same_surroundings(*before->place, place));
    Config config = novpn::config_at(site, config_, is_where_it_was ? before->classes : std::vector<ClassConfig>{});
    for (ClassConfig& c : config.classes)
        if (auto found = switches_.find(c.name); found != switches_.end()) c.enabled = found->second.enabled;
    return config;
}

Desired Agent::decide_at_site(const Observed& observed) const {
    const auto decide_at = [&](Place place) {
        const SiteDecision site = find_site(place, config_);
        Desired desired = decide(observed, config_at(site, place), memory_, setup_.cgroup_root);
        desired.site = site;
        for (const ClassConfig& c : config_.classes)
            if (auto decided = desired.classes.find(c.name); decided != desired.classes.end())
                decided->second.off_by_site =
                    c.enabled && decided->second.state == ClassState::off && !switches_.contains(c.name);
        desired.asked_gateways = place.unasked;
        if (tells_by_domain(config_)) {
            desired.asks_resolvers = true;
            desired.wants_resolvers = desired.wants_resolvers || place.domains_missing;
        }
        // What goes on in place of a lost answer may not be true any more.
        desired.wants_resolvers = desired.wants_resolvers || (desired.asks_resolvers && is_answer_lost_);
        desired.place = std::move(place);
        return desired;
    };
    Desired desired = decide_at(look_around(observed, config_, memory_));
    // What resolv.conf says is of the uplink's network, which was decided only now.
    if (tells_by_domain(config_) && desired.memory.resolvers != memory_.resolvers)
        return decide_at(look_around(observed, config_, desired.memory));
    return desired;
}

Pass Agent::reconcile(std::string_view cause, Clock::time_point since, Depth depth) {
    if (released_) return {};
    const GivesBack at_the_end{*this};
    return reconcile(cause, since, look(depth), Repairs::in_budget);
}

Agent::GivesBack::~GivesBack() {
    if (std::ssize(agent.others_of_main_) > kLargeMain) ::malloc_trim(0);
}

Pass Agent::reconcile(std::string_view cause, Clock::time_point since, Expected<Observed> observed, Repairs repairs) {
    Pass pass;
    mirror_.doubt();
    std::erase_if(switches_, [&](const auto& s) { return s.second.until && *s.second.until <= since; });

    if (!observed) {
        pass.failure = observed.error();
        return pass;
    }
    observed->hints = std::exchange(hints_, {});
    idle_links_ = novpn::idle_links(*observed, config_);
    observed->flows_gone = ask_whether_flows_are_gone(*observed, since);
    Desired desired = decide_at_site(*observed);
    gateways_.clear();
    for (const Neighbour& gateway : watched_gateways(observed->routes)) gateways_.insert(gateway.host);
    watch_gateways_of(desired.place);
    if (before_reload_ && !before_reload_->place) before_reload_->place = desired.place;
    if (before_reload_ && (desired.site.known || !same_surroundings(*before_reload_->place, desired.place)))
        before_reload_.reset();
    pass.wait = limit_moves(*observed, desired, since);
    ask_sources(*observed, desired, since);
    Plan plan = diff(*observed, desired);

    const Losses losses = std::exchange(losses_, {});
    // A copied route or a program that the kernel keeps refusing is no repair.
    auto puts_back = [&](const Operation& op) {
        if (!is_dispensable(op)) return !is_lost(op, losses, *observed);
        return is_of_bpf(op) && !bpf_refused_ && !is_for_cgroup_of_others(op, *observed);
    };
    bool repair = !incomplete_ && answered_.empty() && std::ranges::any_of(plan, puts_back) &&
                  digest(desired.routes) == desired_routes_ && same_steering(*desired_, desired);
    if (repair && repairs == Repairs::in_budget) {
        if (auto wait = repairs_left_.take(since)) {
            pass.wait = wait;
            return pass;
        }
    }
    // First, while their last packets still have their path.
    Plan ends = sockets_to_end(desired);
    plan.insert(plan.begin(), ends.begin(), ends.end());
    keep_flows_from_before(plan, *observed, desired);

    const std::vector<std::string> decisions = report_decision(desired, cause);
    const bool contested =
        repair || (desired_ && desired_->rule_order != desired.rule_order && same_but_for_order(*desired_, desired));
    Applied applied = apply_all(kernel_, plan, *observed, cause,
                                {.fields = fields_of(desired),
                                 .config = &config_,
                                 .since = since,
                                 .tone = tone_of(contested && !plan.empty(), since)});
    applied.operations.insert(applied.operations.begin(), taken_in_.begin(), taken_in_.end());
    taken_in_.clear();
    const bool answers = !applied.operations.empty();
    LogFields told = fields_of(desired);
    told.event = "operation";
    told.cause = cause;
    told.reaction = answered_in_;
    for (const ReplaceRoute& operation : std::exchange(answered_, {})) {
        std::string text = to_string(operation, *observed);
        told.class_name = novpn::class_of(operation, config_);
        log_line(LogTone::info, fmt::format("{}: {}", cause, text), told);
        applied.operations.push_back(std::move(text));
    }
    shown_.cgroup_mount = observed->cgroup_mount;
    shown_.birth_marks.directory = observed->birth_marks.directory;
    if (!applied.failure) {
        // Behind the way out that programs connect anew by.
        Applied ended = apply_all(kernel_, flows_gone_stale(*observed, desired, since), *observed, cause,
                                  {.fields = fields_of(desired), .config = &config_, .since = since});
        std::ranges::move(ended.operations, std::back_inserter(applied.operations));
    }
    pass.operations = applied.operations.size();
    pass.failure = applied.failure;
    bpf_refused_ = applied.bpf_refused;
    // Where somebody had flushed it, it counts from 0 again.
    if (std::ranges::any_of(plan, [](const Operation& op) { return std::holds_alternative<ReplaceNft>(op); }))
        no_flows_since_.reset();
    if (applied.missed && setup_.wake_at) setup_.wake_at(Clock::now() + kAnotherTry);
    if (repair) ++repairs_;
    incomplete_ = pass.failure.has_value();
    if (!incomplete_) follows_ = !desired.nft.idle;
    if (!incomplete_) attached_.clear();
    for (const auto& [_, marked] : desired.birth_marks)
        for (const std::string& path : marked.cgroups)
            if (observed->others.contains(path)) attached_.insert(path);
    memory_ = desired.memory;
    bool news = !desired_ || desired_->takeovers != desired.takeovers || desired_->uplinks != desired.uplinks ||
                desired_->site != desired.site;
    if (desired.site.known) classes_left_ = desired.classes;
    const auto by_gateway = [](const Route& route) { return route.table == kMainTable && route.gateway.has_value(); };
    crowded_ = static_cast<std::size_t>(std::ranges::count_if(observed->routes, by_gateway)) > kMaxCopiedRoutes;
    keep_others_of_main(*observed);
    mirror_.reflect(*observed, desired, pass.failure || pass.wait);
    mirror_.prepare(config_, memory_);
    desired_routes_ = digest(desired.routes);
    desired_ = std::move(desired);
    desired_->routes = std::vector<Route>(); // an empty list would keep the room
    if (!incomplete_) start_units(cause);
    if (answers) last_reaction_ = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since);
    if (answered_in_) last_reaction_ = std::exchange(answered_in_, std::nullopt);
    if (pass.operations || news) publish(cause, decisions, applied.operations);
    return pass;
}

/// A dump of a large main takes its time, and what the mirror answers is about defaults.
void Agent::keep_others_of_main(const Observed& observed) {
    const auto is_other = [](const Route& route) { return route.table == kMainTable && !is_default(route); };
    others_of_main_.clear();
    others_of_main_.shrink_to_fit(); // no room is kept for more than there are
    others_of_main_.reserve(static_cast<std::size_t>(std::ranges::count_if(observed.routes, is_other)));
    std::ranges::copy_if(observed.routes, std::back_inserter(others_of_main_), is_other);
}

void Agent::watch_gateways_of(const Place& place) {
    gateway_macs_.reset();
    if (!tells_by_gateway(config_)) return;
    gateway_macs_.emplace();
    for (const Neighbour& gateway : place.gateways) {
        gateways_.insert(gateway.host);
        if (gateway.mac) gateway_macs_->insert(*gateway.mac);
    }
}

/// Of the site that was left and of the one that is entered, once its policy is in force. A site that is not known for
/// a while and then is the same has not been left.
void Agent::start_units(std::string_view cause) {
    const SiteDecision& site = desired_->site;
    if (!site.known) return;
    const auto now = std::ranges::find(config_.sites, site.name.value_or(""), &SiteConfig::name);
    const bool is_at_one = site.name && now != config_.sites.end();
    if (is_at_one ? entered_ && entered_->name == now->name : !entered_) return;
    const auto start = [&](const std::string& unit, std::string_view what, const std::string& name) {
        if (unit.empty() || !setup_.start_unit) return;
        spdlog::info("{}: site {} {}: systemctl start {}", cause, name, what, unit);
        setup_.start_unit(unit);
    };
    if (entered_) start(entered_->on_leave, "left", entered_->name);
    entered_.reset();
    if (!is_at_one) return;
    entered_ = *now;
    start(entered_->on_enter, "entered", entered_->name);
}

void Agent::heard_of_unit(const std::string& unit, const std::optional<Error>& failure) {
    const std::string code = kUnitWarning + unit;
    if (!failure) {
        warnings_.erase(code);
        return;
    }
    warnings_[code] = fmt::format("A site's unit was not started: {}.", to_string(*failure));
    spdlog::warn("{}", to_string(*failure));
}

/// Where a cold start leaves no other way to find the uplink.
void Agent::ask_sources(const Observed& observed, const Desired& desired, Clock::time_point now) {
    if (setup_.watch_name_servers) setup_.watch_name_servers(desired.asks_resolvers);
    if (!setup_.ask_sources) return;
    auto again = inquiry_.ask_at(now, observed, desired);
    if (!again) return;
    setup_.ask_sources();
    if (setup_.wake_at) setup_.wake_at(*again);
}

void Agent::heard(Hints hints) {
    spdlog::debug("the sources gave {} hints", hints.given.size());
    if (hints.networkmanager != Answer::whole) keep_networkmanagers(hints.name_servers, name_servers_);
    name_servers_ = hints.name_servers;
    std::map<std::pair<IfIndex, Prefix>, unsigned> heard;
    const unsigned answers = hints.networkmanager == Answer::lost ? 0 : hints.settled ? 2 : 1;
    for (const auto& network : name_servers_.networks) heard[network] = heard_[network] + answers;
    heard_ = std::move(heard);
    is_answer_lost_ = hints.networkmanager == Answer::lost;
    hints_ = std::move(hints);
}

/// A pass that somebody waits for, so that no repair is put off. Where it is not finished the loop goes on with it.
Pass Agent::reconcile_on_call(std::string_view cause, Depth depth) {
    if (released_) return {};
    const GivesBack at_the_end{*this};
    auto now = Clock::now();
    Pass pass = reconcile(cause, now, look(depth), Repairs::at_once);
    if ((pass.failure || pass.wait) && setup_.wake_at)
        setup_.wake_at(now + pass.wait.value_or(std::chrono::milliseconds(100)));
    return pass;
}

Expected<void> Agent::start() {
    auto observed = look(Depth::everything);
    if (!observed) return tl::make_unexpected(observed.error());
    if (auto found = conflicts(*observed, config_); !found.empty())
        return tl::make_unexpected(Error{.doing = "starting", .detail = found.front()});
    bool adopts = observed->nft.present || !observed->cgroups.empty() ||
                  std::ranges::find(observed->rules, kNovpnProtocol, &Rule::protocol) != observed->rules.end();
    Pass pass = reconcile("start", Clock::now(), std::move(observed), Repairs::at_once);
    last_reaction_.reset(); // of a start nobody waits for
    if (pass.failure) {
        // Nothing half done; what a former run left stays as it was for the next try.
        if (!adopts) (void)release();
        return tl::make_unexpected(*pass.failure);
    }
    if (setup_.on_config) setup_.on_config(config_);
    return {};
}

/// Leaves our rules where they are while a rival makes us move them too often.
std::optional<Clock::duration> Agent::limit_moves(const Observed& observed, Desired& desired, Clock::time_point now) {
    bool moves = desired_ && desired_->rule_order != desired.rule_order && same_but_for_order(*desired_, desired);
    if (desired_ && desired_->rule_order == desired.rule_order) warnings_.erase(kRivalWarning);
    if (!moves) return std::nullopt;
    auto wait = moves_left_.take(now);
    if (!wait) return std::nullopt;
    desired.rules = desired_->rules;
    desired.rule_order = desired_->rule_order;
    if (auto rival = first_rival(observed, config_))
        warnings_[kRivalWarning] = fmt::format(
            "The {} rule '{}' of {} keeps coming before ours; ours follow ten times a second, and the guard drops "
            "what it leads astray.",
            to_string(rival->family), to_string(*rival), owner_of(*rival));
    return wait;
}

/// Says what is decided otherwise than before, and returns it.
std::vector<std::string> Agent::report_decision(const Desired& desired, std::string_view cause) {
    std::vector<std::string> said;
    LogFields fields = fields_of(desired);
    fields.cause = cause;
    auto say = [&](const char* event, std::string text) {
        fields.event = event;
        log_line(LogTone::info, fmt::format("{}: {}", cause, text), fields);
        said.push_back(std::move(text));
    };
    if (desired_ ? desired_->site != desired.site : !desired.site.verdicts.empty())
        say("site", "site " + describe(desired.site));
    for (Family family : kFamilies) {
        const Selection& now = desired.uplinks.at(family);
        const Selection* before = desired_ ? &desired_->uplinks.at(family) : nullptr;
        fields.uplink = now.uplink ? now.uplink->link_name : "";
        if (!before || before->uplink != now.uplink || before->from != now.from)
            say("uplink", fmt::format("{} uplink {} ({})", to_string(family), describe(now.uplink), now.reason));
        const auto& takeovers = desired.takeovers.at(family);
        if (desired_ ? desired_->takeovers.at(family) != takeovers : !takeovers.empty())
            say("takeover", fmt::format("{} takeover {}", to_string(family), describe(takeovers)));
    }
    return said;
}

/// What another program undoes again and again would fill the log: of such passes some are told, and how many were not.
LogTone Agent::tone_of(bool contested, Clock::time_point now) {
    if (contested && told_left_.take(now)) {
        ++untold_;
        return LogTone::debug;
    }
    if (const auto untold = std::exchange(untold_, 0); untold > 0)
        spdlog::warn("{} more times since, another program undid what novpn needs, and it was put back: 'novpn status' "
                     "names what is in the way",
                     untold);
    return LogTone::info;
}

Expected<void> Agent::release() {
    released_ = true;
    return release_everything(kernel_, config_, setup_.cgroup_root);
}

Expected<void> release_everything(Kernel& kernel, const Config& config, const std::string& cgroup_root) {
    std::optional<Error> failure;
    // Twice: the second look finds what came back while the first plan ran, such as a process forked into a cgroup.
    for (int round = 0; round < 2; ++round) {
        Scope scope = scope_of(config, cgroup_root, Depth::everything);
        scope.main = false; // there is nothing of ours in it
        auto observed = kernel.observe(scope);
        if (!observed) return tl::make_unexpected(observed.error());
        failure = apply_all(kernel, diff(*observed, Desired{}), *observed, "release", {}, true).failure;
    }
    if (failure) return tl::make_unexpected(*failure);
    return {};
}

Expected<void> Agent::reload() {
    if (!setup_.load) return {};
    if (setup_.on_reload) setup_.on_reload(true);
    auto done = take_config();
    if (setup_.on_reload) setup_.on_reload(false);
    return done;
}

Expected<void> Agent::take_config() {
    auto loaded = setup_.load();
    std::string reason;
    if (!loaded) {
        reason = to_string(loaded.error());
    } else {
        auto observed = kernel_.observe(scope_of(*loaded, setup_.cgroup_root, Depth::usual));
        if (!observed) return tl::make_unexpected(observed.error());
        if (auto found = conflicts(*observed, *loaded); !found.empty()) reason = found.front();
    }
    if (!reason.empty()) {
        warnings_["config"] = reason;
        spdlog::error("config not changed: {}", reason);
        return tl::make_unexpected(Error{.doing = "reloading", .detail = reason});
    }
    warnings_.erase("config");
    // Whom another `allow` refuses is asked of in look(); until the answer what was said of a user stands.
    const bool asks_again = config_.allow != loaded->allow;
    if (desired_)
        before_reload_ = {.classes = config_at(desired_->site, desired_->place).classes, .place = std::nullopt};
    config_ = std::move(*loaded);
    if (asks_again && setup_.is_allowed)
        for (auto& [uid, answer] : users_)
            if (auto now = setup_.is_allowed(uid, config_.allow)) answer = now;
    std::erase_if(switches_, [&](const auto& s) { return !has_class(s.first); });
    std::erase_if(warnings_, [](const auto& warning) { return warning.first.starts_with(kUnitWarning); });
    if (setup_.on_config) setup_.on_config(config_);
    Pass pass = reconcile_on_call("reload", Depth::everything);
    if (pass.failure) return tl::make_unexpected(*pass.failure);
    return {};
}

void Agent::publish(std::string_view cause, const std::vector<std::string>& decisions,
                    const std::vector<std::string>& operations) {
    const std::string now = summary(*desired_, config_);
    if (setup_.on_news) setup_.on_news(now);
    if (!subscriber_) return;
    boost::json::object event{{"cause", cause},
                              {"decisions", boost::json::array(decisions.begin(), decisions.end())},
                              {"operations", boost::json::array(operations.begin(), operations.end())},
                              {"summary", now},
                              {"site", nullptr}};
    if (desired_->site.name) event["site"] = *desired_->site.name;
    event["reaction_us"] = operations.empty() || !last_reaction_ ? boost::json::value(nullptr)
                                                                 : boost::json::value(last_reaction_->count());
    subscriber_(event);
}

} // namespace novpn
