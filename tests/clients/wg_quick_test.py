"""wg-quick takes the default over by rules that the kernel puts before ours; ours go back in front, and theirs stay a pair."""
import unittest

from clienttest import ClientTest, VPN_SEEN, the_lab
from clients import WgQuick

TAKEN = {4: "inverted_mark_rule", 6: "inverted_mark_rule"}
BASE = 64
TIMES = 10


class WgQuickTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.wg = WgQuick(self.lab)
        # It sets all.src_valid_mark and never puts it back: what the agent leaves is compared with that.
        self.wg.up()
        self.wg.down()
        self.before = self.lab.snapshot()

    def assert_right_under_it(self, site):
        self.assert_right(site, TAKEN, "wg0")
        for family in (4, 6):
            ours, mains, theirs = (self.position(family, **rule) for rule in (
                {"table": "7866"}, {"table": "main", "suppress_prefixlen": 0}, {"table": "51820"}))
            # The other way round, every ordinary process would lose the LAN.
            self.assertTrue(ours < mains < theirs, self.lab.rules(family))

    def assert_back_at_the_base(self):
        for family in (4, 6):
            the_lab.wait_until(lambda: self.preference(family) == BASE, what="our rule back at the base", detail=self.agent.explain)

    def position(self, family, **wanted):
        """Of the first rule with these fields."""
        rules = self.lab.rules(family)
        found = [number for number, rule in enumerate(rules) if wanted.items() <= rule.items()]
        self.assertTrue(found, f"no rule with {wanted}: {rules}")
        return found[0]

    def preference(self, family):
        return self.lab.rules(family)[self.position(family, table="7866")]["priority"]

    def test_started_after_the_agent_ten_times(self):
        self.start_agent()
        for _ in range(TIMES):
            self.wg.up()
            self.assert_right_under_it("a")
            self.wg.down()
            self.assert_back_at_the_base()
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(self.before)

    def test_started_before_the_agent_ten_times(self):
        for _ in range(TIMES):
            self.wg.up()
            under_it = self.lab.snapshot()
            self.start_agent()
            self.assert_right_under_it("a")
            self.stop_agent()
            self.assert_state_is(under_it)
            self.wg.down()
            self.assert_state_is(self.before)

    def test_roams_crashes_and_comes_back(self):
        self.start_agent()
        self.wg.up()
        self.assert_right_under_it("a")

        self.lab.roam("b")
        self.wait_for_uplinks("b")
        self.assert_members_seen_at("b")
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 20, "WireGuard by site B", self.agent.explain)
        self.assert_right_under_it("b")

        # Its rules and nft tables outlive it, and lead nowhere.
        self.wg.kill()
        self.assert_right("b")
        self.assertIn("51820", self.lab.shell("ip rule"))
        self.assertIn("wg-quick-wg0", self.lab.shell("nft list tables"))

        # It adds its rules once more; its `down` then removes both pairs.
        self.wg.up()
        self.assert_right_under_it("b")
        self.wg.down()
        self.assert_back_at_the_base()
        self.lab.roam("a")
        self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(self.before)


if __name__ == "__main__":
    unittest.main(verbosity=2)
