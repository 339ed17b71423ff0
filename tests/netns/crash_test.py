"""Killed before each of its writes to the kernel, in every kind of plan: nothing goes astray meanwhile, the next agent does
only what was missing, and `novpn down --force` leaves what was there before novpn ever ran."""
import collections
import re
import signal
import unittest

from injected import HALVES, TUNNEL, InjectedTest
from lab import ONE_IN
from labtest import MEMBER_ECHO

PLAIN = "{}\n"
RICH = """classes:
  novpn: {destinations: [198.51.100.128/25, "2001:db8:77::/48"], users: [1234], dns: uplink}
  game: {table: 7900, mark: 0x12000000/0xff000000, preference: 100, users: [daemon], when_no_uplink: tunnel}
"""
OFF_AT_B = "sites: [{name: office, match: {network: 10.20.0.0/24}, classes: {novpn: off}}]\n"
# As wg-quick, with the preferences that the kernel gives it where ours are there first: the agent moves its own.
INVERTED = f"""for f in -4 -6; do ip $f route add default dev {TUNNEL} table 51820
ip $f rule add not fwmark 0xca6c lookup 51820 preference 62; ip $f rule add lookup main suppress_prefixlength 0 preference 61; done"""
NOT_INVERTED = f"""for f in -4 -6; do ip $f rule del lookup main suppress_prefixlength 0; ip $f rule del not fwmark 0xca6c lookup 51820
ip $f route del default dev {TUNNEL} table 51820; done"""
# A policy for all that leaves from the laptop's own addresses, and for what comes back. Nothing here encrypts: what it takes
# is lost.
IPSEC = [f"src {own} dst {every} dir out|tmpl src {here} dst {there} proto esp reqid 1 mode tunnel"
         for own, every, here, there in (("192.168.10.77/32", "0.0.0.0/0", "192.168.10.77", "203.0.113.20"),
                                         ("2001:db8:a::77/128", "::/0", "2001:db8:a::77", "2001:db8:ffff:2::20"))]


class Crash(InjectedTest):
    config = PLAIN

    def away(self):
        """What happens to the laptop, without the agent."""

    def home(self):
        """And back."""

    def act(self):
        """It happens; the agent has acted on it, or is dead, when this returns."""
        with self.frozen():
            self.away()
        self.settle()

    def prepare(self):
        """An agent that is settled, with a member and its open flows."""
        self.inject.reset()
        self.start(self.config)
        self.settle()
        self.join()
        self.flows = [self.question(self.member, "keep", protocol, MEMBER_ECHO[family], 3)
                      for family in (4, 6) for protocol in ("udp", "tcp")]
        self.packets.take()

    def clean_up(self):
        if self.member:
            self.lab.end(self.member)
            self.member = None
        if not self.is_dead():
            self.agent.kill9()
        self.lab.novpn("down", "--force")
        self.home()

    def act_until(self, write):
        """Killed before that write of what act() causes; 0: not at all. What it did, as far as it said so."""
        before = self.operations() if self.agent else collections.Counter()
        self.inject.reset()
        self.inject.set(kill_at=write)
        self.act()
        status = self.agent.process.poll()
        self.assertEqual(status == -signal.SIGKILL, write != 0, f"write {write}: {status}\n{self.agent.log.read_text()}")
        return self.operations() - before

    def restart(self):
        """The next agent, and what it did."""
        self.inject.reset()
        self.start(self.config)
        self.settle()
        return self.operations()

    def explore(self, had_members=True, has_members=True, flows_stay=True):
        """has_members: what was a member before is one afterwards too."""
        self.away()
        nothing = self.lab.snapshot()
        self.home()
        self.prepare()
        everything = self.act_until(0)
        writes = self.inject.get("writes")
        self.clean_up()
        self.assertGreaterEqual(writes, sum(everything.values()))
        self.assertTrue(everything)
        for write in range(1, writes + 1, ONE_IN):
            with self.subTest(write=write, of=writes, then="a start"):
                self.prepare()
                done = self.act_until(write)
                self.check_ordinary()
                if had_members and has_members:
                    self.check_member(answered=False)
                self.check_wire(members=has_members)
                missing = self.restart()
                # What takes several writes may be half done: it is taken away and made again.
                half = {text.removeprefix("rm ").removesuffix("*") for text in missing if re.match(r"rm .*-\*$", text)}
                # And sockets have other ports each time.
                again = {text for text in missing
                         if text.startswith(("rmdir /sys/fs/bpf/", "ss ")) or any(pin in text for pin in half)}
                self.assertFalse(set(missing - (everything - done)) - again, "more than what was missing")
                self.check_ordinary()
                if has_members:
                    if not had_members:
                        self.join()
                    self.check_member(answered=True)
                if had_members and has_members and flows_stay:
                    for flow, seen in enumerate(self.flows):
                        self.assertEqual(self.question(self.member, "again", flow), seen, f"flow {flow}")
                self.check_wire(members=has_members)
            self.clean_up()
            with self.subTest(write=write, of=writes, then="down --force"):
                self.prepare()
                self.act_until(write)
                self.lab.novpn("down", "--force")
                self.assert_state_is(nothing)
            self.clean_up()
        print(f"{self.id().split('.')[-1]}: {writes} writes of {sum(everything.values())} operations", flush=True)


class Start(Crash):
    config = RICH

    def prepare(self):
        self.agent = None

    def act(self):
        self.start(self.config)
        self.settle()

    def test_start(self):
        self.sh(HALVES)
        self.explore(had_members=False)


class Release(Crash):
    config = RICH

    def act(self):
        self.agent.process.send_signal(signal.SIGTERM)
        self.agent.process.wait(10)

    def restart(self):
        super().restart()
        return collections.Counter()  # It makes again what was released.

    def test_release(self):
        self.sh(HALVES)
        self.explore(has_members=False)


class Reload(Crash):
    before, after = PLAIN, RICH

    def away(self):
        self.write_config(self.after)

    def home(self):
        self.write_config(self.before)

    def write_config(self, text):
        self.config = text
        (self.lab.directory / "novpn.yaml").write_text(text)

    def act(self):
        self.away()
        self.ask_agent("Reload")
        self.settle()

    def test_more_classes(self):
        self.sh(HALVES)
        self.explore()


class ReloadBack(Reload):
    before, after = RICH, PLAIN

    def test_more_classes(self):
        """And fewer again."""
        self.sh(HALVES)
        self.explore()


class Takeover(Crash):
    def away(self):
        self.sh(INVERTED)

    def home(self):
        self.sh(NOT_INVERTED, check=False)

    def test_takeover(self):
        self.explore()


class Policies(Crash):
    def away(self):
        self.sh("\n".join(f"ip xfrm policy add {policy.replace('|', ' priority 383616 ')}" for policy in IPSEC))

    def home(self):
        self.sh("\n".join(f"ip xfrm policy delete {policy.split('|')[0]}" for policy in IPSEC), check=False)

    def test_policies(self):
        self.sh(HALVES)
        self.explore()


class Roam(Crash):
    def away(self):
        self.arrive("b")

    def home(self):
        self.arrive("a")

    def test_roam(self):
        self.sh(HALVES)
        self.explore(flows_stay=False)


class Site(Roam):
    config = OFF_AT_B

    def test_roam(self):
        """To where the class is off."""
        self.sh(HALVES)
        self.explore(has_members=False)


if __name__ == "__main__":
    unittest.main(verbosity=2)
