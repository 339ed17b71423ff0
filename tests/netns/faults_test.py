"""Every write and every answer of the kernel fails in turn, and what the agent leans on runs out: it ends up where it should,
without a restart, or says plainly that it cannot start, and leaves nothing."""
import errno
import re
import resource
import signal
import time
import unittest

from injected import HALVES, InjectedTest
from inject import CUT, EMPTY_ACK, FAILS, FOR_EVER, INTERRUPTED
from lab import wait_until

REFUSALS = (errno.EPERM, errno.ENOBUFS, errno.EBUSY, errno.EEXIST, errno.ESRCH, errno.ENETUNREACH, errno.EINTR, errno.ENOMEM)


class Faults(InjectedTest):
    def setUp(self):
        super().setUp()
        self.sh(HALVES)
        self.start()
        self.settle()
        self.join()
        self.check_member(answered=True)
        # What it is like without a fault.
        self.steered = {}
        for site in ("b", "a"):
            self.roam()
            self.steered[site] = self.lab.snapshot()
        self.writes, self.answers = self.inject.get("writes"), self.inject.get("answers")

    def roam(self):
        """To the other site; one look of the agent sees all of it. The counts begin there."""
        with self.frozen():
            self.arrive("b" if self.site == "a" else "a")
            faults = {cell: self.inject.get(cell) for cell in ("refuse_from", "refuse_to", "refuse_with", "after_all", "spoil_from", "spoil_to", "spoil_how")}
            self.inject.reset()
            self.inject.set(**faults)
        if faults["refuse_from"]:
            # A copied route that the kernel will not have is no failure, and is asked for again at the next look.
            wait_until(lambda: self.inject.get("writes") >= faults["refuse_from"], 20, "the refusal", self.agent.explain)
            self.sh("ip link set lo txqueuelen 999; ip link set lo txqueuelen 1000")
        self.settle(60)

    def check(self, what):
        self.assertFalse(self.is_dead(), f"{what}: {self.agent.log.read_text()[-2000:]}")
        self.assert_state_is(self.steered[self.site])
        self.check_wire()

    def test_each_write_is_refused_once(self):
        for number in range(1, self.writes + 1):
            for error in REFUSALS:
                for after_all in (0, 1):
                    what = f"write {number}, {errno.errorcode[error]}{', though done' if after_all else ''}"
                    with self.subTest(what):
                        self.inject.set(refuse_from=number, refuse_to=number, refuse_with=error, after_all=after_all)
                        self.roam()
                        self.check(what)
        self.check_member(answered=True)

    def test_all_writes_are_refused_for_a_while(self):
        for number in range(1, self.writes + 1):
            with self.subTest(from_=number):
                said = len(self.agent.log.read_text())
                with self.frozen():
                    self.arrive("b" if self.site == "a" else "a")
                    self.inject.reset()
                    self.inject.set(refuse_from=number, refuse_to=FOR_EVER, refuse_with=errno.ENOBUFS)

                def waits():
                    return [int(ms) for ms in re.findall(r"trying again in (\d+) ms", self.agent.log.read_text()[said:])]
                wait_until(lambda: len(waits()) >= 3, 30, "three tries", self.agent.explain)
                self.assertEqual(waits()[:3], [100, 200, 400])
                self.assertIn("pending", [warning["code"] for warning in self.agent.status()["warnings"]])
                self.check_member(answered=False)
                self.check_ordinary()
                self.inject.reset()
                self.settle(60)
                self.check(f"from write {number} on")
                self.check_member(answered=True)

    def test_each_answer_is_spoilt_once(self):
        ways = ((INTERRUPTED, "changed meanwhile"), (CUT, "cut off"), (EMPTY_ACK, "empty"), (FAILS, "ENOBUFS"))
        for number in range(1, self.answers + 1):
            how, name = ways[number % 4]
            with self.subTest(answer=number, how=name):
                self.inject.set(spoil_from=number, spoil_to=number, spoil_how=how, refuse_with=errno.ENOBUFS)
                self.roam()
                self.check(f"answer {number} {name}")
        self.check_member(answered=True)

    def test_every_dump_is_interrupted_for_a_while(self):
        self.inject.set(spoil_from=1, spoil_to=FOR_EVER, spoil_how=INTERRUPTED)
        self.arrive("b")
        wait_until(lambda: "kept changing during the dump" in self.agent.log.read_text(), 20, "a word about it", self.agent.explain)
        self.inject.reset()
        self.settle(60)
        self.check("dumps interrupted for a while")

    def test_out_of_descriptors_for_a_while(self):
        time.sleep(1.2)  # What is in files is known for a second, and asks for no descriptor until then.
        limits = resource.prlimit(self.agent.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.agent.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        self.arrive("b")
        self.sh("ip rule del preference 64; nft delete table inet novpn")
        wait_until(lambda: "Too many open files; trying again in" in self.agent.log.read_text(), 20, "a word about it")
        resource.prlimit(self.agent.pid, resource.RLIMIT_NOFILE, limits)
        self.settle(60)
        self.check("descriptors")
        self.check_member(answered=True)

    def test_stopped_for_a_minute_during_ten_thousand_events(self):
        self.agent.process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        batch = self.lab.directory / "batch"
        batch.write_text("".join(f"route {what} 198.18.{n >> 8}.{n & 255} dev lo table 4000\n" for n in range(500) for what in ("add", "del")))
        for part in range(1, 11):
            self.sh(f"ip -batch {batch}")
            while time.monotonic() < start + 6 * part:
                # What the kernel has been told holds without the agent.
                self.check_member(answered=True)
                self.check_ordinary()
                self.check_wire()
                time.sleep(0.5)
        asked = self.lab.novpn("status", check=False)
        self.assertEqual((asked.returncode, asked.stderr.count("the agent does not answer")), (1, 1), asked.stderr)
        self.sh("ip rule del preference 64; nft flush ruleset; ip -6 route flush table 7866")
        self.arrive("b")
        self.agent.process.send_signal(signal.SIGCONT)
        self.settle(60)
        self.check("ten thousand events")
        self.check_member(answered=True)

    def test_a_process_that_cannot_be_moved(self):
        self.inject.reset()
        self.inject.set(refuse_from=1, refuse_to=1, refuse_with=errno.EBUSY)
        refused = self.lab.novpn("run", "--", "true", check=False)
        self.assertEqual(refused.returncode, 125)
        self.assertIn("busy", refused.stderr.lower())
        self.assertEqual(self.lab.novpn("run", "--", "true", check=False).returncode, 0)


class Starts(InjectedTest):
    def test_each_write_of_a_start_is_refused(self):
        """What is dispensable is done without; else it says why, and leaves nothing."""
        self.sh(HALVES)
        nothing = self.lab.snapshot()
        self.start("{}\n")
        self.settle()
        steered, writes = self.lab.snapshot(), self.inject.get("writes")
        self.agent.stop()
        self.assert_state_is(nothing)
        refused = 0
        for number in range(1, writes + 1):
            with self.subTest(write=number, of=writes):
                self.inject.reset()
                self.inject.set(refuse_from=number, refuse_to=number, refuse_with=errno.ENOBUFS)
                self.start("{}\n")
                if self.is_dead():
                    refused += 1
                    self.assertEqual(self.agent.process.wait(), 1)
                    last = self.agent.log.read_text().splitlines()[-1]
                    self.assertRegex(last, "^novpnd: .*: .*[Nn]o buffer space")
                else:
                    self.settle()
                    self.assert_state_is(steered)
                    self.assertEqual(self.agent.stop(), 0)
                self.assert_state_is(nothing)
            self.agent.process.kill()
            self.agent.process.wait()
            self.lab.novpn("down", "--force")
        self.assertTrue(0 < refused < writes, f"{refused} of {writes}")

    def test_a_full_disk(self):
        nothing = self.lab.snapshot()
        for directory in (self.lab.directory / "run", "/run"):
            with self.subTest(str(directory)):
                self.lab.shell(f"mount -t tmpfs -o nr_inodes=1 lab-full {directory}")
                result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run", check=False)
                self.lab.shell(f"umount {directory}")
                self.assert_refused(result, "no space left")
                self.assert_state_is(nothing)


if __name__ == "__main__":
    unittest.main(verbosity=2)
