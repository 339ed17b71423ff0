#include "rules/nft.h"
#include "rules/nft_structure.h"

#include <fmt/format.h>

namespace novpn {
namespace {

std::string join(const std::vector<std::string>& elements) {
    std::string text;
    for (const std::string& element : elements) text += (text.empty() ? "" : ", ") + element;
    return text;
}

std::vector<std::string> elements_of(const nft::Set& set, const NftTable& table, const LinkNames& link_name) {
    std::vector<std::string> elements;
    for (const ClassMarking& c : table.classes) {
        if (set.kind == nft::Set::Kind::links) {
            if (set.name != nft::kLinkSet + c.name) continue;
            for (const IfIndex link : c.links) elements.push_back('"' + link_name(link) + '"');
        } else {
            for (const std::string& path : c.cgroups) {
                if (set.name != fmt::format("{}{}", nft::kLevelMap, cgroup_level(path))) continue;
                elements.push_back(fmt::format("\"{}\" : goto {}{}", path, nft::kMarkChain, c.name));
            }
        }
    }
    return elements;
}

} // namespace

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
        const bool links = set.kind == nft::Set::Kind::links;
        text += fmt::format("\t{} {} {{\n\t\ttype {}\n", links ? "set" : "map", set.name,
                            links ? "iface_index" : "cgroupsv2 : verdict");
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
