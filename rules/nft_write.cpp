#include "rules/nft_messages.h"
#include "rules/nftnl_ptr.h"

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

namespace novpn::nft {
namespace {

constexpr std::size_t kElementsAMessage = 200;
constexpr std::uint32_t kFirstNameless = 1U << 16; // ids of sets without a name begin here
constexpr std::uint32_t kVerdictData = 0xffffff00; // NFT_DATA_VERDICT
constexpr char kNamelessMap[] = "__map%d";         // the kernel puts a number in its place
// The nft tool's own numbers of these types (its enum datatypes), by which it lists elements.
constexpr std::uint32_t kTypeIpv4Address = 7;
constexpr std::uint32_t kTypeIpv6Address = 8;
constexpr std::uint32_t kTypeProtocol = 12;
constexpr std::uint32_t kTypePort = 13;
constexpr std::uint32_t kTypeMark = 19;
constexpr std::uint32_t kTypeLinkIndex = 20;
constexpr std::uint32_t kTypeUid = 24;
constexpr std::uint32_t kTypeCgroup = 46;
constexpr std::uint32_t kHostEndian = 1;
constexpr std::uint32_t kBigEndian = 2;

Ptr<nftnl_expr> to_nftnl(const Expr& expr) {
    auto to = made(nftnl_expr_alloc(expr.name.c_str()));
    for (const auto& [attribute, value] : expr.attributes) {
        if (const auto* number = std::get_if<std::uint32_t>(&value)) {
            nftnl_expr_set_u32(to.get(), attribute, *number);
        } else if (const auto* name = std::get_if<std::string>(&value)) {
            nftnl_expr_set_str(to.get(), attribute, name->c_str());
        } else {
            const Bytes& bytes = std::get<Bytes>(value);
            nftnl_expr_set(to.get(), attribute, bytes.data(), static_cast<std::uint32_t>(bytes.size()));
        }
    }
    return to;
}

/// `verdict` is NFT_JUMP or NFT_GOTO.
void put(nftnl_set& set, const void* key, std::uint32_t size, int verdict, const std::string& chain) {
    auto element = made(nftnl_set_elem_alloc());
    nftnl_set_elem_set(element.get(), NFTNL_SET_ELEM_KEY, key, size);
    nftnl_set_elem_set_u32(element.get(), NFTNL_SET_ELEM_VERDICT, static_cast<std::uint32_t>(verdict));
    nftnl_set_elem_set_str(element.get(), NFTNL_SET_ELEM_CHAIN, chain.c_str());
    nftnl_set_elem_add(&set, element.release());
}

void put(nftnl_set& set, const MemberElement& member) {
    put(set, &member.cgroup_id, sizeof member.cgroup_id, NFT_GOTO, kMarkChain + member.class_name);
}

void put(nftnl_set& set, const UserElement& user) {
    put(set, &user.uid, sizeof user.uid, NFT_GOTO, kMarkChain + user.class_name);
}

Bytes bytes_of(const address& a) {
    if (a.is_v4()) {
        const auto bytes = a.to_v4().to_bytes();
        return {bytes.begin(), bytes.end()};
    }
    const auto bytes = a.to_v6().to_bytes();
    return {bytes.begin(), bytes.end()};
}

/// An interval is two elements: its first address, and the first one behind it, where there is one.
void put(nftnl_set& set, const DestinationElement& destination) {
    const Bytes first = bytes_of(destination.prefix.network);
    auto element = made(nftnl_set_elem_alloc());
    nftnl_set_elem_set(element.get(), NFTNL_SET_ELEM_KEY, first.data(), static_cast<std::uint32_t>(first.size()));
    nftnl_set_elem_add(&set, element.release());
    const auto behind = first_behind(destination.prefix);
    if (!behind) return;
    const Bytes end = bytes_of(*behind);
    element = made(nftnl_set_elem_alloc());
    nftnl_set_elem_set(element.get(), NFTNL_SET_ELEM_KEY, end.data(), static_cast<std::uint32_t>(end.size()));
    nftnl_set_elem_set_u32(element.get(), NFTNL_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
    nftnl_set_elem_add(&set, element.release());
}

void put(nftnl_set& set, const LinkElement& link) {
    auto element = made(nftnl_set_elem_alloc());
    nftnl_set_elem_set(element.get(), NFTNL_SET_ELEM_KEY, &link.link.value, sizeof link.link.value);
    nftnl_set_elem_add(&set, element.release());
}

std::string set_of(const MemberElement& member) { return fmt::format("{}{}", kLevelMap, member.level); }
std::string set_of(const UserElement&) { return kUserMap; }
std::string set_of(const DestinationElement& d) { return destination_set(d.class_name, family_of(d.prefix.network)); }
std::string set_of(const LinkElement& link) { return kLinkSet + link.class_name; }

struct KeyType {
    std::uint32_t type;
    std::uint32_t size;
    std::uint32_t byte_order;
};

/// Of several parts, which the nft tool numbers by six bits each; each has whole registers of 32 bits.
KeyType joined(std::initializer_list<KeyType> parts) {
    KeyType all{0, 0, kBigEndian};
    for (const KeyType& part : parts) {
        all.type = all.type << 6 | part.type;
        all.size += (part.size + 3) / 4 * 4;
    }
    return all;
}

KeyType key_type(Set::Kind kind) {
    constexpr KeyType kIpv4{kTypeIpv4Address, 4, kBigEndian};
    constexpr KeyType kIpv6{kTypeIpv6Address, 16, kBigEndian};
    constexpr KeyType kPort{kTypePort, 2, kBigEndian};
    constexpr KeyType kProtocol{kTypeProtocol, 1, kBigEndian};
    switch (kind) {
    case Set::Kind::chain_by_cgroup: return {kTypeCgroup, sizeof(std::uint64_t), kHostEndian};
    case Set::Kind::chain_by_user: return {kTypeUid, sizeof(std::uint32_t), kHostEndian};
    case Set::Kind::destinations4: return kIpv4;
    case Set::Kind::destinations6: return kIpv6;
    case Set::Kind::asked4: return joined({kIpv4, kPort, kIpv4, kPort, kProtocol});
    case Set::Kind::asked6: return joined({kIpv6, kPort, kIpv6, kPort, kProtocol});
    case Set::Kind::pinged4: return joined({kIpv4, kIpv4});
    case Set::Kind::pinged6: return joined({kIpv6, kIpv6});
    case Set::Kind::links: break;
    }
    return {kTypeLinkIndex, sizeof(std::uint32_t), kHostEndian};
}

void make_verdict_map(nftnl_set& set, nftnl_udata_buf& userdata, std::uint32_t more_flags) {
    nftnl_udata_put_u32(&userdata, NFTNL_UDATA_SET_DATABYTEORDER, 0);
    nftnl_set_set_u32(&set, NFTNL_SET_FLAGS, NFT_SET_MAP | more_flags);
    nftnl_set_set_u32(&set, NFTNL_SET_DATA_TYPE, kVerdictData);
    nftnl_set_set_u32(&set, NFTNL_SET_DATA_LEN, 0);
}

/// The map of a lookup by mark, which the rule that follows in the batch holds by `id`.
void add_map_by_mark(Batch& batch, const std::string& table, const Expr& expr, std::uint32_t id) {
    auto to = set_named(table, kNamelessMap);
    const auto userdata = made(nftnl_udata_buf_alloc(kUserdata));
    nftnl_udata_put_u32(userdata.get(), NFTNL_UDATA_SET_KEYBYTEORDER, kHostEndian);
    nftnl_set_set_u32(to.get(), NFTNL_SET_ID, id);
    nftnl_set_set_u32(to.get(), NFTNL_SET_KEY_TYPE, kTypeMark);
    nftnl_set_set_u32(to.get(), NFTNL_SET_KEY_LEN, sizeof(std::uint32_t));
    nftnl_set_set_u32(to.get(), NFTNL_SET_DESC_SIZE, static_cast<std::uint32_t>(expr.chain_by_mark.size()));
    make_verdict_map(*to, *userdata, NFT_SET_ANONYMOUS | NFT_SET_CONSTANT);
    nftnl_set_set_data(to.get(), NFTNL_SET_USERDATA, nftnl_udata_buf_data(userdata.get()),
                       nftnl_udata_buf_len(userdata.get()));
    batch.add(NFT_MSG_NEWSET, NLM_F_CREATE,
              [&](nlmsghdr* message) { nftnl_set_nlmsg_build_payload(message, to.get()); });
    for (const auto& [mark, chain] : expr.chain_by_mark) put(*to, &mark, sizeof mark, expr.verdict, chain);
    batch.add(NFT_MSG_NEWSETELEM, NLM_F_CREATE,
              [&](nlmsghdr* message) { nftnl_set_elems_nlmsg_build_payload(message, to.get()); });
}

template<typename Element>
void add_all(Batch& batch, const std::set<Element>& elements) {
    std::map<std::string, std::vector<Element>> by_set;
    for (const Element& element : elements) by_set[set_of(element)].push_back(element);
    for (const auto& [name, all] : by_set) {
        for (std::size_t first = 0; first < all.size(); first += kElementsAMessage) {
            auto set = set_named(kTable, name);
            for (std::size_t i = first; i < all.size() && i < first + kElementsAMessage; ++i) put(*set, all[i]);
            // Without NLM_F_EXCL an element that is there already is not an error.
            batch.add(NFT_MSG_NEWSETELEM, NLM_F_CREATE,
                      [&](nlmsghdr* message) { nftnl_set_elems_nlmsg_build_payload(message, set.get()); });
        }
    }
}

template<typename Element>
void delete_one(Batch& batch, const Element& element) {
    auto set = set_named(kTable, set_of(element));
    put(*set, element);
    batch.add(NFT_MSG_DELSETELEM, 0,
              [&](nlmsghdr* message) { nftnl_set_elems_nlmsg_build_payload(message, set.get()); });
}

} // namespace

void add_table(Batch& batch, const std::string& table, const std::string& comment) {
    auto to = made(nftnl_table_alloc());
    nftnl_table_set_str(to.get(), NFTNL_TABLE_NAME, table.c_str());
    const auto userdata = comment_of(comment);
    if (!comment.empty()) {
        nftnl_table_set_data(to.get(), NFTNL_TABLE_USERDATA, nftnl_udata_buf_data(userdata.get()),
                             nftnl_udata_buf_len(userdata.get()));
    }
    batch.add(NFT_MSG_NEWTABLE, NLM_F_CREATE,
              [&](nlmsghdr* message) { nftnl_table_nlmsg_build_payload(message, to.get()); });
}

void delete_table(Batch& batch, const std::string& table) {
    auto to = made(nftnl_table_alloc());
    nftnl_table_set_str(to.get(), NFTNL_TABLE_NAME, table.c_str());
    batch.add(NFT_MSG_DELTABLE, 0, [&](nlmsghdr* message) { nftnl_table_nlmsg_build_payload(message, to.get()); });
}

void add_counter(Batch& batch, const std::string& table, const std::string& name, std::uint64_t packets) {
    auto counter = made(nftnl_obj_alloc());
    nftnl_obj_set_str(counter.get(), NFTNL_OBJ_TABLE, table.c_str());
    nftnl_obj_set_str(counter.get(), NFTNL_OBJ_NAME, name.c_str());
    nftnl_obj_set_u32(counter.get(), NFTNL_OBJ_TYPE, NFT_OBJECT_COUNTER);
    nftnl_obj_set_u64(counter.get(), NFTNL_OBJ_CTR_PKTS, packets);
    nftnl_obj_set_u64(counter.get(), NFTNL_OBJ_CTR_BYTES, 0);
    batch.add(NFT_MSG_NEWOBJ, NLM_F_CREATE | NLM_F_EXCL,
              [&](nlmsghdr* message) { nftnl_obj_nlmsg_build_payload(message, counter.get()); });
}

void add_set(Batch& batch, const std::string& table, const Set& set, std::uint32_t id) {
    auto to = set_named(table, set.name);
    const auto userdata = made(nftnl_udata_buf_alloc(kUserdata));
    const KeyType key = key_type(set.kind);
    nftnl_udata_put_u32(userdata.get(), NFTNL_UDATA_SET_KEYBYTEORDER, key.byte_order);
    nftnl_set_set_u32(to.get(), NFTNL_SET_ID, id);
    nftnl_set_set_u32(to.get(), NFTNL_SET_KEY_TYPE, key.type);
    nftnl_set_set_u32(to.get(), NFTNL_SET_KEY_LEN, key.size);
    if (is_map(set.kind)) {
        make_verdict_map(*to, *userdata, 0);
    } else if (is_of_packets(set.kind)) {
        nftnl_set_set_u32(to.get(), NFTNL_SET_FLAGS, NFT_SET_EVAL | NFT_SET_TIMEOUT);
        nftnl_set_set_u32(to.get(), NFTNL_SET_DESC_SIZE, kAskedAtMost);
    } else if (set.kind != Set::Kind::links) {
        nftnl_set_set_u32(to.get(), NFTNL_SET_FLAGS, NFT_SET_INTERVAL);
    }
    nftnl_set_set_data(to.get(), NFTNL_SET_USERDATA, nftnl_udata_buf_data(userdata.get()),
                       nftnl_udata_buf_len(userdata.get()));
    batch.add(NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL,
              [&](nlmsghdr* message) { nftnl_set_nlmsg_build_payload(message, to.get()); });
}

void add_chain(Batch& batch, const std::string& table, const Chain& chain) {
    auto to = made(nftnl_chain_alloc());
    nftnl_chain_set_str(to.get(), NFTNL_CHAIN_TABLE, table.c_str());
    nftnl_chain_set_str(to.get(), NFTNL_CHAIN_NAME, chain.name.c_str());
    if (chain.hook) {
        nftnl_chain_set_str(to.get(), NFTNL_CHAIN_TYPE, chain.hook->type.c_str());
        nftnl_chain_set_u32(to.get(), NFTNL_CHAIN_HOOKNUM, chain.hook->number);
        nftnl_chain_set_s32(to.get(), NFTNL_CHAIN_PRIO, chain.hook->priority);
        nftnl_chain_set_u32(to.get(), NFTNL_CHAIN_POLICY, NF_ACCEPT);
    }
    batch.add(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL,
              [&](nlmsghdr* message) { nftnl_chain_nlmsg_build_payload(message, to.get()); });
}

void add_rule(Batch& batch, const std::string& table, const Rule& rule) {
    auto to = made(nftnl_rule_alloc());
    nftnl_rule_set_str(to.get(), NFTNL_RULE_TABLE, table.c_str());
    nftnl_rule_set_str(to.get(), NFTNL_RULE_CHAIN, rule.chain.c_str());
    const auto userdata = comment_of(rule.comment);
    nftnl_rule_set_data(to.get(), NFTNL_RULE_USERDATA, nftnl_udata_buf_data(userdata.get()),
                        nftnl_udata_buf_len(userdata.get()));
    for (const Expr& expr : rule.exprs) {
        auto made_of = to_nftnl(expr);
        if (!expr.chain_by_mark.empty()) {
            // Sets with a name are numbered from one; each of these has a message of its own.
            const std::uint32_t id = kFirstNameless + batch.last_sequence();
            add_map_by_mark(batch, table, expr, id);
            nftnl_expr_set_str(made_of.get(), NFTNL_EXPR_LOOKUP_SET, kNamelessMap);
            nftnl_expr_set_u32(made_of.get(), NFTNL_EXPR_LOOKUP_SET_ID, id);
        }
        nftnl_rule_add_expr(to.get(), made_of.release());
    }
    batch.add(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND,
              [&](nlmsghdr* message) { nftnl_rule_nlmsg_build_payload(message, to.get()); });
}

void add_elements(Batch& batch, const std::set<MemberElement>& members) { add_all(batch, members); }
void add_elements(Batch& batch, const std::set<UserElement>& users) { add_all(batch, users); }
void add_elements(Batch& batch, const std::set<DestinationElement>& destinations) { add_all(batch, destinations); }
void add_elements(Batch& batch, const std::set<LinkElement>& links) { add_all(batch, links); }
void delete_element(Batch& batch, const MemberElement& member) { delete_one(batch, member); }
void delete_element(Batch& batch, const UserElement& user) { delete_one(batch, user); }
void delete_element(Batch& batch, const DestinationElement& destination) { delete_one(batch, destination); }
void delete_element(Batch& batch, const LinkElement& link) { delete_one(batch, link); }

} // namespace novpn::nft
