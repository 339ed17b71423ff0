// One value of the configuration from its node: type and range. The message is without the key and without what is
// allowed, which the table of keys (schema.cpp) adds.
#pragma once

#include "config/config.h"
#include "config/document.h"
#include "config/text.h"

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace novpn {

template<typename T>
using Parsed = tl::expected<T, Problem>;

/// One of the words that a key takes.
template<typename T>
struct Word {
    std::string_view text;
    T value;
};

/// "expected a number, found 'abc'"
tl::unexpected<Problem> unexpected_value(const YamlNode& node, std::string_view expected);

/// "'blok' is unknown, did you mean 'block'"
tl::unexpected<Problem> unknown_word(const YamlNode& node, const std::vector<std::string_view>& words);

template<const auto& kWords>
auto parse_word(const YamlNode& node) -> Parsed<decltype(kWords[0].value)> {
    if (node.kind != YamlNode::Kind::scalar) return unexpected_value(node, "a word");
    std::vector<std::string_view> known;
    for (const auto& word : kWords) {
        if (word.text == node.text) return word.value;
        known.push_back(word.text);
    }
    return unknown_word(node, known);
}

Parsed<TableId> parse_table(const YamlNode& node);
Parsed<Mark> parse_mark(const YamlNode& node); ///< "VALUE/MASK" or a number, which has all bits in its mask
Parsed<Preference> parse_preference(const YamlNode& node);
/// Not 0; null: none.
Parsed<std::optional<std::uint32_t>> parse_classid(const YamlNode& node);
/// An absolute path, normal, not below /sys/fs/cgroup.
Parsed<std::string> parse_mount(const YamlNode& node);
Parsed<bool> parse_bool(const YamlNode& node); ///< plain `true` or `false`, not YAML 1.1's other words
Parsed<std::string> parse_optional_link_glob(const YamlNode& node); ///< null: an empty text
Parsed<std::vector<std::string>> parse_link_globs(const YamlNode& node);
/// Names of users or groups, or numbers, which are kept as text.
Parsed<std::vector<std::string>> parse_accounts(const YamlNode& node);
/// Names are looked up on this machine, which may ask a directory server: at load only. Root is refused.
Parsed<std::vector<UserSelector>> parse_users(const YamlNode& node);
/// Ids of applications, or globs.
Parsed<std::vector<std::string>> parse_apps(const YamlNode& node);
/// Names of services and scopes, as systemctl(1) shows them.
Parsed<std::vector<std::string>> parse_units(const YamlNode& node);
Parsed<std::vector<std::string>> parse_slices(const YamlNode& node);
/// Paths whose parents are slices.
Parsed<std::vector<std::string>> parse_cgroups(const YamlNode& node);
/// Globs of Wi-Fi names, as `novpn status` shows them.
Parsed<std::vector<std::string>> parse_ssids(const YamlNode& node);
/// Globs of link-layer addresses, made lower case.
Parsed<std::vector<std::string>> parse_macs(const YamlNode& node);
/// Globs of DNS domains, made lower case and without a dot at the end.
Parsed<std::vector<std::string>> parse_domains(const YamlNode& node);
/// The name of one unit of the system that can be started; null: an empty text.
Parsed<std::string> parse_unit_to_start(const YamlNode& node);
/// Prefixes and addresses that can be in the internet. An address is a prefix of all its bits.
Parsed<std::vector<Prefix>> parse_destinations(const YamlNode& node);

} // namespace novpn
