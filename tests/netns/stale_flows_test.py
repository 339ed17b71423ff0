"""The network is another one: members' sockets whose address is gone end at once, and no others."""
import re
import unittest

from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

ENDED = "no answer: ECONNABORTED"


class StaleFlows(LabTest):
    def roam(self):
        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.wait_for_link("wlan0")

    def connections(self, family=4, host=None):
        """Local ends of the laptop's TCP connections to that host."""
        host = host or MEMBER_ECHO[family]
        return self.lab.shell(f"ss -Htn{family} state established dst '[{host}]'" if family == 6 else f"ss -Htn4 state established dst {host}").splitlines()

    def log_has(self, pattern):
        return re.search(pattern, self.agent.log.read_text())

    def blocked_in_recv(self, kind, family):
        """A member that waits for a word from its peer, and for nothing else."""
        member = self.lab.member()
        member.new("s", kind, family)
        self.assert_same(member.connect("s", MEMBER_ECHO[family]).get("error"), None, f"{kind} over IPv{family}")
        member.process.stdin.write(b"sockets['s'].settimeout(None)\n")
        the_lab.read_line(member.process)
        member.process.stdin.write(b"facts(sockets['s'], got=len(sockets['s'].recv(10)))\n")
        return member

    def test_they_end_at_once_also_where_no_way_out_is_left(self):
        """The VPN stays: to its own address nothing happens."""
        self.start_agent()
        waiting = {(kind, family): self.blocked_in_recv(kind, family) for kind in ("tcp", "udp") for family in (4, 6)}
        own = {family: self.lab.laptop_address(family) for family in (4, 6)}
        member = self.lab.member()
        without_peer = {"bound4": own[4], "bound6": own[6], "any": "", "group": "224.0.0.251", "broadcast": "192.168.10.255"}
        for port, (name, host) in enumerate(without_peer.items(), 9200):
            member.new(name, "udp", 6 if ":" in host else 4)
            self.assert_same(member.bind(name, host, port).get("error"), None, name)
        other = self.lab.flow(member=False)
        self.lab.unplug()
        self.lab.forget()
        for (kind, family), process in waiting.items():
            self.assertIn("ECONNABORTED", the_lab.read_line(process.process, 10), f"{kind} over IPv{family}\n{self.agent.explain()}")
        self.assert_same(self.agent.status()["health"], "blocked", "health")
        errors = {name: member.error_of(name) for name in without_peer}
        self.assert_same(errors, dict.fromkeys(without_peer, None) | {"bound4": "ECONNABORTED", "bound6": "ECONNABORTED"}, "errors of sockets without a peer")
        self.assert_same(len(self.connections(4, the_lab.ECHO[4])), 1, "flows of ordinary processes")
        self.assertIsNone(other.process.poll())

    def test_an_address_that_is_back_at_once_keeps_its_flows(self):
        """A lease that is taken off and put on again in one go."""
        self.start_agent()
        flow = self.lab.flow()
        own = self.lab.laptop_address()
        self.lab.run("ip", "-batch", "-", input=f"""address del {own}/24 dev wlan0
            address add {own}/24 dev wlan0
            route add default via {SITES["a"].gateway} dev wlan0
        """)
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_same(flow.ask(), self.lab.site_address("a"), "the flow")
        self.assertFalse(self.log_has("ss --kill"), self.agent.log.read_text())

    def test_a_roam_ends_them(self):
        self.start_agent()
        flows = {family: self.lab.flow("hold", "tcp", family) for family in (4, 6)}
        ordinary = self.lab.flow(member=False)
        self.roam()
        for family, flow in flows.items():
            the_lab.wait_until(lambda: not self.connections(family), what=f"the end of the flow over IPv{family}", detail=self.agent.explain)
            self.assert_same(flow.ask(), ENDED, f"the flow over IPv{family}")
        self.assertTrue(self.log_has(r"ss --kill src 192\.168\.10\.\d+ sport = \d+ dst 203\.0\.113\.11 dport = 7000"), self.agent.log.read_text())
        self.assertTrue(self.log_has(r"ss --kill src 2001:db8:a:.* dport = 7000"), self.agent.log.read_text())
        # Nobody else's business.
        self.assert_same(len(self.connections(4, the_lab.ECHO[4])), 1, "flows of ordinary processes")
        self.assertIsNone(ordinary.process.poll())
        self.assert_members_seen_at("b")

    def test_a_program_connects_anew_at_once(self):
        """Blocked in recv(): it has its error while the test waits, and not after its own timeout."""
        self.start_agent()
        self.vpn_up("def1")
        member = self.lab.member()
        member.new("s", "tcp")
        member.connect("s", MEMBER_ECHO[4])
        member.process.stdin.write(b"sockets['s'].settimeout(None)\n")
        the_lab.read_line(member.process)
        member.process.stdin.write(b"facts(sockets['s'], got=len(sockets['s'].recv(10)))\n")
        self.roam()
        self.assertIn("ECONNABORTED", the_lab.read_line(member.process, 10))
        member.new("t", "tcp")
        self.assert_same(member.connect("t", MEMBER_ECHO[4]).get("error"), None, "a new connection")
        self.assert_same(member.ask("t").get("seen"), SITES["b"].seen4, "a new connection")
        self.assert_nothing_leaked()

    def test_an_address_that_survives_keeps_its_flows(self):
        self.start_agent()
        self.vpn_up("def1-ipv6")
        flows = {family: self.lab.flow("hold", "tcp", family) for family in (4, 6)}
        self.lab.shell("ip address add 192.168.10.77/24 dev wlan0; ip address add 2001:db8:a::77/64 dev wlan0 nodad")
        self.lab.shell("ip address del 192.168.10.77/24 dev wlan0; ip address del 2001:db8:a::77/64 dev wlan0")
        self.lab.change_gateway("a", SITES["a"].second_gateway)
        self.wait_for_gateway(SITES["a"].second_gateway)
        if self.bpffs:  # else they have the tunnel's address
            self.vpn_down()
        for family, flow in flows.items():
            self.assert_same(flow.ask(), self.lab.site_address("a", family), f"the flow over IPv{family}")
        self.assertFalse(self.log_has("ss --kill|conntrack -D"), self.agent.log.read_text())

    def test_a_socket_from_before_it_joined_goes_on_through_the_vpn(self):
        self.start_agent()
        self.vpn_up("def1")
        flow = self.lab.flow(member=False)
        self.lab.novpn("add", flow.process.pid)
        self.lab.shell("ip address add 192.168.10.77/24 dev wlan0; ip address del 192.168.10.77/24 dev wlan0")
        self.assert_members_seen_at("a", families=(4,))  # a look
        self.assert_same(flow.ask(), VPN_SEEN[4], "the flow of a process that joined")

    def test_the_config_may_leave_them(self):
        self.start_agent("sockets: {destroy_stale: false}\n")
        self.lab.flow()
        self.roam()
        self.assert_members_seen_at("b", families=(4,))
        self.assert_same(len(self.connections()), 1, "connections that wait for their own timeouts")
        self.assertFalse(self.log_has("ss --kill"), self.agent.log.read_text())


class Masqueraded(StaleFlows):
    """Where nft alone marks: what began under the VPN has the tunnel's address, which survives, and leaves by another one."""
    bpffs = False

    def test_a_program_connects_anew_at_once(self):
        super().test_a_program_connects_anew_at_once()
        self.assertTrue(self.log_has(r"ss --kill src 10\.8\.0\.2 "), self.agent.log.read_text())

    def test_one_that_the_kernel_has_forgotten_ends(self):
        """The very address is back, and the masquerade is not."""
        self.start_agent()
        self.vpn_up("def1")
        flow = self.lab.flow()
        self.assert_same(flow.seen, SITES["a"].seen4, "the flow at its start")
        self.roam_to_the_same_site()
        self.assert_same(flow.ask(), ENDED, "the flow")
        self.assert_members_seen_at("a")

    def roam_to_the_same_site(self):
        self.lab.unplug()
        self.lab.forget()
        self.agent.wait_for(lambda s: not s["families"]["ipv4"]["uplink"], "no uplink")
        self.lab.connect("wlan0", "a")
        self.wait_for_gateway(SITES["a"].gateway)
        self.wait_for_link("wlan0")

    def test_entries_translated_to_an_address_that_is_gone_are_dropped(self):
        """The kernel drops those that it masqueraded itself; what another rule translated stays until its timeout."""
        self.start_agent()
        entry = "-p udp -s 10.8.0.2 -d 203.0.113.11 --sport 4711 --dport 7000"
        for mark, port in (("0x4e000000", 4711), ("0x12", 4712)):
            self.lab.shell(f"conntrack -I {entry.replace('4711', str(port))} -t 600 -u SEEN_REPLY --mark {mark} --src-nat 192.168.10.99")
        self.lab.shell("ip address add 192.168.10.99/24 dev wlan0")
        self.assert_members_seen_at("a", families=(4,))  # a look
        self.assertIn("4711", self.lab.shell("conntrack -L -p udp"))
        self.lab.shell("ip address del 192.168.10.99/24 dev wlan0")
        the_lab.wait_until(lambda: "4711" not in self.lab.shell("conntrack -L -p udp 2>/dev/null"), what="the entry's end", detail=self.agent.explain)
        self.assertTrue(self.log_has(f"conntrack -D {entry}"), self.agent.log.read_text())
        self.assertIn("4712", self.lab.shell("conntrack -L -p udp"), "an entry of nobody's mark")

    # Nothing of these depends on who marks.
    test_the_config_may_leave_them = None


if __name__ == "__main__":
    unittest.main(verbosity=2)
