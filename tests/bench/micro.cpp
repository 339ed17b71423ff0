// How the decision, and the difference to what is there, grow with the laptop: Google Benchmark on a fake kernel that
// is as large as asked for. `first`: nothing of ours is there yet; `again`: all is as it should be, as at any look.
#include "agent/decide.h"
#include "agent/plan.h"
#include "tests/support/fake_kernel.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <stdexcept>

namespace novpn::test {

namespace {

constexpr char kRoot[] = "novpn-1";

address ip(const std::string& text) { return boost::asio::ip::make_address(text); }

struct Laptop {
    FakeKernel kernel;
    Config config;
    Memory memory;

    Observed look() {
        const ClassConfig& c = config.classes.front();
        auto observed = kernel.observe({.tables = {c.table}, .cgroups = {cgroup_of(c, kRoot)}, .others = true});
        if (!observed) throw std::runtime_error("no look");
        observed->allowed_users = {0};
        return *observed;
    }
};

/// With a Wi-Fi link that is the way out, and a VPN that has taken it over; `links`, routes and scopes beside that.
Laptop laptop(long links, long routes, long scopes) {
    Laptop made;
    FakeKernel& kernel = made.kernel;
    kernel.allow_bpf(true);
    const IfIndex wlan0 = kernel.add_link({.name = "wlan0", .up = true, .carrier = true});
    kernel.add_address("wlan0", ip("192.168.10.50"), 24);
    kernel.add_route(
        {.destination = any_prefix(Family::ipv4), .metric = 600, .gateway = ip("192.168.10.1"), .link = wlan0});
    const IfIndex tun0 = kernel.add_link(
        {.name = "tun0", .kind = "tun", .hardware = 65534, .up = true, .carrier = true, .point_to_point = true});
    kernel.add_address("tun0", ip("10.8.0.2"), 24);
    kernel.add_route({.destination = any_prefix(Family::ipv4), .link = tun0, .scope = 253});
    for (long i = 0; i < links; ++i) {
        const std::string name = fmt::format("veth{}", i);
        kernel.add_link({.name = name, .kind = "veth", .up = true, .carrier = true});
        kernel.add_address(name, ip(fmt::format("30.{}.{}.1", i / 256, i % 256)), 24);
    }
    for (long i = 0; i < routes; ++i)
        kernel.add_route({.destination = prefix_of(ip(fmt::format("20.{}.{}.0", i / 256, i % 256)), 24),
                          .gateway = ip("192.168.10.1"),
                          .link = wlan0});
    const std::string manager = "user.slice/user-0.slice/user@0.service";
    for (const std::string& path :
         {std::string("user.slice"), std::string("user.slice/user-0.slice"), manager, manager + "/app.slice"})
        kernel.add_other(path);
    for (long i = 0; i < scopes; ++i) kernel.add_other(fmt::format("{}/app.slice/app-bench-{}.scope", manager, i));
    made.config.classes.front().apps = {"bench"};
    return made;
}

/// As an agent leaves it.
void settle(Laptop& laptop) {
    for (int i = 0; i < 5; ++i) {
        const Observed observed = laptop.look();
        Desired desired = decide(observed, laptop.config, laptop.memory, kRoot);
        laptop.memory = desired.memory;
        const Plan plan = diff(observed, desired);
        if (plan.empty()) return;
        for (const Operation& operation : plan)
            if (!laptop.kernel.apply(operation)) throw std::runtime_error("refused");
    }
    throw std::runtime_error("never as it should be");
}

enum class Of { links, routes, scopes };

Laptop laptop_of(Of what, long size) {
    return laptop(what == Of::links ? size : 4, what == Of::routes ? size : 20, what == Of::scopes ? size : 4);
}

void time_decide(benchmark::State& state, Of what) {
    Laptop laptop = laptop_of(what, state.range(0));
    settle(laptop);
    const Observed observed = laptop.look();
    for (auto _ : state) benchmark::DoNotOptimize(decide(observed, laptop.config, laptop.memory, kRoot));
    state.SetComplexityN(state.range(0));
}

void time_diff(benchmark::State& state, Of what, bool first) {
    Laptop laptop = laptop_of(what, state.range(0));
    if (!first) settle(laptop);
    const Observed observed = laptop.look();
    const Desired desired = decide(observed, laptop.config, laptop.memory, kRoot);
    if (diff(observed, desired).empty() == first) throw std::runtime_error("another plan than is to be timed");
    for (auto _ : state) benchmark::DoNotOptimize(diff(observed, desired));
    state.SetComplexityN(state.range(0));
}

void add(const char* name, Of what) {
    const auto sizes = [](auto* timed) {
        timed->RangeMultiplier(10)->Range(10, 10'000)->Unit(benchmark::kMicrosecond)->Complexity();
    };
    sizes(benchmark::RegisterBenchmark(fmt::format("decide/{}", name).c_str(), time_decide, what));
    sizes(benchmark::RegisterBenchmark(fmt::format("diff, first/{}", name).c_str(), time_diff, what, true));
    sizes(benchmark::RegisterBenchmark(fmt::format("diff, again/{}", name).c_str(), time_diff, what, false));
}

} // namespace

} // namespace novpn::test

int main(int argc, char** argv) {
    using novpn::test::Of;
    novpn::test::add("links", Of::links);
    novpn::test::add("routes", Of::routes);
    novpn::test::add("scopes", Of::scopes);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
