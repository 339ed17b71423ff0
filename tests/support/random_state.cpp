#include "tests/support/random_state.h"

#include <algorithm>
#include <fmt/format.h>
#include <random>
#include <stdexcept>

namespace novpn::test {

namespace {

constexpr Protocol kBoot{3}, kStatic{4}, kRouterAdvertisement{9}, kDhcp{16};
constexpr std::uint8_t kLinkScope = 253;
constexpr TableId kForeignTables[] = {TableId{51820}, TableId{52}, TableId{220}, TableId{100}};
constexpr TableId kOurTables[] = {TableId{7866}, TableId{7000}, TableId{7001},
                                  TableId{8866}, TableId{8000}, TableId{8001}};
constexpr TableId kStrayTable{9999};

address ip(const std::string& text) { return boost::asio::ip::make_address(text); }

struct LinkKind {
    const char* name;
    const char* kind;
    std::uint16_t hardware;
    bool point_to_point;
    bool tunnel;
};
constexpr LinkKind kLinks[] = {
    {"eth0", "", 1, false, false},           {"wlan0", "", 1, false, false},     {"wwan0", "", 519, true, false},
    {"ppp0", "ppp", 512, true, false},       {"br0", "bridge", 1, false, false}, {"docker0", "bridge", 1, false, false},
    {"tun0", "tun", 65534, true, true},      {"tun1", "tun", 65534, true, true}, {"tap0", "tun", 1, false, true},
    {"wg0", "wireguard", 65534, true, true}, {"gre1", "gre", 778, true, true},
};
constexpr const char* kGlobs[] = {"eth0", "wlan*", "w*", "ppp0", "br0", "tun0", "wg*", "*"};

class Generator {
  public:
    explicit Generator(std::function<std::uint32_t()> random)
        : random_(std::move(random)) {}

    RandomState generate() {
        state_.kernel.allow_bpf(chance(60));
        state_.config = config();
        links();
        cgroups();
        if (chance(30))
            for (int i = pick(3); i >= 0; --i) world_event(); // before anything of ours
        defaults();
        lan();
        foreign_rules();
        bool left_behind = chance(70);
        if (left_behind && chance(50)) former_run();
        takeovers();
        policies();
        if (left_behind && !state_.former) former_run();
        if (state_.former && chance(60)) damage();
        if (chance(70))
            for (int i = pick(4); i >= 0; --i) world_event();
        scopes();
        return std::move(state_);
    }

  private:
    // The standard's distributions differ from library to library.
    int pick(int below) { return static_cast<int>(random_() % static_cast<std::uint32_t>(below)); }
    bool chance(int percent) { return pick(100) < percent; }
    template<typename Values>
    const auto& one_of(const Values& values) {
        return values[static_cast<std::size_t>(pick(static_cast<int>(std::size(values))))];
    }
    std::vector<std::string> globs(int percent) {
        std::vector<std::string> result;
        while (chance(percent)) result.emplace_back(one_of(kGlobs));
        return result;
    }

    Config config() {
        Config config;
        const char* names[] = {"novpn", "games", "backup"};
        int other_marks = pick(2) * 3;
        int other_tables = pick(2) * 3;
        config.classes.clear();
        for (int i = 0, count = 1 + pick(3); i < count; ++i) {
            auto index = static_cast<std::uint32_t>(i);
            ClassConfig c{.name = names[i],
                          .table = kOurTables[i + other_tables],
                          .mark = Mark{(0x4e + index + static_cast<std::uint32_t>(other_marks)) << 24, 0xff000000},
                          .preference = Preference{64 + 10 * index + static_cast<std::uint32_t>(pick(3)) * 40}};
            if (chance(20)) c.when_no_uplink = WhenNoUplink::tunnel;
            if (chance(30)) c.dns = Dns::uplink;
            if (chance(15)) c.enabled = false;
            if (chance(15)) c.on_leave = OnLeave::keep;
            if (chance(20))
                c.uplink = one_of(kGlobs);
            else if (chance(15))
                c.via = one_of(kGlobs);
            if (chance(20)) c.users = {{"somebody", 1000 + index}};
            if (chance(25))
                for (const char* network : {"198.18.0.0", "203.0.113.0", "2001:db8:77::"})
                    if (chance(60)) c.destinations.push_back(prefix_of(boost::asio::ip::make_address(network), 24));
            if (chance(35)) c.apps = {"app" + std::to_string(pick(3)), chance(30) ? "app*" : "other"};
            if (chance(20)) c.units = {"unit" + std::to_string(pick(2)) + ".service"};
            if (chance(15)) c.slices = {"user-0.slice"};
            config.classes.push_back(c);
        }
        if (chance(30)) config.marking = Marking::nft;
        config.uplinks.prefer = globs(25);
        config.uplinks.ignore = globs(8);
        config.uplinks.links = globs(8);
        config.tunnels.links = globs(8);
        return config;
    }

    /// Of nobody, of somebody else, or of a former run of ours.
    Ipv4Settings ipv4_settings() {
        Ipv4Settings settings{.rp_filter = static_cast<std::uint32_t>(pick(3))};
        if (chance(20)) settings.src_valid_mark = 1;
        if (chance(30)) settings.tag = chance(30) ? 5 : kNovpnTag;
        return settings;
    }

    /// What systemd makes on a laptop, some of it in places where it does not count.
    void cgroups() {
        const std::string manager = "user.slice/user-0.slice/user@0.service";
        for (const char* slice : {"system.slice", "user.slice", "user.slice/user-0.slice"})
            state_.kernel.add_other(slice);
        for (const std::string& slice : {manager, manager + "/app.slice"}) state_.kernel.add_other(slice);
        for (int i = 0; i < 3; ++i) {
            if (chance(50)) state_.kernel.add_other(fmt::format("system.slice/unit{}.service", i));
            if (chance(50)) state_.kernel.add_other(fmt::format("{}/app.slice/app-app{}-1.scope", manager, i));
            if (chance(30)) state_.kernel.add_other(fmt::format("{}/app.slice/app-app{}-2.scope", manager, i));
            if (chance(20)) state_.kernel.add_other(fmt::format("{}/app-app{}-1.scope", manager, i));
        }
    }

    void links() {
        std::vector<LinkKind> kinds(std::begin(kLinks), std::end(kLinks));
        for (std::size_t i = kinds.size() - 1; i > 0; --i)
            std::swap(kinds[i], kinds[static_cast<std::size_t>(pick(static_cast<int>(i) + 1))]);
        kinds.resize(static_cast<std::size_t>(1 + pick(7)));
        for (const LinkKind& kind : kinds) {
            Link link{.name = kind.name,
                      .kind = kind.kind,
                      .hardware = kind.hardware,
                      .up = true,
                      .carrier = true,
                      .point_to_point = kind.point_to_point};
            link.ipv4 = ipv4_settings();
            link.index = state_.kernel.add_link(link);
            (kind.tunnel ? tunnels_ : physical_).push_back(link);
            std::uint32_t n = link.index.value;
            if (chance(90)) address_of(link, fmt::format("192.168.{}.50", n), 24);
            if (chance(25)) address_of(link, fmt::format("10.{}.0.50", n), 16);
            if (chance(70)) address_of(link, fmt::format("fe80::{}", n), 64);
            if (chance(60)) address_of(link, fmt::format("2001:db8:{}::50", n), 64);
            if (chance(20)) address_of(link, fmt::format("fd00:{}::50", n), 64);
        }
    }
    void address_of(const Link& link, const std::string& local, unsigned length) {
        state_.kernel.add_address(link.name, ip(local), length);
        addresses_.emplace_back(link, ip(local));
    }

    /// As `ip route add`: refused where there is one of that key, as the kernel does.
    bool add(Route route) {
        bool ipv4 = family_of(route) == Family::ipv4;
        if (!ipv4 && !route.metric) route.metric = 1024;
        if (ipv4 && !route.gateway && route.type == RouteType::unicast) route.scope = kLinkScope;
        const auto& all = state_.kernel.routes();
        if (std::ranges::find(all, key(route), [](const Route& other) { return key(other); }) != all.end())
            return false;
        if (route.type == RouteType::unicast) {
            const Link* link = state_.kernel.link(state_.kernel.link_name(route.link));
            if (!link || !link->up) return false;
            route.link_down = !link->carrier;
        }
        state_.kernel.add_route(route);
        return true;
    }

    /// A gateway that the link's addresses reach.
    std::optional<address> gateway(const Link& link, Family family) {
        std::uint32_t n = link.index.value;
        std::vector<std::string> candidates;
        for (const auto& [of, local] : addresses_) {
            if (of.name != link.name || family_of(local) != family || !is_there(local)) continue;
            std::string text = local.to_string();
            if (text.starts_with("192")) candidates.push_back(fmt::format("192.168.{}.{}", n, 1 + pick(2)));
            if (text.starts_with("10.")) candidates.push_back(fmt::format("10.{}.0.1", n));
            if (text.starts_with("fe80")) candidates.push_back(fmt::format("fe80::1:{}", 1 + pick(2)));
            if (text.starts_with("2001")) candidates.push_back(fmt::format("2001:db8:{}::1", n));
        }
        if (candidates.empty()) return std::nullopt;
        return ip(one_of(candidates));
    }
    bool is_there(const address& local) {
        const auto& addresses = state_.kernel.addresses();
        return std::ranges::find(addresses, local, &Address::local) != addresses.end();
    }
    std::optional<address> source(const Link& link, Family family) {
        for (const auto& [of, local] : addresses_)
            if (of.name == link.name && family_of(local) == family && is_there(local) &&
                !local.to_string().starts_with("fe80"))
                return local;
        return std::nullopt;
    }

    void default_of(const Link& link, Family family, std::uint32_t metric) {
        Route route{.destination = any_prefix(family),
                    .metric = metric,
                    .gateway = gateway(link, family),
                    .link = link.index,
                    .protocol = family == Family::ipv4 ? kDhcp : kRouterAdvertisement};
        if (!route.gateway && !link.point_to_point) return;
        if (link.point_to_point && chance(50)) route.gateway.reset();
        if (chance(30)) route.source = source(link, family);
        if (chance(10)) route.protocol = kStatic;
        add(route);
    }
    void defaults() {
        for (const Link& link : physical_)
            for (Family family : kFamilies)
                if (chance(65)) default_of(link, family, static_cast<std::uint32_t>(100 * pick(8)));
    }
    void lan() {
        std::vector<Link> all = physical_;
        all.insert(all.end(), tunnels_.begin(), tunnels_.end());
        for (const Link& link : all) {
            for (Family family : kFamilies) {
                bool ipv4 = family == Family::ipv4;
                auto via = gateway(link, family);
                if (via && chance(30)) {
                    Prefix prefix = ipv4 ? Prefix{ip(fmt::format("172.{}.0.0", 16 + pick(3))), 16}
                                         : Prefix{ip(fmt::format("2001:db8:ff{}::", pick(3))), 48};
                    add({.destination = prefix,
                         .metric = static_cast<std::uint32_t>(100 * pick(3)),
                         .gateway = via,
                         .link = link.index,
                         .source = chance(30) ? source(link, family) : std::nullopt,
                         .protocol = kStatic});
                }
                if (via && chance(25)) // to the VPN's server
                    add({.destination = ipv4 ? Prefix{ip("198.51.100.7"), 32} : Prefix{ip("2001:db8:cafe::7"), 128},
                         .gateway = via,
                         .link = link.index,
                         .protocol = kBoot});
                if (chance(15)) // on-link, without a gateway
                    add({.destination = ipv4 ? Prefix{ip(fmt::format("100.64.{}.0", pick(4))), 24}
                                             : Prefix{ip(fmt::format("fd77:{}::", pick(4))), 64},
                         .link = link.index,
                         .protocol = kStatic});
            }
        }
        if (chance(10))
            add({.type = RouteType::unreachable, .destination = {ip("10.0.0.0"), 8}, .metric = 5, .protocol = kStatic});
    }

    void foreign_rules() {
        for (Family family : kFamilies) {
            if (chance(20)) // before ours, and no member's: Tailscale's own packets
                state_.kernel.add_rule({.family = family,
                                        .preference = Preference{static_cast<std::uint32_t>(10 + pick(200))},
                                        .table = kMainTable,
                                        .mark = Mark{0x80000, 0xff0000},
                                        .protocol = kStatic});
            if (chance(10))
                state_.kernel.add_rule(
                    {.family = family,
                     .preference = Preference{static_cast<std::uint32_t>(1000 + pick(100))},
                     .table = TableId{100},
                     .to = Prefix{ip(family == Family::ipv4 ? "203.0.113.0" : "2001:db8:1234::"), 24},
                     .protocol = kStatic});
        }
    }

    void takeovers() {
        for (const Link& tunnel : tunnels_) {
            for (Family family : kFamilies) {
                if (!source(tunnel, family) || chance(25)) continue;
                take_over(tunnel, family);
            }
        }
    }
    void take_over(const Link& tunnel, Family family) {
        bool ipv4 = family == Family::ipv4;
        Route whole{.destination = any_prefix(family),
                    .metric = 50,
                    .gateway = chance(30) ? gateway(tunnel, family) : std::nullopt,
                    .link = tunnel.index,
                    .protocol = kStatic};
        switch (pick(5)) {
        case 0: // replaced
            for (const Route& route : std::vector(state_.kernel.routes()))
                if (route.table == kMainTable && is_default(route) && family_of(route) == family)
                    state_.kernel.delete_route(route);
            add(whole);
            return;
        case 1: // lower metric
            whole.metric = ipv4 ? 0 : 1;
            add(whole);
            return;
        case 2: { // split, in halves or finer
            unsigned length = chance(70) ? 1 : 2;
            for (unsigned part = 0; part < 1u << length; ++part) {
                unsigned first = part << (8 - length);
                if (chance(20)) continue; // of another tunnel, or of none
                whole.destination = {ipv4 ? ip(fmt::format("{}.0.0.0", first)) : ip(fmt::format("{:x}::", first << 8)),
                                     length};
                add(whole);
            }
            return;
        }
        case 3: // inverted mark rule, wg-quick's pair
            whole.table = kForeignTables[0];
            add(whole);
            state_.kernel.add_rule({.family = family,
                                    .preference = Preference{static_cast<std::uint32_t>(32700 + pick(60))},
                                    .table = whole.table,
                                    .invert = true,
                                    .mark = Mark{0xca6c},
                                    .protocol = kBoot});
            state_.kernel.add_rule({.family = family,
                                    .preference = Preference{static_cast<std::uint32_t>(32600 + pick(60))},
                                    .table = kMainTable,
                                    .suppress_prefix_length = 0,
                                    .protocol = kBoot});
            return;
        default: // catch-all rule
            whole.table = kForeignTables[1 + pick(2)];
            add(whole);
            if (chance(30))
                add({.table = whole.table,
                     .type = RouteType::throw_,
                     .destination = ipv4 ? Prefix{ip("192.168.0.0"), 16} : Prefix{ip("fd00::"), 8},
                     .protocol = kStatic});
            state_.kernel.add_rule({.family = family,
                                    .preference = Preference{static_cast<std::uint32_t>(1200 + pick(5000))},
                                    .table = whole.table,
                                    .protocol = kStatic});
        }
    }

    /// IPsec policies: mandatory ones, a bypass, and those that ordinary packets miss.
    void policies() {
        while (chance(30)) {
            Family family = chance(50) ? Family::ipv4 : Family::ipv6;
            bool ipv4 = family == Family::ipv4;
            XfrmPolicy policy{.direction = one_of(kXfrmDirections),
                              .source = any_prefix(family),
                              .destination = any_prefix(family),
                              .priority = static_cast<std::uint32_t>(1 + pick(5)),
                              .block = chance(30),
                              .templates = chance(60) ? 1u : 0u};
            if (chance(30)) policy.source = ipv4 ? Prefix{ip("192.168.0.0"), 16} : Prefix{ip("2001:db8::"), 32};
            if (chance(30)) policy.destination = ipv4 ? Prefix{ip("128.0.0.0"), 1} : Prefix{ip("2000::"), 3};
            if (chance(10)) policy.mark = Mark{0x10, 0xff};
            if (chance(10)) policy.if_id = 42;
            (void)state_.kernel.add_policy(policy); // one of that key may be there
        }
    }

    /// An agent ran here, with this config or another, to its end or not.
    void former_run() {
        state_.former = chance(50) ? state_.config : config();
        Scope scope = scope_of(*state_.former);
        Observed observed = *state_.kernel.observe(scope);
        if (!conflicts(observed, *state_.former).empty()) return;
        Desired desired = decide(observed, *state_.former, {}, kRandomRoot);
        Plan plan = diff(observed, desired);
        std::size_t applied =
            chance(80) ? plan.size() : static_cast<std::size_t>(pick(static_cast<int>(plan.size()) + 1));
        for (std::size_t i = 0; i < applied; ++i) (void)state_.kernel.apply(plan[i]);
        state_.former_structure = structure_of(desired.nft);
        if (*state_.former == state_.config && chance(50)) state_.memory = desired.memory;
    }

    void damage() {
        Observed observed = *state_.kernel.observe(scope_of(*state_.former));
        int percent = 5 + pick(60);
        for (const Route& route : observed.routes) {
            if (route.protocol != kNovpnProtocol || route.table == kMainTable || !chance(percent)) continue;
            state_.kernel.delete_route(route);
            Route stale = route;
            if (chance(20)) stale.metric = 77;
            if (chance(20) && !addresses_.empty() && route.type == RouteType::unicast) {
                stale.link = one_of(addresses_).first.index;
                stale.gateway.reset();
                // To delete an IPv6 route without a gateway is to delete any of that link and metric.
                if (family_of(stale) == Family::ipv6) stale.metric = 78;
                stale.source.reset();
            }
            if (stale != route) add(stale);
        }
        for (const Rule& rule : observed.rules) {
            if (rule.protocol != kNovpnProtocol || !chance(percent)) continue;
            state_.kernel.delete_rule(rule);
            Rule stale = rule;
            if (chance(20)) stale.preference.value += 1;
            if (stale != rule) state_.kernel.add_rule(stale);
        }
        for (const XfrmPolicy& policy : observed.policies) {
            if (!owned_by_us(policy) || !chance(percent)) continue;
            (void)state_.kernel.apply(DeleteXfrmPolicy{policy});
            XfrmPolicy stale = policy;
            if (chance(30)) stale.priority = 77;
            if (chance(20)) stale.mark->value ^= 0x70000000;
            if (chance(20)) stale.index += 8 * 5;
            if (stale != policy) (void)state_.kernel.add_policy(stale);
        }
        for (const MemberElement& member : observed.nft.members)
            if (chance(percent)) (void)state_.kernel.apply(RemoveMember{member});
        for (const LinkElement& link : observed.nft.links)
            if (chance(percent)) (void)state_.kernel.apply(RemoveLink{link});
        if (observed.nft.present && chance(20)) (void)state_.kernel.apply(AddLink{{"games", IfIndex{42}}});
        if (observed.nft.present && chance(15)) (void)state_.kernel.apply(DeleteNft{});
        for (const auto& [name, pinned] : observed.birth_marks.classes)
            for (const std::string& cgroup : pinned.cgroups)
                if (chance(percent)) (void)state_.kernel.apply(DetachBirthMark{name, cgroup});
        if (chance(10)) (void)state_.kernel.apply(PinBirthMark{"games", {.mark = {1, 1}, .taken = 1}});
        for (const auto& [name, pinned] : observed.redirects.classes) {
            for (const std::string& cgroup : pinned.cgroups)
                if (chance(percent)) (void)state_.kernel.apply(DetachRedirect{name, cgroup});
            if (chance(percent)) (void)state_.kernel.apply(SetResolvers{name, {}});
        }
        if (chance(10)) (void)state_.kernel.apply(PinRedirect{"games", {1, 1}});
        if (chance(10)) state_.kernel.allow_bpf(false); // an agent with fewer rights than the former
        for (const auto& [path, _] : observed.others) {
            if (!path.ends_with(".scope") || !chance(20)) continue;
            state_.kernel.remove_other(path);
            if (chance(50)) state_.kernel.add_other(path); // with another id
        }
        for (const auto& [path, id] : observed.cgroups) {
            if (!chance(20)) continue;
            (void)state_.kernel.apply(RemoveCgroup{path});
            if (chance(50)) (void)state_.kernel.apply(CreateCgroup{path}); // with another id
        }
        if (chance(10)) (void)state_.kernel.apply(CreateCgroup{std::string(kRandomRoot) + "/gone"});
        if (chance(15) && !addresses_.empty())
            add({.table = kStrayTable,
                 .destination = {ip("10.99.0.0"), 16},
                 .link = one_of(addresses_).first.index,
                 .protocol = kNovpnProtocol});
        if (chance(10))
            state_.kernel.add_rule({.preference = Preference{static_cast<std::uint32_t>(500 + pick(10))},
                                    .table = kStrayTable,
                                    .mark = Mark{0x77000000, 0xff000000},
                                    .protocol = kNovpnProtocol});
    }

    void world_event() {
        std::vector<Link> all = physical_;
        all.insert(all.end(), tunnels_.begin(), tunnels_.end());
        const Link link = one_of(all);
        if (!state_.kernel.link(link.name)) return; // it was deleted
        switch (pick(6)) {
        case 0: return state_.kernel.set_up(link.name, false);
        case 1: return state_.kernel.set_up(link.name, true);
        case 2:
            if (state_.kernel.link(link.name)->up) state_.kernel.set_carrier(link.name, chance(50));
            return;
        case 3:
            if (addresses_.empty()) return;
            if (const auto& [of, local] = one_of(addresses_); state_.kernel.link(of.name))
                state_.kernel.delete_address(of.name, local);
            return;
        case 4:
            if (chance(30)) state_.kernel.delete_link(link.name);
            return;
        default:
            for (Family family : kFamilies) default_of(link, family, static_cast<std::uint32_t>(100 * pick(8)));
        }
    }

    static Scope scope_of(const Config& config) {
        Scope scope{.strays = true, .cgroup_root = kRandomRoot, .others = true};
        for (const ClassConfig& c : config.classes) {
            scope.tables.push_back(c.table);
            scope.cgroups.push_back(novpn::cgroup_of(c, kRandomRoot));
        }
        return scope;
    }
    void scopes() {
        state_.scope = scope_of(state_.config);
        state_.everything = state_.scope;
        state_.everything.tables.assign(std::begin(kForeignTables), std::end(kForeignTables));
        state_.everything.tables.insert(state_.everything.tables.end(), std::begin(kOurTables), std::end(kOurTables));
        state_.everything.tables.push_back(kStrayTable);
        if (chance(30)) { // an agent that runs looks for no strays
            state_.scope.strays = false;
            state_.scope.cgroup_root.clear();
        }
    }

    std::function<std::uint32_t()> random_;
    RandomState state_;
    std::vector<Link> physical_, tunnels_;
    std::vector<std::pair<Link, address>> addresses_;
};

} // namespace

RandomState random_state(std::uint32_t seed) { return random_state(std::mt19937(seed)); }

RandomState random_state(std::function<std::uint32_t()> random) { return Generator(std::move(random)).generate(); }

} // namespace novpn::test
