#include "tests/support/scenario.h"

#include "agent/status.h"
#include "config/load.h"

#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace novpn::test {

namespace {

constexpr std::uint8_t kLinkScope = 253; // RT_SCOPE_LINK
const address kInternet4 = boost::asio::ip::make_address("203.0.113.10");
const address kInternet6 = boost::asio::ip::make_address("2001:db8:ffff::10");

struct Line {
    int number = 0;
    std::string text;
    bool indented = false;
};

std::string as_lines(const std::vector<std::string>& block) {
    std::string text;
    for (const std::string& line : block) text += line + "\n";
    return text;
}

void expect(const std::string& wanted, const std::string& got) {
    if (wanted != got) throw std::runtime_error("got: " + got);
}

void expect_block(const std::vector<std::string>& wanted, const std::vector<std::string>& got) {
    bool same = got.empty() ? wanted == std::vector<std::string>{"nothing"} : wanted == got;
    if (!same) throw std::runtime_error("got\n" + (got.empty() ? "nothing\n" : as_lines(got)));
}

std::vector<std::string> words_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

Family to_family(const std::string& word) {
    if (word == "ipv4") return Family::ipv4;
    if (word == "ipv6") return Family::ipv6;
    throw std::invalid_argument("expected ipv4 or ipv6, not " + word);
}

Prefix to_prefix(const std::string& text) {
    auto slash = text.find('/');
    address network = boost::asio::ip::make_address(text.substr(0, slash));
    unsigned length = slash == std::string::npos ? (network.is_v4() ? 32 : 128)
                                                 : static_cast<unsigned>(std::stoul(text.substr(slash + 1)));
    return {network, length};
}

UplinkSource to_source(const std::string& name) {
    for (auto source : {UplinkSource::networkd, UplinkSource::networkmanager, UplinkSource::lease, UplinkSource::ra})
        if (to_string(source) == name) return source;
    throw std::invalid_argument("no source " + name);
}

ResolverSource to_resolver_source(const std::string& name) {
    for (auto source : {ResolverSource::resolved, ResolverSource::networkd, ResolverSource::networkmanager,
                        ResolverSource::lease, ResolverSource::resolv_conf})
        if (to_string(source) == name) return source;
    throw std::invalid_argument("no source " + name);
}

MacAddress to_mac(const std::string& text) {
    MacAddress mac;
    for (std::size_t i = 0; i < mac.bytes.size(); ++i)
        mac.bytes[i] = static_cast<std::uint8_t>(std::stoul(text.substr(3 * i, 2), nullptr, 16));
    return mac;
}

/// Bytes as \x1b, and a blank as \x20.
std::string unescaped(const std::string& text) {
    std::string bytes;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool is_escape = text.compare(i, 2, "\\x") == 0 && i + 4 <= text.size();
        bytes += is_escape ? static_cast<char>(std::stoul(text.substr(i + 2, 2), nullptr, 16)) : text[i];
        if (is_escape) i += 3;
    }
    return bytes;
}

Protocol to_protocol(const std::string& name) {
    for (int number = 0; number < 256; ++number)
        if (to_string(Protocol{static_cast<std::uint8_t>(number)}) == name)
            return Protocol{static_cast<std::uint8_t>(number)};
    throw std::invalid_argument("no protocol " + name);
}

RouteType to_route_type(const std::string& word) {
    if (word == "unreachable") return RouteType::unreachable;
    if (word == "blackhole") return RouteType::blackhole;
    if (word == "prohibit") return RouteType::prohibit;
    if (word == "throw") return RouteType::throw_;
    return RouteType::unicast;
}

RuleAction to_rule_action(const std::string& word) {
    if (word == "unreachable") return RuleAction::unreachable;
    if (word == "blackhole") return RuleAction::blackhole;
    if (word == "prohibit") return RuleAction::prohibit;
    if (word == "nop") return RuleAction::nop;
    return RuleAction::to_table;
}

TableId to_table(const std::string& word) {
    if (word == "main") return kMainTable;
    if (word == "default") return TableId{253};
    return TableId{static_cast<std::uint32_t>(std::stoul(word))};
}

Mark to_mark(const std::string& word) {
    auto slash = word.find('/');
    auto number = [](const std::string& text) { return static_cast<std::uint32_t>(std::stoul(text, nullptr, 0)); };
    if (slash == std::string::npos) return {.value = number(word)};
    return {.value = number(word.substr(0, slash)), .mask = number(word.substr(slash + 1))};
}

/// Whether a request to delete, which gives some of what a rule has, names this one.
bool is_named_by(const Rule& request, const Rule& rule) {
    bool any_action = request.action == RuleAction::to_table && !request.table.value;
    return rule.family == request.family && (!request.preference.value || rule.preference == request.preference) &&
           (any_action || rule.action == request.action) && (!request.table.value || rule.table == request.table) &&
           (!request.mark || rule.mark == request.mark) && (!request.to || rule.to == request.to) &&
           (!request.invert || rule.invert) &&
           (!request.suppress_prefix_length || rule.suppress_prefix_length == request.suppress_prefix_length);
}

} // namespace

/// Words after the command: "default via 192.168.10.1 dev eth0" is {"default", …} with at("via") = "192.168.10.1".
class Player::Words {
  public:
    explicit Words(std::vector<std::string> words)
        : words_(std::move(words)) {}
    const std::string& operator[](std::size_t i) const {
        if (i >= words_.size()) throw std::invalid_argument("a word is missing");
        return words_[i];
    }
    bool has(const std::string& word) const { return std::ranges::find(words_, word) != words_.end(); }
    std::optional<std::string> after(const std::string& word) const {
        auto found = std::ranges::find(words_, word);
        if (found == words_.end() || found + 1 == words_.end()) return std::nullopt;
        return found[1];
    }
    std::string must_have_after(const std::string& word) const {
        auto text = after(word);
        if (!text) throw std::invalid_argument("no " + word);
        return *text;
    }
    /// What follows each of these words, up to the next of them.
    std::vector<Words> parts(const std::string& word) const {
        std::vector<Words> parts;
        for (auto at = std::ranges::find(words_, word); at != words_.end();) {
            auto next = std::find(at + 1, words_.end(), word);
            parts.emplace_back(std::vector<std::string>(at + 1, next));
            at = next;
        }
        return parts;
    }
    std::optional<std::uint32_t> number_after(const std::string& word) const {
        auto text = after(word);
        return text ? std::optional(static_cast<std::uint32_t>(std::stoul(*text, nullptr, 0))) : std::nullopt;
    }

  private:
    std::vector<std::string> words_;
};

Player::Player() { start_agent(); }

Config Player::config_now() const {
    const auto& decided = agent_->desired();
    Config config = decided ? config_at(decided->site, config_) : config_;
    for (ClassConfig& c : config.classes)
        if (auto found = switches_.find(c.name); found != switches_.end()) c.enabled = found->second;
    return config;
}

void Player::start_agent() {
    switches_.clear();
    AgentSetup setup{.cgroup_root = kCgroupRoot};
    setup.ask_sources = [this] { asked_ = true; };
    setup.start_unit = [this](const std::string& unit) { started_.push_back(unit); };
    agent_ = std::make_unique<Agent>(kernel_, config_, std::move(setup));
}

void Player::play(const std::string& text, const std::vector<std::string>& block) {
    Words words(words_of(text));
    const std::string& what = words[0];
    if (what == "config") return read_config(block);
    if (what == "link") return change_link(words);
    if (what == "address") return change_address(words);
    if (what == "route") return change_route(words);
    if (what == "rule") return change_rule(words);
    if (what == "xfrm") return change_policy(words);
    if (what == "sysctl") return change_setting(words[1]);
    if (text == "nft flush ruleset") return kernel_.flush_nft();
    if (what == "cgroup" && words[1] == "del")
        return (void)kernel_.apply(RemoveCgroup{cgroup_of(class_of(words), kCgroupRoot)});
    if (what == "hint") return change_hints(words);
    if (what == "neighbour") return add_neighbour(words);
    if (what == "resolver") return change_resolvers(text);
    if (what == "nameserver") return change_name_servers(text);
    if (what == "domain") return change_domains(text);
    if (what == "search") return change_search(text);
    if (what == "wifi") return change_wifi(words);
    if (what == "mac") return change_mac(words);
    if (what == "verdict") return expect(text, verdict(words[1]));
    if (what == "started") {
        std::string units;
        for (const std::string& unit : std::exchange(started_, {})) units += " " + unit;
        return expect(text, "started" + (units.empty() ? " nothing" : units));
    }
    if (what == "dns") return expect(text, dns(words[1]));
    if (what == "agent") return run_agent(words);
    if (what == "on" || what == "off") return switch_class(words);
    if (what == "bpf") return kernel_.allow_bpf(words[1] == "allowed");
    if (what == "uplink") return expect(text, uplink(to_family(words[1])));
    if (what == "takeover") return expect(text, takeover(to_family(words[1])));
    if (what == "class")
        return expect(text, fmt::format("class {} {}", words[1], to_string(now().classes.at(words[1]).state)));
    if (what == "site") {
        const SiteDecision& site = now().site;
        return expect(text, "site " + (site.known ? site.name.value_or("none") : "unknown"));
    }
    if (what == "sources") return expect(text, asked_ ? "sources asked" : "sources not asked");
    if (what == "plan") return expect_block(block, plan_);
    if (what == "rules") return expect_block(block, rules(to_family(words[1])));
    if (what == "marked") return expect(text, leaves(words, class_of(words).mark.value));
    if (what == "ordinary") return expect(text, leaves(words, words.number_after("mark").value_or(0)));
    throw std::invalid_argument("not a word of scenarios");
}

void Player::read_config(const std::vector<std::string>& block) {
    auto config = parse_config(as_lines(block), "config");
    if (!config) throw std::invalid_argument(to_string(config.error()));
    config_ = *config;
    start_agent();
}

/// `off CLASS`, `on CLASS`: what a person does to the running agent.
void Player::switch_class(const Words& words) {
    if (!agent_->has_class(words[1])) throw std::invalid_argument("no class " + words[1]);
    asked_ = false;
    if (auto done = agent_->set_enabled(words[1], words[0] == "on", std::nullopt); !done)
        throw std::runtime_error(to_string(done.error()));
    switches_[words[1]] = words[0] == "on";
    if (!asked_) return;
    agent_->heard(answer());
    run_pass();
}

IfIndex Player::index_of(const std::string& link) const {
    if (!kernel_.link(link)) throw std::invalid_argument("no link " + link);
    return kernel_.link(link)->index;
}

void Player::change_link(const Words& words) {
    const std::string& name = words[2];
    if (words[1] == "del") return kernel_.delete_link(name);
    if (words[1] == "set") {
        (void)index_of(name);
        const std::string& what = words[3];
        if (what == "up" || what == "down") return kernel_.set_up(name, what == "up");
        if (what == "name") {
            if (kernel_.link(words[4])) throw std::invalid_argument("File exists");
            return kernel_.rename_link(name, words[4]);
        }
        if (what == "master") return kernel_.set_master(name, index_of(words[4]));
        if (what == "nomaster") return kernel_.set_master(name, std::nullopt);
        if (what != "carrier" && what != "no-carrier") throw std::invalid_argument("cannot set " + what);
        if (!kernel_.link(name)->up) throw std::invalid_argument("a link that is down has no carrier");
        return kernel_.set_carrier(name, what == "carrier");
    }
    if (words[1] != "add") throw std::invalid_argument("expected add, del or set");
    if (kernel_.link(name)) throw std::invalid_argument("File exists");
    Link link{.name = name, .kind = words.after("kind").value_or(""), .up = true, .carrier = true};
    if (link.kind == "tun" || link.kind == "wireguard") {
        link.hardware = 65534;
        link.point_to_point = true;
    }
    if (words.has("tap")) {
        link.kind = "tun";
        link.hardware = 1;
    }
    if (words.has("ppp")) {
        link.hardware = 512;
        link.point_to_point = true;
    }
    if (words.has("raw-ip")) {
        link.hardware = 519;
        link.point_to_point = true;
    }
    kernel_.add_link(link);
}

/// net.ipv4.conf.LINK.SETTING=N
void Player::change_setting(const std::string& text) {
    constexpr std::string_view kConf = "net.ipv4.conf.";
    const auto dot = text.rfind('.');
    const auto equals = text.find('=');
    if (!text.starts_with(kConf) || dot < kConf.size() || equals == std::string::npos)
        throw std::invalid_argument("expected net.ipv4.conf.LINK.SETTING=N");
    Ipv4Settings& settings = kernel_.settings_of(text.substr(kConf.size(), dot - kConf.size()));
    const std::string name = text.substr(dot + 1, equals - dot - 1);
    const auto number = static_cast<std::uint32_t>(std::stoul(text.substr(equals + 1)));
    if (name == "rp_filter")
        settings.rp_filter = number;
    else if (name == "src_valid_mark")
        settings.src_valid_mark = number;
    else if (name == "tag")
        settings.tag = number;
    else
        throw std::invalid_argument("no setting " + name);
}

void Player::change_address(const Words& words) {
    Prefix with_length = to_prefix(words[2]);
    std::string link = words.must_have_after("dev");
    IfIndex index = index_of(link);
    bool is_there = std::ranges::any_of(
        kernel_.addresses(), [&](const Address& a) { return a.link == index && a.local == with_length.network; });
    if (words[1] == "del") {
        if (!is_there) throw std::invalid_argument("Cannot assign requested address");
        return kernel_.delete_address(link, with_length.network);
    }
    if (words[1] != "add") throw std::invalid_argument("expected add or del");
    if (is_there) throw std::invalid_argument("File exists");
    std::optional<address> peer;
    if (auto other = words.after("peer")) {
        Prefix of_peer = to_prefix(*other);
        peer = of_peer.network;
        with_length.length = of_peer.length;
    }
    kernel_.add_address(link, with_length.network, with_length.length, peer);
}

void Player::change_route(const Words& words) {
    Route route{.type = to_route_type(words[2]),
                .metric = words.number_after("metric").value_or(0),
                .protocol = to_protocol(words.after("proto").value_or("boot"))};
    if (auto via = words.after("via")) route.gateway = boost::asio::ip::make_address(*via);
    if (auto source = words.after("src")) route.source = boost::asio::ip::make_address(*source);
    if (auto table = words.after("table")) route.table = to_table(*table);
    if (auto dev = words.after("dev")) route.link = index_of(*dev);
    route.onlink = words.has("onlink");
    bool unicast = route.type == RouteType::unicast;
    const std::string& destination = words[unicast ? 2 : 3];
    bool ipv6 = words.has("ipv6") || (route.gateway && route.gateway->is_v6());
    if (destination == "default")
        route.destination = any_prefix(ipv6 ? Family::ipv6 : Family::ipv4);
    else
        route.destination = to_prefix(destination);
    if (words[1] == "del") {
        if (!kernel_.delete_route(route)) throw std::invalid_argument("No such process");
        return;
    }
    // What ip(8) and the kernel fill in.
    if (unicast && !route.link.value) throw std::invalid_argument("no dev");
    if (family_of(route) == Family::ipv6 && !route.metric) route.metric = 1024;
    if (family_of(route) == Family::ipv4 && unicast && !route.gateway) route.scope = kLinkScope;
    if (words[1] == "replace") {
        if (auto done = kernel_.replace_route(route); !done) throw std::invalid_argument(to_string(done.error()));
        return;
    }
    if (words[1] != "add") throw std::invalid_argument("expected add, replace or del");
    std::vector<Route> by_hops = by_each_hop(route, words);
    for (const Route& by_hop : by_hops)
        if (auto reason = kernel_.refusal(by_hop)) throw std::invalid_argument(to_string(*reason));
    for (const Route& by_hop : by_hops) kernel_.add_route(by_hop);
}

/// `nexthop via GATEWAY dev NAME`, as often as it is there; the route itself where it is not.
std::vector<Route> Player::by_each_hop(const Route& route, const Words& words) const {
    std::vector<Route> by_hops;
    for (const Words& hop : words.parts("nexthop")) {
        by_hops.push_back(route);
        by_hops.back().gateway = boost::asio::ip::make_address(hop.must_have_after("via"));
        by_hops.back().link = index_of(hop.must_have_after("dev"));
    }
    if (by_hops.empty()) by_hops.push_back(route);
    for (Route& by_hop : by_hops) by_hop.next_hops = static_cast<unsigned>(by_hops.size());
    return by_hops;
}

void Player::change_rule(const Words& words) {
    Rule rule{.family = to_family(words[2]),
              .preference = Preference{words.number_after("preference").value_or(0)},
              .invert = words.has("not"),
              .suppress_prefix_length = words.number_after("suppress_prefixlength"),
              .protocol = to_protocol(words.after("proto").value_or("boot"))};
    for (const char* action : {"unreachable", "blackhole", "prohibit", "nop"})
        if (words.has(action)) rule.action = to_rule_action(action);
    if (auto table = words.after("lookup")) rule.table = to_table(*table);
    if (auto mark = words.after("fwmark")) rule.mark = to_mark(*mark);
    if (auto to = words.after("to")) rule.to = to_prefix(*to);
    if (auto target = words.number_after("goto")) {
        rule.action = RuleAction::goto_;
        rule.target = Preference{*target};
    }
    if (words[1] == "add") {
        if (!words.has("preference")) rule.preference = kernel_.free_preference(rule.family);
        if (std::ranges::find(kernel_.rules(), rule) != kernel_.rules().end())
            throw std::invalid_argument("File exists");
        return kernel_.add_rule(rule);
    }
    if (words[1] != "del") throw std::invalid_argument("expected add or del");
    auto found = std::ranges::find_if(kernel_.rules(), [&](const Rule& other) { return is_named_by(rule, other); });
    if (found == kernel_.rules().end()) throw std::invalid_argument("No such file or directory");
    kernel_.delete_rule(Rule(*found));
}

void Player::change_policy(const Words& words) {
    XfrmPolicy policy{.source = to_prefix(words.must_have_after("src")),
                      .destination = to_prefix(words.must_have_after("dst")),
                      .priority = words.number_after("priority").value_or(0),
                      .block = words.after("action") == "block",
                      .templates = words.has("tmpl") ? 1u : 0u};
    std::string direction = words.must_have_after("dir");
    if (direction == "in") policy.direction = XfrmDirection::in;
    if (direction == "fwd") policy.direction = XfrmDirection::fwd;
    if (auto mark = words.number_after("mark")) policy.mark = Mark{*mark, words.number_after("mask").value()};
    if (words[2] == "add") {
        if (auto done = kernel_.add_policy(policy); !done) throw std::invalid_argument(to_string(done.error()));
    } else if (words[2] != "delete" || !kernel_.delete_policy(policy)) {
        throw std::invalid_argument("expected add, or to delete one that is there");
    }
}

/// What a source will answer from now on.
void Player::change_hints(const Words& words) {
    if (words[1] == "none") {
        hints_ = {};
        return;
    }
    Hint hint{.from = to_source(words[1]),
              .link = index_of(words.must_have_after("dev")),
              .gateway = boost::asio::ip::make_address(words.must_have_after("via"))};
    if (auto local = words.after("of")) hint.local = boost::asio::ip::make_address(*local);
    hints_.given.push_back(hint);
}

void Player::add_neighbour(const Words& words) {
    if (words[4] != "failed") throw std::invalid_argument("expected failed");
    hints_.neighbours.push_back(
        {.link = index_of(words[3]), .host = boost::asio::ip::make_address(words[1]), .state = NeighbourState::failed});
}

/// resolver SOURCE dev NAME ADDRESS…
void Player::change_resolvers(const std::string& text) {
    std::istringstream words(text);
    std::string word, source, dev, link;
    words >> word >> source >> dev >> link;
    auto& known = hints_.name_servers.of_links;
    if (source == "none") {
        known.clear();
        return tell_of_files();
    }
    LinkResolvers said{.from = to_resolver_source(source), .link = index_of(link)};
    while (words >> word) said.servers.push_back(boost::asio::ip::make_address(word));
    for (const Address& a : kernel_.addresses())
        if (a.link == said.link) said.networks.insert(prefix_of(a.local, a.prefix_length));
    known.push_back(said);
    tell_of_files();
}

/// nameserver ADDRESS…
void Player::change_name_servers(const std::string& text) {
    std::istringstream words(text);
    std::string word;
    words >> word;
    hints_.name_servers.of_machine.clear();
    while (words >> word) hints_.name_servers.of_machine.push_back(boost::asio::ip::make_address(word));
    tell_of_files();
}

/// domain SOURCE dev NAME DOMAIN…
void Player::change_domains(const std::string& text) {
    std::istringstream words(text);
    std::string word, source, dev, link;
    words >> word >> source >> dev >> link;
    LinkResolvers said{.from = to_resolver_source(source), .link = index_of(link)};
    while (words >> word) said.domains.push_back(word);
    for (const Address& a : kernel_.addresses())
        if (a.link == said.link) said.networks.insert(prefix_of(a.local, a.prefix_length));
    hints_.name_servers.of_links.push_back(said);
    tell_of_files();
}

/// search DOMAIN…
void Player::change_search(const std::string& text) {
    std::istringstream words(text);
    std::string word;
    words >> word;
    hints_.name_servers.domains_of_machine.clear();
    while (words >> word) hints_.name_servers.domains_of_machine.push_back(word);
    tell_of_files();
}

/// wifi NAME joins SSID [bssid MAC], wifi NAME associates
void Player::change_wifi(const Words& words) {
    if (words[2] == "associates") return kernel_.join(words[1], "", {});
    if (words[2] != "joins") throw std::invalid_argument("expected joins or associates");
    kernel_.join(words[1], unescaped(words[3]), to_mac(words.after("bssid").value_or("02:00:00:00:00:01")));
}

/// mac ADDRESS dev NAME MAC|none
void Player::change_mac(const Words& words) {
    const address host = boost::asio::ip::make_address(words[1]);
    kernel_.set_mac(words[3], host, words[4] == "none" ? std::nullopt : std::optional(to_mac(words[4])));
}

std::string Player::verdict(const std::string& site) const {
    static constexpr const char* kWords[] = {"no", "unknown", "yes"};
    for (const SiteVerdict& verdict : now().site.verdicts) {
        if (verdict.name != site) continue;
        std::string text = fmt::format("verdict {} {}", site, kWords[static_cast<std::size_t>(verdict.matches)]);
        for (const std::string& key : verdict.failed) text += " " + key;
        return text;
    }
    throw std::invalid_argument("no site " + site);
}

/// What the sources say now, and of what moment that is.
Hints Player::answer() const {
    Hints hints = hints_;
    for (const Address& a : kernel_.addresses())
        hints.name_servers.networks.insert({a.link, prefix_of(a.local, a.prefix_length)});
    return hints;
}

/// As inotify on the files of the sources does, while they are of use.
void Player::tell_of_files() {
    if (agent_->desired() && agent_->desired()->asks_resolvers) agent_->heard(answer());
}

std::string Player::dns(const std::string& class_name) const {
    const DnsDecision& dns = now().classes.at(class_name).dns;
    std::string text = fmt::format("dns {} {}", class_name, to_string(dns.state));
    for (const address& server : dns.servers) text += " " + server.to_string();
    return text;
}

void Player::run_agent(const Words& words) {
    if (words[1] == "restarts")
        start_agent();
    else if (words[1] != "runs")
        throw std::invalid_argument("expected runs or restarts");
    plan_.clear();
    kernel_.refuse = [this](const Operation& operation) -> std::optional<Error> {
        if (on_operation) on_operation(operation);
        std::istringstream text(to_string(operation, *kernel_.observe({})));
        for (std::string line; std::getline(text, line);) plan_.push_back(line);
        return std::nullopt;
    };
    asked_ = false;
    Pass pass = run_pass();
    if (asked_) {
        agent_->heard(answer());
        pass = run_pass();
    }
    kernel_.refuse = nullptr;
    if (pass.failure) throw std::runtime_error(to_string(*pass.failure));
    if (pass.wait) throw std::runtime_error("repairs are too frequent");
}

Pass Player::run_pass() {
    // As the loop does: at a start also what a former run may have left.
    Depth depth = agent_->desired() ? Depth::usual : Depth::everything;
    return agent_->reconcile("scenario", clock_ += std::chrono::seconds(1), depth);
}

const Desired& Player::now() const {
    if (!agent_->desired()) throw std::logic_error("'agent runs' must come first");
    return *agent_->desired();
}

const ClassConfig& Player::class_of(const Words& words) const {
    std::string name = words.after("class").value_or("novpn");
    for (const ClassConfig& c : config_.classes)
        if (c.name == name) return c;
    throw std::invalid_argument("no class " + name);
}

std::string Player::uplink(Family family) const {
    const Selection& selection = now().uplinks.at(family);
    std::string text = fmt::format("uplink {} {}", to_string(family), describe(selection.uplink));
    if (selection.uplink) text += " from " + to_string(selection.from);
    return text;
}

std::string Player::takeover(Family family) const {
    return fmt::format("takeover {} {}", to_string(family), describe(now().takeovers.at(family)));
}

std::string Player::leaves(const Words& words, std::uint32_t mark) const {
    Family family = to_family(words[1]);
    address destination = family == Family::ipv4 ? kInternet4 : kInternet6;
    if (auto to = words.after("to")) destination = boost::asio::ip::make_address(*to);
    Packet packet{.destination = destination, .mark = mark};
    auto route = kernel_.lookup(packet);
    std::string text = fmt::format("{} {}", words[0], words[1]);
    for (const char* word : {"class", "mark", "to"})
        if (auto value = words.after(word)) text += fmt::format(" {} {}", word, *value);
    const XfrmPolicy* policy = route ? kernel_.policy_of(packet, *route) : nullptr;
    if (policy && (policy->block || policy->templates)) return text + " taken by a policy";
    return text + (route ? " leaves by " + kernel_.link_name(route->link) : " refused");
}

std::vector<std::string> Player::rules(Family family) const {
    std::vector<std::string> texts;
    for (const Rule& rule : kernel_.rules())
        if (rule.family == family) texts.push_back(to_string(rule));
    return texts;
}

std::vector<std::string> play_scenario(const std::string& file) {
    std::ifstream stream(file);
    if (!stream) return {file + ": cannot be read"};
    std::vector<Line> lines;
    int number = 0;
    for (std::string text; std::getline(stream, text);) {
        ++number;
        bool indented = text.starts_with("  ");
        if (!indented && (text.empty() || text.front() == '#')) continue;
        lines.push_back({number, indented ? text.substr(2) : text, indented});
    }
    std::string name = std::filesystem::path(file).filename().string();
    std::vector<std::string> failures;
    Player player;
    for (std::size_t i = 0, next = 0; i < lines.size(); i = next) {
        std::vector<std::string> block;
        for (next = i + 1; next < lines.size() && lines[next].indented; ++next) block.push_back(lines[next].text);
        try {
            player.play(lines[i].text, block);
        } catch (const std::exception& error) {
            failures.push_back(fmt::format("{}:{}: {}: {}", name, lines[i].number, lines[i].text, error.what()));
        }
    }
    return failures;
}

} // namespace novpn::test
