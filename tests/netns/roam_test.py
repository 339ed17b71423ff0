"""The laptop changes its site or its link; members follow, and never pass the tunnel on the way."""
import unittest

from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab


class Roam(LabTest):
    def test_without_vpn(self):
        self.start_agent()
        for site in "ba":
            self.lab.roam(site)
            self.wait_for_gateway(SITES[site].gateway)
            self.wait_for_link("wlan0")
            self.assert_members_seen_at(site)

    def check_under_vpn(self, mode, families):
        self.start_agent()
        self.vpn_up(mode)
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_members_seen_at("a")
        self.lab.roam("b")
        status = self.wait_for_gateway(SITES["b"].gateway)
        self.assertGreater(status["last_reaction_us"], 0)
        self.wait_for_link("wlan0")
        # OpenVPN has not noticed yet, or is stalled: members do not wait for it.
        self.assert_members_seen_at("b")
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 20, "OpenVPN reconnecting from site B", self.agent.explain)
        self.wait_for_takeover()
        for family in families:
            self.assert_others_seen_as(VPN_SEEN[family], family)
        self.assert_members_seen_at("b")
        self.assert_same(sniffer.packets("tun"), [], "members' packets in the tunnel")
        # The sniffer does see them where they belong.
        self.assertTrue(sniffer.packets("wlan0 out"))

    def test_under_def1(self):
        self.check_under_vpn("def1", (4,))

    def test_under_plain(self):
        self.check_under_vpn("plain", (4,))

    def test_under_def1_ipv6(self):
        self.check_under_vpn("def1-ipv6", (4, 6))

    def test_packets_sent_all_the_time_never_enter_the_tunnel(self):
        self.start_agent()
        self.vpn_up("def1")
        sniffer = self.lab.sniff(MEMBER_ECHO[4])
        stream = self.lab.flow("stream", "udp")
        self.assert_members_seen_at("a")
        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.assert_members_seen_at("b")
        counts = stream.finish()
        self.assertGreater(counts["answered"], 0, counts)
        self.assert_same(sniffer.packets("tun"), [], f"packets in the tunnel ({counts})")

    def test_an_ipv6_gateway_that_was_silent_for_a_while_is_asked_again(self):
        """The kernel prefers the backstop to a gateway whose neighbour entry has failed."""
        # Its advertisements and questions would bring its MAC address; silent, it gives no answer either.
        self.lab.shell("nft add table inet silent; nft add chain inet silent output '{ type filter hook output priority 0; }';"
                       "nft add rule inet silent output 'oif lan icmpv6 type { nd-router-advert, nd-neighbor-solicit } drop';"
                       "nft add chain inet silent answers '{ type filter hook output priority 1; }';"
                       "nft add rule inet silent answers oif lan icmpv6 type nd-neighbor-advert drop", "router_a")
        self.lab.shell(f"ip -6 neighbour replace {self.lab.laptop_address(6)} dev lan nud permanent lladdr"
                       f" {self.lab.shell('ip -o link show wlan0').split('ether ')[1].split()[0]}", "router_a")
        self.start_agent()
        # Without a takeover what is not marked yet has the kernel ask.
        self.vpn_up("def1-ipv6")
        gateway = self.agent.status()["families"]["ipv6"]["uplink"]["gateway"]
        self.lab.shell("ip -6 neighbour flush dev wlan0")
        monitor = self.lab.directory / "neighbours"
        self.lab.spawn("ip", "-o", "monitor", "neigh", output=monitor)

        def failed():
            self.assertRegex(self.lab.seen(family=6, member=True), "^no answer")
            return f"{gateway} dev wlan0 " in monitor.read_text() and "FAILED" in monitor.read_text()

        the_lab.wait_until(failed, 20, "the gateway failing", monitor.read_text)
        self.lab.shell("nft flush chain inet silent answers", "router_a")
        the_lab.wait_until(lambda: not self.lab.seen(family=6, member=True).startswith("no answer"), 10, "an answer by IPv6",
                           lambda: self.lab.shell("ip -6 neighbour; ip -6 route show table 7866"))


class TwoLinks(LabTest):
    wired = True

    def test_the_better_link_is_taken_and_given_up(self):
        self.start_agent()
        self.vpn_up("def1")
        self.lab.connect("eth0", "b")
        self.wait_for_gateway(SITES["b"].gateway, "eth0")
        self.assert_members_seen_at("b", families=(4,))
        self.lab.unplug("eth0")
        self.wait_for_gateway(SITES["a"].gateway, "wlan0")
        self.assert_members_seen_at("a", families=(4,))
        self.assert_nothing_leaked()

    def test_a_gateway_that_does_not_answer_is_given_up_until_it_does(self):
        self.start_agent()
        self.lab.connect("eth0", "b")
        self.wait_for_gateway(SITES["b"].gateway, "eth0")
        self.lab.shell("ip link set lan arp off; ip address flush dev lan", "router_b")
        self.lab.shell("ip neighbour flush dev eth0")
        # An ordinary program asks for the gateway; nobody answers.
        self.lab.run("ping", "-c1", "-W1", SITES["b"].gateway, check=False)
        self.wait_for_gateway(SITES["a"].gateway, "wlan0")
        self.assertIn("does not answer", self.agent.status()["families"]["ipv4"]["uplink"]["reason"])
        self.assert_members_seen_at("a", families=(4,))
        self.lab.shell(f"ip link set lan arp on; ip address add {SITES['b'].gateway}/24 dev lan", "router_b")

        def answers():
            return self.lab.run("ping", "-c1", "-W1", SITES["b"].gateway, check=False).returncode == 0

        the_lab.wait_until(answers, 10, "the gateway of site B answering")
        self.wait_for_gateway(SITES["b"].gateway, "eth0")
        self.assert_members_seen_at("b", families=(4,))


if __name__ == "__main__":
    unittest.main(verbosity=2)
