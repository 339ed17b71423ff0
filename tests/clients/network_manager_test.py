"""A real NetworkManager configures the laptop's links, and its OpenVPN plugin puts a default of metric 50 before theirs."""
import unittest

from clienttest import ClientTest, SITES, VPN_SEEN, the_lab
from clients import NetworkManager

BESIDE = {4: "lower_metric", 6: "lower_metric"}


class NetworkManagerTest(ClientTest):
    wired = True
    configured = False

    def setUp(self):
        super().setUp()
        self.nm = NetworkManager(self.lab)
        for link in self.lab.links:
            self.nm.add_link(link)
        self.nm.add_openvpn()
        self.nm.up("lab-wlan0")
        # Either family is enough for it to call a connection up.
        the_lab.wait_until(lambda: self.lab.has_default(4, "wlan0") and self.lab.has_default(6, "wlan0"), 10,
                           "a lease and a router at site A", self.nm.log.read_text)
        self.before = self.lab.snapshot()

    def test_vpn_restart_and_connections_down_and_up(self):
        self.start_agent()
        self.assert_right("a")
        self.nm.up("vpn")
        self.assert_right("a", BESIDE)
        # The host routes that it makes for the VPN are copied for members too, and lead nobody astray.
        routes = self.lab.shell("ip route show proto static metric 50")
        for expected in ("default dev tun0", f"{VPN_SEEN[4]} via {SITES['a'].gateway} dev wlan0", f"{SITES['a'].gateway} dev wlan0"):
            self.assertIn(expected, routes)

        # On its way out it leaves the links as they are, but not the VPN.
        self.nm.stop()
        self.assert_right("a")
        self.nm.start()
        self.assert_right("a")

        self.nm.up("vpn")
        self.assert_right("a", BESIDE)
        self.nm.down("vpn")
        self.assert_right("a")

        self.nm.down("lab-wlan0")
        status = self.agent.wait_for(lambda s: not any(f["uplink"] for f in s["families"].values()), "no uplink")
        self.assert_same(status["health"], "blocked", "health")
        self.nm.up("lab-wlan0")
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(self.before)

    def test_carrier_lost_and_another_link(self):
        self.start_agent()
        self.nm.up("vpn")
        self.assert_right("a", BESIDE)
        self.lab.plug("b", "eth0")
        self.nm.up("lab-eth0")
        # wlan0 has metric 100, eth0 came later and has 101.
        self.assert_right("a", BESIDE)

        # NetworkManager waits for six seconds before it believes the loss. Members do not.
        self.lab.unplug("wlan0")
        self.wait_for_uplinks("b", "eth0")
        self.assertIn("192.168.10.", self.lab.shell("ip address show dev wlan0"))
        self.assert_members_seen_at("b", link="eth0")
        the_lab.wait_until(lambda: "lab-wlan0" not in self.nm.active(), 15, "NetworkManager giving wlan0 up", self.nm.log.read_text)
        self.assert_members_seen_at("b", link="eth0")

        # The VPN went with the link that it was made on.
        self.nm.wait_for_vpn_gone()
        self.assert_right("b", link="eth0")
        self.nm.up("vpn")
        self.assert_right("b", BESIDE, link="eth0")

        self.lab.plug("a", "wlan0")
        the_lab.wait_until(lambda: "lab-wlan0" in self.nm.active(), 15, "wlan0 up again", self.nm.log.read_text)
        self.nm.down("vpn")
        self.nm.down("lab-eth0")
        self.assert_right("a")
        self.stop_agent()

    def test_agent_started_under_it(self):
        self.nm.up("vpn")
        self.check_started_under("a", BESIDE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
