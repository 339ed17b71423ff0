#include "rules/nft.h"
#include "rules/nft_structure.h"

#include <fmt/format.h>
#include <map>

namespace novpn {
namespace {

std::string join(const std::vector<std::string>& elements) {
    std::string text;
    for (const std::string& element : elements) text += (text.empty() ? "" : ", ") + element;
    return text;
}

std::string set_of(const UserElement&) { return nft::kUserMap; }
std::string set_of(const DestinationElement& d) {
    return nft::destination_set(d.class_name, family_of(d.prefix.network));
}

std::string element_text(const UserElement& user) {
    return fmt::format("{} : goto {}{}", user.uid, nft::kMarkChain, user.class_name);
}
std::string element_text(const DestinationElement& destination) { return to_string(destination.prefix); }

/// With the cgroup as text.
struct NamedMember {
    MemberElement element;
    std::string name;
    auto operator<=>(const NamedMember&) const = default;
};
std::string set_of(const NamedMember& member) { return fmt::format("{}{}", nft::kLevelMap, member.element.level); }
std::string element_text(const NamedMember& member) {
    return fmt::format("\"{}\" : goto {}{}", member.name, nft::kMarkChain, member.element.class_name);
}
std::set<NamedMember> named(const std::set<MemberElement>& members, const CgroupNames& name_of) {
    std::set<NamedMember> with_names;
    for (const MemberElement& member : members) with_names.insert({member, name_of(member.cgroup_id)});
    return with_names;
}

std::set<std::string> paths_of(const ClassMarking& c) {
    std::set<std::string> paths = c.cgroups;
    for (const auto& [path, _] : c.others) paths.insert(path);
    return paths;
}

std::vector<std::string> elements_of(const nft::Set& set, const NftTable& table, const LinkNames& link_name) {
    std::vector<std::string> elements;
    for (const ClassMarking& c : table.classes) {
        switch (set.kind) {
        case nft::Set::Kind::asked4:
        case nft::Set::Kind::asked6:
        case nft::Set::Kind::pinged4:
        case nft::Set::Kind::pinged6: break;
        case nft::Set::Kind::links:
            if (set.name != nft::kLinkSet + c.name) break;
            for (const IfIndex link : c.links) elements.push_back('"' + link_name(link) + '"');
            break;
        case nft::Set::Kind::chain_by_cgroup:
            for (const std::string& path : paths_of(c)) {
                if (set.name != fmt::format("{}{}", nft::kLevelMap, cgroup_level(path))) continue;
                elements.push_back(fmt::format("\"{}\" : goto {}{}", path, nft::kMarkChain, c.name));
            }
            break;
        case nft::Set::Kind::chain_by_user:
            for (const std::uint32_t uid : c.users) elements.push_back(element_text(UserElement{c.name, uid}));
            break;
        case nft::Set::Kind::destinations4:
        case nft::Set::Kind::destinations6:
            for (const Prefix& prefix : c.destinations) {
                const DestinationElement element{c.name, prefix};
                if (set.name == set_of(element)) elements.push_back(element_text(element));
            }
            break;
        }
    }
    return elements;
}

template<typename Element>
void add_lines(std::vector<std::string>& lines, const char* verb, const std::set<Element>& elements) {
    std::map<std::string, std::vector<std::string>> by_set;
    for (const Element& element : elements) by_set[set_of(element)].push_back(element_text(element));
    for (const auto& [set, texts] : by_set)
        lines.push_back(fmt::format("{} element inet {} {} {{ {} }}", verb, nft::kTable, set, join(texts)));
}

} // namespace

std::vector<std::string> to_nft(const ElementChange& change, const CgroupNames& cgroup_name) {
    std::vector<std::string> lines;
    add_lines(lines, "delete", named(change.members_to_remove, cgroup_name));
    add_lines(lines, "delete", change.users_to_remove);
    add_lines(lines, "delete", change.destinations_to_remove);
    add_lines(lines, "add", named(change.members_to_add, cgroup_name));
    add_lines(lines, "add", change.users_to_add);
    add_lines(lines, "add", change.destinations_to_add);
    return lines;
}

std::string to_nft(const NftTable& table, const LinkNames& link_name) {
    const nft::Structure made = nft::structure(table);
    std::string text = fmt::format("table inet {0}\ndelete table inet {0}\ntable inet {0} {{\n", nft::kTable);
    text += fmt::format("\tcomment \"{}\"\n", structure_of(table));
    for (const std::string& counter : made.counters) text += fmt::format("\tcounter {} {{ }}\n", counter);
    // Before the maps and rules that go to them.
    for (const nft::Chain& chain : made.chains) {
        if (!chain.hook) text += fmt::format("\tchain {} {{ }}\n", chain.name);
    }
    for (const nft::Set& set : made.sets) {
        text += fmt::format("\t{} {} {{\n\t\t{}\n", nft::is_map(set.kind) ? "map" : "set", set.name,
                            nft::type_text(set.kind));
        const auto elements = elements_of(set, table, link_name);
        if (!elements.empty()) text += fmt::format("\t\telements = {{ {} }}\n", join(elements));
        text += "\t}\n";
    }
    for (const nft::Chain& chain : made.chains) {
        text += fmt::format("\tchain {} {{\n", chain.name);
        if (chain.hook) {
            text += fmt::format("\t\ttype {} hook {} priority {}; policy accept;\n", chain.hook->type, chain.hook->name,
                                chain.hook->priority);
        }
        for (const nft::Rule& rule : made.rules) {
            if (rule.chain == chain.name) text += fmt::format("\t\t{} comment \"{}\"\n", rule.text, rule.comment);
        }
        text += "\t}\n";
    }
    return text + "}\n";
}

} // namespace novpn
