#include "rules/steering.h"

#include "rules/hash.h"
#include "rules/nft_structure.h"

#include <algorithm>
#include <fmt/format.h>

namespace novpn {
namespace nft {

std::string fingerprint(Inventory inventory) {
    std::sort(inventory.begin(), inventory.end());
    std::string text;
    for (const std::string& line : inventory) text += line + '\n';
    return hash(text);
}

bool has_inventory(const std::string& structure, const Inventory& inventory) {
    return structure.size() > 16 && structure.ends_with("-" + fingerprint(inventory));
}

} // namespace nft

unsigned cgroup_level(const std::string& path) {
    unsigned level = 0;
    char before = '/';
    for (const char c : path) {
        if (c != '/' && before == '/') ++level;
        before = c;
    }
    return level;
}

namespace {

std::string compute_structure(const NftTable& table) {
    const nft::Structure made = nft::structure(table);
    std::string text;
    for (const nft::Rule& rule : made.rules) text += rule.chain + ": " + rule.text + '\n';
    for (const nft::Set& set : made.sets) text += std::string(nft::word(set.kind)) + ' ';
    return fmt::format("novpn-1-{}-{}", hash(text), nft::fingerprint(nft::inventory(made)));
}

} // namespace

std::string structure_of(const NftTable& table) {
    // Every pass asks for it, mostly of the table of the pass before, and it takes longer than all else of a diff.
    struct Known {
        NftTable table;
        std::string structure;
    };
    thread_local std::optional<Known> last;
    NftTable asked = table;
    for (ClassMarking& c : asked.classes) c.links.clear(); // elements that come and go with every link
    if (!last || last->table != asked) {
        std::string structure = compute_structure(asked);
        last = Known{std::move(asked), std::move(structure)};
    }
    return last->structure;
}

bool is_empty(const ElementChange& change) { return change == ElementChange{}; }

} // namespace novpn
