#include "rules/nft_messages.h"
#include "rules/nftnl_ptr.h"

#include <charconv>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

namespace novpn::nft {
namespace {

std::string text(const char* from) { return from == nullptr ? std::string() : std::string(from); }

/// "novpn" of "mark_novpn"; none when `name` does not begin with `prefix`.
std::optional<std::string> after(const std::string& prefix, const std::string& name) {
    if (!name.starts_with(prefix)) return std::nullopt;
    return name.substr(prefix.size());
}

std::optional<unsigned> level_of(const std::string& set) {
    const auto digits = after(kLevelMap, set);
    unsigned level = 0;
    if (!digits) return std::nullopt;
    const auto [end, error] = std::from_chars(digits->data(), digits->data() + digits->size(), level);
    if (error != std::errc() || end != digits->data() + digits->size()) return std::nullopt;
    return level;
}

/// Boundaries of the intervals of one set of destinations.
struct Boundaries {
    std::string class_name;
    Family family = Family::ipv4;
    std::set<address> starts;
    std::set<address> ends;
};

std::optional<Boundaries> boundaries_of(const std::string& set) {
    if (const auto class_name = after(kDestinationSet4, set)) return Boundaries{*class_name, Family::ipv4, {}, {}};
    if (const auto class_name = after(kDestinationSet6, set)) return Boundaries{*class_name, Family::ipv6, {}, {}};
    return std::nullopt;
}

std::optional<address> to_address(const void* key, std::uint32_t size) {
    boost::asio::ip::address_v4::bytes_type ipv4;
    boost::asio::ip::address_v6::bytes_type ipv6;
    if (size == ipv4.size()) {
        std::memcpy(ipv4.data(), key, size);
        return boost::asio::ip::address_v4(ipv4);
    }
    if (size != ipv6.size()) return std::nullopt;
    std::memcpy(ipv6.data(), key, size);
    return boost::asio::ip::address_v6(ipv6);
}

/// The prefix from `start` up to `end`, which is behind it; none: that is no prefix.
std::optional<Prefix> prefix_between(const address& start, const std::optional<address>& end) {
    for (unsigned length = 0; length <= (start.is_v4() ? 32u : 128u); ++length) {
        Prefix prefix = prefix_of(start, length);
        if (prefix.network == start && first_behind(prefix) == end) return prefix;
    }
    return std::nullopt;
}

void take_boundary(nftnl_set_elem* element, Boundaries& into, bool& foreign) {
    std::uint32_t size = 0;
    const void* key = nftnl_set_elem_get(element, NFTNL_SET_ELEM_KEY, &size);
    const auto at = to_address(key, size);
    if (!at || family_of(*at) != into.family) {
        foreign = true;
        return;
    }
    const bool is_end = nftnl_set_elem_is_set(element, NFTNL_SET_ELEM_FLAGS) &&
                        (nftnl_set_elem_get_u32(element, NFTNL_SET_ELEM_FLAGS) & NFT_SET_ELEM_INTERVAL_END) != 0;
    (is_end ? into.ends : into.starts).insert(*at);
}

/// Intervals do not overlap, so that each one ends at the nearest end.
void take_intervals(const Boundaries& boundaries, Elements& into) {
    for (const address& start : boundaries.starts) {
        const auto end = boundaries.ends.upper_bound(start);
        const auto prefix =
            prefix_between(start, end == boundaries.ends.end() ? std::optional<address>() : std::optional(*end));
        if (prefix)
            into.destinations.insert({boundaries.class_name, *prefix});
        else
            into.foreign = true;
    }
}

/// The class that the verdict of a map's element leads to.
std::optional<std::string> class_led_to(nftnl_set_elem* element) {
    const bool goes = nftnl_set_elem_is_set(element, NFTNL_SET_ELEM_VERDICT) &&
                      nftnl_set_elem_get_u32(element, NFTNL_SET_ELEM_VERDICT) == static_cast<std::uint32_t>(NFT_GOTO);
    return goes ? after(kMarkChain, text(nftnl_set_elem_get_str(element, NFTNL_SET_ELEM_CHAIN))) : std::nullopt;
}

void take_element(nftnl_set_elem* element, const std::string& set, Elements& into) {
    std::uint32_t size = 0;
    const void* key = nftnl_set_elem_get(element, NFTNL_SET_ELEM_KEY, &size);
    const auto level = level_of(set);
    const auto class_of_links = after(kLinkSet, set);
    if (level && size == sizeof(std::uint64_t)) {
        MemberElement member{.class_name = {}, .level = *level, .cgroup_id = 0};
        std::memcpy(&member.cgroup_id, key, size);
        if (const auto class_name = class_led_to(element)) {
            member.class_name = *class_name;
            into.members.insert(member);
            return;
        }
    }
    if (set == kUserMap && size == sizeof(std::uint32_t)) {
        if (const auto class_name = class_led_to(element)) {
            UserElement user{.class_name = *class_name, .uid = 0};
            std::memcpy(&user.uid, key, size);
            into.users.insert(user);
            return;
        }
    }
    if (class_of_links && size == sizeof(std::uint32_t)) {
        LinkElement link{.class_name = *class_of_links, .link = {}};
        std::memcpy(&link.link.value, key, size);
        into.links.insert(link);
        return;
    }
    into.foreign = true;
}

Expected<Inventory> observed_chains(Socket& socket, const std::string& doing) {
    const auto answer = socket.dump(
        NFT_MSG_GETCHAIN, [](nlmsghdr*) {}, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    Inventory chains;
    answer->for_each([&](const nlmsghdr* message) {
        auto chain = made(nftnl_chain_alloc());
        // The kernel dumps the chains of all tables of the family.
        if (nftnl_chain_nlmsg_parse(message, chain.get()) < 0) return;
        if (text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TABLE)) != kTable) return;
        Chain found{.name = text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_NAME)), .hook = std::nullopt};
        if (nftnl_chain_is_set(chain.get(), NFTNL_CHAIN_HOOKNUM)) {
            found.hook = Hook{.type = text(nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TYPE)),
                              .name = {},
                              .number = nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_HOOKNUM),
                              .priority = nftnl_chain_get_s32(chain.get(), NFTNL_CHAIN_PRIO)};
            if (nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_POLICY) != NF_ACCEPT) found.hook->type += " policy drop";
        }
        chains.push_back(item(found));
    });
    return chains;
}

Expected<Inventory> observed_rules(Socket& socket, const std::string& doing) {
    auto filter = made(nftnl_rule_alloc());
    nftnl_rule_set_str(filter.get(), NFTNL_RULE_TABLE, kTable);
    const auto answer = socket.dump(
        NFT_MSG_GETRULE, [&](nlmsghdr* message) { nftnl_rule_nlmsg_build_payload(message, filter.get()); }, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    Inventory rules;
    std::map<std::string, std::size_t> rules_in;
    answer->for_each([&](const nlmsghdr* message) {
        auto found = made(nftnl_rule_alloc());
        if (nftnl_rule_nlmsg_parse(message, found.get()) < 0) return;
        std::uint32_t size = 0;
        const void* userdata = nftnl_rule_get_data(found.get(), NFTNL_RULE_USERDATA, &size);
        const std::string chain = text(nftnl_rule_get_str(found.get(), NFTNL_RULE_CHAIN));
        rules.push_back(rule_item(chain, rules_in[chain]++, comment_in(userdata, size)));
    });
    return rules;
}

Expected<Inventory> observed_sets(Socket& socket, const std::string& doing) {
    auto filter = made(nftnl_set_alloc());
    nftnl_set_set_str(filter.get(), NFTNL_SET_TABLE, kTable);
    const auto answer = socket.dump(
        NFT_MSG_GETSET, [&](nlmsghdr* message) { nftnl_set_nlmsg_build_payload(message, filter.get()); }, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    Inventory sets;
    answer->for_each([&](const nlmsghdr* message) {
        auto set = made(nftnl_set_alloc());
        if (nftnl_set_nlmsg_parse(message, set.get()) < 0) return;
        // One without a name comes and goes with its rule.
        if ((nftnl_set_get_u32(set.get(), NFTNL_SET_FLAGS) & NFT_SET_ANONYMOUS) != 0) return;
        sets.push_back(set_item(text(nftnl_set_get_str(set.get(), NFTNL_SET_NAME))));
    });
    return sets;
}

} // namespace

Expected<std::uint32_t> generation(Socket& socket) {
    const std::string doing = "asking for the nf_tables generation";
    const auto answer = socket.get(
        NFT_MSG_GETGEN, [](nlmsghdr*) {}, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    std::optional<std::uint32_t> id;
    answer->for_each([&](const nlmsghdr* message) {
        auto gen = made(nftnl_gen_alloc());
        if (nftnl_gen_nlmsg_parse(message, gen.get()) >= 0) id = nftnl_gen_get_u32(gen.get(), NFTNL_GEN_ID);
    });
    if (!id) return system_error(EBADMSG, doing);
    return *id;
}

Expected<std::optional<TableHeader>> table_header(Socket& socket, const std::string& doing) {
    auto wanted = made(nftnl_table_alloc());
    nftnl_table_set_str(wanted.get(), NFTNL_TABLE_NAME, kTable);
    const auto answer = socket.get(
        NFT_MSG_GETTABLE, [&](nlmsghdr* message) { nftnl_table_nlmsg_build_payload(message, wanted.get()); }, doing);
    if (!answer && answer.error().code == std::errc::no_such_file_or_directory) return std::optional<TableHeader>();
    if (!answer) return tl::make_unexpected(answer.error());
    TableHeader header;
    answer->for_each([&](const nlmsghdr* message) {
        auto table = made(nftnl_table_alloc());
        if (nftnl_table_nlmsg_parse(message, table.get()) < 0) return;
        std::uint32_t size = 0;
        const void* userdata = nftnl_table_get_data(table.get(), NFTNL_TABLE_USERDATA, &size);
        header.comment = comment_in(userdata, size);
        header.dormant = (nftnl_table_get_u32(table.get(), NFTNL_TABLE_FLAGS) & NFT_TABLE_F_DORMANT) != 0;
    });
    return std::optional<TableHeader>(header);
}

Expected<std::map<std::string, std::uint64_t>> counter_packets(Socket& socket, const std::string& doing) {
    auto filter = made(nftnl_obj_alloc());
    nftnl_obj_set_str(filter.get(), NFTNL_OBJ_TABLE, kTable);
    nftnl_obj_set_u32(filter.get(), NFTNL_OBJ_TYPE, NFT_OBJECT_COUNTER);
    const auto answer = socket.dump(
        NFT_MSG_GETOBJ, [&](nlmsghdr* message) { nftnl_obj_nlmsg_build_payload(message, filter.get()); }, doing);
    if (!answer) return tl::make_unexpected(answer.error());
    std::map<std::string, std::uint64_t> packets;
    answer->for_each([&](const nlmsghdr* message) {
        auto counter = made(nftnl_obj_alloc());
        if (nftnl_obj_nlmsg_parse(message, counter.get()) < 0) return;
        packets[text(nftnl_obj_get_str(counter.get(), NFTNL_OBJ_NAME))] =
            nftnl_obj_get_u64(counter.get(), NFTNL_OBJ_CTR_PKTS);
    });
    return packets;
}

Expected<Inventory> observed_inventory(Socket& socket, const std::string& doing) {
    Inventory all;
    for (const auto part : {observed_chains, observed_rules, observed_sets}) {
        auto some = part(socket, doing);
        if (!some) return some;
        all.insert(all.end(), some->begin(), some->end());
    }
    const auto counters = counter_packets(socket, doing);
    if (!counters) return tl::make_unexpected(counters.error());
    for (const auto& [name, packets] : *counters) all.push_back(counter_item(name));
    return all;
}

Expected<Elements> observed_elements(Socket& socket, const Inventory& sets, const std::string& doing) {
    Elements elements;
    for (const std::string& line : sets) {
        const auto name = after(set_item(""), line);
        if (!name || is_of_packets(*name)) continue;
        auto set = set_named(kTable, *name);
        const auto answer = socket.dump(
            NFT_MSG_GETSETELEM, [&](nlmsghdr* message) { nftnl_set_elems_nlmsg_build_payload(message, set.get()); },
            doing);
        if (!answer) return tl::make_unexpected(answer.error());
        auto boundaries = boundaries_of(*name);
        answer->for_each([&](const nlmsghdr* message) {
            auto found = made(nftnl_set_alloc());
            if (nftnl_set_elems_nlmsg_parse(message, found.get()) < 0) return;
            const auto take = [&](nftnl_set_elem* element) {
                if (boundaries)
                    take_boundary(element, *boundaries, elements.foreign);
                else
                    take_element(element, *name, elements);
            };
            auto* iterator = nftnl_set_elems_iter_create(found.get());
            if (iterator == nullptr) throw std::bad_alloc();
            while (auto* element = nftnl_set_elems_iter_next(iterator)) take(element);
            nftnl_set_elems_iter_destroy(iterator);
        });
        if (boundaries) take_intervals(*boundaries, elements);
    }
    return elements;
}

} // namespace novpn::nft
