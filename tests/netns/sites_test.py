"""The class follows the place: on at home, off in the office, on again at home; real packets at each arrival."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab

CONFIG = """sites:
  - {name: office, match: {network: 10.20.0.0/16}, classes: {novpn: off}}
  - {name: home, match: {network: 192.168.10.0/24}}
"""


class Sites(LabTest):
    def wait_for_site(self, name, state):
        return self.agent.wait_for(lambda s: (s["site"], s["classes"][0]["state"]) == (name, state), f"site {name}", timeout=20)

    def test_home_office_home(self):
        self.start_agent(CONFIG)
        self.wait_for_site("home", "steering")
        self.vpn_up("def1")
        self.assert_members_seen_at("a", families=(4,))
        flow = self.lab.flow("hold", "tcp", 4, member=True)
        self.assert_same(flow.seen, SITES["a"].seen4, "a member's flow at home")

        self.lab.roam("b")
        status = self.wait_for_site("office", "off")
        self.assert_same([(s["name"], s["matches"], s["failed"]) for s in status["sites"]],
                         [("office", "yes", []), ("home", "no", ["network"])], "sites")
        # What bypassed at home does not go on, and nothing new begins to.
        self.assertIn("no answer", flow.ask())
        refused = self.lab.novpn("run", "--", "true", check=False)
        self.assertIn("class novpn is off", refused.stderr)
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 20, "OpenVPN reconnecting from site B", self.agent.explain)

        self.lab.roam("a")
        self.wait_for_site("home", "steering")
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_members_seen_at("a", families=(4,))

    def test_a_reload_with_sites_loses_no_packet(self):
        self.start_agent("{}\n")
        self.vpn_up("def1")
        flow = self.lab.flow("hold", "tcp", 4, member=True)
        for config in (CONFIG, "{}\n", CONFIG):
            (self.lab.directory / "novpn.yaml").write_text(config)
            self.lab.novpn("reload")
            self.assert_same(flow.ask(), SITES["a"].seen4, "a member's flow after a reload")
        self.wait_for_site("home", "steering")


if __name__ == "__main__":
    unittest.main(verbosity=2)
