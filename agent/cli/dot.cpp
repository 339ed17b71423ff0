#include "agent/cli/dot.h"

#include "agent/cli/fields.h"

#include <boost/json/array.hpp>
#include <fmt/format.h>
#include <map>
#include <set>
#include <vector>

namespace novpn {
namespace {

namespace json = boost::json;

/// A string of the language: names are chosen by others.
std::string dot_string(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (c == '\n')
            out += "\\n";
        else
            out += c;
    }
    return out + "\"";
}

class Graph {
  public:
    /// False where it is there already.
    bool node(const std::string& id, const std::string& label, std::string_view attributes = {}) {
        if (!nodes_.insert(id).second) return false;
        body_ += fmt::format("  {} [label={}{}]\n", dot_string(id), dot_string(label), attributes);
        return true;
    }
    void edge(const std::string& from, const std::string& to, const std::string& label = {},
              std::string_view attributes = {}) {
        body_ +=
            fmt::format("  {} -> {} [label={}{}]\n", dot_string(from), dot_string(to), dot_string(label), attributes);
    }
    std::string text(const std::string& title) const {
        return "digraph novpn {\n  rankdir=LR\n  label=" + dot_string(title) +
               "\n  labelloc=t\n  node [shape=box, fontname=sans]\n  edge [fontname=sans, fontsize=10]\n" + body_ +
               "}\n";
    }

  private:
    std::string body_;
    std::set<std::string> nodes_;
};

void add_link(Graph& graph, const std::string& link, bool tunnel) {
    const std::string colour = tunnel ? "firebrick" : "darkgreen";
    if (graph.node("link " + link, link, ", shape=cds, color=" + colour))
        graph.edge("link " + link, "internet", tunnel ? "through the VPN" : "");
}

std::string members_of(const json::object& of_class) {
    std::string text;
    std::int64_t processes = 0;
    for (const auto* member : objects_of(of_class, "members")) {
        if (const auto count = number_of(*member, "processes"))
            processes += *count;
        else
            text += "\n" + text_of(*member, "selector");
    }
    return text + "\n" + counted(processes, "process", "processes");
}

/// Links by the families that use them: "IPv4", "IPv4, IPv6".
std::map<std::string, std::string> links_of(const json::object& of_class) {
    std::map<std::string, std::string> families;
    for (const auto& [family, label] : {std::pair{"ipv4", "IPv4"}, std::pair{"ipv6", "IPv6"}}) {
        std::string& names = families[text_of(object_of(of_class, "uplinks"), family)];
        names += (names.empty() ? "" : ", ") + std::string(label);
    }
    return families;
}

void add_class(Graph& graph, const json::object& of_class, const std::set<std::string>& tunnels) {
    const std::string name = text_of(of_class, "name");
    const std::string state = text_of(of_class, "state");
    const std::string id = "class " + name;
    graph.node(id, "class " + name + members_of(of_class), ", style=bold");
    if (state == "off") {
        graph.edge(id, "others", "off", ", style=dashed");
        return;
    }
    const auto number = [&](const char* field) { return number_of(of_class, field).value_or(0); };
    const std::string table = fmt::format("table {}", number("table"));
    graph.node(table, table, ", shape=folder");
    graph.edge(id, table,
               fmt::format("mark {:#010x}/{:#010x}\nrule {}", number("mark"), number("mask"), number("preference")));
    for (const auto& [link, families] : links_of(of_class)) {
        if (!link.empty()) {
            add_link(graph, link, tunnels.contains(link));
            graph.edge(table, "link " + link, families, ", color=darkgreen");
        } else if (state == "tunnel") {
            graph.edge(table, "others", families + ": no uplink", ", style=dashed");
        } else {
            graph.node("backstop " + name, "unreachable", ", shape=octagon");
            graph.edge(table, "backstop " + name, families);
        }
    }
}

std::set<std::string> add_others(Graph& graph, const json::object& status) {
    std::set<std::string> tunnels;
    graph.node("others", "every other process");
    graph.node("internet", "internet", ", shape=ellipse");
    for (const auto& [family, label] : {std::pair{"ipv4", "IPv4"}, std::pair{"ipv6", "IPv6"}}) {
        const auto& of_family = object_of(object_of(status, "families"), family);
        const auto takeovers = objects_of(of_family, "takeovers");
        for (const auto* takeover : takeovers) {
            std::string shape = text_of(*takeover, "shape");
            const std::string link = text_of(*takeover, "link");
            if (const auto table = number_of(*takeover, "table")) shape += "\n" + table_words(*table);
            if (const auto preference = number_of(*takeover, "preference"))
                shape += fmt::format(", rule {}", *preference);
            const std::string tunnel = link.empty() ? "IPsec" : link;
            tunnels.insert(tunnel);
            add_link(graph, tunnel, true);
            graph.edge("others", "link " + tunnel, fmt::format("{}: {}", label, shape), ", color=firebrick");
        }
        const std::string uplink = text_of(object_of(of_family, "uplink"), "link");
        if (takeovers.empty() && !uplink.empty()) {
            add_link(graph, uplink, false);
            graph.edge("others", "link " + uplink, label);
        }
    }
    return tunnels;
}

} // namespace

std::string to_dot(const json::object& status) {
    Graph graph;
    const auto tunnels = add_others(graph, status);
    for (const auto* of_class : objects_of(status, "classes")) add_class(graph, *of_class, tunnels);
    return graph.text(text_of(status, "summary"));
}

} // namespace novpn
