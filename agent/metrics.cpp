#include "agent/metrics.h"

#include <fmt/format.h>
#include <iterator>

namespace novpn {

namespace {

void family(std::string& text, const char* name, const char* type, const char* help) {
    text += fmt::format("# TYPE {0} {1}\n# HELP {0} {2}\n", name, type, help);
}

/// Label values: backslash, quote and line feed are escaped (OpenMetrics, "Text format").
std::string label(const std::string& value) {
    std::string escaped;
    for (char c : value) {
        if (c == '\\' || c == '"') escaped += '\\';
        if (c == '\n')
            escaped += "\\n";
        else
            escaped += c;
    }
    return escaped;
}

} // namespace

std::string to_metrics(const StatusFacts& facts) {
    std::string text;
    auto out = std::back_inserter(text);
    family(text, "novpn_repairs", "counter", "Passes that put back what another program removed.");
    fmt::format_to(out, "novpn_repairs_total {}\n", facts.repairs);
    if (facts.last_reaction) {
        family(text, "novpn_last_reaction_seconds", "gauge",
               "From the kernel's notification to its state being right.");
        fmt::format_to(out, "novpn_last_reaction_seconds {:.6f}\n",
                       static_cast<double>(facts.last_reaction->count()) / 1e6);
    }
    family(text, "novpn_class_packets", "counter",
           "New flows marked, flows masqueraded, packets dropped by the guard.");
    for (const auto& [name, packets] : facts.packets) {
        for (auto [kind, count] :
             {std::pair{"marked", packets.marked}, {"masqueraded", packets.masqueraded}, {"dropped", packets.dropped}})
            fmt::format_to(out, "novpn_class_packets_total{{class=\"{}\",kind=\"{}\"}} {}\n", label(name), kind, count);
    }
    family(text, "novpn_class_state", "stateset", "What becomes of the class's packets.");
    for (const auto& [name, decision] :
         facts.desired ? facts.desired->classes : std::map<std::string, ClassDecision>{}) {
        for (ClassState state : {ClassState::steering, ClassState::blocked, ClassState::tunnel, ClassState::off})
            fmt::format_to(out, "novpn_class_state{{class=\"{}\",novpn_class_state=\"{}\"}} {}\n", label(name),
                           to_string(state), decision.state == state ? 1 : 0);
    }
    family(text, "novpn_uplink", "info", "The physical way out, per family.");
    for (const auto& [f, selection] : facts.desired ? facts.desired->uplinks : std::map<Family, Selection>{}) {
        if (!selection.uplink) continue;
        fmt::format_to(out, "novpn_uplink_info{{family=\"{}\",link=\"{}\",gateway=\"{}\",from=\"{}\"}} 1\n",
                       to_string(f), label(selection.uplink->link_name),
                       selection.uplink->gateway ? selection.uplink->gateway->to_string() : "",
                       to_string(selection.from));
    }
    family(text, "novpn_takeover", "info", "How a tunnel took over public destinations.");
    for (const auto& [f, takeovers] :
         facts.desired ? facts.desired->takeovers : std::map<Family, std::vector<Takeover>>{}) {
        for (const Takeover& takeover : takeovers)
            fmt::format_to(out, "novpn_takeover_info{{family=\"{}\",shape=\"{}\",link=\"{}\"}} 1\n", to_string(f),
                           to_string(takeover.shape), label(takeover.link_name));
    }
    return text + "# EOF\n";
}

} // namespace novpn
