"""A real charon: its rule 220 is nobody's way out, its policies take every ordinary packet. Nothing here can encrypt, so no tunnel comes
up, and what the policies take is held."""
import re
import unittest

from clienttest import ClientTest, NOT_TAKEN, SITES, shapes, the_lab
from clients import StrongSwan

FAMILIES = (4, 6)
OURS = "mark 0x4e000000/0xff000000"


class StrongSwanTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.charon = StrongSwan(self.lab)
        self.before = self.lab.snapshot()

    def policies(self):
        """Without those of charon's own sockets: (text, priority, whether it is ours)."""
        found = re.split(r"^(?=src )", self.lab.shell("ip xfrm policy"), flags=re.MULTILINE)
        return [(text, int(re.search(r"priority (\d+)", text)[1]), OURS in text)
                for text in found if " priority " in text and "socket" not in text]

    def assert_beside_rule_220(self, present=True):
        """charon's rule is behind ours, in both families."""
        for family in FAMILIES:
            tables = [rule.get("table") for rule in self.lab.rules(family)]
            self.assert_same("220" in tables, present, f"IPv{family} rule of charon ({tables})")
            if present:
                self.assertLess(next(i for i, rule in enumerate(self.lab.rules(family)) if "fwmark" in rule), tables.index("220"), tables)

    def assert_held(self, site):
        """Members leave by the uplink, ordinary packets do not leave at all, and neighbours are reached."""
        want = {family: [("xfrm", None)] for family in FAMILIES}
        status = self.wait_for_uplinks(site, claim=lambda s: shapes(s) == want and s["health"] == "ok", what=f"takeovers {want}")
        self.assert_status_is_whole(status, "wlan0", FAMILIES)
        before = self.lab.uplink_packets()
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                answer = self.lab.probe(protocol, the_lab.ECHO[family], check=False, timeout=0.5)
                self.assertTrue(answer.startswith("no answer"), f"another process's {protocol} over IPv{family}: {answer}")
        self.assert_members_seen_at(site)
        self.assert_neighbours_reached(site)
        # Members' packets came after them on the same wire, and have been there and back.
        after = self.lab.uplink_packets()
        for name in ("ordinary4", "ordinary6", "wrong_source"):
            self.assert_same(after[name] - before[name], 0, f"{name} at the site's router")
        self.assert_nothing_leaked()
        self.assert_same(self.lab.novpn("plan").stdout, "nothing to change\n", "what the agent would still change")
        # charon gives a policy a priority by how narrow it is; ours come before all of them.
        policies = self.policies()
        self.assert_same(len([p for p in policies if p[2]]), 6, "policies of ours")
        self.assertLess(max(priority for _, priority, ours in policies if ours), min(priority for _, priority, ours in policies if not ours))

    def assert_no_policies(self):
        self.assert_same(self.policies(), [], "policies")

    def test_start_load_stop(self):
        self.start_agent()
        self.charon.start()
        self.assert_beside_rule_220()
        self.assert_right("a")
        self.charon.load()
        self.assert_held("a")
        self.assertIn(f"default via {SITES['a'].gateway} dev wlan0", self.lab.shell("ip route show table 220"))
        self.charon.stop()
        self.assert_right("a")
        self.assert_beside_rule_220(False)
        self.assert_no_policies()
        self.stop_agent()
        self.assert_state_is(self.before)

    def test_crash(self):
        self.start_agent()
        self.charon.start()
        self.charon.load()
        self.assert_held("a")
        # Policies and rules outlive it.
        self.charon.kill()
        self.assert_beside_rule_220()
        self.assert_held("a")
        self.lab.shell("ip xfrm policy flush")
        self.assert_right("a", NOT_TAKEN)
        self.assert_no_policies()
        self.stop_agent()

    def test_agent_started_under_it(self):
        self.charon.start()
        self.charon.load()
        under_charon = self.policies()
        self.agent = self.lab.start_agent()
        self.assert_held("a")
        self.stop_agent()
        self.assert_same(self.policies(), under_charon, "policies")
        self.charon.stop()
        self.assert_state_is(self.before)


if __name__ == "__main__":
    unittest.main(verbosity=2)
