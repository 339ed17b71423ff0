"""The first packet of a program whose first act is connect(): under `novpn run` never in the tunnel; where the config matches
the scope that a program is in, from the moment on when the agent has seen the scope, which is measured here and printed."""
import collections
import unittest

from apps_test import APPS, NOBODY, UPLINK, Apps
from labtest import LabTest, VPN_SEEN
from lab import ECHO, MEMBER_ECHO

RUNS = 1000


class Run(LabTest):
    def test_a_thousand_times_never_in_the_tunnel(self):
        self.start_agent()
        self.vpn_up("def1")
        run = " ".join(str(word) for word in self.lab.novpn_command("run", "--"))
        script = "for n in $(seq %d); do " + run + f" {self.lab.first_act} %s {MEMBER_ECHO[4]}; done"
        seen = collections.Counter()
        for protocol in ("tcp", "udp"):
            for _ in range(10):
                seen.update(self.lab.shell(script % (RUNS // 20, protocol), check=False).splitlines())
        self.assert_same(dict(seen), {UPLINK: RUNS}, "what the internet saw")
        self.assert_nothing_leaked()
        print(f"novpn run: {RUNS} programs, {seen[UPLINK]} outside, {self.lab.tunnel_packets()['leaked']} packets in the tunnel")


class Matched(Apps):
    def test_how_many_scopes_connect_before_the_agent_has_seen_them(self):
        """Says what it measures. Whatever the moment, a flow is outside or inside for good: nothing is torn in between."""
        self.start_agent()
        self.vpn_up("def1")
        for delay in (0, 500, 1000, 2000, 5000, 20000):
            seen = collections.Counter()
            for n in range(40):
                scope = self.root / APPS / f"app-gnome-spotify-{n}.scope"
                seen[self.lab.run(self.lab.first_act, "in", scope, delay, "tcp", ECHO[4], check=False).stdout.strip()] += 1
                scope.rmdir()
            self.assertEqual(set(seen) - {UPLINK, VPN_SEEN[4]}, set(), "an answer each")
            print(f"matched: connect() {delay / 1000:g} ms after the scope was made: {100 * seen[UPLINK] / sum(seen.values()):.0f} % outside")
        late = f"{APPS}/app-gnome-spotify-late.scope"
        self.make(late, NOBODY)
        self.wait_for_members([late])
        self.assert_same(self.seen_from(late), UPLINK, "what connects once the scope is a member")


if __name__ == "__main__":
    unittest.main(verbosity=2)
