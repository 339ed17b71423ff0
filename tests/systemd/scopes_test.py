"""`novpn run` and `novpn add` under a real systemd, of the system and of an ordinary user: a scope below the class's slice.

In the order of their names: the last ones stop the agent and the bus.
"""
import json
import os
import re
import subprocess
import sys
import unittest

import machine
from machine import the_lab

PROBE = ["python3", "/root/probe.py"]
OUTSIDE = the_lab.SITES["a"].seen4
SERVICE = f"""
[Service]
Type=oneshot
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_UNIX
ExecStart=python3 /root/probe.py tcp {the_lab.MEMBER_ECHO[4]}
"""


class Scopes(machine.MachineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.machine.run("useradd", "--create-home", "--groups", "novpn", "alice")
        cls.machine.run("useradd", "--create-home", "bob")
        cls.uids = {name: int(cls.machine.run("id", "-u", name).stdout) for name in ("alice", "bob")}
        for uid in cls.uids.values():
            cls.machine.run("systemctl", "start", f"user@{uid}.service")
        cls.lab.vpn_up("def1")

    def setUp(self):
        self.wait_for_uplink()
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)

    def manager(self, user):
        return f"/user.slice/user-{self.uids[user]}.slice/user@{self.uids[user]}.service" if user else ""

    def assert_scope(self, cgroups, user):
        self.assertRegex(cgroups, rf"(?m)^0::{re.escape(self.manager(user))}/novpn\.slice/novpn-novpn\.slice/novpn-\d+-[0-9a-f]+\.scope$")

    def seen_by(self, *command, user=None):
        return self.output(*command, *PROBE, "tcp", the_lab.MEMBER_ECHO[4] if command else the_lab.ECHO[4], user=user).strip()

    def of_user(self, user):
        """The words before a command of the user's own systemd."""
        return ["env", f"XDG_RUNTIME_DIR=/run/user/{self.uids[user]}"]

    def members(self):
        return {member["cgroup"]: member for member in self.status()["classes"][0]["members"]}

    def cgroup_of(self, pid):
        return self.machine.run("cat", f"/proc/{pid}/cgroup").stdout

    def hold(self, *command, user=None, to=the_lab.MEMBER_ECHO[4]):
        flow = the_lab.Flow(subprocess.Popen(self.machine.service(*command, *PROBE, "hold", "tcp", to, user=user),
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0))
        self.addCleanup(flow.process.wait, 20)
        self.addCleanup(flow.process.stdout.close)
        self.addCleanup(flow.process.stdin.close)
        return flow, self.machine.run("pgrep", "-n", "-f", "probe.py hold").stdout.strip()

    def test_01_run_is_a_scope_of_the_callers_own_systemd(self):
        for user in (None, "alice"):
            with self.subTest(user):
                self.assert_scope(self.output("novpn", "run", "cat", "/proc/self/cgroup", user=user), user)
                self.assertEqual(self.output("novpn", "run", "sh", "-c", "echo $NOVPN_CLASS; exit 7", user=user), "novpn\n")
                self.assertEqual(subprocess.run(self.machine.service("novpn", "run", "sh", "-c", "exit 7", user=user), timeout=30).returncode, 7)

    def test_02_also_the_first_after_a_login(self):
        """The user's bus is started by the first call, and systemd has no name on it yet."""
        for _ in range(5):
            unit = f"user@{self.uids['alice']}.service"
            self.machine.run("sh", "-ec", f"systemctl restart {unit}; systemctl reset-failed {unit}")  # as often as wanted
            self.assert_scope(self.output("novpn", "run", "cat", "/proc/self/cgroup", user="alice"), "alice")

    def test_03_its_first_act_is_outside(self):
        """Also in a slice that systemd has just made."""
        for user in (None, "alice"):
            for count in range(5):
                with self.subTest(user, count=count):
                    self.assertEqual(self.seen_by("novpn", "run", user=user), OUTSIDE)
        self.assertEqual(self.seen_by(user="alice"), the_lab.VPN_SEEN[4])
        stop = [*self.of_user("alice"), "systemctl", "--user", "stop", "novpn.slice"]
        for _ in range(5):
            self.output(*stop, user="alice")
            self.assertEqual(self.seen_by("novpn", "run", user="alice"), OUTSIDE)

    def test_04_a_user_outside_of_allow_starts_nothing_and_has_no_slice(self):
        self.assertIn("allow", self.output("novpn", "run", "echo", "started", user="bob"))
        self.assertNotIn("started\n", self.output("novpn", "run", "echo", "started", user="bob"))
        by_hand = self.output(*self.of_user("bob"), "systemd-run", "--user", "--quiet", "--scope", "--slice=novpn-novpn.slice", *PROBE, "tcp",
                              the_lab.ECHO[4], user="bob")
        self.assertEqual(by_hand.strip(), the_lab.VPN_SEEN[4])

    def test_05_add_and_remove(self):
        for user in (None, "alice"):
            with self.subTest(user):
                flow, pid = self.hold(user=user, to=the_lab.ECHO[4])
                said = self.output("novpn", "add", pid, user=user)
                self.assertIn("1 of its open sockets was made before", said)
                self.assert_scope(self.cgroup_of(pid), user)
                self.assertIn("is in class novpn.", self.output("novpn", "explain", "--pid", pid, "192.0.2.1", user=user))
                self.assertEqual(flow.ask(), the_lab.VPN_SEEN[4])
                self.assertIn("is out of class novpn", self.output("novpn", "remove", pid, user=user))
                self.assertNotIn("novpn-", self.cgroup_of(pid))

    def test_06_somebody_elses_process_stays_where_it_is(self):
        _, pid = self.hold(to=the_lab.ECHO[4])
        before = self.cgroup_of(pid)
        self.assertIn("is not uid", self.output("novpn", "add", pid, user="alice"))
        self.assertEqual(self.cgroup_of(pid), before)

    def test_07_a_service_by_a_drop_in(self):
        self.machine.run("sh", "-ec", "printf '%s' \"$1\" > /etc/systemd/system/backup.service; systemctl daemon-reload", "sh", SERVICE)
        self.machine.run("install", "-m", "755", "/root/probe.py", "/usr/local/bin/probe.py")
        self.machine.run("sed", "-i", "s|/root/probe.py|/usr/local/bin/probe.py|", "/etc/systemd/system/backup.service")
        self.machine.run("sh", "-ec", "mkdir -p /etc/systemd/system/backup.service.d; cd /etc/systemd/system/backup.service.d;"
                         " printf '[Service]\\nSlice=novpn-novpn.slice\\n' > novpn.conf; systemctl daemon-reload; systemctl start backup.service")
        self.assertIn(OUTSIDE, self.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", "backup.service").stdout)
        of_user = self.output(*self.of_user("alice"), "systemd-run", "--user", "--quiet", "--pipe", "--wait", "--collect",
                              "--slice=novpn-novpn.slice", "/usr/local/bin/probe.py", "tcp", the_lab.MEMBER_ECHO[4], user="alice")
        self.assertEqual(of_user.strip(), OUTSIDE)

    def test_08_users_see_their_own_members(self):
        _, pid = self.hold("novpn", "run", user="alice")
        slice_ = f"{self.manager('alice')}/novpn.slice/novpn-novpn.slice".lstrip("/")
        self.assertEqual(self.members()[slice_]["processes"], 1)
        self.assertEqual(self.members()[slice_]["selector"], "slice novpn-novpn.slice")
        self.assertNotIn(slice_, self.output("novpn", "status", "--json", user="bob"))

    def test_09_without_an_agent_nothing_is_started_but_anyway(self):
        self.machine.run("systemctl", "stop", "novpnd")
        self.addCleanup(self.machine.run, "systemctl", "start", "novpnd")
        for user in (None, "alice"):
            with self.subTest(user):
                result = subprocess.run(self.machine.service("novpn", "run", "echo", "started", user=user), text=True, capture_output=True, timeout=30)
                self.assertEqual((result.returncode, result.stdout), (125, ""), result.stderr)
                self.assertIn("no agent runs", result.stderr)
                _, pid = self.hold("novpn", "run", "--anyway", user=user, to=the_lab.ECHO[4])
                self.assert_scope(self.cgroup_of(pid), user)
                self.machine.run("systemctl", "start", "novpnd")
                self.wait_for_uplink()
                explained = json.loads(self.machine.run("novpn", "explain", "--json", "--pid", pid, "192.0.2.1").stdout)
                self.assertEqual((explained["process_class"], explained["selector"]), ("novpn", "run"))
                self.machine.run("systemctl", "stop", "novpnd")

    def test_10_where_no_systemd_answers_it_is_in_the_agents_cgroup(self):
        self.machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
        self.addCleanup(self.machine.run, "systemctl", "start", "dbus.socket")
        self.assertRegex(self.machine.run("novpn", "run", "cat", "/proc/self/cgroup").stdout, r"(?m)^0::/novpn-\d+/novpn$")
        self.assertEqual(self.machine.run("novpn", "run", *PROBE, "tcp", the_lab.MEMBER_ECHO[4]).stdout.strip(), OUTSIDE)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("scopes_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
