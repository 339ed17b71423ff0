// Monitor: what a watcher is told, and what one that does not read costs.
#include "tests/unit/control_fixture.h"

#include "agent/control/events.h"

#include <sys/resource.h>

namespace novpn::test {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view kMonitorCall = R"({"method":"io.novpn.Agent.Monitor","more":true})";

json::object event(std::string cause, json::array operations = {"ip rule add"}) {
    return {{"cause", cause}, {"operations", operations}, {"reaction_us", 1200}, {"summary", "All is well."}};
}

class MonitorTest : public ControlTest {
  protected:
    void happen(const json::object& what) {
        on_loop([&] { agent.subscriber(what); });
    }
    static json::object next(Raw& watcher) {
        const auto reply = varlink::parse_reply(watcher.receive());
        EXPECT_TRUE(reply);
        if (!reply) return {};
        EXPECT_TRUE(reply->error.empty()) << reply->error;
        EXPECT_TRUE(reply->continues);
        return reply->parameters;
    }
    /// One that watches by the time it is there.
    std::unique_ptr<Raw> watcher() {
        auto raw = std::make_unique<Raw>(dir);
        EXPECT_TRUE(raw->call(kMonitorCall));
        EXPECT_EQ(next(*raw).at("cause").as_string(), "now");
        return raw;
    }
};

TEST_F(MonitorTest, TellsWhatIsAndThenEachEvent) {
    serve();
    Raw raw(dir);
    ASSERT_TRUE(raw.call(kMonitorCall));
    EXPECT_EQ(next(raw), (json::object{{"cause", "now"},
                                       {"decisions", json::array()},
                                       {"operations", json::array()},
                                       {"omitted", 0},
                                       {"reaction_us", nullptr},
                                       {"summary", "All is well."},
                                       {"site", nullptr},
                                       {"lost", 0}}));
    happen(event("link tun0"));
    happen(event("resync", {}));
    json::object expected = event("link tun0");
    expected["omitted"] = 0;
    expected["lost"] = 0;
    EXPECT_EQ(next(raw), expected);
    EXPECT_EQ(next(raw).at("cause").as_string(), "resync");
}

TEST_F(MonitorTest, NeedsMore) {
    serve();
    Raw raw(dir);
    ASSERT_TRUE(raw.call(R"({"method":"io.novpn.Agent.Monitor"})"));
    EXPECT_EQ(raw.receive(), R"({"error":"org.varlink.service.ExpectedMore","parameters":{}})");
    ASSERT_TRUE(raw.call(kStatusCall));
    EXPECT_EQ(raw.receive(), kStatusReply);
}

TEST_F(MonitorTest, TellsEveryWatcher) {
    serve();
    const auto one = watcher();
    const auto two = watcher();
    happen(event("route"));
    EXPECT_EQ(next(*one).at("cause").as_string(), "route");
    EXPECT_EQ(next(*two).at("cause").as_string(), "route");
}

TEST_F(MonitorTest, AWatcherThatLeavesGivesItsPlaceUpAtOnce) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        // The server sees the ends one by one, with no event in between; without them only two would ever be served.
        const auto deadline = std::chrono::steady_clock::now() + kPatience;
        int served = 0;
        while (served < 20 && std::chrono::steady_clock::now() < deadline) {
            Raw raw(dir);
            served += raw.call(kMonitorCall) && raw.receive().starts_with("{");
        }
        return std::to_string(served);
    });
    serve({.connections_per_uid = 2});
    EXPECT_EQ(user.result(), "20");
}

TEST_F(MonitorTest, LeavesTheCallsThatComeAfterItUnread) {
    serve();
    const auto there = watcher();
    ASSERT_TRUE(there->call(kStatusCall));
    happen(event("route"));
    EXPECT_EQ(next(*there).at("cause").as_string(), "route");
    end();
    EXPECT_EQ(agent.askers.size(), 1u) << "the one that the watcher began with";
}

TEST_F(MonitorTest, CountsWhatASlowReaderMissed) {
    serve();
    const auto slow = watcher();
    const auto quick = watcher();
    // More than the kernel's buffers take (net.core.wmem_default), so that most wait in the agent's ring.
    const json::array operations(1, json::value(std::string(10000, 'x')));
    constexpr std::size_t kCount = 2000;
    for (std::size_t i = 0; i < kCount; ++i) {
        happen(event(std::to_string(i), operations));
        EXPECT_EQ(next(*quick).at("lost").as_int64(), 0) << "the quick reader misses nothing";
    }
    std::size_t told = 0;
    std::size_t lost = 0;
    for (std::string cause; cause != std::to_string(kCount - 1);) {
        const json::object reply = next(*slow);
        ASSERT_TRUE(reply.contains("cause"));
        cause = reply.at("cause").as_string();
        lost += static_cast<std::size_t>(reply.at("lost").as_int64());
        ++told;
        EXPECT_EQ(cause, std::to_string(told + lost - 1));
    }
    EXPECT_EQ(told + lost, kCount);
    EXPECT_GT(lost, 0u);
}

TEST_F(MonitorTest, DropsAReaderThatNeverReads) {
    serve({.send_timeout = 100ms});
    const auto slow = watcher();
    const json::array operations(1, json::value(std::string(10000, 'x')));
    for (int i = 0; i < 500; ++i) happen(event("flood", operations));
    pollfd hang_up{.fd = slow->fd(), .events = 0, .revents = 0};
    EXPECT_EQ(::poll(&hang_up, 1, std::chrono::milliseconds(kPatience).count()), 1);
    EXPECT_EQ(ask(dir, "Status"), "done");
}

TEST_F(MonitorTest, LeavesOutOperationsThatAreTooMany) {
    serve();
    const auto there = watcher();
    json::array operations;
    for (int i = 0; i < 4096; ++i) operations.emplace_back(std::string(100, 'x'));
    happen(event("first look", operations));
    const json::object reply = next(*there);
    const auto kept = reply.at("operations").as_array().size();
    EXPECT_EQ(kept, Events::kMaxText / 100);
    EXPECT_EQ(reply.at("omitted").to_number<std::size_t>(), 4096 - kept);
}

TEST_F(MonitorTest, AThousandWatchersAreBoundedAndOthersServed) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 4096);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    Child greedy([this] {
        become(kUser);
        auto* flood = new std::vector<std::unique_ptr<Raw>>; // Held until the child is ended.
        std::size_t watching = 0;
        for (int i = 0; i < 1000; ++i) flood->push_back(std::make_unique<Raw>(dir));
        for (auto& raw : *flood) watching += raw->call(kMonitorCall) && raw->receive().starts_with("{");
        return std::to_string(watching);
    });
    serve();
    EXPECT_EQ(greedy.result(), std::to_string(ControlLimits{}.connections_per_uid));
    const auto there = watcher();
    happen(event("route"));
    EXPECT_EQ(next(*there).at("cause").as_string(), "route");
}

TEST_F(MonitorTest, AStatusAfterAnEventIsANewOne) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        std::string said;
        auto client = Client::connect(dir);
        // Each answer is read before the next call, so what is asked here is asked in that order.
        for (int i = 0; client && i < 2; ++i) {
            const auto answer = client->call("Status", {}, "asking", kPatience);
            said += answer ? std::string(answer->at("summary").as_string()) + " " : to_string(answer.error());
            if (i == 0 && ask(dir, "Place", {{"class", "novpn"}, {"pid", ::getpid()}}) != "done") return said + "!";
        }
        return said;
    });
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    agent.while_moving = [this](pid_t) { agent.status_object["summary"] = "after"; };
    agent.status_object["summary"] = "before";
    serve();
    EXPECT_EQ(user.result(), "before after ");
}

} // namespace
} // namespace novpn::test
