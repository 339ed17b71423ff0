// Random stories for the laws, in the language of tests/scenarios: a laptop that roams from site to site, VPN clients
// that come, go and crash, programs that put rules before ours or remove what is ours. The same seed gives the same
// story on every machine.
#pragma once

#include "tests/support/scenario.h"

#include <deque>
#include <random>

namespace novpn::test {

struct StoryLine {
    std::string text;
    std::vector<std::string> block;
    bool operator==(const StoryLine&) const = default;
};
using Story = std::vector<StoryLine>;

/// As a scenario file has it.
std::string to_text(const Story& story);

class StoryTeller {
  public:
    explicit StoryTeller(std::uint32_t seed);

    /// The config, and links on a first network.
    Story beginning();
    /// What happens next to this laptop. Not all of it can: a line that the kernel would refuse is to be skipped.
    StoryLine next(Player& player);

  private:
    int pick(int below);
    bool chance(int percent);
    template<typename Values>
    const auto& one_of(const Values& values);
    std::string some_link(Player& player, bool tunnel);

    void tell(std::string text); ///< in the lines that follow
    void tell_rarely(const std::string& text);
    void joins_network(const std::string& link);
    void shows_its_site(const std::string& link, int site);
    void leaves_network(Player& player, const std::string& link);
    void changes_link(Player& player);
    void gets_other_route(Player& player);
    void vpn_comes(Player& player);
    void vpn_takes_over(const std::string& tunnel, bool ipv6);
    void vpn_goes(Player& player);
    void rule_comes_or_goes(Player& player);
    void damages(Player& player);

    std::mt19937 random_;
    int percent_noticed_; ///< chance that a change is followed by a look
    bool notice_next_ = false;
    bool has_sites_ = false;
    std::deque<std::string> waiting_;
};

} // namespace novpn::test
