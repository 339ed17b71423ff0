#include "config/document.h"

#include "config/text.h"

#include <algorithm>
#include <exception>
#include <fmt/format.h>
#include <optional>
#include <sstream>
#include <utility>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

namespace novpn {
namespace {

constexpr auto kNoAliases = "anchors and aliases are not allowed; a value that begins with '*' or '&' needs quotes";
constexpr auto kNoTags = "tags are not allowed; a value that begins with '!' needs quotes";

/// Leaves the parser from inside a callback: yaml-cpp has no other way to stop early.
struct Refused : std::exception {
    explicit Refused(Problem p)
        : problem(std::move(p)) {}
    Problem problem;
};

/// Positions in `text` from yaml-cpp's marks, which count from 0 and in bytes.
class Positions {
  public:
    explicit Positions(std::string_view text)
        : text_(text) {
        for (std::size_t i = 0; i < text.size(); ++i) {
            if (text[i] == '\n') line_starts_.push_back(i + 1);
        }
    }

    Position operator()(const YAML::Mark& mark) const {
        const std::string_view before = line_until(mark);
        const auto characters = std::count_if(before.begin(), before.end(), starts_character);
        return {.line = std::max(mark.line, 0) + 1, .column = static_cast<int>(characters) + 1};
    }

    char character_at(const YAML::Mark& mark, int offset) const {
        const std::size_t at = line_until(mark).size() + start_of(mark);
        const auto wanted = static_cast<std::ptrdiff_t>(at) + offset;
        return wanted >= 0 && wanted < std::ssize(text_) ? text_[static_cast<std::size_t>(wanted)] : '\0';
    }

  private:
    static bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }

    std::size_t start_of(const YAML::Mark& mark) const {
        const auto line = static_cast<std::size_t>(std::max(mark.line, 0));
        return line < line_starts_.size() ? line_starts_[line] : text_.size();
    }

    std::string_view line_until(const YAML::Mark& mark) const {
        return text_.substr(start_of(mark), static_cast<std::size_t>(std::max(mark.column, 0)));
    }

    std::string_view text_;
    std::vector<std::size_t> line_starts_{0};
};

/// Builds the tree from the parser's events and refuses at the first thing that is not allowed.
class TreeBuilder : public YAML::EventHandler {
  public:
    explicit TreeBuilder(const Positions& positions)
        : positions_(positions) {}

    YamlNode take() { return std::move(root_); }

    void OnDocumentStart(const YAML::Mark& mark) override {
        if (std::exchange(started_, true)) refuse(mark, "a second document is not allowed; one file is one document");
    }
    void OnDocumentEnd() override {}

    void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
        if (awaits_key()) refuse(mark, "a key must be a word");
        add({.at = pending_key_ ? pending_key_->at : positions_(mark)}, mark, anchor, "");
    }

    void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse(mark, kNoAliases); }

    void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  const std::string& value) override {
        if (!awaits_key()) {
            add({.kind = YamlNode::Kind::scalar, .at = positions_(mark), .text = value, .quoted = tag == "!"}, mark,
                anchor, tag);
            return;
        }
        check_plain(mark, anchor, tag);
        if (value == "<<") refuse(mark, "merge keys are not allowed; write the keys out");
        for (const YamlNode& sibling : open_.back()->children) {
            if (sibling.key == value) {
                refuse(mark,
                       fmt::format("duplicate key {}; the first one is in line {}", quote(value), sibling.key_at.line));
            }
        }
        pending_key_ = Key{.text = value, .at = positions_(mark)};
    }

    void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                         YAML::EmitterStyle::value) override {
        open(YamlNode::Kind::list, mark, tag, anchor);
    }
    void OnSequenceEnd() override { open_.pop_back(); }

    void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                    YAML::EmitterStyle::value) override {
        open(YamlNode::Kind::map, mark, tag, anchor);
    }
    void OnMapEnd() override { open_.pop_back(); }

  private:
    struct Key {
        std::string text;
        Position at;
    };

    [[noreturn]] void refuse(const YAML::Mark& mark, std::string what) const {
        throw Refused({.at = positions_(mark), .what = std::move(what)});
    }

    bool awaits_key() const { return !open_.empty() && open_.back()->kind == YamlNode::Kind::map && !pending_key_; }

    /// yaml-cpp tags a plain scalar "?", a quoted one "!", and a list or map "?" or nothing.
    void check_plain(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag) const {
        if (anchor != YAML::NullAnchor) refuse(mark, kNoAliases);
        if (!tag.empty() && tag != "?" && tag != "!") refuse(mark, kNoTags);
    }

    void open(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
        if (awaits_key()) refuse(mark, "a key must be a word");
        if (open_.size() == kMaxDepth) refuse(mark, fmt::format("nested too deeply; allowed: {} levels", kMaxDepth));
        open_.push_back(&add({.kind = kind, .at = positions_(mark)}, mark, anchor, tag));
    }

    /// The pointers in `open_` stay valid: a list or map grows only while it is the last open one.
    YamlNode& add(YamlNode node, const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag) {
        check_plain(mark, anchor, tag);
        if (++nodes_ > kMaxNodes) refuse(mark, fmt::format("too many values; allowed: {}", kMaxNodes));
        if (open_.empty()) return root_ = std::move(node);
        if (pending_key_) {
            node.key = std::move(pending_key_->text);
            node.key_at = pending_key_->at;
            pending_key_.reset();
        }
        return open_.back()->children.emplace_back(std::move(node));
    }

    const Positions& positions_;
    YamlNode root_;
    std::vector<YamlNode*> open_; ///< from the root to where the next value goes
    std::optional<Key> pending_key_;
    std::size_t nodes_ = 0;
    bool started_ = false;
};

/// The first byte that is neither UTF-8 text nor a line end. Checked before the parser, which replaces or swallows such
/// bytes.
std::optional<Problem> find_bad_character(std::string_view text) {
    Position at;
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const char c = text.front();
        const auto byte = static_cast<unsigned char>(c);
        if (length == 0) return Problem{.at = at, .what = fmt::format("byte 0x{:02x} is not UTF-8", byte)};
        const bool line_end = c == '\n' || text.starts_with("\r\n");
        if (is_control(c) && c != '\t' && !line_end) {
            return Problem{.at = at, .what = fmt::format("control character 0x{:02x} is not allowed", byte)};
        }
        at =
            c == '\n' ? Position{.line = at.line + 1, .column = 1} : Position{.line = at.line, .column = at.column + 1};
        text.remove_prefix(length);
    }
    return std::nullopt;
}

/// yaml-cpp rejects `[*]` and the alias of an unknown anchor as syntax before any event; say what we say of aliases.
Problem syntax_problem(const YAML::ParserException& error, const Positions& positions) {
    const Position at = positions(error.mark);
    for (const int offset : {0, -1}) {
        const Position here{.line = at.line, .column = at.column + offset};
        const char c = positions.character_at(error.mark, offset);
        if (c == '*' || c == '&') return {.at = here, .what = kNoAliases};
        if (c == '!') return {.at = here, .what = kNoTags};
    }
    return {.at = at, .what = "not valid YAML: " + printable(error.msg)};
}

} // namespace

tl::expected<YamlNode, Problem> read_document(std::string_view text) {
    if (text.size() > kMaxConfigBytes) {
        return tl::unexpected(Problem{.at = {}, .what = "larger than 1 MiB, which is the most that is allowed"});
    }
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    if (auto bad = find_bad_character(text)) return tl::unexpected(std::move(*bad));

    const Positions positions(text);
    TreeBuilder builder(positions);
    std::istringstream stream{std::string(text)};
    try {
        YAML::Parser parser(stream);
        while (parser.HandleNextDocument(builder)) {
        }
    } catch (const Refused& refused) {
        return tl::unexpected(refused.problem);
    } catch (const YAML::ParserException& error) {
        return tl::unexpected(syntax_problem(error, positions));
    }
    return builder.take();
}

} // namespace novpn
