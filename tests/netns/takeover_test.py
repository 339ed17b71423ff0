"""A real OpenVPN takes the default over in three ways; members leave by the uplink all the same."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab


class Takeover(LabTest):
    def shapes(self, status):
        return {family: [(t["shape"], t["link"]) for t in value["takeovers"]] for family, value in status["families"].items()}

    def check(self, mode, shapes, others):
        self.start_agent()
        self.assert_members_seen_at("a")
        self.lab.vpn_up(mode)
        status = self.agent.wait_for(lambda s: self.shapes(s) == shapes, f"takeovers {shapes}")
        for family in ("ipv4", "ipv6"):
            self.assert_same(status["families"][family]["uplink"]["link"], "wlan0", f"{family} uplink")
        self.assert_same(status["families"]["ipv4"]["uplink"]["gateway"], SITES["a"].gateway, "gateway")
        self.assert_same([c["state"] for c in status["classes"]], ["steering"], "state")
        for family, address in others.items():
            self.assert_others_seen_as(address, family)
        self.assert_members_seen_at("a")
        self.assertGreater(self.lab.tunnel_packets()["tunnel"], 0)
        self.assert_nothing_leaked()
        self.vpn_down()
        self.assert_others_seen_as(SITES["a"].seen4)
        self.assert_members_seen_at("a")

    def test_def1(self):
        self.check("def1", {"ipv4": [("split", "tun0")], "ipv6": []}, {4: VPN_SEEN[4]})

    def test_plain(self):
        self.check("plain", {"ipv4": [("replaced", "tun0")], "ipv6": []}, {4: VPN_SEEN[4]})

    def test_def1_ipv6(self):
        self.check("def1-ipv6", {"ipv4": [("split", "tun0")], "ipv6": [("split", "tun0")]}, VPN_SEEN)

    def test_agent_started_under_a_takeover_finds_the_displaced_gateway(self):
        for mode in ("def1", "plain"):
            with self.subTest(mode):
                self.lab.vpn_up(mode)
                self.start_agent()
                status = self.wait_for_gateway(SITES["a"].gateway)
                self.assert_same(status["families"]["ipv4"]["uplink"]["from"], "main" if mode == "def1" else "host_route", "source")
                self.assert_members_seen_at("a")
                self.assert_others_seen_as(VPN_SEEN[4])
                self.lab.vpn_down()
                self.assert_same(self.agent.stop(), 0, "exit status")

    def test_names_of_the_vpn_resolve_for_members(self):
        self.start_agent()
        self.vpn_up("def1")
        self.assertEqual(self.lab.shell("cat /etc/resolv.conf").split(), ["nameserver", the_lab.VPN_DNS])
        for protocol in ("tcp", "udp"):
            seen = self.lab.probe(protocol, the_lab.VPN_NAME, member=True, check=False)
            self.assert_same(seen, SITES["a"].seen4, f"a member's {protocol} to {the_lab.VPN_NAME}")
        self.assert_nothing_leaked()


if __name__ == "__main__":
    unittest.main(verbosity=2)
