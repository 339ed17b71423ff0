// The shipped packaging/novpn.yaml and packaging/novpn.schema.json against the table of keys and the defaults.
#include "config/document.h"
#include "config/load.h"
#include "config/schema.h"

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
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

Names key_names_that_are(bool built) {
    Names names;
    for (const auto& key : key_names()) {
        if (key.built == built) names.insert(key.path);
    }
    return names;
}

/// The keys of the table that a document names.
void collect_keys(const YamlNode& node, const std::string& path, Names& names) {
    const auto table = key_names();
    if (std::any_of(table.begin(), table.end(), [&](const KeyName& key) { return key.path == path; })) {
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
    const std::size_t not_built_ = text_.find("# ---- Not supported yet ----");
    Names keys_of(const std::string& part) {
        Names names;
        collect_keys(read_document(part).value(), "", names);
        return names;
    }
};

TEST_F(ShippedFile, ChangesNothingAsItIs) { EXPECT_EQ(parse_config(text_, "f").value(), Config{}); }

TEST_F(ShippedFile, NamesEveryBuiltKeyWithItsDefault) {
    ASSERT_NE(not_built_, std::string::npos);
    const std::string built = uncommented(text_.substr(0, not_built_));
    EXPECT_EQ(keys_of(built), key_names_that_are(true));
    const auto config = parse_config(built, "f");
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_EQ(*config, Config{});
}

TEST_F(ShippedFile, ListsTheKeysThatAreNotBuiltApart) {
    ASSERT_NE(not_built_, std::string::npos);
    EXPECT_EQ(keys_of(uncommented(text_.substr(not_built_))), key_names_that_are(false));
}

/// Leaves of the schema: what has no properties of its own. A default is put into `defaults` in the place of its key.
void collect_schema(const boost::json::object& schema, const std::string& path, Names& built, Names& not_built,
                    boost::json::object& defaults) {
    const auto enter = [&](std::string_view name, std::string_view setting, const boost::json::value& inner) {
        const std::string inner_path = path.empty() ? std::string(name) : path + "." + std::string(name);
        const auto& inner_schema = inner.as_object();
        if (inner_schema.contains("properties") || inner_schema.contains("patternProperties")) {
            boost::json::object below;
            collect_schema(inner_schema, inner_path, built, not_built, below);
            if (!below.empty()) defaults[setting] = below;
            return;
        }
        const auto* reference = inner_schema.if_contains("$ref");
        if (reference != nullptr && *reference == "#/$defs/notSupportedYet") {
            not_built.insert(inner_path);
        } else {
            built.insert(inner_path);
            defaults[setting] = inner_schema.at("default");
        }
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

    Names built;
    Names not_built;
    boost::json::object defaults;
    collect_schema(schema.as_object(), "", built, not_built, defaults);
    EXPECT_EQ(built, key_names_that_are(true));
    EXPECT_EQ(not_built, key_names_that_are(false));
    const auto config = parse_config(boost::json::serialize(defaults), "f"); // JSON is YAML
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_EQ(*config, Config{});
}

} // namespace
} // namespace novpn
