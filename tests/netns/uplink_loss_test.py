"""Without an uplink a member's packet is refused; it never goes into the tunnel."""
import unittest

from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

NO_UPLINK = "an uplink gone in both families"


class UplinkLoss(LabTest):
    def wait_for_no_uplink(self):
        return self.agent.wait_for(lambda s: not any(f["uplink"] for f in s["families"].values()), NO_UPLINK)

    def assert_nobody_reached(self):
        for family in (4, 6):
            answer = self.lab.seen("udp", family, member=True)
            self.assertIn(answer, ("no answer: EHOSTUNREACH", "no answer: ENETUNREACH"), f"IPv{family}\n{self.agent.explain()}")
            # nft refuses the SYN on its way out; TCP does not tell connect(2) about that, and tries again.
            answer = self.lab.probe("tcp", MEMBER_ECHO[family], member=True, check=False, timeout=0.5)
            self.assertTrue(answer.startswith("no answer"), f"TCP over IPv{family}: {answer}\n{self.agent.explain()}")

    def check(self, mode, lose, find):
        self.start_agent()
        self.vpn_up(mode)
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_members_seen_at("a")
        stream = self.lab.flow("stream", "udp")
        lose()
        status = self.wait_for_no_uplink()
        self.assert_same(status["health"], "blocked", "health")
        self.assert_same([c["state"] for c in status["classes"]], ["blocked"], "state")
        self.assert_nobody_reached()
        find()
        self.wait_for_gateway(SITES["a"].gateway)
        self.wait_for_link("wlan0")
        # The gateway failed to answer while there was no carrier: whoever asks it again first may be told so.
        the_lab.wait_until(lambda: not self.lab.seen().startswith("no answer"), 30, "an answer to an ordinary process", self.agent.explain)
        self.assert_members_seen_at("a")
        counts = stream.finish()
        self.assert_same(sniffer.packets("tun"), [], f"members' packets in the tunnel ({counts})")
        self.assertTrue(sniffer.packets("wlan0 out"))

    def test_carrier_lost_under_def1_ipv6(self):
        self.check("def1-ipv6", self.lab.unplug, lambda: self.lab.plug("a"))

    def test_carrier_lost_under_plain(self):
        self.check("plain", self.lab.unplug, lambda: self.lab.plug("a"))

    def test_link_down_under_def1_ipv6(self):
        # The kernel drops every IPv4 route of the link, ours too, without a word.
        def lose():
            self.lab.shell("ip link set wlan0 down")
            self.lab.forget()

        def find():
            self.lab.shell("ip link set wlan0 up")
            self.lab.lease()
        self.check("def1-ipv6", lose, find)

    def test_addresses_and_routes_gone_under_def1_ipv6(self):
        # Carrier stays, and so the router goes on advertising: nobody listens for a while.
        def lose():
            self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra=0")
            self.lab.forget()

        def find():
            self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra=1")
            self.lab.lease()
        self.check("def1-ipv6", lose, find)

    def test_a_class_may_be_told_to_use_the_tunnel_instead(self):
        self.start_agent("classes: {novpn: {when_no_uplink: tunnel}}\n")
        self.vpn_up("def1")
        self.assert_members_seen_at("a", families=(4,))
        sniffer = self.lab.sniff(MEMBER_ECHO[4])
        self.lab.unplug()
        status = self.wait_for_no_uplink()
        self.assert_same([c["state"] for c in status["classes"]], ["tunnel"], "state")
        # OpenVPN's own packets are lost with the carrier, so nothing answers: that they enter the tunnel is what counts.
        self.lab.probe("udp", MEMBER_ECHO[4], member=True, check=False, timeout=0.3)
        self.assertTrue(sniffer.packets("tun0 out"), self.agent.explain())


if __name__ == "__main__":
    unittest.main(verbosity=2)
