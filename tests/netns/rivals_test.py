"""What a VPN's server, a program with root's rights and whoever may write where the agent does can try, at full speed."""
import os
import pathlib
import re
import signal
import unittest

from injected import HALVES, TUNNEL, InjectedTest
from labtest import SITES
from lab import cgroup_mount, wait_until

FLOOD = 1_000_000  # Routes that a server pushes: a full table of the internet.
MEMORY = 256 << 10  # KiB of the agent under it, with room for the sanitizers.


class Hostile(InjectedTest):
    def setUp(self):
        super().setUp()
        self.sh(HALVES)
        self.start("{}\n")
        self.settle()
        self.join()
        self.check_member(answered=True)

    def peak(self):
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{self.agent.pid}/status").read_text())[1])

    def test_a_flood_of_routes(self):
        before = self.peak()
        batch = self.lab.directory / "flood"
        batch.write_text("".join(f"route add {60 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/24 dev {TUNNEL}\n" for n in range(FLOOD)))
        pushed = self.lab.spawn("ip", "-batch", batch, output=self.lab.directory / "flood.log")
        answers = 0
        while pushed.poll() is None:
            # Neither waits for its end.
            self.assertEqual(self.ask_agent("Status")["parameters"]["classes"][0]["state"], "steering")
            self.check_member(answered=True)
            answers += 1
        self.assertEqual(pushed.returncode, 0, (self.lab.directory / "flood.log").read_text()[-1000:])
        self.assertGreater(answers, 1, "answers while they come")
        self.settle(120)
        self.check_member(answered=True)
        self.check_ordinary()
        self.check_wire()
        ours = self.sh("ip route show table 7866 | wc -l; ip -6 route show table 7866 | wc -l").split()
        self.assertLess(max(map(int, ours)), 10, "routes by the tunnel are no class's")
        grown = self.peak() - before
        print(f"{FLOOD} routes: the agent's peak grew by {grown} KiB", flush=True)
        self.assertLess(grown, MEMORY)
        self.arrive("b")
        self.settle(120)
        self.check_member(answered=True)

    def test_cgroups_are_removed_as_fast_as_one_can(self):
        self.lab.end(self.member)
        before = self.lab.snapshot()
        cgroup = cgroup_mount() / f"novpn-{self.lab.netns_inode()}"
        rival = self.lab.spawn("sh", "-c", f"while :; do rmdir {cgroup}/novpn {cgroup}; ip rule del preference 64; done 2>&-",
                               output=self.lab.directory / "rival.log")
        wait_until(lambda: self.agent.status()["repairs"] >= 10, 30, "ten repairs", self.agent.explain)
        self.lab.end(rival)
        self.sh("ip rule del preference 64 || true")  # A cause to look: nobody tells of a cgroup of the agent's own.
        self.settle(60)
        self.assert_state_is(before)
        self.join()
        self.check_member(answered=True)

    def test_another_tool_with_our_mark(self):
        self.sh(f"""for f in -4 -6; do ip $f route add default dev {TUNNEL} table 51820
            ip $f rule add fwmark 0x4e000000/0xff000000 lookup 51820 preference 40; done""")
        self.settle()
        self.check_member(answered=True)
        self.check_wire()
        for family in (4, 6):
            ours = [rule["priority"] for rule in self.lab.rules(family) if rule.get("table") == "7866"]
            self.assertTrue(ours and max(ours) < 40, self.lab.rules(family))


    def test_rules_of_wg_quick_at_our_preferences(self):
        """Behind ours where theirs came later, and before them where ours did: with a preference in common the older goes first."""
        self.sh(f"""for f in -4 -6; do ip $f route add default dev {TUNNEL} table 51820
            ip $f rule add not fwmark 0xca6c lookup 51820 preference 64; ip $f rule add lookup main suppress_prefixlength 0 preference 63; done""")
        for _ in range(2):
            self.settle()
            self.check_member(answered=True)
            self.check_ordinary()
            self.check_wire()
            # Put back, ours are the younger ones.
            self.sh("for f in -4 -6; do while ip $f rule del table 7866; do :; done 2>/dev/null; done; ip rule del fwmark 0x4e000000/0xff000000 ipproto udp || true")

    def test_another_tool_that_repairs_too(self):
        """It puts its rule before ours whenever ours moved, as the agent does the other way round: neither wins, the agent gets
        slower and names it, and no packet is in the wrong place meanwhile."""
        before = self.lab.snapshot()
        log = self.lab.directory / "rival.log"
        # Without a preference a rule comes before all others.
        rival = self.lab.spawn("sh", "-c", f"""ip route add default dev {TUNNEL} table 51820
            ip -4 monitor rule | while read -r line; do case "$line" in
                *7866* | *51821*) ip rule del lookup 51820; ip rule add fwmark 0x4e000000/0xff000000 lookup 51820; echo put;;
            esac; done""", output=log)

        def listens():
            self.sh("ip rule add lookup 51821 preference 30000; ip rule del lookup 51821")
            return "put" in log.read_text()
        wait_until(listens, 20, "the rival", log.read_text)
        self.agent.wait_for(lambda status: "rival_rule" in [warning["code"] for warning in status["warnings"]], "the rival named", 60)
        self.check_member(answered=False)
        self.check_ordinary()
        self.check_wire()
        said, rounds = len(self.agent.log.read_text().splitlines()), log.read_text().count("put")
        wait_until(lambda: log.read_text().count("put") >= rounds + 50, 60, "fifty rounds more", self.agent.explain)
        self.assertLess(len(self.agent.log.read_text().splitlines()) - said, 50, "lines about that")
        os.killpg(rival.pid, signal.SIGKILL)  # with `ip monitor`
        rival.wait(10)
        self.sh(f"ip rule del lookup 51820 || true; ip route del default dev {TUNNEL} table 51820")
        self.settle(60)
        self.assert_state_is(before)
        self.check_member(answered=True)


class NoRival(InjectedTest):
    def test_what_the_kernel_takes_along(self):
        """A link, or its address, that is back before the agent looks: the class's default has gone with it, without a word. It
        is put back each time, and none of the repairs, which are counted and come ever more slowly."""
        self.sh(HALVES + "; sysctl -qw net.ipv6.conf.wlan0.disable_ipv6=1")
        self.start("{}\n")
        self.settle()
        own = "ip -4 route show table 7866"
        before, address = self.sh(own), f"{SITES['a'].net4}.77/24 dev wlan0"
        self.assertIn("default via", before)
        for flap in ["ip link set wlan0 down; ip link set wlan0 up"] * 12 + [f"ip address del {address}; ip address add {address}"] * 12:
            with self.frozen():
                self.sh(flap)
                self.assertNotIn("default via", self.sh(own), flap)
            wait_until(lambda: self.sh(own) == before, 20, f"the table after {flap}", self.agent.explain)
            self.settle()  # A look that sees the next one before it has read of it takes it for another program's.
        self.assertEqual(self.agent.status()["repairs"], 0, self.agent.explain())
        self.sh("ip route del default table 7866")
        wait_until(lambda: self.sh(own) == before, 20, "the repair", self.agent.explain)
        self.assertEqual(self.agent.status()["repairs"], 1, self.agent.explain())


class Links(InjectedTest):
    """Symbolic links where the agent writes."""

    def test_in_place_of_the_lock(self):
        target = self.lab.directory / "precious"
        target.write_text("as it was")
        self.sh(f"mkdir -p /run/novpn; ln -s {target} /run/novpn/netns-{self.lab.netns_inode()}.lock")
        result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run", check=False)
        self.assert_refused(result, "lock")
        self.assertEqual(target.read_text(), "as it was")

    def test_in_place_of_the_socket(self):
        target = self.lab.directory / "precious"
        target.write_text("as it was")
        os.symlink(target, self.lab.directory / "run/io.novpn.Agent")
        result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run", check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(target.read_text(), "as it was")
        self.assertTrue((self.lab.directory / "run/io.novpn.Agent").is_symlink())


if __name__ == "__main__":
    unittest.main(verbosity=2)
