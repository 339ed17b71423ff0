"""Real DHCP clients with their distribution's own scripts renew, change the gateway, roam and release under the running agent."""
import unittest

from clienttest import ClientTest, SITES, the_lab
from clients import Dhclient, Udhcpc

# Copied for members as any route of main: whatever the agent has to write when it sees this one, it writes with it.
SENTINEL = "198.18.5.0/24"


class Story:
    configured = False

    def setUp(self):
        super().setUp()
        self.dhcp = self.client(self.lab)
        self.dhcp.start()
        self.lab.wait_for_defaults("wlan0", self.dhcp.log)
        self.before = self.lab.snapshot()

    def sentinel(self, verb, site):
        """Makes the agent look, and waits until it has acted."""
        self.lab.shell(f"ip route {verb} {SENTINEL} via {SITES[site].gateway} dev wlan0")
        table = self.agent.status()["classes"][0]["table"]
        the_lab.wait_until(lambda: (SENTINEL in self.lab.shell(f"ip route show table {table}")) == (verb == "add"),
                           what=f"{verb} of {SENTINEL} in table {table}", detail=self.agent.explain)

    def renew(self, site):
        """Renews the lease, hears the router again, and returns the agent's log since."""
        changes = self.lab.directory / f"monitor-address-{self.lab.count()}"
        monitor = self.lab.spawn("ip", "-o", "monitor", "address", output=changes)
        start = len(self.agent.log.read_text())
        self.dhcp.renew()

        def advertised():
            # The kernel tells of the address at each advertisement.
            self.lab.solicit_router()
            return f"inet6 {SITES[site].net6}" in changes.read_text()

        the_lab.wait_until(advertised, 10, "a router advertisement", self.agent.explain)
        self.lab.end(monitor)
        self.sentinel("add", site)
        log = self.agent.log.read_text()[start:]
        self.sentinel("del", site)
        return log.splitlines()

    def assert_renewed_silently(self, site):
        log = self.renew(site)
        self.assertTrue(log)
        self.assert_same([line for line in log if SENTINEL not in line], [], "what the agent said of the same lease")

    def roam(self, site):
        self.lab.unplug()
        self.dhcp.lose()
        self.lab.forget_routers()
        self.lab.plug(site)
        self.dhcp.find()
        self.lab.wait_for_defaults("wlan0", self.dhcp.log)

    def test_renew_and_a_new_gateway(self):
        self.start_agent()
        self.assert_right("a")
        self.assert_renewed_silently("a")
        self.dhcp.hand_out("a", SITES["a"].second_gateway)
        self.new_gateway()
        self.assert_members_seen_at("a")
        self.stop_agent()

    def test_roam_and_back(self):
        self.start_agent()
        self.assert_right("a")
        self.roam("b")
        self.assert_right("b")
        self.assert_renewed_silently("b")
        self.roam("a")
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(self.before)

    def test_renew_and_release_under_a_vpn_and_a_lease_again(self):
        self.start_agent()
        self.lab.vpn_up("def1")
        self.assert_right("a", {4: "split", 6: None})
        self.assert_renewed_silently("a")
        # The default goes with the address, and without a word; the VPN's halves stay.
        self.dhcp.release()
        self.assert_same(self.lab.shell("ip route show dev wlan0"), "", "IPv4 routes of wlan0")
        self.assertIn("0.0.0.0/1", self.lab.shell("ip route show dev tun0"))
        status = self.agent.wait_for(lambda s: not s["families"]["ipv4"]["uplink"], "no IPv4 uplink")
        self.assert_same([c["uplinks"]["ipv4"] for c in status["classes"]], [None], "the class's IPv4 uplink")
        self.assertEqual((status["families"]["ipv6"]["uplink"] or {}).get("link"), "wlan0", self.agent.explain())
        self.assertIn(self.lab.seen("udp", 4, member=True), ("no answer: EHOSTUNREACH", "no answer: ENETUNREACH"))
        self.assertIn("no answer", self.lab.probe("tcp", the_lab.MEMBER_ECHO[4], member=True, check=False, timeout=0.5))
        self.assert_members_seen_at("a", families=(6,))
        self.assert_nothing_leaked()
        self.lab.vpn_down()
        self.dhcp.obtain()
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(self.before)


class DhclientTest(Story, ClientTest):
    client = Dhclient

    def new_gateway(self):
        # dhclient-script sets a default for a new lease only, and not for a renewed one.
        second = f"routers {SITES['a'].second_gateway}"
        the_lab.wait_until(lambda: self.dhcp.renew() or second in self.leases(), 15, "the gateway in the lease", self.leases)
        self.assert_renewed_silently("a")
        self.wait_for_gateway(SITES["a"].gateway)
        self.dhcp.release()
        self.agent.wait_for(lambda s: not s["families"]["ipv4"]["uplink"], "no IPv4 uplink")
        self.dhcp.obtain()
        self.wait_for_gateway(SITES["a"].second_gateway)

    def leases(self):
        return self.lab.shell(f"cat {self.dhcp.leases}/*")

    def roam(self, site):
        super().roam(site)
        # The address of the other network was asked for again, and refused.
        self.assertIn("DHCPNAK", self.dhcp.log.read_text())


class UdhcpcTest(Story, ClientTest):
    client = Udhcpc

    def new_gateway(self):
        # Its script deletes the default before it adds the other.
        the_lab.wait_until(lambda: self.dhcp.renew() or f"via {SITES['a'].second_gateway} " in self.lab.shell("ip route show default"),
                           15, "the new default", self.agent.explain)
        self.wait_for_gateway(SITES["a"].second_gateway)


if __name__ == "__main__":
    unittest.main(verbosity=2)
