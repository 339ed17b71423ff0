// One YAML document as a tree with positions, read within bounds. Files come from anybody: anchors, aliases, tags,
// duplicate keys, a second document and control characters are refused here, so that the rest sees plain maps, lists
// and scalars.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace novpn {

inline constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;
inline constexpr std::size_t kMaxDepth = 16;    ///< lists and maps inside each other
inline constexpr std::size_t kMaxNodes = 10000; ///< scalars, lists and maps; keys are not counted

/// Both from 1; columns count characters.
struct Position {
    int line = 1;
    int column = 1;
    bool operator==(const Position&) const = default;
};

struct YamlNode {
    enum class Kind { null, scalar, list, map };
    Kind kind = Kind::null;
    Position at;      ///< a null has the position of its key, for it may have no text of its own
    std::string text; ///< of a scalar
    bool quoted = false;
    std::vector<YamlNode> children; ///< of a list or map, in the order of the file

    std::string key; ///< of an entry of a map
    Position key_at;
    bool operator==(const YamlNode&) const = default;
};

/// What is wrong, and where.
struct Problem {
    Position at;
    std::string what;
    bool operator==(const Problem&) const = default;
};

/// An empty document is a null. A byte order mark is skipped.
tl::expected<YamlNode, Problem> read_document(std::string_view text);

} // namespace novpn
