// What of the last look says where the classes' defaults go, kept up by the kernel's news until the next: so that a new
// gateway is answered before anything else is read. Pure. Whatever it does not understand makes it doubtful, and what
// is doubtful answers nothing: the look that follows does.
#pragma once

#include "agent/decide.h"
#include "netlink/route_monitor.h"

#include <map>
#include <optional>

namespace novpn {

class Mirror {
  public:
    /// As a look saw it, and as the plan that followed left it. `undone`: not all of the plan was applied.
    void reflect(const Observed& observed, const Desired& desired, bool undone);
    /// No news about what the look saw is still to come.
    void trust() { trusted_ = reflects_; }
    void doubt() { trusted_ = reflects_ = false; }
    bool is_trusted() const { return trusted_; }

    /// What can be known in advance of answers to the changes that are the most frequent: see reply_to().
    void prepare(const Config& config, const Memory& memory);

    /// A default route of main has come or gone. False: in doubt.
    bool take(const RouteChange& change);
    /// The same of one that the look may have seen already, as it came meanwhile: when all of those are taken, it is
    /// what they came to.
    bool take_again(const RouteChange& change);
    /// The default of the class's table is this one now.
    void take(const Route& own_default);

    /// Where a default of main came just now and was taken, and a few comparisons tell what defaults_to_replace() would
    /// say: the same. That is so by the only link that can be the uplink, with the best metric there.
    std::optional<std::vector<Route>> reply_to(const Route& route) const;
    /// What defaults_to_replace() would remember then; nobody waits for it.
    void remember_reply_to(const Route& route, Memory& memory) const;

    /// Links, addresses, Wi-Fi, neighbours, and of the routes main's defaults alone.
    const Observed& observed() const { return observed_; }
    /// What the table has; nothing where it has none.
    const Route* default_of(TableId table, Family family) const;
    /// Whether the guard of the class lets its packets out there.
    bool lets_out(const std::string& class_name, IfIndex link) const;

  private:
    Observed observed_;
    std::map<std::pair<TableId, Family>, Route> own_defaults_;
    std::map<std::string, std::set<IfIndex>> links_; ///< of the guards, by class
    /// That all classes go out by.
    struct Way {
        Uplink uplink;                ///< but for what its route says
        std::vector<Prefix> networks; ///< that a gateway may be in
        std::vector<TableId> tables;
    };
    std::map<Family, Way> ways_;
    static Uplink uplink_of(const Way& way, const Route& route);
    bool doubtful();
    bool reflects_ = false; ///< a look, in which nothing else than these decides about a default
    bool trusted_ = false;
};

/// With no other address than IPv6's link-local ones, nor another route than to these: whatever becomes of such a link,
/// no class's way out does. Tunnels have lookups of their own, and are none; where there are sites no link is.
IdleLinks idle_links(const Observed& observed, const Config& config);

/// Whether the kernel's lookups name no default of main that the mirror has not, and each link's that it has.
bool agrees(const Mirror& mirror, const Observed& observed);

/// The default routes to replace now, each for that of a class's table, or nothing where only a look can tell. What
/// selections remember goes into `memory`, which decisions after this one lean on.
std::optional<std::vector<Route>> defaults_to_replace(const Mirror& mirror, Family family, const Config& config,
                                                      Memory& memory);

} // namespace novpn
