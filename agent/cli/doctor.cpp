#include "agent/cli/doctor.h"

#include "agent/cli/fields.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <fmt/format.h>

namespace novpn {
namespace {

namespace json = boost::json;
using State = Finding::State;

std::string_view word(State state) {
    switch (state) {
    case State::ok: return "ok";
    case State::note: return "note";
    case State::wrong: return "wrong";
    }
    return "";
}

/// "left by wlan0 as 192.0.2.7", "did not leave (No route to host)"
std::string described(const Departure& departure) {
    if (!departure.link.empty()) return fmt::format("left by {} as {}", departure.link, departure.source);
    if (departure.refused.empty()) return "did not leave: it was dropped on its way out";
    return fmt::format("did not leave: {}", departure.refused);
}

/// Of a warning of the agent's, by its code.
std::string_view mend_of(std::string_view code) {
    if (code == "pending") return "novpn plan lists it, journalctl -u novpnd says why; it is tried again and again";
    if (code == "config") return "novpn check /etc/novpn/novpn.yaml, then sudo novpn reload";
    if (code == "rule_ahead" || code == "rule_order" || code == "rival_rule")
        return "give that rule a preference above those of novpn, or leave more room before them with `preference` in "
               "novpn.yaml; ip rule lists all";
    if (code == "dns") return "say `dns: vpn` of the class in novpn.yaml, then sudo novpn reload";
    if (code == "policy") return "ip xfrm policy lists it; its owner sets the priority";
    return "journalctl -u novpnd says more";
}

/// What gives way to a network that is there.
std::string_view mend_of_health(std::string_view health) {
    return health == "blocked" ? "connect to a network, or let `when_no_uplink: tunnel` send members through the VPN "
                                 "meanwhile"
                               : "novpn status names what is in the way";
}

} // namespace

std::vector<Finding> judge_status(const json::object& status) {
    const std::string summary = text_of(status, "summary");
    const std::string health = text_of(status, "health");
    const bool well = health == "ok";
    std::vector<Finding> findings{{.state = well ? State::ok : State::wrong,
                                   .check = "agent",
                                   .text = summary,
                                   .mend = well ? "" : std::string(mend_of_health(health))}};
    for (const auto* warning : objects_of(status, "warnings")) {
        const std::string text = text_of(*warning, "text");
        const std::string mend(mend_of(text_of(*warning, "code")));
        if (text != summary)
            findings.push_back({State::wrong, "agent", text, mend});
        else
            findings.front().mend = mend;
    }
    return findings;
}

Finding judge_kernel(const Expected<std::string>& no_bpf) {
    if (!no_bpf && no_bpf.error().code == std::errc::operation_not_permitted)
        return {State::note, "kernel", "only root can ask the kernel for its features", "sudo novpn doctor"};
    if (!no_bpf)
        return {State::wrong, "kernel", to_string(no_bpf.error()), "another kernel, or load the module it names"};
    if (!no_bpf->empty())
        return {State::note, "kernel", "nft alone marks members' packets, with masquerade: " + *no_bpf,
                "mend what it names, or leave it: members are outside the VPN all the same"};
    return {State::ok, "kernel", "nftables has all that is needed, and BPF marks sockets when they are made", ""};
}

Finding judge_reverse_path(const std::string& link, const ReversePath& settings, bool taken_over) {
    if (settings.rp_filter != 1 || settings.src_valid_mark)
        return {State::ok, "rp_filter", fmt::format("{} takes the replies to members", link), ""};
    return {taken_over ? State::wrong : State::note, "rp_filter",
            fmt::format("rp_filter is strict (1) on {}, which drops the replies to members while a VPN has the default "
                        "route",
                        link),
            fmt::format("sudo sysctl net.ipv4.conf.{}.src_valid_mark=1", link)};
}

std::vector<Finding> judge_filters(const json::object& status, const std::vector<ReversePathFilter>& filters) {
    const auto is_taken_over = [&](const char* family) {
        return !objects_of(object_of(object_of(status, "families"), family), "takeovers").empty();
    };
    std::vector<Finding> findings;
    for (const ReversePathFilter& filter : filters) {
        if (!drops_answers(filter)) continue;
        const bool drops_now =
            (filter.family != "ip6" && is_taken_over("ipv4")) || (filter.family != "ip" && is_taken_over("ipv6"));
        findings.push_back(
            {drops_now ? State::wrong : State::note, "rpfilter",
             fmt::format("{} drops the replies to members while a VPN has the default route: it looks for "
                         "the way back without their mark",
                         to_string(filter)),
             to_let_pass(filter)});
    }
    return findings;
}

std::optional<Finding> judge_names(const json::object& status, const std::string& beside_dns) {
    for (const auto* of_class : objects_of(status, "classes")) {
        const json::object& dns = object_of(*of_class, "dns");
        if (text_of(dns, "by") != "uplink") continue;
        const std::string name = text_of(*of_class, "name");
        if (beside_dns.empty())
            return Finding{State::ok, "names", fmt::format("names of class {} are resolved {}", name, dns_words(dns)),
                           ""};
        return Finding{
            State::wrong, "names",
            fmt::format("programs of class {} that ask for names by {} get the VPN's answers: that is no DNS "
                        "query of theirs, which dns: uplink could redirect",
                        name, beside_dns),
            beside_dns == "nscd" ? "sudo systemctl disable --now nscd"
                                 : "take `resolve` off the line `hosts:` of /etc/nsswitch.conf, and have `dns` "
                                   "there: it asks systemd-resolved's stub, and so is redirected"};
    }
    return std::nullopt;
}

std::optional<Finding> judge_networkd(const NetworkdSettings& settings) {
    if (!settings.runs) return std::nullopt;
    if (settings.keeps_rules && settings.keeps_routes)
        return Finding{State::ok, "networkd", "systemd-networkd leaves rules and routes of others alone", ""};
    return Finding{State::wrong, "networkd",
                   "`networkctl reconfigure` deletes novpn's rules and routes, until the agent puts them back",
                   "set ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in [Network] of a file in "
                   "/etc/systemd/networkd.conf.d/, and restart systemd-networkd"};
}

Proof expected_of(const json::object& status, const json::object& of_class, const std::string& family) {
    Proof proof{.class_name = text_of(of_class, "name"), .family = family, .state = text_of(of_class, "state")};
    proof.link = text_of(object_of(of_class, "uplinks"), family);
    proof.mark = {static_cast<std::uint32_t>(number_of(of_class, "mark").value_or(0)),
                  static_cast<std::uint32_t>(number_of(of_class, "mask").value_or(0))};
    const auto& uplink = object_of(object_of(object_of(status, "families"), family), "uplink");
    if (text_of(uplink, "link") == proof.link) proof.source = text_of(uplink, "source");
    return proof;
}

Finding judge_packets(const Proof& proof) {
    const Departure& member = proof.member;
    Finding finding{.check = "packets",
                    .text = fmt::format("{}: a packet of class {} {}, an ordinary one {}", proof.family,
                                        proof.class_name, described(member), described(proof.ordinary))};
    if (proof.link.empty() && proof.state != "tunnel") {
        if (member.link.empty()) return finding;
        finding.text += ", and the class has no uplink";
    } else if (proof.state == "tunnel" ||
               (member.link == proof.link && (proof.source.empty() || member.source == proof.source))) {
        return finding;
    } else if (member.link == proof.link) {
        finding.text += fmt::format("; its source should be {}", proof.source);
    } else {
        finding.text += fmt::format("; it should leave by {}", proof.link);
    }
    finding.state = State::wrong;
    finding.mend = fmt::format("novpn explain --class {} {}", proof.class_name, proof_destination(proof.family));
    if (member.link.empty()) finding.mend += " names the rule in its way; or a firewall drops it: nft list ruleset";
    return finding;
}

std::vector<Finding> judge_firewalls(const std::vector<Proof>& proofs, const std::vector<Firewall>& firewalls) {
    std::vector<Finding> findings;
    for (const Proof& proof : proofs) {
        if (proof.link.empty() || !proof.member.link.empty()) continue;
        for (const Firewall& firewall : likeliest(firewalls)) {
            // A table of the other family did not have this packet.
            if (firewall.family == (proof.family == "ipv6" ? "ip" : "ip6")) continue;
            Finding finding{State::wrong, "firewall",
                            fmt::format("{}: {} may be what dropped the packet of class {}", proof.family,
                                        to_string(firewall), proof.class_name),
                            to_let_pass(firewall, proof.mark)};
            const auto same = [&](const Finding& other) { return other.mend == finding.mend; };
            if (std::ranges::none_of(findings, same)) findings.push_back(std::move(finding));
        }
    }
    return findings;
}

bool is_well(const std::vector<Finding>& findings) {
    return std::ranges::none_of(findings, [](const Finding& finding) { return finding.state == State::wrong; });
}

std::string to_diagnosis(const std::vector<Finding>& findings) {
    const auto wrong = std::ranges::count(findings, State::wrong, &Finding::state);
    std::string text = wrong == 0 ? "Nothing is wrong.\n\n" : counted(wrong, "thing is", "things are") + " wrong.\n\n";
    for (const Finding& finding : findings) {
        text += fmt::format("{:<7}{:<11}{}\n", word(finding.state), finding.check, finding.text);
        if (!finding.mend.empty()) text += fmt::format("{:<18}mend: {}\n", "", finding.mend);
    }
    return text;
}

json::object to_json(const std::vector<Finding>& findings) {
    json::array list;
    for (const Finding& finding : findings)
        list.push_back({{"check", finding.check},
                        {"state", word(finding.state)},
                        {"text", finding.text},
                        {"mend", finding.mend.empty() ? json::value(nullptr) : json::value(finding.mend)}});
    return {{"ok", is_well(findings)}, {"findings", std::move(list)}};
}

} // namespace novpn
