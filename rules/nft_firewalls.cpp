#include "rules/nft_firewalls.h"

#include "rules/nft_structure.h"
#include "rules/nftnl_ptr.h"

#include <algorithm>
#include <libnftnl/expr.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/xt_rpfilter.h>
#include <map>
#include <optional>
#include <set>
#include <tuple>

namespace novpn::nft {
namespace {

constexpr char kDoing[] = "reading the firewalls of others";

/// Family, table, chain.
using Place = std::tuple<std::uint32_t, std::string, std::string>;

/// A rule that asks for the way back of a packet, strictly: by the link that it came by.
struct WayBack {
    bool goes_by_mark = false;
    bool of_iptables = false;
};

struct Contents {
    bool drops_all = false;
    bool drops_some = false;
    std::optional<WayBack> way_back;
    std::set<std::string> leads_to; ///< chains of the same table
};

struct Base {
    bool drops = false; ///< its policy
    std::int32_t priority = 0;
    std::string type;
};

std::string text(const char* from) { return from == nullptr ? std::string() : std::string(from); }

std::string family_name(std::uint32_t family) {
    switch (family) {
    case NFPROTO_INET: return "inet";
    case NFPROTO_IPV4: return "ip";
    case NFPROTO_IPV6: return "ip6";
    default: return {};
    }
}

void of_all_families(nlmsghdr* message) {
    static_cast<nfgenmsg*>(mnl_nlmsg_get_payload(message))->nfgen_family = NFPROTO_UNSPEC;
}

bool is_where_packets_leave(std::uint32_t hook) { return hook == NF_INET_LOCAL_OUT || hook == NF_INET_POST_ROUTING; }

std::optional<WayBack> way_back_in(const nftnl_expr* expr) {
    const std::string name = text(nftnl_expr_get_str(expr, NFTNL_EXPR_NAME));
    if (name == "fib") {
        constexpr std::uint32_t kStrict = NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF;
        const std::uint32_t result = nftnl_expr_get_u32(expr, NFTNL_EXPR_FIB_RESULT);
        const std::uint32_t flags = nftnl_expr_get_u32(expr, NFTNL_EXPR_FIB_FLAGS);
        if (result == NFT_FIB_RESULT_ADDRTYPE || (flags & kStrict) != kStrict) return std::nullopt;
        return WayBack{.goes_by_mark = (flags & NFTA_FIB_F_MARK) != 0, .of_iptables = false};
    }
    if (name != "match" || text(nftnl_expr_get_str(expr, NFTNL_EXPR_MT_NAME)) != "rpfilter") return std::nullopt;
    std::uint32_t size = 0;
    const void* info = nftnl_expr_get(expr, NFTNL_EXPR_MT_INFO, &size);
    if (info == nullptr || size < sizeof(xt_rpfilter_info)) return std::nullopt;
    const auto flags = static_cast<const xt_rpfilter_info*>(info)->flags;
    if ((flags & XT_RPFILTER_LOOSE) != 0) return std::nullopt;
    return WayBack{.goes_by_mark = (flags & XT_RPFILTER_VALID_MARK) != 0, .of_iptables = true};
}

/// What a rule does with what comes to it, and whether to all of it.
void take_rule(nftnl_rule* rule, Contents& into) {
    bool is_conditional = false;
    bool drops = false;
    auto* iterator = nftnl_expr_iter_create(rule);
    if (iterator == nullptr) throw std::bad_alloc();
    while (auto* expr = nftnl_expr_iter_next(iterator)) {
        const std::string name = text(nftnl_expr_get_str(expr, NFTNL_EXPR_NAME));
        if (const auto way_back = way_back_in(expr)) into.way_back = way_back;
        if (name == "immediate" && nftnl_expr_is_set(expr, NFTNL_EXPR_IMM_VERDICT)) {
            const auto verdict = static_cast<int>(nftnl_expr_get_u32(expr, NFTNL_EXPR_IMM_VERDICT));
            if (verdict == NF_DROP) drops = true;
            if (verdict == NFT_JUMP || verdict == NFT_GOTO)
                into.leads_to.insert(text(nftnl_expr_get_str(expr, NFTNL_EXPR_IMM_CHAIN)));
        } else if (name == "reject") {
            drops = true;
        } else if (name == "target") {
            const std::string target = text(nftnl_expr_get_str(expr, NFTNL_EXPR_TG_NAME));
            drops = drops || target == "REJECT" || target == "DROP";
        } else if (name != "counter" && name != "log") {
            is_conditional = true;
        }
    }
    nftnl_expr_iter_destroy(iterator);
    if (drops) (is_conditional ? into.drops_some : into.drops_all) = true;
}

/// Of a chain and those that it leads to. What lies behind a condition drops some at most.
Contents reached_from(const Place& place, const std::map<Place, Contents>& contents, std::set<Place>& seen) {
    Contents all;
    const auto own = contents.find(place);
    if (!seen.insert(place).second || own == contents.end()) return all;
    all = own->second;
    for (const std::string& chain : own->second.leads_to) {
        const Contents below = reached_from({std::get<0>(place), std::get<1>(place), chain}, contents, seen);
        all.drops_some = all.drops_some || below.drops_some || below.drops_all;
        if (below.way_back) all.way_back = below.way_back;
    }
    return all;
}

/// Of others, on hooks that are wanted.
Expected<std::map<Place, Base>> base_chains(Socket& socket, bool (*is_wanted)(std::uint32_t hook)) {
    const auto chains = socket.dump(NFT_MSG_GETCHAIN, of_all_families, kDoing);
    if (!chains) return tl::make_unexpected(chains.error());
    std::map<Place, Base> bases;
    chains->for_each([&](const nlmsghdr* message) {
        auto chain = made(nftnl_chain_alloc());
        if (nftnl_chain_nlmsg_parse(message, chain.get()) < 0) return;
        const auto family = nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_FAMILY);
        const std::string table = text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TABLE));
        if (family_name(family).empty() || (family == NFPROTO_INET && table == kTable)) return;
        if (!nftnl_chain_is_set(chain.get(), NFTNL_CHAIN_HOOKNUM) ||
            !is_wanted(nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_HOOKNUM)))
            return;
        bases[{family, table, text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_NAME))}] =
            Base{.drops = nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_POLICY) == NF_DROP,
                 .priority = nftnl_chain_get_s32(chain.get(), NFTNL_CHAIN_PRIO),
                 .type = text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TYPE))};
    });
    return bases;
}

Expected<std::map<Place, Contents>> contents_of_all(Socket& socket) {
    const auto rules = socket.dump(NFT_MSG_GETRULE, of_all_families, kDoing);
    if (!rules) return tl::make_unexpected(rules.error());
    std::map<Place, Contents> contents;
    rules->for_each([&](const nlmsghdr* message) {
        auto rule = made(nftnl_rule_alloc());
        if (nftnl_rule_nlmsg_parse(message, rule.get()) < 0) return;
        take_rule(rule.get(), contents[{nftnl_rule_get_u32(rule.get(), NFTNL_RULE_FAMILY),
                                        text(nftnl_rule_get_str(rule.get(), NFTNL_RULE_TABLE)),
                                        text(nftnl_rule_get_str(rule.get(), NFTNL_RULE_CHAIN))}]);
    });
    return contents;
}

} // namespace

Expected<std::vector<Firewall>> firewalls(Socket& socket) {
    const auto bases = base_chains(socket, is_where_packets_leave);
    if (!bases) return tl::make_unexpected(bases.error());
    std::vector<Firewall> found;
    if (bases->empty()) return found;
    const auto contents = contents_of_all(socket);
    if (!contents) return tl::make_unexpected(contents.error());
    for (const auto& [place, base] : *bases) {
        std::set<Place> seen;
        const Contents all = reached_from(place, *contents, seen);
        if (!base.drops && !all.drops_all && !all.drops_some) continue;
        const auto drops = base.drops      ? Firewall::Drops::by_policy
                           : all.drops_all ? Firewall::Drops::all
                                           : Firewall::Drops::some;
        found.push_back({.family = family_name(std::get<0>(place)),
                         .table = std::get<1>(place),
                         .chain = std::get<2>(place),
                         .drops = drops});
    }
    return found;
}

Expected<std::vector<ReversePathFilter>> reverse_path_filters(Socket& socket, std::int32_t last) {
    auto bases = base_chains(socket, [](std::uint32_t hook) { return hook == NF_INET_PRE_ROUTING; });
    if (!bases) return tl::make_unexpected(bases.error());
    // A nat chain sees no answers.
    std::erase_if(*bases, [&](const auto& base) { return base.second.type == "nat" || base.second.priority > last; });
    std::vector<ReversePathFilter> found;
    if (bases->empty()) return found;
    const auto contents = contents_of_all(socket);
    if (!contents) return tl::make_unexpected(contents.error());
    for (const auto& [place, base] : *bases) {
        std::set<Place> seen;
        const Contents all = reached_from(place, *contents, seen);
        if (!all.way_back) continue;
        found.push_back({.family = family_name(std::get<0>(place)),
                         .table = std::get<1>(place),
                         .chain = std::get<2>(place),
                         .priority = base.priority,
                         .goes_by_mark = all.way_back->goes_by_mark,
                         .of_iptables = all.way_back->of_iptables});
    }
    return found;
}

} // namespace novpn::nft
