"""`novpn run` and `novpn add` under a real systemd, of the system and of an ordinary user: a scope below the class's slice.

In the order of their names: the last ones stop the agent and the bus.
"""
import collections
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

# Makes a cgroup below its own, which is delegated to it, and goes on in there.
INSIDE = """#!/bin/sh -e
at=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/$1
mkdir -p "$at"
echo 0 > "$at/cgroup.procs"
shift
exec "$@"
"""
# As much as a service that asks a host by IPv4 can do without.
GUARDED = f"""
[Service]
Type=exec
DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectProc=invisible
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
RestrictAddressFamilies=AF_INET AF_UNIX
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallFilter=@system-service
SystemCallArchitectures=native
IPAddressAllow=any
UMask=0077
ExecStart=sh -c "until [ -e /run/go ]; do sleep 0.05; done; exec {the_lab.PYTHON} /usr/local/bin/probe.py tcp {the_lab.MEMBER_ECHO[4]}"
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

    def test_98_without_an_agent_nothing_is_started_but_anyway(self):
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

    def test_99_where_no_systemd_answers_it_is_in_the_agents_cgroup(self):
        self.machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
        self.addCleanup(self.machine.run, "systemctl", "start", "dbus.socket")
        self.assertRegex(self.machine.run("novpn", "run", "cat", "/proc/self/cgroup").stdout, r"(?m)^0::/novpn-\d+/novpn$")
        self.assertEqual(self.machine.run("novpn", "run", *PROBE, "tcp", the_lab.MEMBER_ECHO[4]).stdout.strip(), OUTSIDE)

    # What the config matches where it already is.

    def configure(self, text):
        self.machine.run("sh", "-ec", 'printf "%s" "$1" > /etc/novpn/conf.d/50-test.yaml; novpn reload', "sh", text)
        self.addCleanup(self.machine.run, "sh", "-ec", "rm /etc/novpn/conf.d/50-test.yaml; novpn reload")

    def start(self, unit, user, *options, of_system=False):
        """A program in a unit of that name, as a desktop of the user starts one; it waits for a line, and then asks what the internet sees
        of it. A name without a suffix is a service's."""
        kind = ["--scope"] if unit.endswith(".scope") else ["--pipe", "--wait", "--collect"]
        manager = [] if of_system else ["--user"]
        process = subprocess.Popen(
            self.machine.service(*(self.of_user(user) if user else []), "systemd-run", *manager, "--quiet", f"--unit={unit}", *kind, *options,
                                 "sh", "-c", f"grep ^0:: /proc/self/cgroup; read go; exec {' '.join(PROBE)} tcp {the_lab.ECHO[4]}", user=user),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.addCleanup(process.wait, 20)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        process.cgroup = the_lab.read_line(process, 20).removeprefix("0::/")
        return process

    def go(self, process):
        process.stdin.write(b"\n")
        return the_lab.read_line(process, 20)

    def wait_for_members(self, *paths):
        the_lab.wait_until(lambda: set(paths) <= set(self.members()), 20, f"members {paths}", lambda: f"{self.members()}\n{self.machine.journal()}")

    APPLICATIONS = {  # the unit: what is written in `apps:`
        "app-gnome-spotify-123.scope": "spotify",
        "app-gnome-org.gnome.Music-4711.scope": "org.gnome.Music",
        "app-org.kde.elisa@5f3a1c0e.service": "org.kde.elisa",
        "app-gmail\\x2dtray@autostart.service": "gmail-tray",
        "dbus-:1.2-org.gnome.Maps@0.service": "org.gnome.Maps",
        "app-flatpak-com.spotify.Client-2049.scope": "com.spotify.Client",
        "snap.vlc.vlc-b2d5f8ba-1f3d-4bb3-a3d1-8b0c6b2f1bd1.scope": "vlc",
        "app-firefox\\x2desr-9.scope": "firefox*",
    }

    def test_09_the_names_of_gnome_kde_flatpak_and_snap(self):
        self.configure("classes: {novpn: {apps: [%s]}}" % ", ".join(f'"{app}"' for app in self.APPLICATIONS.values()))
        started = {unit: self.start(unit, "alice", "--slice=app.slice") for unit in self.APPLICATIONS}
        paths = {unit: process.cgroup for unit, process in started.items()}
        self.assertEqual(paths, {unit: f"{self.manager('alice')}/app.slice/{unit}".lstrip("/") for unit in started})
        self.wait_for_members(*paths.values())
        members = self.members()
        self.assertEqual({unit: members[path]["selector"] for unit, path in paths.items()},
                         {unit: f"app {app}" for unit, app in self.APPLICATIONS.items()})
        listed = {app["id"]: app["running"] for app in json.loads(self.output("novpn", "apps", "--json", user="alice"))["apps"] if app["running"]}
        self.assertEqual(listed, {"spotify": 1, "org.gnome.Music": 1, "org.kde.elisa": 1, "gmail-tray": 1, "org.gnome.Maps": 1,
                                  "com.spotify.Client": 1, "vlc": 1, "firefox-esr": 1})
        for unit, process in started.items():
            self.assertEqual(self.go(process), OUTSIDE, unit)
        the_lab.wait_until(lambda: not set(paths.values()) & set(self.members()), 20, "no member that is gone", self.machine.journal)

    def test_10_names_that_were_chosen_to_get_in(self):
        self.configure("classes: {novpn: {apps: [spotify], units: [guarded.service], slices: [backup.slice], cgroups: [jobs.slice/nightly]}}")
        # A script: systemd puts its own values for a '$' in a command.
        self.machine.run("sh", "-ec", 'printf "%s" "$1" > /usr/local/bin/inside; chmod 755 /usr/local/bin/inside', "sh", INSIDE)
        inner = ["--property=Delegate=yes", "inside"]
        chosen = [
            ("app-gnome-spotify-1.scope", "bob", ["--slice=app.slice"], False),               # not in `allow`
            ("app-gnome-spotify-2.scope", "alice", ["--slice=-.slice"], False),               # below no slice
            ("app-a-b-spotify-3.scope", "alice", ["--slice=app.slice"], False),               # more words than a launcher's
            ("app-gnome-spotify\\x2d-4.scope", "alice", ["--slice=app.slice"], False),         # "spotify-"
            ("app-gnome-spotify@5.service", "alice", ["--slice=app.slice"], False),           # a scope's words in a service
            ("spotify.service", "alice", ["--slice=app.slice"], False),
            ("guarded.service", "alice", ["--slice=app.slice"], False),                       # named like a service of the system
            ("nightly.scope", "alice", ["--slice=backup.slice"], False),                      # in a slice named like one of the system
            ("own-1.service", "alice", [*inner, "app.slice/app-gnome-spotify-6.scope"], False),
            ("own-2.service", "alice", [*inner, "user.slice/user-0.slice/user@0.service/app.slice/app-gnome-spotify-7.scope"], False),
            ("app-gnome-spotify-8.scope", None, [], True),                                    # an application of the system manager's
            ("container-1.service", None, [*inner, "system.slice/guarded.service"], True),    # a container's own tree
            ("container-2.service", None, [*inner, "backup.slice/x.service"], True),
            ("container-3.service", None, [*inner, "jobs.slice/nightly"], True),
            ("container-4.service", None, [*inner, f"user.slice/user-{self.uids['alice']}.slice/user@{self.uids['alice']}.service/app.slice/"
                                                   "app-gnome-spotify-9.scope"], True),
        ]
        started = [(unit, self.start(unit, user, *options, of_system=of_system)) for unit, user, options, of_system in chosen]
        last = self.start("app-gnome-spotify-99.scope", "alice", "--slice=app.slice")
        own = f"{self.manager('alice')}/app.slice/app-gnome-spotify-99.scope".lstrip("/")
        self.wait_for_members(own)  # So the agent has seen what came before it.
        by_config = {path for path, member in self.members().items() if not member["selector"].startswith(("slice novpn-", "run"))}
        self.assertEqual(by_config, {own})
        for (unit, _, options, _), (_, process) in zip(chosen, started):
            self.assertTrue(process.cgroup.endswith(f"/{options[-1]}" if "inside" in options else f"/{unit}"), process.cgroup)
            self.assertEqual(self.go(process), the_lab.VPN_SEEN[4], unit)
        self.assertEqual(self.go(last), OUTSIDE)

    def test_11_a_service_is_a_member_where_it_is_under_all_sandboxing(self):
        """By `units:`. It connects once it is a member: what it does in its first milliseconds goes the ordinary way."""
        self.configure("classes: {novpn: {units: [guarded.service]}}")
        self.machine.run("sh", "-ec", 'printf "%s" "$1" > /etc/systemd/system/guarded.service; systemctl daemon-reload', "sh", GUARDED)
        self.machine.run("install", "-m", "755", "/root/probe.py", "/usr/local/bin/probe.py")
        self.machine.run("systemctl", "start", "--no-block", "guarded.service")
        self.wait_for_members("system.slice/guarded.service")
        self.assertEqual(self.members()["system.slice/guarded.service"]["selector"], "unit guarded.service")
        self.machine.run("touch", "/run/go")
        the_lab.wait_until(lambda: self.machine.show("ActiveState", "guarded.service") == "inactive", 20, "its end")
        self.assertIn(OUTSIDE, self.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", "guarded.service").stdout)

    def test_12_the_first_packet(self):
        """Of a program whose first act is connect(): never in the tunnel by `novpn run`; of one that is matched, it is counted and printed."""
        self.machine.run("install", "-m", "755", self.lab.first_act, "/usr/local/bin/first_act")
        leaked = self.lab.tunnel_packets()["leaked"]
        runs = 100
        script = f"for n in $(seq {runs}); do novpn run first_act tcp {the_lab.MEMBER_ECHO[4]}; done"
        seen = collections.Counter(self.output("sh", "-c", script, user="alice").split())
        self.assertEqual((dict(seen), self.lab.tunnel_packets()["leaked"]), ({OUTSIDE: runs}, leaked))
        self.configure("classes: {novpn: {apps: [spotify]}}")
        script = (f"for n in $(seq {runs}); do systemd-run --user --quiet --scope --slice=app.slice --unit=app-gnome-spotify-$n.scope "
                  f"first_act tcp {the_lab.ECHO[4]}; done")
        seen = collections.Counter(self.output(*self.of_user("alice"), "sh", "-c", script, user="alice").split())
        self.assertEqual((set(seen) - {OUTSIDE, the_lab.VPN_SEEN[4]}, sum(seen.values())), (set(), runs))
        print(f"novpn run: {runs} of {runs} outside; a scope that the config matches, by systemd-run --scope: {seen[OUTSIDE]} of {runs} outside")

    def test_13_a_flatpak_leaves_the_scope_of_run_and_run_says_so(self):
        """What flatpak does, without its sandbox: a scope of its own for the process itself."""
        script = ("#!/bin/sh\nexec systemd-run --user --quiet --scope --slice=app.slice --unit=app-flatpak-$2-$$.scope "
                  "sh -c 'cat /proc/self/cgroup; echo up; read go; exec \"$@\"' sh " + " ".join(PROBE) + f" tcp {the_lab.ECHO[4]}\n")
        self.machine.run("sh", "-ec", 'printf "%s" "$1" > /usr/local/bin/flatpak; chmod 755 /usr/local/bin/flatpak', "sh", script)
        self.configure("classes: {novpn: {apps: [com.spotify.Client]}}")
        for app, seen in (("org.other.App", the_lab.VPN_SEEN[4]), ("com.spotify.Client", OUTSIDE)):
            process = subprocess.Popen(self.machine.service(*self.of_user("alice"), "novpn", "run", "flatpak", "run", app, user="alice"),
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
            lines = []
            while not lines or lines[-1] != "up":
                lines.append(the_lab.read_line(process, 20))
            cgroup, = [line.removeprefix("0::/") for line in lines if line.startswith("0::")]
            self.assertRegex(cgroup, rf"/app\.slice/app-flatpak-{re.escape(app)}-\d+\.scope$")
            if seen == OUTSIDE:
                self.wait_for_members(cgroup)
            self.assertEqual(self.go(process), seen)
            said = process.communicate(timeout=20)[1].decode()
            self.assertIn(f"flatpak moves it into a scope of its own, which is in class novpn where the config has 'apps: [{app}]'", said)

    def test_14_a_session(self):
        result = subprocess.run(self.machine.service("novpn", "run", "--shell", user="alice"), input="cat /proc/self/cgroup; echo $NOVPN_CLASS; exit 6\n",
                                text=True, capture_output=True, timeout=30)
        self.assert_scope(result.stdout, "alice")
        self.assertEqual((result.stdout.splitlines()[-1], result.returncode), ("novpn", 6))


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("scopes_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
