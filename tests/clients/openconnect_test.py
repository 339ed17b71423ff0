"""openconnect and its vpnc-script against ocserv: a default of metric 0 beside the physical one or in its place, or some prefixes only."""
import unittest

from clienttest import ClientTest, MEMBER_ECHO, NOT_TAKEN, SITES, VPN_SEEN, the_lab
from clients import OpenConnect

BESIDE = {4: "lower_metric", 6: "lower_metric"}


class Full(ClientTest):
    def setUp(self):
        super().setUp()
        self.vpn = OpenConnect(self.lab)

    def test_up_roam_crash_reconnect_down(self):
        before = self.lab.snapshot()
        self.start_agent()
        self.vpn.up()
        self.assert_right("a", BESIDE)

        self.lab.roam("b")
        self.wait_for_uplinks("b")
        self.assert_members_seen_at("b")

        # The client's route to its server went with site A, so that it asks inside its own tunnel: it has to be started anew.
        self.vpn.kill()
        self.assert_right("b")
        self.vpn.up()
        self.assert_right("b", BESIDE)

        # Its default goes with the tunnel; the route to the server stays.
        self.vpn.kill()
        self.assertIn(f"{VPN_SEEN[4]} via {SITES['b'].gateway}", self.lab.shell("ip route"))
        self.assert_right("b")

        self.vpn.up()
        self.assert_right("b", BESIDE)
        self.vpn.down()
        self.lab.roam("a")
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(before)

    def test_default_without_a_metric_is_replaced(self):
        gateway = SITES["a"].gateway
        self.lab.shell(f"ip route add default via {gateway} dev wlan0; ip route del default dev wlan0 metric 600")
        self.start_agent()
        self.vpn.up()
        self.assert_right("a", {4: "replaced", 6: "lower_metric"})
        self.vpn.down()
        self.assert_right("a")
        self.stop_agent()

    def test_agent_started_under_it(self):
        self.vpn.up()
        self.check_started_under("a", BESIDE)


class SplitInclude(ClientTest):
    """Only some prefixes go by the tunnel: public destinations do not, and that is no takeover."""

    def setUp(self):
        super().setUp()
        self.vpn = OpenConnect(self.lab, ["10.99.0.0/16", f"{MEMBER_ECHO[4]}/32", f"{MEMBER_ECHO[6]}/128"])
        self.lab.shell("ip address add 10.99.0.1/32 dev lo", "vpn")

    def test_members_pass_by_what_the_tunnel_includes(self):
        before = self.lab.snapshot()
        self.start_agent()
        self.vpn.up()
        for address in MEMBER_ECHO.values():
            self.assertIn(" dev tun0 ", self.lab.shell(f"ip route get {address}"))
        self.lab.run("ping", "-c1", "-W2", "10.99.0.1")
        self.assert_right("a")
        self.vpn.down()
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(before)

    def test_agent_started_under_it(self):
        self.vpn.up()
        self.check_started_under("a", NOT_TAKEN)


if __name__ == "__main__":
    unittest.main(verbosity=2)
