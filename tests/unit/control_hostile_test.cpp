// What hostile clients can do to the agent, which is: nothing to others.
#include "tests/unit/control_fixture.h"

#include "agent/control/statuses.h"
#include "agent/control/turns.h"
#include "agent/spawn.h"

#include <algorithm>
#include <boost/asio/use_awaitable.hpp>
#include <random>

namespace novpn::test {
namespace {

using namespace std::chrono_literals;
using namespace std::string_literals;
using Clock = std::chrono::steady_clock;

constexpr int kFlood = 10000;

std::string flood_of(std::string_view call, int count) {
    std::string bytes;
    for (int i = 0; i < count; ++i) bytes += std::string(call) + '\0';
    return bytes;
}

using HostileTest = ControlTest;

TEST_F(HostileTest, AFloodOfStatusCallsIsAnsweredFromFewLooks) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        Raw raw(dir);
        std::jthread sender([&] { raw.send(flood_of(kStatusCall, kFlood)); });
        int answered = 0;
        while (answered < kFlood && raw.receive() == kStatusReply) ++answered;
        return std::to_string(answered);
    });
    serve();
    const auto start = Clock::now();
    EXPECT_EQ(user.result(), std::to_string(kFlood));
    const auto took = Clock::now() - start;
    end();
    const auto periods = took / Statuses::kFreshFor;
    EXPECT_LE(agent.askers.size(), static_cast<std::size_t>(periods) + 2);
}

TEST_F(HostileTest, AFloodThatReadsNoReplyIsDroppedAndOthersAreServedMeanwhile) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    agent.status_object["summary"] = std::string(1000, 'x');
    Child flooder([this] {
        become(kUser);
        Raw raw(dir);
        return raw.send(flood_of(kStatusCall, 10 * kFlood)) ? "all sent"s : "dropped"s;
    });
    Child other([this] {
        become(kUser + 1);
        return ask(dir, "Status");
    });
    serve({.send_timeout = 200ms});
    auto flooded = std::async(std::launch::async, [&] { return flooder.result(); });
    EXPECT_EQ(other.result(), "done");
    EXPECT_EQ(flooded.get(), "dropped");
    EXPECT_EQ(ask(dir, "Status"), "done");
}

TEST_F(HostileTest, LooksOfAUserAreBoundedAcrossConnections) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child flooder([this] {
        become(kUser);
        auto* flood = new std::vector<std::unique_ptr<Raw>>; // Held until the child is ended.
        for (int i = 0; i < 60; ++i) flood->push_back(std::make_unique<Raw>(dir));
        for (auto& raw : *flood) raw->send(flood_of(R"({"method":"io.novpn.Agent.Plan"})", 50));
        int answered = 0;
        const auto deadline = Clock::now() + 500ms;
        for (auto& raw : *flood) {
            pollfd ready{.fd = raw->fd(), .events = POLLIN, .revents = 0};
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
            if (::poll(&ready, 1, static_cast<int>(std::max<long>(left, 0))) == 1) ++answered;
        }
        return std::to_string(answered);
    });
    Child other([this] {
        become(kUser + 1);
        const auto start = Clock::now();
        const std::string said = ask(dir, "Plan");
        return said + (Clock::now() - start < 5s ? " in time" : " late");
    });
    serve();
    const auto start = Clock::now();
    auto flooded = std::async(std::launch::async, [&] { return flooder.result(); });
    EXPECT_EQ(other.result(), "done in time");
    const int answered = std::stoi(flooded.get());
    const std::chrono::duration<double> took = Clock::now() - start;
    EXPECT_GE(answered, 1);
    EXPECT_LE(answered, Turns::kBurst + took.count() * Turns::kPerSecond + 1);
}

/// A call, torn: each seed gives the same bytes again.
std::string torn(unsigned seed) {
    constexpr std::array kCalls{
        R"({"method":"io.novpn.Agent.Place","parameters":{"class":"novpn","pid":1}})",
        R"({"method":"io.novpn.Agent.SetEnabled","parameters":{"class":"novpn","enabled":false}})",
        R"({"method":"io.novpn.Agent.Monitor","more":true})", R"({"method":"io.novpn.Agent.Down","oneway":true})"};
    std::mt19937 random(seed);
    const auto any = [&](std::size_t below) {
        return std::uniform_int_distribution<std::size_t>(0, below - 1)(random);
    };
    std::string bytes = kCalls[any(kCalls.size())];
    for (std::size_t changes = any(8); changes > 0; --changes) {
        const std::size_t at = any(bytes.size());
        switch (any(3)) {
        case 0: bytes[at] = static_cast<char>(any(256)); break;
        case 1: bytes.insert(at, 1, "{}[]\":,\0\\"[any(9)]); break;
        default: bytes.erase(at, std::min<std::size_t>(1 + any(4), bytes.size() - 1)); break;
        }
    }
    if (any(2) == 0) bytes += '\0';
    return bytes;
}

TEST_F(HostileTest, TornCallsMoveNothingAndOthersAreServed) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        for (unsigned seed = 0; seed < 500; ++seed) Raw(dir).send(torn(seed));
        return "sent"s;
    });
    agent.allowed = {.users = {}, .groups = {}};
    serve();
    Raw good(dir);
    auto sending = std::async(std::launch::async, [&] { return user.result(); });
    std::string said;
    do {
        ASSERT_TRUE(good.call(kStatusCall));
        said = good.receive();
        ASSERT_EQ(said, kStatusReply);
    } while (sending.wait_for(0s) != std::future_status::ready);
    EXPECT_EQ(sending.get(), "sent");
    end();
    EXPECT_TRUE(agent.placed.empty());
    EXPECT_TRUE(agent.switched.empty());
    EXPECT_TRUE(agent.ends.empty());
}

TEST_F(HostileTest, ForgedNumbersMoveNothing) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        std::string wrong;
        for (const pid_t pid : {pid_t{1}, ::getppid(), pid_t{2}, pid_t{4194305}})
            for (const char* method : {"Place", "Release"}) {
                json::object parameters{{"pid", pid}};
                if (method == "Place"s) parameters["class"] = "novpn";
                if (ask(dir, method, std::move(parameters)) == "done") wrong += std::to_string(pid) + " ";
            }
        return wrong;
    });
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    serve();
    EXPECT_EQ(user.result(), "");
    end();
    EXPECT_TRUE(agent.placed.empty());
    EXPECT_TRUE(agent.released.empty());
}

TEST_F(HostileTest, ConnectionsThatComeAndGoLeaveNothing) {
    if (!root()) GTEST_SKIP() << "needs root to be another user";
    Child user([this] {
        become(kUser);
        for (int i = 0; i < 2000; ++i) {
            Raw raw(dir);
            raw.send(kStatusCall.substr(0, static_cast<std::size_t>(i) % kStatusCall.size()));
        }
        const auto deadline = Clock::now() + kPatience;
        while (Clock::now() < deadline)
            if (ask(dir, "Status") == "done") return "served"s;
        return "shut out"s;
    });
    serve({.connections_per_uid = 8});
    EXPECT_EQ(user.result(), "served");
}

/// How the loop went on: "look" for one that had its turn, "round" for something else that was ready.
TEST(Turns, GiveOneLookARound) {
    boost::asio::io_context io;
    Turns turns(io);
    std::vector<std::string> log;
    int left = 10;
    for (int i = 0; i < 10; ++i)
        spawn(io, [](Turns& to_take, std::vector<std::string>& to, int& remaining) -> boost::asio::awaitable<void> {
            co_await to_take.take(0);
            to.emplace_back("look");
            --remaining;
        }(turns, log, left));
    std::function<void()> other = [&] {
        log.emplace_back("round");
        if (left > 0) boost::asio::post(io, other);
    };
    boost::asio::post(io, other);
    io.run();
    EXPECT_EQ(std::ranges::count(log, "look"), 10);
    const auto together =
        std::ranges::adjacent_find(log, [](const auto& a, const auto& b) { return a == b && a == "look"; });
    EXPECT_EQ(together, log.end());
}

TEST(Turns, AUserHasAShareAndRootNeedsNone) {
    boost::asio::io_context io;
    Turns turns(io);
    const auto time_of = [&](uid_t uid, int takes) {
        const auto start = Clock::now();
        for (int i = 0; i < takes; ++i) spawn(io, turns.take(uid));
        io.restart();
        io.run();
        return Clock::now() - start;
    };
    // Ten beyond the burst come at the rate.
    const auto beyond = static_cast<int>(Turns::kBurst) + 10;
    const auto at_rate = std::chrono::duration<double>(10 / Turns::kPerSecond);
    EXPECT_GE(time_of(kUser, beyond), at_rate * 0.9);
    EXPECT_LT(time_of(kUser + 1, 1), at_rate) << "another user waits for nobody";
    EXPECT_LT(time_of(0, beyond), at_rate);
}

} // namespace
} // namespace novpn::test
