// A real server on a real socket, with a fake agent behind it. Ordinary users are children that gave root away; they
// are forked before the server's thread is started.
#pragma once

#include "agent/cli/client.h"
#include "agent/control/control.h"
#include "agent/control/varlink.h"

#include <array>
#include <boost/asio/post.hpp>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <csignal>
#include <filesystem>
#include <functional>
#include <future>
#include <grp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <set>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace novpn::test {

namespace json = boost::json;

inline constexpr uid_t kUser = 61234; // In no passwd file.
inline constexpr auto kPatience = std::chrono::seconds(20);

/// Read by the test once the server's thread has ended, or between a reply and the next call.
struct FakeAgent : Service {
    boost::asio::io_context* io = nullptr;
    json::object status_object{{"summary", "All is well."}};
    Allow allowed;
    std::function<void(pid_t)> while_moving;
    std::function<void(pid_t)> after_moving;
    Expected<Placed> placing = Placed{.old_sockets = 2};
    Expected<Released> releasing = Released{.class_name = "novpn", .ended = 1, .kept = 3};
    Expected<void> switching;
    Expected<void> reloading;
    Expected<void> ending;
    Expected<json::object> explaining = json::object();
    std::set<pid_t> members;
    std::vector<std::pair<std::string, pid_t>> placed;
    std::vector<pid_t> released;
    struct Switched {
        std::string class_name;
        bool enabled = true;
        std::optional<std::chrono::seconds> for_how_long;
        bool operator==(const Switched&) const = default;
    };
    std::vector<Switched> switched;
    std::vector<std::pair<std::string, std::string>> explained;
    std::vector<std::string> warnings;
    std::vector<uid_t> askers;
    std::vector<std::string> ends;
    std::size_t reloads = 0;
    Subscriber subscriber;

    json::object status(const Caller& caller) override {
        askers.push_back(caller.uid);
        return status_object;
    }
    Expected<std::vector<std::string>> plan() override { return std::vector<std::string>{"ip rule add", "nft add"}; }
    bool has_class(const std::string& name) const override { return name == "novpn" || name == "resting"; }
    bool is_steered(const std::string& name) const override { return name == "novpn"; }
    Allow allow() const override { return allowed; }
    bool heard_of_user(uid_t, bool) override { return false; }
    Expected<Placed> place(const std::string& class_name, pid_t pid) override {
        if (while_moving) while_moving(pid);
        if (placing) placed.emplace_back(class_name, pid);
        return placing;
    }
    Expected<Released> release(pid_t pid, const std::function<bool()>& is_that_one) override {
        if (while_moving) while_moving(pid);
        if (!is_that_one()) return system_error(ESRCH, "releasing");
        if (after_moving) after_moving(pid);
        if (releasing) released.push_back(pid);
        return releasing;
    }
    std::optional<std::string> class_of(pid_t pid) override {
        return members.contains(pid) ? std::optional<std::string>("resting") : std::nullopt;
    }
    std::optional<std::string> selector_of(pid_t pid) override {
        return members.contains(pid) ? std::optional<std::string>("app spotify") : std::nullopt;
    }
    Expected<void> set_enabled(const std::string& class_name, bool enabled,
                               std::optional<std::chrono::seconds> for_how_long) override {
        switched.push_back({class_name, enabled, for_how_long});
        return switching;
    }
    Expected<void> reload() override {
        ++reloads;
        return reloading;
    }
    std::vector<OldSocket> old_sockets_of(pid_t pid) override {
        if (!members.contains(pid)) return {};
        return {{"tcp", "10.8.0.2:40112", "203.0.113.1:443", pid, "a member"}};
    }
    Expected<json::object> explain(const boost::asio::ip::address& destination,
                                   const std::string& class_name) override {
        explained.emplace_back(destination.to_string(), class_name);
        return explaining;
    }
    std::string metrics() override { return "# TYPE novpn_repairs counter\nnovpn_repairs_total 2\n# EOF\n"; }
    void on_event(Subscriber to) override { subscriber = std::move(to); }
    Expected<void> down() override {
        ends.emplace_back("down");
        return ending;
    }
    void stop() override {
        ends.emplace_back("stop");
        io->stop();
    }
    void warn(const std::string& text) override { warnings.push_back(text); }
};

/// Runs `body` in a process of its own once result() is asked for; lives on until it is destroyed.
class Child {
  public:
    explicit Child(const std::function<std::string()>& body) {
        int go[2];
        int out[2];
        EXPECT_EQ(::pipe2(go, O_CLOEXEC), 0);
        EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            char byte = 0;
            ::close(go[1]);
            if (::read(go[0], &byte, 1) == 1) {
                const std::string text = outcome(body) + '\0';
                if (::write(out[1], text.data(), text.size()) < 0) ::_exit(1);
                for (;;) ::pause();
            }
            ::_exit(0);
        }
        ::close(go[0]);
        ::close(out[1]);
        go_ = UniqueFd(go[1]);
        out_ = UniqueFd(out[0]);
    }
    ~Child() {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;

    pid_t pid() const { return pid_; }

    std::string result() {
        EXPECT_EQ(::write(go_.get(), "g", 1), 1);
        std::string text;
        std::array<char, 4096> chunk;
        for (;;) {
            pollfd ready{.fd = out_.get(), .events = POLLIN, .revents = 0};
            if (::poll(&ready, 1, std::chrono::milliseconds(kPatience).count()) != 1) return "no answer";
            const ssize_t size = ::read(out_.get(), chunk.data(), chunk.size());
            if (size <= 0) return "died after saying: " + text;
            text.append(chunk.data(), static_cast<std::size_t>(size));
            if (text.back() == '\0') return text.substr(0, text.size() - 1);
        }
    }

  private:
    /// An exception that left the child's fork would have it run the other tests too.
    static std::string outcome(const std::function<std::string()>& body) {
        try {
            return body();
        } catch (const std::exception& bug) {
            return std::string("threw: ") + bug.what();
        }
    }

    pid_t pid_ = -1;
    UniqueFd go_;
    UniqueFd out_;
};

inline void become(uid_t real, uid_t effective, uid_t saved, gid_t gid) {
    if (::setgroups(0, nullptr) != 0 || ::setresgid(gid, gid, gid) != 0 || ::setresuid(real, effective, saved) != 0)
        ::_exit(99);
}
inline void become(uid_t uid) { become(uid, uid, uid, uid); }

inline std::string ask(const std::string& dir, std::string_view method, json::object parameters = {}) {
    auto client = Client::connect(dir);
    if (!client) return to_string(client.error());
    const auto answer = client->call(method, std::move(parameters), "asking", kPatience);
    return answer ? "done" : to_string(answer.error());
}

inline std::string place(const std::string& dir, pid_t pid, std::string_view class_name = "novpn") {
    return ask(dir, "Place", {{"class", class_name}, {"pid", pid}});
}

/// A client that speaks as badly as it likes.
class Raw {
  public:
    explicit Raw(const std::string& dir)
        : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        (dir + "/" + Control::kSocketName).copy(address.sun_path, sizeof address.sun_path - 1);
        EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    }
    int fd() const { return fd_.get(); }

    /// False when the other side has closed.
    bool send(std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent < 0) return false;
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
        return true;
    }
    bool call(std::string_view text) { return send(std::string(text) + '\0'); }

    /// The next message without its NUL; "closed" or "no answer".
    std::string receive() {
        for (;;) {
            if (auto message = messages_.next()) return *message;
            pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
            if (::poll(&ready, 1, std::chrono::milliseconds(kPatience).count()) != 1) return "no answer";
            std::array<char, 65536> chunk;
            const ssize_t size = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
            if (size <= 0) return "closed";
            messages_.append({chunk.data(), static_cast<std::size_t>(size)});
        }
    }

  private:
    UniqueFd fd_;
    varlink::Messages messages_{std::size_t{64} << 20};
};

inline constexpr std::string_view kStatusCall = R"({"method":"io.novpn.Agent.Status"})";
inline constexpr std::string_view kStatusReply = R"({"parameters":{"summary":"All is well."}})";

inline std::string error_reply(const std::string& error, const std::string& parameter, const std::string& value) {
    return R"({"error":"org.varlink.service.)" + error + R"(","parameters":{")" + parameter + R"(":")" + value +
           R"("}})";
}

class ControlTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "novpn-control-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        ASSERT_EQ(::chmod(name.c_str(), 0755), 0);
        dir = name;
    }
    void TearDown() override {
        end();
        std::filesystem::remove_all(dir);
    }

    /// Root's own rights are the point of many a test.
    static bool root() { return ::geteuid() == 0; }

    void serve(ControlLimits limits = {}, Accounts::Lookup lookup = is_allowed) {
        agent.io = &io;
        auto listening = Control::listen(io, agent, dir, limits, std::move(lookup));
        ASSERT_TRUE(listening) << to_string(listening.error());
        control = std::make_unique<Control>(std::move(*listening));
        thread = std::thread([this] { io.run(); });
    }

    /// As the agent ends: the loop first, then what ran on it.
    void end() {
        if (!thread.joinable()) return;
        io.stop();
        thread.join();
        control.reset();
    }

    /// Runs `work` as the agent would, on the loop, and waits for its end.
    void on_loop(std::function<void()> work) {
        std::promise<void> done;
        boost::asio::post(io, [&] {
            work();
            done.set_value();
        });
        ASSERT_EQ(done.get_future().wait_for(kPatience), std::future_status::ready);
    }

    std::string dir;
    FakeAgent agent;
    boost::asio::io_context io;
    std::unique_ptr<Control> control;
    std::thread thread;
};

} // namespace novpn::test
