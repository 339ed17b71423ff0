#include "tests/support/scenario.h"

#include "agent/agent.h"
#include "agent/status.h"
#include "config/load.h"
#include "tests/support/fake_kernel.h"

#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace novpn::test {

namespace {

constexpr const char* kCgroupRoot = "novpn-4026531840";
const address kInternet4 = boost::asio::ip::make_address("203.0.113.10");
const address kInternet6 = boost::asio::ip::make_address("2001:db8:ffff::10");

struct Line {
    int number = 0;
    std::string text;
    bool indented = false;
};

std::vector<std::string> words_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

/// Words after the command: "default via 192.168.10.1 dev eth0" is {"default", …} with at("via") = "192.168.10.1".
class Words {
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
    std::optional<std::uint32_t> number_after(const std::string& word) const {
        auto text = after(word);
        return text ? std::optional(static_cast<std::uint32_t>(std::stoul(*text, nullptr, 0))) : std::nullopt;
    }

  private:
    std::vector<std::string> words_;
};

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

Protocol to_protocol(const std::string& name) {
    for (int number = 0; number < 256; ++number)
        if (to_string(Protocol{static_cast<std::uint8_t>(number)}) == name)
            return Protocol{static_cast<std::uint8_t>(number)};
    throw std::invalid_argument("no protocol " + name);
}

class Player {
  public:
    explicit Player(std::string name)
        : name_(std::move(name)) {
        restart();
    }

    void play(const std::vector<Line>& lines) {
        for (std::size_t i = 0; i < lines.size(); ++i) {
            std::vector<std::string> block;
            std::size_t next = i + 1;
            while (next < lines.size() && lines[next].indented) block.push_back(lines[next++].text);
            try {
                play(lines[i].text, block);
            } catch (const std::exception& error) {
                failures_.push_back(fmt::format("{}:{}: {}: {}", name_, lines[i].number, lines[i].text, error.what()));
            }
            i = next - 1;
        }
    }
    std::vector<std::string> failures() && { return std::move(failures_); }

  private:
    void restart() { agent_ = std::make_unique<Agent>(kernel_, config_, AgentSetup{.cgroup_root = kCgroupRoot}); }

    void play(const std::string& text, const std::vector<std::string>& block) {
        Words words(words_of(text));
        const std::string& what = words[0];
        if (what == "config") return read_config(block);
        if (what == "link") return change_link(words);
        if (what == "address") return change_address(words);
        if (what == "route") return change_route(words);
        if (what == "rule") return change_rule(words);
        if (what == "agent") return run_agent(words);
        if (what == "on" || what == "off") return switch_class(words);
        if (what == "uplink") return expect(text, uplink(to_family(words[1])));
        if (what == "takeover") return expect(text, takeover(to_family(words[1])));
        if (what == "class")
            return expect(text, fmt::format("class {} {}", words[1], to_string(now().classes.at(words[1]).state)));
        if (what == "plan") return expect_plan(block);
        if (what == "marked") return expect(text, leaves(words, mark_of(words.after("class").value_or("novpn"))));
        if (what == "ordinary") return expect(text, leaves(words, 0));
        throw std::invalid_argument("not a word of scenarios");
    }

    void read_config(const std::vector<std::string>& block) {
        std::string yaml;
        for (const std::string& line : block) yaml += line + "\n";
        auto config = parse_config(yaml, "config");
        if (!config) throw std::invalid_argument(to_string(config.error()));
        config_ = *config;
        restart();
    }

    /// `off CLASS`, `on CLASS`, `reload` + block: what a person does to the running agent.
    void switch_class(const Words& words) {
        if (auto done = agent_->set_enabled(words[1], words[0] == "on", std::nullopt); !done)
            throw std::runtime_error(to_string(done.error()));
    }

    void change_link(const Words& words) {
        const std::string& name = words[2];
        if (words[1] == "del") return kernel_.delete_link(name);
        if (words[1] == "set") {
            if (words.has("up") || words.has("down")) return kernel_.set_up(name, words.has("up"));
            return kernel_.set_carrier(name, words[3] == "carrier");
        }
        Link link{.name = name, .kind = words.after("kind").value_or(""), .up = true, .carrier = true};
        if (link.kind == "tun" || link.kind == "wireguard") {
            link.hardware = 65534;
            link.point_to_point = true;
        }
        if (words.has("ppp")) link.hardware = 512;
        kernel_.add_link(link);
    }

    void change_address(const Words& words) {
        Prefix with_length = to_prefix(words[2]);
        if (words[1] == "add") return kernel_.add_address(*words.after("dev"), with_length.network, with_length.length);
        kernel_.delete_address(*words.after("dev"), with_length.network);
    }

    void change_route(const Words& words) {
        Route route{.metric = words.number_after("metric").value_or(0),
                    .protocol = to_protocol(words.after("proto").value_or("boot"))};
        if (auto via = words.after("via")) route.gateway = boost::asio::ip::make_address(*via);
        if (auto source = words.after("src")) route.source = boost::asio::ip::make_address(*source);
        if (auto table = words.number_after("table")) route.table = TableId{*table};
        if (auto dev = words.after("dev")) {
            if (!kernel_.link(*dev)) throw std::invalid_argument("no link " + *dev);
            route.link = kernel_.link(*dev)->index;
        }
        bool ipv6 = words.has("ipv6") || (route.gateway && route.gateway->is_v6());
        const std::string& destination = words[2];
        if (destination == "default")
            route.destination = any_prefix(ipv6 ? Family::ipv6 : Family::ipv4);
        else
            route.destination = to_prefix(destination);
        if (words[1] == "add") return kernel_.add_route(route);
        if (!kernel_.delete_route(route)) throw std::invalid_argument("no such route");
    }

    void change_rule(const Words& words) {
        Rule rule{.family = to_family(words[2]),
                  .preference = Preference{words.number_after("preference").value()},
                  .table = TableId{words.number_after("lookup").value()},
                  .invert = words.has("not"),
                  .suppress_prefix_length = words.number_after("suppress_prefixlength")};
        if (auto mark = words.number_after("fwmark")) rule.mark = Mark{.value = *mark};
        if (words[1] == "add") return kernel_.add_rule(rule);
        if (!kernel_.delete_rule(rule)) throw std::invalid_argument("no such rule");
    }

    void run_agent(const Words& words) {
        if (words[1] == "restarts")
            restart();
        else if (words[1] != "runs")
            throw std::invalid_argument("expected runs or restarts");
        plan_.clear();
        kernel_.refuse = [this](const Operation& operation) -> std::optional<Error> {
            plan_ += to_string(operation, *kernel_.observe({})) + "\n";
            return std::nullopt;
        };
        if (auto pass = agent_->reconcile("scenario", Clock::now(), Depth::everything); pass.failure)
            throw std::runtime_error(to_string(*pass.failure));
        kernel_.refuse = nullptr;
    }

    /// What was last decided.
    const Desired& now() const {
        if (!agent_->desired()) throw std::logic_error("'agent runs' must come first");
        return *agent_->desired();
    }

    std::string uplink(Family family) {
        const Selection& selection = now().uplinks.at(family);
        std::string text = fmt::format("uplink {} {}", to_string(family), describe(selection.uplink));
        if (selection.uplink) text += " from " + to_string(selection.from);
        return text;
    }

    std::string takeover(Family family) {
        return fmt::format("takeover {} {}", to_string(family), describe(now().takeovers.at(family)));
    }

    std::uint32_t mark_of(const std::string& class_name) const {
        for (const ClassConfig& c : config_.classes)
            if (c.name == class_name) return c.mark.value;
        throw std::invalid_argument("no class " + class_name);
    }

    std::string leaves(const Words& words, std::uint32_t mark) {
        Family family = to_family(words[1]);
        auto route = kernel_.lookup({.destination = family == Family::ipv4 ? kInternet4 : kInternet6, .mark = mark});
        std::string of_class = words.has("class") ? " class " + *words.after("class") : "";
        return fmt::format("{} {}{} {}", words[0], words[1], of_class,
                           route ? "leaves by " + kernel_.link_name(route->link) : "refused");
    }

    void expect_plan(const std::vector<std::string>& block) {
        std::string wanted;
        for (const std::string& line : block) wanted += line + "\n";
        if (wanted == "nothing\n") wanted.clear();
        if (wanted != plan_) throw std::runtime_error("got\n" + (plan_.empty() ? "nothing\n" : plan_));
    }

    static void expect(const std::string& wanted, const std::string& got) {
        if (wanted != got) throw std::runtime_error("got: " + got);
    }

    std::string name_;
    FakeKernel kernel_;
    Config config_;
    std::unique_ptr<Agent> agent_;
    std::string plan_;
    std::vector<std::string> failures_;
};

} // namespace

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
    Player player(std::filesystem::path(file).filename().string());
    player.play(lines);
    return std::move(player).failures();
}

} // namespace novpn::test
