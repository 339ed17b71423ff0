"""A real OpenVPN takes the default over, follows the laptop to another site, is killed, reconnects and ends."""
import unittest

from clienttest import ClientTest, SITES, VPN_SEEN, the_lab


class Story:
    """mode: a key of lab.VPN_MODES; taken: the shape of its takeover in each family."""

    def test_up_roam_crash_reconnect_down(self):
        before = self.lab.snapshot()
        self.start_agent()
        self.assert_right("a")

        self.lab.vpn_up(self.mode)
        self.assert_right("a", self.taken)
        first_tunnel = self.lab.ifindex("tun0")

        # The VPN stays up, stalled, until it has noticed; members do not wait for it.
        self.lab.roam("b")
        self.wait_for_uplinks("b")
        self.assert_members_seen_at("b")
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 20, "OpenVPN reconnecting", self.agent.explain)
        self.assert_right("b", self.taken)
        self.assertNotEqual(self.lab.ifindex("tun0"), first_tunnel)

        # The tunnel's routes go with the process, and without a word; the route to the server stays.
        self.lab.vpn_kill()
        self.assertIn(f"{VPN_SEEN[4]} via {SITES['b'].gateway}", self.lab.shell("ip route"))
        self.after_the_crash()

        self.lab.vpn_up(self.mode)
        self.assert_right("b", self.taken)
        self.lab.vpn_down()
        self.lab.roam("a")
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(before)

    def after_the_crash(self):
        self.assert_right("b")

    def test_up_and_down_where_it_began(self):
        self.start_agent()
        self.lab.vpn_up(self.mode)
        self.assert_right("a", self.taken)
        self.lab.vpn_down()
        self.assert_right("a")
        self.stop_agent()

    def test_agent_started_under_it(self):
        self.lab.vpn_up(self.mode)
        self.check_started_under("a", self.taken)


class Plain(Story, ClientTest):
    mode, taken = "plain", {4: "replaced", 6: None}

    def after_the_crash(self):
        # It took the physical default with it, and nothing but the next lease brings that back. Members need none.
        self.wait_for_uplinks("b", claim=lambda s: not s["families"]["ipv4"]["takeovers"], what="without a takeover")
        self.assert_same(self.lab.shell("ip route show default"), "", "defaults in main")
        self.assert_members_seen_at("b")
        self.lab.forget()
        self.lab.lease()


class Def1(Story, ClientTest):
    mode, taken = "def1", {4: "split", 6: None}


class Def1Ipv6(Story, ClientTest):
    mode, taken = "def1-ipv6", {4: "split", 6: "split"}


if __name__ == "__main__":
    unittest.main(verbosity=2)
