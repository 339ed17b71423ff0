"""Whatever joins or leaves in mid-flow: no address of the tunnel on the uplink's wire, no address of the uplink in the tunnel."""
import signal
import unittest

from labtest import ECHO, LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab
from lab import wait_until

USERS = "classes: {novpn: {users: [daemon]}}\n"
KINDS = [(protocol, family) for protocol in ("tcp", "udp") for family in (4, 6)]


class MidFlow(LabTest):
    """What is done to streams that send every 2 ms, while both wires are captured."""

    def setUp(self):
        super().setUp()
        self.start_agent(self.config)
        self.vpn_up("def1-ipv6")
        self.sniffer = self.lab.sniff(*ECHO.values(), *MEMBER_ECHO.values())
        self.addresses = {link: {self.lab.laptop_address(family, link) for family in (4, 6)} for link in ("wlan0", "tun0")}

    config = None

    def streams(self, member):
        return {kind: self.lab.flow("stream", *kind, member=member) for kind in KINDS}

    def assert_wires(self):
        """Each link has its own addresses only, and both were in use."""
        for link, own in self.addresses.items():
            out = [line.split()[2] for line in self.sniffer.packets(f"{link} out")]
            self.assertTrue(out, f"nothing left by {link}")
            foreign = {source for source in out if source not in own}
            self.assert_same(foreign, set(), f"sources on {link} that are not its own")

    def assert_all_answered(self, streams, seen):
        for kind, stream in streams.items():
            counts = stream.finish()
            what = f"{kind}: {counts}"
            self.assertGreater(counts["sent"], 10, what)
            self.assert_same((counts["answered"], counts["errors"]), (counts["sent"], []), f"answers, {what}")
            self.assert_same(counts["seen"], [seen[kind[1]]], f"addresses, {what}")

    def old_sockets(self):
        member = self.agent.status()["classes"][0]["members"][0]
        self.assert_same(len(member["old"]), member["old_sockets"], "old sockets with a name")
        return member["old"]

    def test_joining_leaves_open_flows_in_the_tunnel_and_names_them(self):
        streams = self.streams(member=False)
        told = ""
        for stream in streams.values():
            told += self.lab.novpn("add", stream.process.pid).stdout
        want = {(protocol, self.lab.laptop_address(family, "tun0"), ECHO[family]) for protocol, family in KINDS}

        def ends(text):
            return text.rsplit(":", 1)[0].strip("[]")

        got = self.old_sockets()
        self.assert_same({(s["protocol"], ends(s["local"]), ends(s["remote"])) for s in got}, want, "old sockets of status")
        self.assert_same({s["pid"] for s in got}, {stream.process.pid for stream in streams.values()}, "who holds them")
        self.assertTrue(all(s["process"].startswith("python3") for s in got), got)
        status = self.lab.novpn("status").stdout
        for socket in got:
            line = f"{socket['protocol']} {socket['local']} to {socket['remote']}, of {socket['process']} ({socket['pid']})"
            self.assertIn(line, told)
            self.assertIn(line, status)
            self.assertIn(line, self.lab.novpn("explain", "--pid", socket["pid"], ECHO[4]).stdout)
        # Of a user's own processes only.
        self.assertNotIn("10.8.0.2", self.lab.novpn("status", "--json", uid=the_lab.NOBODY).stdout)
        self.assert_all_answered(streams, VPN_SEEN)
        self.assert_members_seen_at("a")
        self.assert_wires()

    def test_leaving_ends_flows_and_leaks_none(self):
        streams = self.streams(member=True)
        ordinary = self.streams(member=False)
        for stream in streams.values():
            self.lab.novpn("remove", stream.process.pid)
        for kind, stream in streams.items():
            counts = stream.finish()
            self.assertTrue(counts["errors"], f"{kind}: {counts}")
        self.assert_all_answered(ordinary, VPN_SEEN)
        self.assert_wires()

    def test_off_and_on_again(self):
        self.streams(member=True)
        ordinary = self.streams(member=False)
        for _ in range(3):
            self.lab.novpn("off")
            self.lab.novpn("on")
        self.assert_members_seen_at("a")
        self.assert_all_answered(ordinary, VPN_SEEN)
        self.assert_wires()

    def test_the_vpn_down_and_up_again(self):
        streams = self.streams(member=True)
        self.lab.flow(member=False)
        for _ in range(2):
            self.vpn_down()
            self.vpn_up("def1-ipv6")
        self.assert_others_seen_as(VPN_SEEN[4])
        sources = {source for source in (line.split()[2] for line in self.sniffer.packets("tun0 out"))}
        self.assert_same(sources & self.addresses["wlan0"], set(), "the uplink's addresses in the tunnel")
        for line in self.sniffer.packets("wlan0 out"):
            self.assertNotIn(line.split()[2], self.addresses["tun0"], line)
        self.assert_nothing_leaked()
        self.assertTrue(streams)


class MidFlowByNft(MidFlow):
    config = "marking: nft\n"


class MidFlowKept(MidFlow):
    """`on_leave: keep`: open flows go on where they are."""
    config = "classes: {novpn: {on_leave: keep}}\n"

    def test_leaving_ends_flows_and_leaks_none(self):
        streams = self.streams(member=True)
        for stream in streams.values():
            self.lab.novpn("remove", stream.process.pid)
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_all_answered(streams, {4: SITES["a"].seen4, 6: self.lab.laptop_address(6)})
        self.assert_wires()

    def test_off_and_on_again(self):
        streams = self.streams(member=True)
        for _ in range(3):
            self.lab.novpn("off")
            self.lab.novpn("on")
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_all_answered(streams, {4: SITES["a"].seen4, 6: self.lab.laptop_address(6)})
        self.assert_wires()


class FromBefore(LabTest):
    """Flows that are older than the agent, of whom it selects: the kernel has followed no connection until then."""

    def setUp(self):
        super().setUp()
        self.lab.vpn_up("def1-ipv6")
        self.flows = {kind: self.lab.flow("hold", *kind, member=False, uid=the_lab.DAEMON) for kind in KINDS}
        self.sniffer = self.lab.sniff(*ECHO.values())

    def assert_flows_go_on(self):
        for kind, flow in self.flows.items():
            self.assert_same((flow.seen, flow.ask()), (VPN_SEEN[kind[1]],) * 2, f"what {kind} is seen as, before and after")
        self.assert_same(self.sniffer.packets("wlan0 out"), [], "packets on the uplink's wire")

    def test_of_a_destination(self):
        self.start_agent(f"classes: {{novpn: {{destinations: ['{ECHO[4]}', '{ECHO[6]}']}}}}\n")
        self.assert_flows_go_on()
        new = {family: self.lab.probe("tcp", ECHO[family]) for family in (4, 6)}
        self.assert_same(new, {family: self.lab.site_address("a", family) for family in (4, 6)}, "new flows")

    def test_of_a_user(self):
        self.start_agent(USERS)
        self.assert_flows_go_on()
        log = self.agent.log.read_text()
        self.assertRegex(log, r"start: conntrack -I .*ASSURED,SEEN_REPLY -t \d+ # and \d+ more")

    def test_of_what_is_selected_later(self):
        self.start_agent("{}\n")
        (self.lab.directory / "novpn.yaml").write_text(USERS)
        self.lab.novpn("reload")
        self.assert_flows_go_on()

    def test_of_what_the_next_agent_selects(self):
        self.start_agent("{}\n")
        self.agent.stop(signal.SIGUSR1)
        self.start_agent(USERS)
        self.assertNotIn("conntrack -I", self.agent.log.read_text())  # The table was there.
        self.assert_flows_go_on()

    def test_one_that_is_answered_later(self):
        """Its question is on its way when the agent starts, and it goes on as it began."""
        self.lab.openvpn.send_signal(signal.SIGSTOP)
        asking = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "probe.py", "hold", "tcp", ECHO[4], uid=the_lab.DAEMON)
        wait_until(lambda: ECHO[4] in self.lab.shell("ss -Htn state syn-sent"), what="a SYN")
        self.start_agent(USERS)
        self.lab.openvpn.send_signal(signal.SIGCONT)
        flow = the_lab.Flow(asking)
        self.assert_same((flow.seen, flow.ask()), (VPN_SEEN[4],) * 2, "what it is seen as")

    def test_what_is_known_already_stays_as_it_is(self):
        def entry():
            return self.lab.shell(f"conntrack -L -p tcp --state CLOSE_WAIT -d {ECHO[4]} 2>/dev/null")

        port = self.lab.shell(f"ss -Htn state established dst {ECHO[4]}").split()[2].rsplit(":", 1)[1]
        self.lab.shell(f"conntrack -I -p tcp -s {self.lab.laptop_address(4, 'tun0')} -d {ECHO[4]} --sport {port} --dport 7000 "
                       "--state CLOSE_WAIT -t 60")
        self.assertTrue(entry())
        self.start_agent(USERS)
        self.assertTrue(entry())


class Off(LabTest):
    """While no class is on, and no flow of one is left, the kernel follows no connection for us."""

    def setUp(self):
        super().setUp()
        self.start_agent(self.config or "{}\n")
        self.vpn_up("def1-ipv6")

    config = ""

    def follows(self):
        return "ct " in self.lab.shell("nft list table inet novpn")

    def turn_off(self):
        self.lab.novpn("off")
        for family in ("ipv4", "ipv6"):
            self.lab.shell(f"conntrack -D -f {family} 2>/dev/null || true")

        def follows_no_more():
            self.lab.shell("ip address add 127.0.0.2/8 dev lo && ip address del 127.0.0.2/8 dev lo")  # News: the agent looks.
            return not self.follows()
        wait_until(follows_no_more, 20, "a table that follows no connection", self.agent.explain)

    def test_what_is_left_is_dropped_and_counted(self):
        member = self.lab.member()
        member.new("a", "udp")
        member.connect("a", MEMBER_ECHO[4])
        self.assert_same(member.ask("a")["seen"], SITES["a"].seen4, "the address that a member is seen as")
        self.lab.novpn("off")
        self.assertTrue(self.follows(), "a flow of the class is left")
        self.turn_off()
        before = self.agent.status()["classes"][0]["packets"]
        stranger = self.lab.member(member=False)  # With the class's mark, as a socket that nobody could end.
        stranger.new("a", "udp", mark=0x4e000000)
        stranger.connect("a", MEMBER_ECHO[4])
        self.assertIn("error", stranger.ask("a"))
        after = self.agent.status()["classes"][0]["packets"]
        self.assert_same({name: after[name] - before[name] for name in after}, {"marked": 0, "masqueraded": 0, "dropped": 1}, "packets")
        self.assertEqual(before["marked"], 1, "counts go on")
        self.assert_nothing_leaked()

    def test_flows_from_then_keep_their_path_when_it_is_on(self):
        member = self.lab.member()
        self.turn_off()
        for protocol, family in KINDS:
            member.new(f"{protocol}{family}", protocol, family)
            member.connect(f"{protocol}{family}", ECHO[family])
            self.assert_same(member.ask(f"{protocol}{family}")["seen"], VPN_SEEN[family], "a process of a class that is off")
        self.lab.novpn("on")
        self.assertTrue(self.follows())
        for protocol, family in KINDS:
            self.assert_same(member.ask(f"{protocol}{family}")["seen"], VPN_SEEN[family], f"the {protocol} flow, now that it is on")
        self.assert_members_seen_at("a")

    def test_somebody_flushes_the_table(self):
        """Of what it knew of, nothing gets away; of what knew of nothing, the same is put back."""
        member = self.lab.member()
        member.new("a", "udp")
        self.assert_same(member.ask_to("a", MEMBER_ECHO[4])["seen"], SITES["a"].seen4, "the address that a member is seen as")
        self.lab.novpn("off")
        self.lab.shell("nft flush ruleset")
        wait_until(lambda: "novpn" in self.lab.shell("nft list tables"), what="the table", detail=self.agent.explain)
        self.assertTrue(self.follows(), "a flow of the class is left")
        self.assertIn("error", member.ask_to("a", MEMBER_ECHO[4]))
        self.turn_off()
        self.lab.shell("nft flush ruleset")
        wait_until(lambda: "novpn" in self.lab.shell("nft list tables"), what="the table", detail=self.agent.explain)
        self.assertFalse(self.follows(), "no flow is left")
        self.assert_nothing_leaked()

    def test_a_new_agent_adopts_it(self):
        (self.lab.directory / "novpn.yaml").write_text(self.config + "classes: {novpn: {enabled: false}}\n")
        self.lab.novpn("reload")
        self.turn_off()
        table = self.lab.shell("nft -a list table inet novpn")
        self.agent.kill9()
        self.start_agent(self.config + "classes: {novpn: {enabled: false}}\n")
        self.assert_same(self.lab.shell("nft -a list table inet novpn"), table, "the table")
        self.lab.novpn("on")
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()


class OffByNft(Off):
    config = "marking: nft\n"



if __name__ == "__main__":
    unittest.main(verbosity=2)
