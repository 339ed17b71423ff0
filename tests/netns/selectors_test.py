"""Destinations and users of a class, by what leaves the laptop: for every process, with the uplink's own address."""
import json
import unittest

from labtest import LabTest, SITES, the_lab

MEMBER_ECHO, ECHO, VPN_SEEN, DAEMON = the_lab.MEMBER_ECHO, the_lab.ECHO, the_lab.VPN_SEEN, the_lab.DAEMON
PREFIXES = {4: f"{MEMBER_ECHO[4]}/32", 6: f"{MEMBER_ECHO[6]}/128"}
BOTH = f"classes: {{novpn: {{destinations: ['{PREFIXES[4]}', '{PREFIXES[6]}']}}}}\n"
USER = "classes: {novpn: {users: [daemon]}}\n"


class SelectorTest(LabTest):
    def assert_listed_seen_at(self, site, uid=None, host=MEMBER_ECHO, families=(4, 6)):
        for family in families:
            for protocol in ("tcp", "udp"):
                self.assert_same(self.lab.probe(protocol, host[family], uid=uid, check=False), self.lab.site_address(site, family),
                                 f"{protocol} over IPv{family} to a listed destination")

    def packets(self):
        return self.agent.status()["classes"][0]["packets"]

    def assert_sources(self, sniffer, hosts, sources):
        """Whatever left for the hosts left by wlan0, and from these addresses only."""
        out = [line.split() for line in sniffer.packets() if line.split()[1] == "out" and line.split()[3] in hosts]
        self.assertTrue(out, "no packet was seen")
        self.assert_same({(link, source) for link, _, source, _ in out}, {("wlan0", source) for source in sources}, "what left")

    def reload(self, config):
        (self.lab.directory / "novpn.yaml").write_text(config)
        return self.lab.novpn("reload")

    def member(self, selector):
        return next(m for m in self.agent.status()["classes"][0]["members"] if m["selector"] == selector)


class Destinations(SelectorTest):
    def check(self, mode):
        self.start_agent(BOTH)
        self.vpn_up(mode)
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_listed_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_sources(sniffer, MEMBER_ECHO.values(), [self.lab.laptop_address(4), self.lab.laptop_address(6)])
        counts = self.packets()
        self.assert_same((counts["masqueraded"], counts["dropped"]), (0, 0), "masqueraded and dropped packets")
        self.assert_same(counts["marked"], 4, "marked flows")
        self.assert_nothing_leaked()

    def test_under_halves(self):
        self.check("def1-ipv6")

    def test_under_a_replaced_default(self):
        self.check("plain")

    def test_of_a_forwarded_packet_is_not_ours(self):
        """Containers and virtual machines are the VPN's: a rule that took them would send them out beside it."""
        self.start_agent(BOTH)
        self.vpn_up("def1")
        forwarded = f"ip -o route get {MEMBER_ECHO[4]} from 192.168.10.77 iif wlan0"
        self.lab.shell("sysctl -qw net.ipv4.ip_forward=1")
        self.assertIn(" dev tun0 ", self.lab.shell(forwarded))
        self.assertIn(" dev wlan0 ", self.lab.shell(f"ip -o route get {MEMBER_ECHO[4]}"))

    def test_an_open_flow_keeps_its_path(self):
        self.start_agent("{}\n")
        self.vpn_up("def1")
        flows = {protocol: self.lab.flow("hold", protocol, 4, member=False) for protocol in ("tcp", "udp")}
        # lab.flow() asks an address that no class lists yet; list it now.
        sniffer = self.lab.sniff(ECHO[4])
        self.reload(f"classes: {{novpn: {{destinations: ['{ECHO[4]}']}}}}\n")
        for protocol, flow in flows.items():
            self.assert_same(flow.seen, VPN_SEEN[4], f"the {protocol} flow at its start")
            self.assert_same(flow.ask(), VPN_SEEN[4], f"the {protocol} flow after its destination was listed")
        self.assert_same(self.member(f"destination {ECHO[4]}")["old_sockets"], 2, "old sockets")
        self.assert_same(self.lab.probe("tcp", ECHO[4]), SITES["a"].seen4, "a new flow")
        self.assert_same({line for line in sniffer.packets("wlan0 out")}, {f"wlan0 out {self.lab.laptop_address()} {ECHO[4]}"},
                         "packets on the uplink's wire")

    def test_leaving_ends_what_is_open(self):
        self.start_agent(BOTH)
        self.vpn_up("def1")
        flow = self.lab.flow("hold", "tcp", 4, member=False)
        self.assert_same(flow.seen, VPN_SEEN[4], "an ordinary flow")
        process = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "probe.py", "hold", "tcp", MEMBER_ECHO[4])
        listed = the_lab.Flow(process)
        self.assert_same(listed.seen, SITES["a"].seen4, "a flow to the destination")
        self.assert_same(self.member(f"destination {MEMBER_ECHO[4]}"),
                         {"selector": f"destination {MEMBER_ECHO[4]}", "sockets": 1, "old_sockets": 0, "old": []}, "the member")
        self.reload("{}\n")
        self.assertIn("no answer", listed.ask())
        self.assert_same(flow.ask(), VPN_SEEN[4], "the ordinary flow")
        self.assert_same(self.lab.probe("tcp", MEMBER_ECHO[4]), VPN_SEEN[4], "a new flow to what is listed no more")

    def test_the_vpn_server_among_them_does_not_break_the_vpn(self):
        self.start_agent("classes: {novpn: {destinations: [203.0.113.0/24]}}\n")
        self.vpn_up("def1")
        self.assert_same(self.lab.probe("tcp", ECHO[4]), SITES["a"].seen4, "the destination")
        # The tunnel's own resolver answers through it.
        self.assert_same(self.lab.probe("tcp", the_lab.VPN_NAME, check=False), SITES["a"].seen4, "a name of the VPN, then the destination")
        self.assertGreater(self.lab.tunnel_packets()["tunnel"], 0)

    def test_no_uplink_is_not_the_tunnel(self):
        self.start_agent(BOTH)
        self.vpn_up("def1")
        self.lab.shell("ip route add 203.0.113.0/24 dev tun0")
        self.lab.unplug()
        self.lab.forget()
        self.agent.wait_for(lambda s: s["classes"][0]["state"] == "blocked", "no uplink")
        self.assertIn("no answer", self.lab.probe("tcp", MEMBER_ECHO[4], check=False, timeout=0.5))
        self.assert_nothing_leaked()

    def test_beyond_64_they_are_masqueraded(self):
        many = [f"198.18.{i}.0/24" for i in range(64)]
        self.start_agent("classes: {novpn: {destinations: [%s]}}\n" % ", ".join(many + [PREFIXES[4]]))
        self.vpn_up("def1")
        rules = json.loads(self.lab.shell("ip -j rule"))
        self.assert_same(len([rule for rule in rules if rule.get("protocol") in ("78", "novpn") and "dst" in rule]), 64, "rules")
        sniffer = self.lab.sniff(MEMBER_ECHO[4])
        self.assert_listed_seen_at("a", families=(4,))
        self.assert_sources(sniffer, [MEMBER_ECHO[4]], [self.lab.laptop_address(4)])
        self.assert_same(self.packets()["masqueraded"], 2, "masqueraded flows")
        self.assert_same(self.member("1 more destinations")["old_sockets"], 0, "old sockets")

    def test_a_rival_that_comes_later_does_not_carry_them(self):
        self.start_agent(BOTH)
        self.vpn_up("def1")
        self.lab.shell("ip route add default dev tun0 table 51820; ip rule add not fwmark 0xca6c lookup 51820")
        self.wait_for_takeover()
        self.agent.wait_for(lambda s: not s["warnings"], "no warning")
        self.assert_listed_seen_at("a", families=(4,))

    def test_reload_changes_elements_and_rules_only(self):
        self.start_agent("classes: {novpn: {destinations: [198.18.0.0/15, 203.0.113.12, 192.0.2.0/24, '2001:db8:1::/48']}}\n")
        table = self.lab.shell("nft -a list table inet novpn | grep 'handle' | grep -v elements")
        monitor = self.lab.monitor()
        # A prefix in place of another that is in it, and the other way round; neighbours; the end of the address space.
        for listed in (["198.18.0.0/16", "198.19.0.0/16", "203.0.113.8/29", "255.0.0.0/8", "'2001:db8::/32'", "'c000::/2'"],
                       ["198.18.0.0/15", "203.0.113.0/24", "'2001:db8:1::/48'", "'2001:db8:2::/48'"]):
            self.reload("classes: {novpn: {destinations: [%s]}}\n" % ", ".join(listed))
            self.assert_same(self.lab.shell("nft -a list table inet novpn | grep 'handle' | grep -v elements"), table, "the table")
            listing = json.loads(self.lab.shell("nft -j list table inet novpn"))["nftables"]
            found = [element if isinstance(element, str) else f"{element['prefix']['addr']}/{element['prefix']['len']}"
                     for item in listing for element in item.get("set", {}).get("elem", [])
                     if item["set"]["name"].startswith("destinations")]
            self.assert_same(sorted(found), sorted(text.strip("'") for text in listed), "elements")
            self.assertNotIn("pending", [w["code"] for w in self.agent.status()["warnings"]])
        changes = monitor.changes()
        self.assertFalse([line for line in changes if "add chain" in line or "delete chain" in line], changes)
        before = self.lab.snapshot()
        monitor = self.lab.monitor()
        self.agent.kill9()
        self.start_agent((self.lab.directory / "novpn.yaml").read_text())
        self.assert_same(monitor.changes(), [], "changes of an agent that adopts")
        self.assert_state_is(before)

    def test_everything_goes_with_the_agent(self):
        before = self.lab.snapshot()
        self.start_agent("classes: {novpn: {destinations: [198.18.0.0/15, '2001:db8:1::/48'], users: [daemon]}}\n")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(before)

    def test_explain_names_the_rule(self):
        self.start_agent(BOTH)
        self.vpn_up("def1")
        answer = json.loads(self.lab.novpn("explain", "--json", MEMBER_ECHO[4]).stdout)["ordinary"]
        self.assert_same((answer["link"], answer["owner"], answer["table"]), ("wlan0", "novpn", 7866), "the answer")
        self.assertIn(f"to {MEMBER_ECHO[4]}", answer["rule"])


class Users(SelectorTest):
    def test_a_users_packets_leave_by_the_uplink(self):
        self.start_agent(USER)
        self.vpn_up("def1-ipv6")
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_listed_seen_at("a", uid=DAEMON)
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_same(self.lab.seen("tcp", 4, uid=the_lab.NOBODY), VPN_SEEN[4], "another user")
        self.assert_sources(sniffer, MEMBER_ECHO.values(), [self.lab.laptop_address(4), self.lab.laptop_address(6)])
        self.assert_same(self.packets(), {"marked": 4, "masqueraded": 0, "dropped": 0}, "packets")
        self.assert_nothing_leaked()

    def test_names_are_resolved_as_the_vpn_has_it(self):
        self.start_agent(USER)
        self.vpn_up("def1")
        self.assert_same(self.lab.probe("tcp", the_lab.VPN_NAME, uid=DAEMON, check=False), SITES["a"].seen4, "a name of the VPN")

    def test_an_open_flow_keeps_its_path(self):
        self.start_agent("{}\n")
        self.vpn_up("def1")
        process = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "probe.py", "hold", "tcp", ECHO[4], uid=DAEMON)
        flow = the_lab.Flow(process)
        self.assert_same(flow.seen, VPN_SEEN[4], "the flow at its start")
        self.reload(USER)
        self.assert_same(flow.ask(), VPN_SEEN[4], "the flow with its user in the class")
        member = self.member("user daemon")
        (old,) = member.pop("old")
        self.assert_same(member, {"selector": "user daemon", "sockets": 1, "old_sockets": 1}, "the member")
        self.assert_same((old["local"].split(":")[0], old["remote"]), (self.lab.laptop_address(4, "tun0"), f"{ECHO[4]}:7000"), "its old socket")
        self.assert_same(self.lab.probe("tcp", ECHO[4], uid=DAEMON), SITES["a"].seen4, "a new flow")

    def test_who_is_not_there_is_refused(self):
        for config, words in ((BOTH.replace("/32", "/24"), ("203.0.113.0/24",)),
                              ("classes: {novpn: {users: [nobody-of-that-name]}}\n", ("there is no user",)),
                              ("classes: {novpn: {users: [root]}}\n", ("root",))):
            path = self.lab.directory / "bad.yaml"
            path.write_text(config)
            result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run",
                                  "--config", path, check=False)
            self.assert_refused(result, "bad.yaml:1:", *words)


if __name__ == "__main__":
    unittest.main(verbosity=2)
