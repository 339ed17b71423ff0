// The shipped packaging/novpn.yaml and packaging/novpn.schema.json against the table of keys, the defaults and the
// examples.
#include "config/document.h"
#include "config/load.h"
#include "config/schema.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <regex.h>
#include <set>
#include <sstream>
#include <string>

namespace novpn {
namespace {

const std::filesystem::path kSource = NOVPN_SOURCE_DIR;

std::string content(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    EXPECT_TRUE(in) << file;
    return {std::istreambuf_iterator<char>(in), {}};
}

using Names = std::set<std::string>;

Names names_of_keys() {
    const auto names = key_names();
    return {names.begin(), names.end()};
}

/// The keys of the table that a document names.
void collect_keys(const YamlNode& node, const std::string& path, Names& names) {
    if (names_of_keys().contains(path)) {
        names.insert(path);
        return;
    }
    for (const YamlNode& entry : node.children) {
        const std::string name = path == "classes" ? "*" : entry.key;
        collect_keys(entry, path.empty() ? name : path + "." + name, names);
    }
}

/// "#key: value" without its '#'; "# prose" stays.
std::string uncommented(const std::string& text) {
    std::istringstream lines(text);
    std::string out;
    for (std::string line; std::getline(lines, line);) {
        const bool setting = line.starts_with('#') && line.size() > 1 && (line.find_first_not_of(' ', 1) != 2);
        out += (setting ? line.substr(1) : line) + "\n";
    }
    return out;
}

class ShippedFile : public testing::Test {
  protected:
    const std::string text_ = content(kSource / "packaging/novpn.yaml");
    Names keys_of(const std::string& part) {
        Names names;
        collect_keys(read_document(part).value(), "", names);
        return names;
    }
};

TEST_F(ShippedFile, ChangesNothingAsItIs) { EXPECT_EQ(parse_config(text_, "f").value(), Config{}); }

TEST_F(ShippedFile, NamesEveryKeyWithItsDefault) {
    const std::string settings = uncommented(text_);
    EXPECT_EQ(keys_of(settings), names_of_keys());
    const auto config = parse_config(settings, "f");
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_EQ(*config, Config{});
}

/// Leaves of the schema: what has no properties of its own. A default is put into `defaults` in the place of its key.
void collect_schema(const boost::json::object& schema, const std::string& path, Names& keys,
                    boost::json::object& defaults) {
    const auto enter = [&](std::string_view name, std::string_view setting, const boost::json::value& inner) {
        const std::string inner_path = path.empty() ? std::string(name) : path + "." + std::string(name);
        const auto& inner_schema = inner.as_object();
        if (inner_schema.contains("properties") || inner_schema.contains("patternProperties")) {
            boost::json::object below;
            collect_schema(inner_schema, inner_path, keys, below);
            if (!below.empty()) defaults[setting] = below;
            return;
        }
        keys.insert(inner_path);
        defaults[setting] = inner_schema.at("default");
    };
    if (const auto* properties = schema.if_contains("properties")) {
        for (const auto& [name, inner] : properties->as_object()) enter(name, name, inner);
    }
    if (const auto* patterns = schema.if_contains("patternProperties")) {
        for (const auto& entry : patterns->as_object()) enter("*", "novpn", entry.value());
    }
}

TEST(Schema, HasTheKeysOfTheTableAndTheirDefaults) {
    const std::string text = content(kSource / "packaging/novpn.schema.json");
    boost::json::error_code failed;
    const auto schema = boost::json::parse(text, failed);
    ASSERT_FALSE(failed) << failed.message();
    EXPECT_TRUE(read_document(text)) << read_document(text).error().what; // finds duplicate keys

    Names keys;
    boost::json::object defaults;
    collect_schema(schema.as_object(), "", keys, defaults);
    EXPECT_EQ(keys, names_of_keys());
    const auto config = parse_config(boost::json::serialize(defaults), "f"); // JSON is YAML
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_EQ(*config, Config{});
}

// ---- every example against the schema ----

namespace json = boost::json;

/// POSIX extended: what our patterns use of it means the same in JSON Schema. std::regex has false warnings under ASan.
bool matches(const std::string& text, const std::string& pattern) {
    regex_t compiled{};
    if (::regcomp(&compiled, pattern.c_str(), REG_EXTENDED | REG_NOSUB) != 0) {
        ADD_FAILURE() << "not a pattern: " << pattern;
        return false;
    }
    const bool found = ::regexec(&compiled, text.c_str(), 0, nullptr, 0) == 0;
    ::regfree(&compiled);
    return found;
}

std::string text_of(const json::value& value) { return std::string(value.as_string()); }

/// The value that a JSON Schema sees, as YAML 1.2 reads plain scalars.
json::value to_json(const YamlNode& node) {
    switch (node.kind) {
    case YamlNode::Kind::null: return nullptr;
    case YamlNode::Kind::list: {
        json::array list;
        for (const YamlNode& item : node.children) list.push_back(to_json(item));
        return list;
    }
    case YamlNode::Kind::map: {
        json::object map;
        for (const YamlNode& entry : node.children) map[entry.key] = to_json(entry);
        return map;
    }
    case YamlNode::Kind::scalar: break;
    }
    if (node.quoted) return json::value(node.text);
    if (node.text == "true" || node.text == "false") return node.text == "true";
    if (!matches(node.text, "^(-?[0-9]{1,18}|0x[0-9a-fA-F]{1,15})$")) return json::value(node.text);
    return std::stoll(node.text, nullptr, node.text.starts_with("0x") ? 16 : 10);
}

/// The part of JSON Schema that ours uses; another keyword is a failure of the test.
class SchemaReader {
  public:
    explicit SchemaReader(const json::object& root)
        : root_(root) {}

    /// What the schema refuses of the value ("classes.novpn.table: minimum"), or nothing.
    std::string refused(const json::object& schema, const json::value& value, const std::string& path = "") const {
        for (const auto& [keyword, argument] : schema) {
            const std::string below = refused_by(schema, keyword, argument, value, path);
            if (!below.empty()) return below;
        }
        return {};
    }

  private:
    bool accepts(const json::value& schema, const json::value& value) const {
        return refused(schema.as_object(), value).empty();
    }

    static std::string inside(const std::string& path, std::string_view key) {
        return path + (path.empty() ? "" : ".") + std::string(key);
    }

    static bool has_type(const json::value& name, const json::value& value) {
        if (name == "null") return value.is_null();
        if (name == "boolean") return value.is_bool();
        if (name == "integer") return value.is_int64();
        if (name == "string") return value.is_string();
        if (name == "array") return value.is_array();
        if (name == "object") return value.is_object();
        ADD_FAILURE() << "unknown type " << name;
        return false;
    }

    std::string refused_by(const json::object& schema, std::string_view keyword, const json::value& argument,
                           const json::value& value, const std::string& path) const {
        static const std::set<std::string_view> kNotes{"$schema", "$defs", "title", "description", "default"};
        if (kNotes.contains(keyword)) return {};
        const std::string no = path + ": " + std::string(keyword);
        const auto accepts_value = [&](const json::value& option) { return accepts(option, value); };
        const auto if_not = [&](bool good) { return good ? std::string() : no; };

        if (keyword == "$ref") {
            const std::string_view name = argument.as_string();
            return refused(root_.at("$defs").at(name.substr(name.rfind('/') + 1)).as_object(), value, path);
        }
        if (keyword == "type") {
            const auto names = argument.is_array() ? argument.as_array() : json::array{argument};
            return if_not(
                std::any_of(names.begin(), names.end(), [&](const auto& name) { return has_type(name, value); }));
        }
        if (keyword == "enum") {
            const json::array& values = argument.as_array();
            return if_not(std::find(values.begin(), values.end(), value) != values.end());
        }
        if (keyword == "not") return if_not(!accepts(argument, value));
        if (keyword == "anyOf" || keyword == "oneOf") {
            const json::array& options = argument.as_array();
            const auto good = std::count_if(options.begin(), options.end(), accepts_value);
            return if_not(keyword == "anyOf" ? good > 0 : good == 1);
        }
        if (keyword == "minimum")
            return if_not(!value.is_int64() || value.as_int64() >= argument.to_number<std::int64_t>());
        if (keyword == "maximum")
            return if_not(!value.is_int64() || value.as_int64() <= argument.to_number<std::int64_t>());
        if (keyword == "minLength") return if_not(!value.is_string() || characters(value) >= argument.as_int64());
        if (keyword == "maxLength") return if_not(!value.is_string() || characters(value) <= argument.as_int64());
        if (keyword == "pattern") return if_not(!value.is_string() || matches(text_of(value), text_of(argument)));
        if (keyword == "items") {
            if (!value.is_array()) return {};
            return if_not(std::all_of(value.as_array().begin(), value.as_array().end(),
                                      [&](const json::value& item) { return accepts(argument, item); }));
        }
        if (keyword == "maxItems")
            return if_not(!value.is_array() || std::ssize(value.as_array()) <= argument.as_int64());
        if (keyword == "required") {
            if (!value.is_object()) return {};
            return if_not(
                std::all_of(argument.as_array().begin(), argument.as_array().end(),
                            [&](const json::value& name) { return value.as_object().contains(name.as_string()); }));
        }
        if (keyword == "maxProperties") {
            return if_not(!value.is_object() || std::ssize(value.as_object()) <= argument.as_int64());
        }
        if (keyword == "properties" || keyword == "patternProperties" || keyword == "additionalProperties") {
            return value.is_object() ? refused_keys(schema, keyword, value.as_object(), path) : std::string();
        }
        ADD_FAILURE() << "unknown keyword " << keyword;
        return no;
    }

    /// The schema of each key that `keyword` speaks of.
    std::string refused_keys(const json::object& schema, std::string_view keyword, const json::object& map,
                             const std::string& path) const {
        static const json::object kNone;
        const auto* properties = schema.if_contains("properties");
        const auto* patterns = schema.if_contains("patternProperties");
        for (const auto& [key, value] : map) {
            const auto* own = properties == nullptr ? nullptr : properties->as_object().if_contains(key);
            std::string below;
            if (keyword == "properties" && own != nullptr) below = refused(own->as_object(), value, inside(path, key));
            bool of_pattern = false;
            for (const auto& [pattern, of_keys] : patterns == nullptr ? kNone : patterns->as_object()) {
                if (!matches(key, pattern)) continue;
                of_pattern = true;
                if (keyword == "patternProperties") below = refused(of_keys.as_object(), value, inside(path, key));
            }
            if (keyword == "additionalProperties" && own == nullptr && !of_pattern)
                below = inside(path, key) + ": unknown key";
            if (!below.empty()) return below;
        }
        return {};
    }

    static std::int64_t characters(const json::value& value) {
        const auto& text = value.as_string();
        return std::count_if(text.begin(), text.end(),
                             [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; });
    }

    const json::object& root_;
};

/// "" where the schema accepts the text.
std::string refused_by_schema(const YamlNode& document) {
    static const json::value schema = json::parse(content(kSource / "packaging/novpn.schema.json"));
    return SchemaReader(schema.as_object()).refused(schema.as_object(), to_json(document));
}

/// Of two values together, or of the bits of one: no schema can tell.
const Names kBeyondASchema{"bad_class_without_mark",
                           "bad_clash_classid",
                           "bad_classid_missing",
                           "bad_classid_without_net_cls",
                           "bad_dns_uplink_by_net_cls",
                           "bad_net_cls_mount",
                           "bad_dns_uplink_by_nft",
                           "bad_class_without_numbers",
                           "bad_clash_table",
                           "bad_clash_mark_with_the_default",
                           "bad_clash_preference",
                           "bad_mark_outside_mask",
                           "bad_destination_host_bits",
                           "bad_destination_in_two",
                           "bad_user_absent",
                           "bad_user_in_two",
                           "bad_user_root",
                           "bad_cgroup_dots",
                           "bad_site_class",
                           "bad_site_dns_by_nft",
                           "bad_site_ssid_unwritten",
                           "bad_site_template",
                           "bad_site_unreachable_ssid",
                           "bad_site_user_in_two",
                           "bad_site_unreachable",
                           "bad_site_without_match"};

TEST(Schema, AcceptsAndRefusesTheExamplesAsTheAgentDoes) {
    int seen = 0;
    for (const auto& file : std::filesystem::directory_iterator(kSource / "tests/unit/config_examples")) {
        const std::string text = content(file.path());
        const std::string name = file.path().stem().native();
        const auto document = read_document(text);
        if (!document) continue; // Not the YAML that a schema is for.
        ++seen;
        const std::string refused = refused_by_schema(*document);
        const bool good = parse_config(text, "f").has_value() || kBeyondASchema.contains(name);
        EXPECT_EQ(refused.empty(), good) << name << ": " << (refused.empty() ? "accepted by the schema" : refused);
    }
    EXPECT_GT(seen, 30);
}

TEST(Schema, AcceptsTheShippedFileWithItsSettings) {
    const std::string text = content(kSource / "packaging/novpn.yaml");
    EXPECT_EQ(refused_by_schema(read_document(text).value()), "");
    EXPECT_EQ(refused_by_schema(read_document(uncommented(text)).value()), "");
}

TEST(Schema, SaysWhatItRefuses) {
    const auto refused = [](std::string_view text) { return refused_by_schema(read_document(text).value()); };
    EXPECT_EQ(refused("classes: {novpn: {table: 254}}"), "classes.novpn.table: not");
    EXPECT_EQ(refused("classes: {novpn: {uplink: a, via: b}}"), "classes.novpn: not");
    EXPECT_EQ(refused("classes: {novpn: {uplink: a, via: null}}"), "");
    EXPECT_EQ(refused("allow: {users: [1000, -1]}"), "allow.users: items");
    EXPECT_EQ(refused("log: {levels: info}"), "log.levels: unknown key");
}

} // namespace
} // namespace novpn
