// The language of tests/scenarios: a laptop on a fake kernel with a running agent, played line by line.
// tests/scenarios/README.md says what the lines mean.
#pragma once

#include "agent/agent.h"
#include "tests/support/fake_kernel.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace novpn::test {

inline constexpr const char* kCgroupRoot = "novpn-4026531840";

/// Not copied: its agent knows its kernel.
class Player {
  public:
    Player();

    /// invalid_argument: the line is wrong, or the kernel would refuse it here. runtime_error: what it expects does not
    /// hold, or the agent failed.
    void play(const std::string& text, const std::vector<std::string>& block = {});

    FakeKernel& kernel() { return kernel_; }
    Agent& agent() { return *agent_; }
    const Config& config() const { return config_; }
    Config config_now() const; ///< as it is at the site that was last found, with what was switched on and off
    /// A person has switched the class on or off, whatever a site says.
    bool is_switched(const std::string& class_name) const { return switches_.contains(class_name); }
    /// Text of the last pass's operations, refused ones among them, by lines.
    const std::vector<std::string>& plan() const { return plan_; }

    /// Called before each operation of a pass.
    std::function<void(const Operation&)> on_operation;

  private:
    class Words;
    void start_agent();
    void read_config(const std::vector<std::string>& block);
    void switch_class(const Words& words);
    void change_link(const Words& words);
    void change_setting(const std::string& text);
    void change_address(const Words& words);
    void change_route(const Words& words);
    std::vector<Route> by_each_hop(const Route& route, const Words& words) const;
    void change_rule(const Words& words);
    void change_policy(const Words& words);
    void change_hints(const Words& words);
    void add_neighbour(const Words& words);
    void change_resolvers(const std::string& text);
    void change_name_servers(const std::string& text);
    void change_domains(const std::string& text);
    void change_search(const std::string& text);
    void change_wifi(const Words& words);
    void change_mac(const Words& words);
    std::string verdict(const std::string& site) const;
    Hints answer() const;
    void tell_of_files();
    std::string dns(const std::string& class_name) const;
    void run_agent(const Words& words);
    Pass run_pass();
    IfIndex index_of(const std::string& link) const;
    const Desired& now() const; ///< what was last decided
    const ClassConfig& class_of(const Words& words) const;
    std::string uplink(Family family) const;
    std::string takeover(Family family) const;
    std::string leaves(const Words& words, std::uint32_t mark) const;
    std::vector<std::string> rules(Family family) const;

    FakeKernel kernel_;
    Config config_;
    std::unique_ptr<Agent> agent_;
    std::map<std::string, bool> switches_;
    Clock::time_point clock_ = Clock::now(); ///< a pass is a second after the one before
    std::vector<std::string> plan_;
    Hints hints_;                      ///< what the sources answer
    bool asked_ = false;               ///< by the last pass
    std::vector<std::string> started_; ///< units, since they were last asked for
};

/// Plays a file; what does not hold, each as FILE:LINE: what.
std::vector<std::string> play_scenario(const std::string& file);

} // namespace novpn::test
