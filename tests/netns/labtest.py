"""What the tests of this folder share: a lab for each test, and claims that explain themselves when they fail."""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import lab as the_lab  # noqa: E402
from lab import ECHO, MEMBER_ECHO, SITES, VPN_SEEN  # noqa: E402


class LabTest(unittest.TestCase):
    maxDiff = None
    wired = False
    configured = True
    bpffs = os.environ.get("NOVPN_LAB_BPFFS") != "no"

    def setUp(self):
        self.lab = self.enterContext(the_lab.Lab(wired=self.wired, configured=self.configured, bpffs=self.bpffs))
        self.agent = None

    def start_agent(self, config=None):
        """An agent that has found its way out by IPv4 and IPv6."""
        self.agent = self.lab.start_agent(config)
        self.agent.wait_for(lambda s: all(f["uplink"] for f in s["families"].values()), "an uplink in both families")
        return self.agent

    def vpn_up(self, mode):
        self.lab.vpn_up(mode)
        return self.wait_for_takeover(families=("ipv4", "ipv6") if mode.endswith("ipv6") else ("ipv4",))

    def vpn_down(self):
        self.lab.vpn_down()
        return self.agent.wait_for(lambda s: not any(f["takeovers"] for f in s["families"].values()), "no takeover")

    def wait_for_takeover(self, families=("ipv4",)):
        return self.agent.wait_for(lambda s: all(s["families"][family]["takeovers"] for family in families), f"a takeover of {families}")

    def wait_for_gateway(self, gateway, link="wlan0"):
        def uses_it(status):
            uplink = status["families"]["ipv4"]["uplink"]
            return uplink and (uplink["gateway"], uplink["link"]) == (gateway, link)
        return self.agent.wait_for(uses_it, f"an uplink by {gateway} on {link}")

    def wait_for_link(self, link):
        """Both families leave by it."""
        return self.agent.wait_for(lambda s: all(f["uplink"] and f["uplink"]["link"] == link for f in s["families"].values()),
                                   f"uplinks on {link}")

    def assert_same(self, got, want, what):
        if got != want:
            self.fail(f"{what}: {got!r}, not {want!r}\n{self.agent.explain() if self.agent else ''}")

    def assert_members_seen_at(self, site, families=(4, 6), link="wlan0"):
        for family in families:
            want = self.lab.site_address(site, family, link)
            for protocol in ("tcp", "udp"):
                self.assert_same(self.lab.seen(protocol, family, member=True), want, f"a member's {protocol} over IPv{family}")

    def assert_others_seen_as(self, want, family=4):
        for protocol in ("tcp", "udp"):
            self.assert_same(self.lab.seen(protocol, family), want, f"another process's {protocol} over IPv{family}")

    def assert_nothing_leaked(self):
        counts = self.lab.tunnel_packets()
        self.assert_same(counts["leaked"], 0, f"members' packets at the far end of the tunnel ({counts})")

    def assert_state_is(self, before):
        after = self.lab.snapshot()
        if after != before:
            self.assertEqual(before.splitlines(), after.splitlines())

    def assert_refused(self, result, *words):
        """A program that failed: status 1, one line, which has these words."""
        lines = result.stderr.strip().splitlines()
        self.assertEqual((result.returncode, len(lines)), (1, 1), f"{result.returncode}: {result.stdout}{result.stderr}")
        for word in words:
            self.assertIn(word.lower(), lines[0].lower())
