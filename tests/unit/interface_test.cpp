// The server against the interface file: its methods, what they take, and what the real agent answers, field by field.
#include "agent/agent.h"
#include "agent/control/methods.h"
#include "tests/support/fake_kernel.h"
#include "tests/unit/control_fixture.h"

#include <cctype>
#include <fstream>
#include <map>
#include <sstream>

namespace novpn::test {
namespace {

std::string interface_file() {
    std::ifstream file(NOVPN_SOURCE_DIR "/agent/io.novpn.Agent.varlink");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

/// A type of the interface description language (https://varlink.org/Interface-Definition).
struct Type {
    enum class Kind { named, structure, enumeration };
    Kind kind = Kind::named;
    bool nullable = false;
    bool array = false;
    bool elements_nullable = false;
    std::string name;                                 ///< string, int, …, or a type of the interface
    std::vector<std::pair<std::string, Type>> fields; ///< of a structure; of an enumeration the names alone
};

struct Interface {
    std::map<std::string, Type> types;
    std::map<std::string, std::pair<Type, Type>> methods; ///< what goes in, what comes out
    std::map<std::string, Type> errors;
};

/// Throws where the text is no interface.
class Parser {
  public:
    explicit Parser(const std::string& text) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) text_ += line.substr(0, line.find('#')) + "\n";
    }

    Interface interface() {
        Interface interface;
        expect("interface");
        word();
        for (std::string keyword = word(); !keyword.empty(); keyword = word()) {
            const std::string name = word();
            if (keyword == "type") {
                interface.types[name] = type();
            } else if (keyword == "method") {
                Type in = type();
                expect("->");
                interface.methods[name] = {std::move(in), type()};
            } else if (keyword == "error") {
                interface.errors[name] = type();
            } else {
                throw std::runtime_error("what is " + keyword);
            }
        }
        return interface;
    }

  private:
    void skip_space() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    }
    bool take(std::string_view token) {
        skip_space();
        if (text_.compare(at_, token.size(), token) != 0) return false;
        at_ += token.size();
        return true;
    }
    void expect(std::string_view token) {
        if (!take(token)) throw std::runtime_error("no " + std::string(token) + " at: " + text_.substr(at_, 40));
    }
    std::string word() {
        skip_space();
        const std::size_t begin = at_;
        while (at_ < text_.size() &&
               (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_' || text_[at_] == '.'))
            ++at_;
        return text_.substr(begin, at_ - begin);
    }
    Type type() {
        Type type;
        type.nullable = take("?");
        type.array = take("[]");
        if (type.array) type.elements_nullable = take("?");
        if (!take("(")) {
            type.name = word();
            return type;
        }
        type.kind = Type::Kind::structure;
        while (!take(")")) {
            std::string name = word();
            if (name.empty()) throw std::runtime_error("no field at: " + text_.substr(at_, 40));
            if (take(":"))
                type.fields.emplace_back(std::move(name), this->type());
            else {
                type.kind = Type::Kind::enumeration;
                type.fields.emplace_back(std::move(name), Type{});
            }
            take(",");
        }
        return type;
    }

    std::string text_;
    std::size_t at_ = 0;
};

/// Where a value is not of a type: "families.ipv4.uplink: is missing".
class Check {
  public:
    explicit Check(const Interface& interface)
        : interface_(interface) {}

    std::vector<std::string> operator()(const Type& type, const json::value& value) {
        problems_.clear();
        check(type, value, "");
        return problems_;
    }

  private:
    void check(const Type& type, const json::value& value, const std::string& where) {
        if (value.is_null()) {
            if (!type.nullable) problems_.push_back(where + ": is null");
        } else if (type.array) {
            if (!value.is_array()) return problems_.push_back(where + ": is no array");
            Type element = type;
            element.array = false;
            element.nullable = type.elements_nullable;
            for (const auto& one : value.get_array()) check(element, one, where + "[]");
        } else if (type.kind == Type::Kind::structure) {
            check_fields(type, value, where);
        } else if (type.kind == Type::Kind::enumeration) {
            const auto is_it = [&](const auto& field) {
                return value.is_string() && value.get_string() == field.first;
            };
            if (std::ranges::none_of(type.fields, is_it)) problems_.push_back(where + ": is none of the names");
        } else if (const auto named = interface_.types.find(type.name); named != interface_.types.end()) {
            check(named->second, value, where);
        } else {
            const bool fits = type.name == "string" ? value.is_string()
                              : type.name == "int"  ? value.is_int64() || value.is_uint64()
                              : type.name == "bool" ? value.is_bool()
                                                    : false;
            if (!fits) problems_.push_back(where + ": is no " + type.name);
        }
    }
    void check_fields(const Type& type, const json::value& value, const std::string& where) {
        if (!value.is_object()) return problems_.push_back(where + ": is no object");
        const json::object& object = value.get_object();
        const std::string prefix = where.empty() ? "" : where + ".";
        for (const auto& [name, field] : type.fields) {
            if (const json::value* one = object.if_contains(name))
                check(field, *one, prefix + name);
            else if (!field.nullable)
                problems_.push_back(prefix + name + ": is missing");
        }
        for (const auto& member : object) {
            const auto is_it = [&](const auto& field) { return field.first == std::string_view(member.key()); };
            if (std::ranges::none_of(type.fields, is_it))
                problems_.push_back(prefix + std::string(member.key()) + ": is not in the interface file");
        }
    }

    const Interface& interface_;
    std::vector<std::string> problems_;
};

TEST(Interface, HasTheMethodsAndErrorsOfTheServerAndNoOther) {
    const Interface interface = Parser(interface_file()).interface();
    std::set<MethodShape> methods;
    for (const auto& [name, types] : interface.methods) {
        MethodShape shape{.name = name, .parameters = {}};
        for (const auto& [parameter, type] : types.first.fields)
            shape.parameters.emplace_back(parameter, (type.nullable ? "?" : "") + type.name);
        methods.insert(std::move(shape));
    }
    std::set<std::string> errors;
    for (const auto& [name, type] : interface.errors) {
        errors.insert(name);
        ASSERT_EQ(type.fields.size(), 1u) << name;
        EXPECT_EQ(type.fields.front().first, "message") << name;
    }
    const auto served = agent_methods();
    const auto thrown = agent_errors();
    EXPECT_EQ(methods, std::set<MethodShape>(served.begin(), served.end()));
    EXPECT_EQ(errors, std::set<std::string>(thrown.begin(), thrown.end()));
}

TEST(Interface, ACheckFindsWhatIsWrong) {
    const Interface interface = Parser("interface a.b\n"
                                       "type T (n: int, s: ?string, e: (x, y), l: []int)\n"
                                       "method M() -> (t: T)\n")
                                    .interface();
    Check check(interface);
    const Type& out = interface.methods.at("M").second;
    EXPECT_EQ(check(out, {{"t", {{"n", 1}, {"e", "x"}, {"l", {1, 2}}}}}), std::vector<std::string>{});
    EXPECT_EQ(check(out, {{"t", {{"n", "1"}, {"s", 2}, {"e", "z"}, {"l", {1, nullptr}}, {"more", 1}}}}),
              (std::vector<std::string>{"t.n: is no int", "t.s: is no string", "t.e: is none of the names",
                                        "t.l[]: is null", "t.more: is not in the interface file"}));
    EXPECT_EQ(check(out, {{"t", {{"n", nullptr}}}}),
              (std::vector<std::string>{"t.n: is null", "t.e: is missing", "t.l: is missing"}));
}

/// The real agent on a laptop that a VPN has taken over, behind the real server.
class AgentReplies : public testing::Test {
  protected:
    AgentReplies() {
        const auto ip = [](const char* text) { return boost::asio::ip::make_address(text); };
        const IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
        kernel.add_address("wlan0", ip("192.168.10.50"), 24);
        kernel.add_route(
            {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
        const IfIndex tun0 = kernel.add_link({.name = "tun0", .kind = "tun", .up = true, .carrier = true});
        kernel.add_address("tun0", ip("10.8.0.2"), 24);
        for (const char* half : {"0.0.0.0", "128.0.0.0"})
            kernel.add_route({.destination = {ip(half), 1}, .gateway = ip("10.8.0.1"), .link = tun0});
    }
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root: it calls all methods";
        std::string name = testing::TempDir() + "novpn-interface-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        dir = name;
        auto listening = Control::listen(io, agent, dir);
        ASSERT_TRUE(listening) << to_string(listening.error());
        control = std::make_unique<Control>(std::move(*listening));
        ASSERT_TRUE(agent.start());
        thread = std::thread([this] { io.run(); });
    }
    void TearDown() override {
        if (!thread.joinable()) return;
        io.stop();
        thread.join();
        control.reset();
        std::filesystem::remove_all(dir);
    }

    /// What is wrong with the answer of a method, or that there is none.
    std::vector<std::string> problems(const std::string& method, json::object parameters = {}) {
        auto client = Client::connect(dir);
        if (!client) return {to_string(client.error())};
        const auto answer = client->call(method, std::move(parameters), method, kPatience);
        if (!answer) return {to_string(answer.error())};
        return check(interface.methods.at(method).second, *answer);
    }

    const Interface interface = Parser(interface_file()).interface();
    Check check{interface};
    FakeKernel kernel;
    Agent agent{kernel, Config{}, {.cgroup_root = "novpn-1", .on_stop = [this] { io.stop(); }}};
    boost::asio::io_context io;
    std::string dir;
    std::unique_ptr<Control> control;
    std::thread thread;
};

TEST_F(AgentReplies, AreAsTheInterfaceFileSays) {
    const std::vector<std::string> none;
    EXPECT_EQ(problems("Status"), none);
    EXPECT_EQ(problems("Plan"), none);
    EXPECT_EQ(problems("Explain", {{"destination", "192.0.2.1"}}), none);
    EXPECT_EQ(problems("Explain", {{"destination", "2001:db8::1"}, {"class", "novpn"}}), none);
    EXPECT_EQ(problems("Explain", {{"destination", "192.0.2.1"}, {"pid", ::getpid()}}), none);
    EXPECT_EQ(problems("Metrics"), none);
    EXPECT_EQ(problems("Place", {{"class", "novpn"}, {"pid", ::getpid()}}), none);
    EXPECT_EQ(problems("Status"), none) << "with a member";
    EXPECT_EQ(problems("Release", {{"pid", ::getpid()}}), none);
    EXPECT_EQ(problems("SetEnabled", {{"class", "novpn"}, {"enabled", false}}), none);
    EXPECT_EQ(problems("Status"), none) << "with a class that is off";
    EXPECT_EQ(problems("Reload"), none);
    EXPECT_EQ(problems("Down"), none);
}

TEST_F(AgentReplies, OfMonitorAreToo) {
    Raw watcher(dir);
    ASSERT_TRUE(watcher.call(R"({"method":"io.novpn.Agent.Monitor","more":true})"));
    const auto next = [&] {
        const auto reply = varlink::parse_reply(watcher.receive());
        return reply && reply->continues ? reply->parameters : json::object();
    };
    const Type& event = interface.methods.at("Monitor").second;
    EXPECT_EQ(check(event, next()), std::vector<std::string>{});
    EXPECT_EQ(problems("SetEnabled", {{"class", "novpn"}, {"enabled", false}}), std::vector<std::string>{});
    const json::object change = next();
    EXPECT_EQ(check(event, change), std::vector<std::string>{});
    EXPECT_FALSE(change.at("operations").as_array().empty());
}

} // namespace
} // namespace novpn::test
