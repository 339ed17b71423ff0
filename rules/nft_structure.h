// The chains, rules, sets and counters of `table inet novpn`, as values: what structure_of() hashes, to_nft() prints
// and Nft::replace() sends. Every rule carries its nft text beside its expressions, so that the three cannot differ.
// Internal to rules/.
#pragma once

#include "rules/steering.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace novpn::nft {

inline constexpr char kTable[] = "novpn";
inline constexpr char kBornChain[] = "born_";
inline constexpr char kRestoreChain[] = "restore_";
inline constexpr char kGuardChain[] = "guard_";
inline constexpr char kAskedChain[] = "asked_";
inline constexpr char kMarkChain[] = "mark_";
inline constexpr char kLevelMap[] = "cgroup_level_";
inline constexpr char kUserMap[] = "users";
inline constexpr char kDestinationSet4[] = "destinations4_";
inline constexpr char kDestinationSet6[] = "destinations6_";
inline constexpr char kLinkSet[] = "links_";
inline constexpr char kAskedSet4[] = "asked4_";
inline constexpr char kAskedSet6[] = "asked6_";
inline constexpr char kPingedSet4[] = "pinged4_";
inline constexpr char kPingedSet6[] = "pinged6_";
/// Where packets come in: our chains that restore the mark of answers, the second by what conntrack knows. Fragments
/// are put together before the first (NF_IP_PRI_CONNTRACK_DEFRAG, -400).
inline constexpr std::int32_t kEarlyPriority = -399;
inline constexpr std::int32_t kAnswerPriority = -149;
inline constexpr char kMarkedCounter[] = "marked_";
inline constexpr char kMasqueradedCounter[] = "masqueraded_";
inline constexpr char kDroppedCounter[] = "dropped_";
inline constexpr char kSentCounter[] = "sent_";
inline constexpr char kArrivedCounter[] = "arrived_";

using Bytes = std::vector<std::uint8_t>;

/// One nf_tables expression: its name in the kernel and its NFTNL_EXPR_* attributes.
struct Expr {
    std::string name;
    std::vector<std::pair<std::uint16_t, std::variant<std::uint32_t, std::string, Bytes>>> attributes;
    /// Of a lookup in a map without a name, which comes and goes with its rule: by the mark, where it goes.
    std::vector<std::pair<std::uint32_t, std::string>> chain_by_mark;
    int verdict = 0; ///< NFT_JUMP or NFT_GOTO
};

struct Rule {
    std::string chain;
    std::string text; ///< nft(8), without the comment
    std::string comment;
    std::vector<Expr> exprs;
};

/// Where a base chain stands; the policy is always accept.
struct Hook {
    std::string type;
    std::string name;
    std::uint32_t number = 0; ///< NF_INET_*
    std::int32_t priority = 0;
};

struct Chain {
    std::string name;
    std::optional<Hook> hook;
};

struct Set {
    enum class Kind {
        chain_by_cgroup,
        chain_by_user,
        destinations4,
        destinations6,
        links,
        asked4,
        asked6,
        pinged4,
        pinged6
    };
    std::string name;
    Kind kind = Kind::links;
};
/// The kernel fills it, by the packets that it sees.
bool is_of_packets(Set::Kind kind);
bool is_of_packets(const std::string& set);
/// Of those: the elements at most.
inline constexpr std::uint32_t kAskedAtMost = 65536;

/// In the order in which they are made.
struct Structure {
    std::vector<std::string> counters;
    std::vector<Set> sets;
    std::vector<Chain> chains;
    std::vector<Rule> rules;
};

Structure structure(const NftTable& table);

/// "destinations6_novpn"
std::string destination_set(const std::string& class_name, Family family);
/// "cgroups"; for the hash of a structure.
std::string_view word(Set::Kind kind);
/// "type ipv4_addr\n\t\tflags interval"; "map" or "set" comes before.
std::string_view type_text(Set::Kind kind);
bool is_map(Set::Kind kind);

/// What can be read back from the kernel: one line a chain, rule (by its comment, in order within its chain), set and
/// counter. Equal inventories make a table intact.
using Inventory = std::vector<std::string>;
Inventory inventory(const Structure& structure);
/// As every table but an idle one does.
bool follows_connections(const Inventory& inventory);
std::string item(const Chain& chain);
std::string rule_item(const std::string& chain, std::size_t position, const std::string& comment);
std::string set_item(const std::string& name);
std::string counter_item(const std::string& name);

/// The last part of structure_of(): a short hash of the inventory, whatever its order.
std::string fingerprint(Inventory inventory);
/// Whether a table with userdata `structure` should have `inventory`.
bool has_inventory(const std::string& structure, const Inventory& inventory);

} // namespace novpn::nft
