#include "rules/nft_probe.h"

#include "rules/nft_messages.h"

#include <cerrno>
#include <fmt/format.h>
#include <utility>

namespace novpn::nft {
namespace {

constexpr char kProbeTable[] = "novpn_probe";
// Never made by anyone: deleting it fails, and with it the whole batch.
constexpr char kAbsentTable[] = "novpn_probe_absent";
const std::string kDoing = "asking the kernel for what nft table inet novpn needs";

/// What to switch on in the kernel for an expression; those that are not here are nf_tables itself.
constexpr std::pair<const char*, const char*> kOptions[] = {
    {"ct", "NFT_CT, NF_CONNTRACK_MARK: ct mark"},
    {"socket", "NFT_SOCKET, SOCK_CGROUP_DATA: socket cgroupv2, Linux 5.13"},
    {"fib", "NFT_FIB_INET: fib"},
    {"masq", "NFT_MASQ: masquerade"},
    {"objref", "NFT_OBJREF: counter name"},
    {"payload", "NF_TABLES: payload"},
};

std::string option_of(const Expr& expr) {
    for (const auto& [name, option] : kOptions) {
        if (expr.name == name) return option;
    }
    return "NF_TABLES: " + expr.name;
}

std::string option_of(const Chain& chain) {
    if (!chain.hook) return "NF_TABLES_INET";
    if (chain.hook->type == "nat") return "NFT_NAT, NF_TABLES_INET: nat chain in an inet table, Linux 5.2";
    return fmt::format("NF_TABLES_INET: {} chain in an inet table", chain.hook->type);
}

/// Offers `structure` in a batch that the kernel is bound to undo, so that nothing changes and nobody is notified.
Expected<void> offer(Socket& socket, const Structure& structure) {
    Batch batch;
    add_table(batch, kProbeTable, "probe");
    for (const std::string& counter : structure.counters) add_counter(batch, kProbeTable, counter, 0);
    std::uint32_t id = 0;
    for (const Set& set : structure.sets) add_set(batch, kProbeTable, set, ++id);
    for (const Chain& chain : structure.chains) add_chain(batch, kProbeTable, chain);
    for (const Rule& rule : structure.rules) add_rule(batch, kProbeTable, rule);
    delete_table(batch, kAbsentTable);
    const std::uint32_t bound_to_fail = batch.last_sequence();
    std::uint32_t failed_at = 0;
    auto done = socket.commit(std::move(batch), kDoing, &failed_at);
    if (!done && failed_at == bound_to_fail) return {};
    return done;
}

/// The part of `structure` that the kernel refuses: the first that fails on top of what it accepts.
std::string missing(Socket& socket, const Structure& structure) {
    Structure accepted;
    if (!offer(socket, accepted)) return "NF_TABLES_INET: inet tables";
    accepted.counters = structure.counters;
    if (!offer(socket, accepted)) return "NFT_COUNTER, NFT_OBJREF: named counters";
    accepted.sets = structure.sets;
    if (!offer(socket, accepted)) return "NFT_HASH, NF_TABLES: sets and verdict maps";
    for (const Chain& chain : structure.chains) {
        accepted.chains.push_back(chain);
        if (!offer(socket, accepted)) return option_of(chain);
    }
    for (const Rule& rule : structure.rules) {
        // A beginning of a rule is a rule: expressions only read registers that earlier ones have loaded.
        Rule beginning = rule;
        beginning.exprs.clear();
        for (const Expr& expr : rule.exprs) {
            beginning.exprs.push_back(expr);
            accepted.rules = {beginning};
            if (!offer(socket, accepted)) return option_of(expr);
        }
    }
    return {};
}

} // namespace

Structure everything() {
    return structure(NftTable{.classes = {ClassMarking{.name = "probe",
                                                       .mark = {.value = 0x4e000000, .mask = 0xff000000},
                                                       .dns_by_vpn = true,
                                                       .guarded = true,
                                                       .cgroups = {"probe"},
                                                       .users = {1},
                                                       .destinations = {any_prefix(Family::ipv4)},
                                                       .links = {}}},
                              .levels = {},
                              .answers_early = true});
}

Expected<void> probe(Socket& socket, const Structure& structure) {
    auto done = offer(socket, structure);
    if (done) return {};
    if (done.error().code == std::errc::operation_not_permitted) return done;
    const std::string option = missing(socket, structure);
    if (option.empty()) return done;
    return system_error(EOPNOTSUPP, kDoing, option);
}

} // namespace novpn::nft
