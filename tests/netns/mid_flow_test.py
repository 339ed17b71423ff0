"""Whatever joins or leaves in mid-flow: no address of the tunnel on the uplink's wire, no address of the uplink in the tunnel."""
import unittest

from labtest import ECHO, LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

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


if __name__ == "__main__":
    unittest.main(verbosity=2)
