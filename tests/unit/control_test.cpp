// The server's protocol, credentials and bounds.
#include "tests/unit/control_fixture.h"

#include "agent/process.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <sched.h>
#include <sys/resource.h>

namespace novpn::test {
namespace {

using namespace std::chrono_literals;
using namespace std::string_literals;

TEST_F(ControlTest, AnswersStatusAndPlan) {
    serve();
    auto client = Client::connect(dir);
    ASSERT_TRUE(client) << to_string(client.error());
    EXPECT_EQ(client->call("Status", {}, "asking").value(), agent.status_object);
    EXPECT_EQ(client->call("Plan", {}, "asking").value(), (json::object{{"commands", {"ip rule add", "nft add"}}}));
    end();
    EXPECT_EQ(agent.askers, std::vector<uid_t>{::geteuid()});
}

TEST_F(ControlTest, AnyoneMayConnect) {
    serve();
    struct stat socket {};
    ASSERT_EQ(::stat((dir + "/" + Control::kSocketName).c_str(), &socket), 0);
    EXPECT_EQ(socket.st_mode & 07777, 0666u);
}

TEST_F(ControlTest, AnswersCallsThatComeTogetherInTheirOrder) {
    serve();
    Raw raw(dir);
    ASSERT_TRUE(raw.send(std::string(kStatusCall) + '\0' + R"({"method":"io.novpn.Agent.Fly"})" + '\0' +
                         std::string(kStatusCall) + '\0'));
    EXPECT_EQ(raw.receive(), kStatusReply);
    EXPECT_EQ(raw.receive(), error_reply("MethodNotFound", "method", "io.novpn.Agent.Fly"));
    EXPECT_EQ(raw.receive(), kStatusReply);
}

TEST_F(ControlTest, SendsNothingToWhoWantsNoReply) {
    serve();
    Raw raw(dir);
    ASSERT_TRUE(raw.call(R"({"method":"io.novpn.Agent.Status","oneway":true})"));
    ASSERT_TRUE(raw.call(R"({"method":"io.novpn.Agent.Fly","oneway":true})"));
    ASSERT_TRUE(raw.call(R"({"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}})"));
    EXPECT_EQ(raw.receive(), error_reply("InterfaceNotFound", "interface", "x"));
    end();
    EXPECT_EQ(agent.askers.size(), 1u);
}

TEST_F(ControlTest, NamesTheWrongParameter) {
    serve();
    Raw raw(dir);
    const auto reply_to = [&](std::string_view method, std::string_view parameters) {
        EXPECT_TRUE(
            raw.call(R"({"method":")" + std::string(method) + R"(","parameters":)" + std::string(parameters) + "}"));
        return raw.receive();
    };
    const auto wrong = [](const std::string& name) { return error_reply("InvalidParameter", "parameter", name); };
    const std::string place = "io.novpn.Agent.Place";
    EXPECT_EQ(reply_to("io.novpn.Agent.Status", R"({"x":1})"), wrong("x"));
    EXPECT_EQ(reply_to(place, "{}"), wrong("class"));
    EXPECT_EQ(reply_to(place, R"({"class":"novpn"})"), wrong("pid"));
    EXPECT_EQ(reply_to(place, R"({"class":7,"pid":7})"), wrong("class"));
    EXPECT_EQ(reply_to(place, R"({"class":null,"pid":7})"), wrong("class"));
    EXPECT_EQ(reply_to(place, R"({"class":"novpn","pid":7,"force":true})"), wrong("force"));
    for (const char* pid : {"\"7\"", "7.5", "1e2", "true", "null", "[7]", "0", "-1", "2147483648", "4294967297",
                            "-9223372036854775808", "18446744073709551615", "99999999999999999999"})
        EXPECT_EQ(reply_to(place, R"({"class":"novpn","pid":)"s + pid + "}"), wrong("pid")) << pid;
    ASSERT_TRUE(raw.call(R"({"method":"io.novpn.Agent.Status","upgrade":true})"));
    EXPECT_EQ(raw.receive(), wrong("upgrade"));
    ASSERT_TRUE(raw.call(R"({"method":"com.example.X.Y"})"));
    EXPECT_EQ(raw.receive(), error_reply("InterfaceNotFound", "interface", "com.example.X"));
    end();
    EXPECT_TRUE(agent.placed.empty());
}

TEST_F(ControlTest, ClosesTheConnectionOfAnyGarbageAndNoOther) {
    serve();
    Raw good(dir);
    for (const auto& garbage : {"\0"s, "GET / HTTP/1.1\r\n\r\n\0"s, "[]\0"s, "{}\0"s, "{\"method\":1}\0"s,
                                "\xff\xfe\xfd\0"s, std::string(1000, '[') + '\0'}) {
        Raw bad(dir);
        ASSERT_TRUE(bad.send(garbage));
        EXPECT_EQ(bad.receive(), "closed") << garbage;
        ASSERT_TRUE(good.call(kStatusCall));
        EXPECT_EQ(good.receive(), kStatusReply);
    }
}

TEST_F(ControlTest, WaitsForTheOtherHalfOfAMessageAndServesOthersMeanwhile) {
    serve();
    Raw slow(dir);
    ASSERT_TRUE(slow.send(kStatusCall.substr(0, 20)));
    Raw other(dir);
    ASSERT_TRUE(other.call(kStatusCall));
    EXPECT_EQ(other.receive(), kStatusReply);
    ASSERT_TRUE(slow.call(kStatusCall.substr(20)));
    EXPECT_EQ(slow.receive(), kStatusReply);
}

TEST_F(ControlTest, ClosesTheConnectionOfAMessageThatIsTooLong) {
    serve();
    const std::string head = R"({"method":"io.novpn.Agent.Status","x":")";
    const std::string tail = "\"}";
    Raw longest(dir);
    ASSERT_TRUE(longest.call(head + std::string(varlink::kMaxCallSize - head.size() - tail.size(), 'x') + tail));
    EXPECT_EQ(longest.receive(), kStatusReply);
    Raw one_more(dir);
    one_more.call(head + std::string(varlink::kMaxCallSize - head.size() - tail.size() + 1, 'x') + tail);
    EXPECT_EQ(one_more.receive(), "closed");
    Raw endless(dir);
    while (endless.send(std::string(10000, 'x'))) {
    }
    EXPECT_EQ(endless.receive(), "closed");
}

TEST_F(ControlTest, DropsAClientThatDoesNotRead) {
    agent.status_object["summary"] = std::string(std::size_t{8} << 20, 'x');
    serve({.send_timeout = 2s});
    Raw slow(dir);
    ASSERT_TRUE(slow.call(kStatusCall));
    // No event is asked for: poll returns on the hang-up alone.
    pollfd hang_up{.fd = slow.fd(), .events = 0, .revents = 0};
    ASSERT_EQ(::poll(&hang_up, 1, std::chrono::milliseconds(kPatience).count()), 1);
    EXPECT_EQ(slow.receive(), "closed") << "the reply is cut off";
    Raw reader(dir);
    ASSERT_TRUE(reader.call(kStatusCall));
    EXPECT_GT(reader.receive().size(), std::size_t{8} << 20);
}

TEST_F(ControlTest, BoundsTheConnectionsOfAUserAndServesOthers) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 4096);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    Child other([this] {
        become(kUser);
        return ask(dir, "Status");
    });
    serve();
    std::vector<std::unique_ptr<Raw>> flood;
    for (int i = 0; i < 1000; ++i) flood.push_back(std::make_unique<Raw>(dir));
    std::size_t served = 0;
    for (auto& raw : flood) served += raw->call(kStatusCall) && raw->receive() == kStatusReply;
    EXPECT_EQ(served, ControlLimits{}.connections_per_uid);
    EXPECT_EQ(other.result(), "done");

    flood.clear();
    // The server sees the ends of the flood one by one.
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    std::string again;
    while (again != "done" && std::chrono::steady_clock::now() < deadline) again = ask(dir, "Status");
    EXPECT_EQ(again, "done");
}

TEST_F(ControlTest, KeepsConnectionsForRootWhenUsersTookAllOthers) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child greedy([this] {
        become(kUser);
        auto* flood = new std::vector<std::unique_ptr<Raw>>; // Held until the child is ended.
        std::size_t served = 0;
        for (int i = 0; i < 10; ++i) {
            flood->push_back(std::make_unique<Raw>(dir));
            served += flood->back()->call(kStatusCall) && flood->back()->receive() == kStatusReply;
        }
        return std::to_string(served);
    });
    serve({.connections_per_uid = 10, .connections = 6, .reserved_for_root = 2});
    EXPECT_EQ(greedy.result(), "4");
    EXPECT_EQ(ask(dir, "Status"), "done");
}

TEST_F(ControlTest, RootPlacesAnyProcess) {
    if (!root()) GTEST_SKIP() << "needs root";
    Child user([] {
        become(kUser);
        return "ready"s;
    });
    ASSERT_EQ(user.result(), "ready");
    serve();
    EXPECT_EQ(place(dir, user.pid()), "done");
    EXPECT_EQ(place(dir, ::getpid()), "done");
    end();
    EXPECT_EQ(agent.placed, (std::vector<std::pair<std::string, pid_t>>{{"novpn", user.pid()}, {"novpn", ::getpid()}}));
    EXPECT_TRUE(agent.warnings.empty());
}

TEST_F(ControlTest, AUserWhoIsAllowedPlacesOwnProcessesOnly) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child same([] {
        become(kUser);
        return "ready"s;
    });
    Child stranger([] {
        become(kUser + 1);
        return "ready"s;
    });
    // As a set-user-ID program is: started by the user, with the rights of root in one of its ids.
    Child privileged([] {
        become(kUser, kUser, 0, kUser);
        return "ready"s;
    });
    const pid_t parent = ::getpid();
    Child user([&, this] {
        become(kUser);
        std::string said;
        for (const pid_t pid : {::getpid(), same.pid(), stranger.pid(), privileged.pid(), parent, pid_t{1}})
            said += place(dir, pid) + "\n";
        return said;
    });
    for (Child* target : {&same, &stranger, &privileged}) ASSERT_EQ(target->result(), "ready");
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    serve();
    const auto refused = [](pid_t pid) {
        return "asking: process " + std::to_string(pid) +
               " is not uid 61234's own, in each of its user ids; only root may place it\n";
    };
    EXPECT_EQ(user.result(),
              "done\ndone\n" + refused(stranger.pid()) + refused(privileged.pid()) + refused(parent) + refused(1));
    end();
    EXPECT_EQ(agent.placed, (std::vector<std::pair<std::string, pid_t>>{{"novpn", user.pid()}, {"novpn", same.pid()}}));
}

TEST_F(ControlTest, AUserWhoIsNotAllowedPlacesNothing) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child user([this] {
        become(kUser);
        return place(dir, ::getpid());
    });
    agent.allowed = {.users = {"root", "61235"}, .groups = {"root", "no such group"}};
    serve();
    EXPECT_EQ(user.result(), "asking: uid 61234 is neither in allow.users nor in a group of allow.groups "
                             "(by default the group novpn)");
    end();
    EXPECT_TRUE(agent.placed.empty());
}

TEST_F(ControlTest, OnlyRootEndsTheAgent) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child user([this] {
        become(kUser);
        return ask(dir, "Down") + "\n" + ask(dir, "Status");
    });
    agent.allowed = {.users = {std::to_string(kUser)}, .groups = {}};
    serve();
    EXPECT_EQ(user.result(), "asking: only root may end the agent\ndone");
    end();
    EXPECT_TRUE(agent.ends.empty());
}

TEST_F(ControlTest, DownRepliesOnceAllIsReleasedAndThenEnds) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(ask(dir, "Down"), "done");
    thread.join(); // stop() ends the loop.
    EXPECT_EQ(agent.ends, (std::vector<std::string>{"down", "stop"}));
    control.reset();
    EXPECT_FALSE(std::filesystem::exists(dir + "/" + Control::kSocketName));
}

TEST_F(ControlTest, DownSaysWhatCouldNotBeReleasedAndEndsAllTheSame) {
    if (!root()) GTEST_SKIP() << "needs root";
    agent.ending = system_error(EBUSY, "removing cgroup x");
    serve();
    EXPECT_EQ(ask(dir, "Down"), "asking: removing cgroup x: Device or resource busy");
    thread.join();
    control.reset();
    EXPECT_EQ(agent.ends, (std::vector<std::string>{"down", "stop"}));
}

TEST_F(ControlTest, RefusesClassesThatAreNotThereOrOff) {
    if (!root()) GTEST_SKIP() << "needs root";
    serve();
    EXPECT_EQ(place(dir, ::getpid(), "games"), "asking: there is no class games");
    EXPECT_EQ(place(dir, ::getpid(), "resting"), "asking: class resting is off: nothing in it would be steered");
    end();
    EXPECT_TRUE(agent.placed.empty());
}

TEST_F(ControlTest, RefusesProcessesThatAreGoneAndThreads) {
    if (!root()) GTEST_SKIP() << "needs root";
    const pid_t dead = ::fork();
    if (dead == 0) ::_exit(0);
    siginfo_t info{};
    ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(dead), &info, WEXITED | WNOWAIT), 0); // Ended, not yet reaped.
    serve();
    const auto none = [](pid_t pid) { return "asking: there is no process " + std::to_string(pid); };
    EXPECT_EQ(place(dir, dead), none(dead));
    ASSERT_EQ(::waitpid(dead, nullptr, 0), dead);
    EXPECT_EQ(place(dir, dead), none(dead));
    std::promise<pid_t> id;
    std::promise<void> asked;
    std::thread other([&] {
        id.set_value(::gettid());
        asked.get_future().wait();
    });
    const pid_t tid = id.get_future().get();
    EXPECT_EQ(place(dir, tid), none(tid));
    asked.set_value();
    other.join();
    end();
    EXPECT_TRUE(agent.placed.empty());
}

TEST_F(ControlTest, ReportsAProcessThatEndedWhileItWasPlaced) {
    if (!root()) GTEST_SKIP() << "needs root";
    const pid_t victim = ::fork();
    if (victim == 0) {
        for (;;) ::pause();
    }
    // Its number is free from here on: what place() has moved might be another process.
    agent.while_moving = [](pid_t pid) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
    };
    serve();
    EXPECT_EQ(place(dir, victim),
              "asking: process " + std::to_string(victim) + " ended while it was placed in class novpn");
    end();
    ASSERT_EQ(agent.warnings.size(), 1u);
    EXPECT_NE(agent.warnings[0].find("process " + std::to_string(victim) + " ended"), std::string::npos);
}

TEST_F(ControlTest, PassesOnTheKernelsReason) {
    if (!root()) GTEST_SKIP() << "needs root";
    agent.placing = system_error(EOPNOTSUPP, "moving process 7 to cgroup x");
    serve();
    EXPECT_EQ(place(dir, ::getpid()), "asking: moving process 7 to cgroup x: Operation not supported");
}

TEST_F(ControlTest, RefusesNumbersOfAnotherPidNamespace) {
    if (!root()) GTEST_SKIP() << "needs root";
    Child container([this]() -> std::string {
        if (::unshare(CLONE_NEWPID) != 0) return "cannot unshare";
        int out[2];
        if (::pipe(out) != 0) return "cannot pipe";
        if (::fork() == 0) {
            const std::string said = place(dir, ::getpid()); // 1, which is another process for the agent.
            ::_exit(::write(out[1], said.data(), said.size()) < 0 ? 1 : 0);
        }
        ::close(out[1]);
        std::array<char, 1000> text;
        const ssize_t size = ::read(out[0], text.data(), text.size());
        return {text.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
    });
    serve();
    EXPECT_EQ(container.result(), "asking: the caller is in another pid namespace than the agent (a container?), "
                                  "where process numbers mean something else");
    end();
    EXPECT_TRUE(agent.placed.empty());
}

TEST_F(ControlTest, TakesNoAnswerOfANameServiceForNoAndALateOneForTheNextCall) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    const auto body = [this] {
        become(kUser);
        return place(dir, ::getpid());
    };
    Child first(body);
    Child second(body);
    std::promise<void> hangs;
    serve({}, [&, ready = hangs.get_future().share()](const Caller& caller, const Allow&) {
        ready.wait();
        return caller.uid == kUser;
    });
    EXPECT_TRUE(first.result().starts_with("asking: uid 61234 is neither in allow.users"));
    EXPECT_EQ(ask(dir, "Status"), "done") << "others are served while it hangs";
    hangs.set_value();
    EXPECT_EQ(second.result(), "done");
}

TEST_F(ControlTest, AsksTheNameServiceOnceForManyCalls) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child user([this] {
        become(kUser);
        std::string said;
        for (int i = 0; i < 3; ++i) said += place(dir, ::getpid()) + " ";
        return said;
    });
    std::atomic<int> lookups = 0;
    serve({}, [&](const Caller&, const Allow&) {
        ++lookups;
        return true;
    });
    EXPECT_EQ(user.result(), "done done done ");
    EXPECT_EQ(lookups, 1);
}

TEST_F(ControlTest, EndsWhileANameServiceHangs) {
    if (!root()) GTEST_SKIP() << "needs root to be two users";
    Child user([this] {
        become(kUser);
        return place(dir, ::getpid());
    });
    std::promise<void> hangs;
    std::promise<void> left;
    serve({}, [&, ready = hangs.get_future().share()](const Caller&, const Allow&) {
        ready.wait();
        left.set_value();
        return true;
    });
    EXPECT_TRUE(user.result().starts_with("asking: uid 61234 is neither"));
    end(); // Does not wait for the lookup.
    hangs.set_value();
    left.get_future().wait();
}

TEST_F(ControlTest, ReplacesASocketThatADeadAgentLeft) {
    const std::string path = dir + "/" + Control::kSocketName;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    {
        const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    }
    ASSERT_TRUE(std::filesystem::exists(path));
    const auto nobody = Client::connect(dir);
    ASSERT_FALSE(nobody);
    EXPECT_FALSE(agent_runs(nobody.error()));
    serve();
    EXPECT_EQ(ask(dir, "Status"), "done");
}

TEST_F(ControlTest, LeavesALiveAgentsSocketAndOtherFilesAlone) {
    serve();
    boost::asio::io_context other_io;
    FakeAgent other;
    const auto second = Control::listen(other_io, other, dir);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, std::errc::address_in_use);
    EXPECT_EQ(ask(dir, "Status"), "done");
    end();

    std::ofstream(dir + "/" + Control::kSocketName) << "mine";
    EXPECT_FALSE(Control::listen(other_io, other, dir));
    std::ifstream file(dir + "/" + Control::kSocketName);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "mine");
}

TEST_F(ControlTest, SaysWhatIsWrongWithTheRuntimeDir) {
    FakeAgent other;
    const auto missing = Control::listen(io, other, dir + "/missing");
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, std::errc::no_such_file_or_directory);
    const auto too_long = Control::listen(io, other, dir + std::string(200, 'x'));
    ASSERT_FALSE(too_long);
    EXPECT_EQ(too_long.error().code, std::errc::filename_too_long);
}

TEST(Client, RefusesASocketOfAnotherUser) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to be two users";
    std::string dir = testing::TempDir() + "novpn-client-XXXXXX";
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    ASSERT_EQ(::chown(dir.c_str(), kUser, kUser), 0);
    const auto listen = [&](uid_t uid) {
        become(uid);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        (dir + "/" + Control::kSocketName).copy(address.sun_path, sizeof address.sun_path - 1);
        const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || ::listen(fd, 8) != 0)
            return "cannot listen"s;
        return "listens"s;
    };
    Child impostor([&] { return listen(kUser); });
    Child itself([&] {
        become(kUser);
        const auto client = Client::connect(dir);
        return client ? "connected"s : to_string(client.error());
    });
    ASSERT_EQ(impostor.result(), "listens");
    const auto client = Client::connect(dir);
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().detail, "uid 61234 listens there, who is neither root nor you");
    EXPECT_TRUE(agent_runs(client.error()));
    EXPECT_EQ(itself.result(), "connected") << "an agent of one's own is fine";
    std::filesystem::remove_all(dir);
}

TEST(IsAllowed, KnowsNamesNumbersAndTheGroupTheKernelReports) {
    const Caller nobody{.uid = 65534, .gid = 65534, .pid = 1};
    const Caller unknown{.uid = kUser, .gid = 65534, .pid = 1};
    EXPECT_TRUE(is_allowed(nobody, {.users = {"nobody"}, .groups = {}}));
    EXPECT_TRUE(is_allowed(unknown, {.users = {"61234"}, .groups = {}}));
    EXPECT_TRUE(is_allowed(nobody, {.users = {}, .groups = {"nogroup"}}));
    EXPECT_TRUE(is_allowed(unknown, {.users = {}, .groups = {"nogroup"}}));
    EXPECT_TRUE(is_allowed(unknown, {.users = {}, .groups = {"x", "65534"}}));
    EXPECT_FALSE(is_allowed(unknown, {.users = {"nobody"}, .groups = {"novpn-absent", "root", "0"}}));
    EXPECT_FALSE(is_allowed(unknown, {.users = {}, .groups = {}}));
}

TEST(ProcessStatus, IsReadFromTheTextOfProc) {
    EXPECT_EQ(parse_process_status("Name:\tUid:\nUid:\t1\t2\t3\t4294967295\nGid:\t9\t9\t9\t9\nNSpid:\t70\t1\n").value(),
              (ProcessStatus{.uids = {1, 2, 3, 4294967295}, .pid_namespaces = 2}));
    for (const char* text : {"", "Uid:\t1\t2\t3\t4\n", "NSpid:\t1\n", "Uid:\t1\t2\t3\nNSpid:\t1\n",
                             "Uid:\t1\t2\t3\tx\nNSpid:\t1\n", "Uid:\t1\t2\t3\t4294967296\nNSpid:\t1\n"})
        EXPECT_FALSE(parse_process_status(text)) << text;
}

} // namespace
} // namespace novpn::test
