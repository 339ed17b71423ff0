#include "rules/nft_firewalls.h"

#include "rules/nft_structure.h"
#include "rules/nftnl_ptr.h"

#include <algorithm>
#include <libnftnl/expr.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <map>
#include <set>
#include <tuple>

namespace novpn::nft {
namespace {

constexpr char kDoing[] = "reading the firewalls of others";

/// Family, table, chain.
using Place = std::tuple<std::uint32_t, std::string, std::string>;

struct Contents {
    bool drops_all = false;
    bool drops_some = false;
    std::set<std::string> leads_to; ///< chains of the same table
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

/// What a rule does with what comes to it, and whether to all of it.
void take_rule(nftnl_rule* rule, Contents& into) {
    bool is_conditional = false;
    bool drops = false;
    auto* iterator = nftnl_expr_iter_create(rule);
    if (iterator == nullptr) throw std::bad_alloc();
    while (auto* expr = nftnl_expr_iter_next(iterator)) {
        const std::string name = text(nftnl_expr_get_str(expr, NFTNL_EXPR_NAME));
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
    }
    return all;
}

} // namespace

Expected<std::vector<Firewall>> firewalls(Socket& socket) {
    const auto chains = socket.dump(NFT_MSG_GETCHAIN, of_all_families, kDoing);
    if (!chains) return tl::make_unexpected(chains.error());
    std::map<Place, bool> bases; // whether their policy is drop
    chains->for_each([&](const nlmsghdr* message) {
        auto chain = made(nftnl_chain_alloc());
        if (nftnl_chain_nlmsg_parse(message, chain.get()) < 0) return;
        const auto family = nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_FAMILY);
        const std::string table = text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TABLE));
        if (family_name(family).empty() || (family == NFPROTO_INET && table == kTable)) return;
        if (!nftnl_chain_is_set(chain.get(), NFTNL_CHAIN_HOOKNUM) ||
            !is_where_packets_leave(nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_HOOKNUM)))
            return;
        bases[{family, table, text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_NAME))}] =
            nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_POLICY) == NF_DROP;
    });
    std::vector<Firewall> found;
    if (bases.empty()) return found;

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
    for (const auto& [place, has_drop_policy] : bases) {
        std::set<Place> seen;
        const Contents all = reached_from(place, contents, seen);
        if (!has_drop_policy && !all.drops_all && !all.drops_some) continue;
        const auto drops = has_drop_policy ? Firewall::Drops::by_policy
                           : all.drops_all ? Firewall::Drops::all
                                           : Firewall::Drops::some;
        found.push_back({.family = family_name(std::get<0>(place)),
                         .table = std::get<1>(place),
                         .chain = std::get<2>(place),
                         .drops = drops});
    }
    return found;
}

} // namespace novpn::nft
