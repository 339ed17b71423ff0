"""The Debian package under a real systemd: what installs, upgrades, reloads, restarts, kills, stops and removes does to the
kernel, at boot too.

In the order of their names: each test leaves the package installed and the agent running, but for the last.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import machine
from machine import the_lab

SOURCE = machine.SOURCE


class Package(machine.MachineTest):
    def wait_for_another(self, pid):
        the_lab.wait_until(lambda: self.pid() not in (0, pid) and self.machine.show("ActiveState") == "active", 20,
                           "another agent", self.machine.journal)
        self.wait_for_uplink()

    def kernel(self):
        """The pins are in the machine's bpffs, the cgroups below its root: not the lab's."""
        return self.lab.snapshot().split("# cgroups")[0] + self.machine.run(
            "sh", "-c", "find /sys/fs/bpf /sys/fs/cgroup -path '*/novpn*' ! -path '*/cgroup/*.*' | sort").stdout

    def member(self):
        """A member's flow, of a unit of its own."""
        return the_lab.Flow(subprocess.Popen(
            self.machine.service("novpn", "run", "python3", "/root/probe.py", "hold", "tcp", the_lab.MEMBER_ECHO[4]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))

    def end(self, flow):
        flow.process.stdin.close()
        flow.process.wait(20)
        flow.process.stdout.close()

    def test_01_the_package_is_clean(self):
        changes, = self.package.parent.glob("*.changes")
        result = subprocess.run(["lintian", "--profile", "debian", "--allow-root", "--fail-on=error,warning", changes], text=True, capture_output=True)
        self.assertEqual((result.returncode, result.stdout), (0, ""), result.stdout + result.stderr)
        version = re.search(r"project\(novpn VERSION (\S+)", (SOURCE / "CMakeLists.txt").read_text())[1]
        self.assertIn(f"novpn_{version}_", self.package.name)

    def test_02_the_unit_is_right_and_confined(self):
        with tempfile.TemporaryDirectory() as directory:
            unit = pathlib.Path(directory, "novpnd.service")
            text = (SOURCE / "packaging/systemd/novpnd.service.in").read_text()
            unit.write_text(text.replace("@prefix@/sbin/novpnd", "/bin/true").replace("@prefix@/bin/novpn", "/bin/true"))
            for arguments in (["verify", "--man=no", unit], ["security", "--offline=true", "--threshold=20", unit]):
                result = subprocess.run(["systemd-analyze", "--no-pager", *arguments], text=True, capture_output=True)
                self.assertEqual(result.returncode, 0, result.stdout[-500:] + result.stderr)
        self.assertEqual(self.machine.run("systemd-analyze", "--no-pager", "--man=no", "verify", "novpnd.service").stderr, "")

    def test_03_it_runs_and_steers(self):
        self.assertEqual((self.machine.show("ActiveState"), self.machine.show("UnitFileState")), ("active", "enabled"))
        self.wait_for_uplink()
        self.assertEqual(self.status()["classes"][0]["backend"], ["bpf", "nft"], self.machine.journal())
        self.assertIn("novpn", self.machine.run("ip", "route", "show", "table", "novpn").stdout)
        self.machine.run("usermod", "--append", "--groups", "novpn", "daemon")
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)
        probe = ["python3", "/root/probe.py", "tcp"]
        for user in ("daemon", None):
            member = self.output("novpn", "run", *probe, the_lab.MEMBER_ECHO[4], user=user)
            self.assertEqual(member, the_lab.SITES["a"].seen4 + "\n", user)
            self.assertEqual(self.output(*probe, the_lab.ECHO[4], user=user), the_lab.VPN_SEEN[4] + "\n", user)

        self.assertIn(" tun0", self.machine.show("StatusText"))
        self.assertEqual(self.machine.show("StatusText"), self.status()["summary"])

    def entries(self, *matches):
        lines = self.machine.run("journalctl", "--boot", "-o", "json", "_SYSTEMD_UNIT=novpnd.service", *matches).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def test_03_a_setting_that_is_reset_is_put_back_at_once(self):
        """inotify sees it in the sandbox too. A container has no writable settings by itself."""
        conf = "net.ipv4.conf.wlan0"
        self.machine.run("sh", "-ec", "mount --bind /proc/sys/net /proc/sys/net; mount -o remount,bind,rw /proc/sys/net")
        self.addCleanup(self.machine.run, "umount", "--lazy", "/proc/sys/net")
        self.machine.run("sysctl", "-qw", f"{conf}.rp_filter=1")
        self.addCleanup(self.machine.run, "sysctl", "-qw", f"{conf}.rp_filter=0")
        is_set = lambda: self.machine.run("sysctl", "-n", f"{conf}.src_valid_mark").stdout.strip() == "1"
        for _ in range(2):
            the_lab.wait_until(is_set, 10, "src_valid_mark", self.machine.journal)
            self.machine.run("sysctl", "-qw", f"{conf}.src_valid_mark=0")
        the_lab.wait_until(is_set, 10, "src_valid_mark put back", self.machine.journal)

    def test_03_its_sandbox_is_told_of_nothing(self):
        """What the unit has given up already the agent does not try to give up again."""
        warned = [entry["MESSAGE"] for entry in self.entries() if int(entry["PRIORITY"]) <= 4]
        self.assertEqual(warned, [])

    def test_04_the_journal_has_fields(self):
        takeover = self.entries("EVENT=takeover")[-1]
        self.assertIn("ipv4 takeover", takeover["MESSAGE"])
        self.assertEqual((takeover["UPLINK"], takeover["PRIORITY"], takeover["SYSLOG_IDENTIFIER"]), ("wlan0", "6", "novpnd"))
        operations = self.entries("EVENT=operation", "CLASS=novpn")
        self.assertTrue(operations)
        for entry in operations:
            self.assertGreater(int(entry["REACTION_US"]), 0, entry)
            self.assertEqual(entry["MESSAGE"].split(": ")[0], entry["CAUSE"])
        self.assertTrue([entry for entry in operations if "ip rule add" in entry["MESSAGE"]])

    def test_04_a_pass_that_changes_nothing_is_not_told(self):
        self.wait_for_uplink()
        before = len(self.entries())
        for command in ("add", "delete"):
            self.machine.run("ip", "address", command, "127.0.0.9/32", "dev", "lo")
        self.wait_for_uplink()
        self.assertEqual(len(self.entries()), before, self.machine.journal())

    def test_04_a_process_of_a_user_is_looked_into(self):
        """Which of its sockets are old is in /proc/PID/fd, which is the user's own."""
        flow = the_lab.Flow(subprocess.Popen(
            self.machine.service("python3", "/root/probe.py", "hold", "tcp", the_lab.ECHO[4], user="daemon"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))
        pid = self.machine.run("pgrep", "-u", "daemon", "-f", "probe.py hold").stdout.strip()
        self.assertIn("1 of its open sockets", self.machine.run("novpn", "add", pid).stdout)
        self.assertIn("is out of class novpn", self.machine.run("novpn", "remove", pid).stdout)
        self.end(flow)

    def test_05_a_restart_and_an_upgrade_keep_everything(self):
        for command in (["systemctl", "restart", "novpnd"], ["dpkg", "-i", f"/root/{self.package.name}"]):
            with self.subTest(command[0]):
                self.wait_for_uplink()
                flow, before, pid, monitor = self.member(), self.kernel(), self.pid(), self.lab.monitor()
                self.machine.run(*command)
                self.wait_for_another(pid)
                self.assertEqual(monitor.changes(), [])
                self.assertEqual(flow.ask(), flow.seen)
                self.assertEqual(self.kernel(), before)
                monitor.stop()
                self.end(flow)

    def test_06_a_config_in_force_is_told_to_systemd(self):
        """Type=notify: the unit is active again once the agent says so."""
        self.machine.run("systemctl", "reload", "novpnd")
        self.assertEqual(self.machine.show("ActiveState"), "active")

    def test_06_a_bad_config_is_refused_by_reload_and_changes_nothing(self):
        before, pid = self.kernel(), self.pid()
        config = "/etc/novpn/conf.d/50-test.yaml"
        self.machine.run("sh", "-c", f"echo 'classes: {{novpn: {{colour: red}}}}' > {config}")
        self.assertNotEqual(self.machine.run("systemctl", "reload", "novpnd", check=False).returncode, 0)
        self.assertIn("colour", self.machine.journal())
        self.assertEqual((self.pid(), self.machine.show("ActiveState"), self.kernel()), (pid, "active", before))
        self.machine.run("sh", "-c", f"echo 'classes: {{novpn: {{enabled: false}}}}' > {config}")
        self.machine.run("systemctl", "reload", "novpnd")
        self.assertEqual((self.status()["classes"][0]["state"], self.pid()), ("off", pid))
        # Its rights are enough for the programs that redirect DNS.
        self.machine.run("sh", "-c", f"echo 'classes: {{novpn: {{dns: uplink}}}}' > {config}")
        self.machine.run("systemctl", "reload", "novpnd")
        self.assertNotEqual(self.status()["classes"][0]["dns"]["by"], "vpn", self.machine.journal())
        self.assertIn("novpn-getpeername6", self.kernel())
        self.machine.run("rm", config)
        self.machine.run("systemctl", "reload", "novpnd")
        self.assertEqual(self.kernel(), before)

    def test_07_a_killed_agent_is_started_again_and_writes_nothing(self):
        before, pid, monitor = self.kernel(), self.pid(), self.lab.monitor()
        self.machine.run("systemctl", "kill", "--signal=KILL", "novpnd")
        self.wait_for_another(pid)
        self.assertEqual((monitor.changes(), self.kernel()), ([], before))
        monitor.stop()

    def test_08_an_agent_that_hangs_is_started_again(self):
        drop_in = "/etc/systemd/system/novpnd.service.d/watchdog.conf"
        self.machine.run("sh", "-c", rf"printf '[Service]\nWatchdogSec=2s\n' > {drop_in}; systemctl daemon-reload; systemctl restart novpnd")
        self.wait_for_uplink()
        pid, fed = self.pid(), self.machine.show("WatchdogTimestampMonotonic")
        the_lab.wait_until(lambda: self.machine.show("WatchdogTimestampMonotonic") != fed, 20, "a sign of life")
        self.machine.run("systemctl", "kill", "--signal=STOP", "novpnd")
        self.wait_for_another(pid)
        self.assertIn("atchdog timeout", self.machine.journal())
        self.machine.run("sh", "-c", f"rm {drop_in}; systemctl daemon-reload; systemctl restart novpnd")
        self.wait_for_uplink()

    def test_08b_a_site_has_systemd_start_a_unit(self):
        """By the system bus, with the rights of the unit, and with polkit where this machine has it."""
        unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        config = "sites:\n  - {name: home, match: {network: 192.168.10.0/24}, on_enter: arrived@home.service, on_leave: nowhere.service}\n"
        self.machine.run("sh", "-ec", f"printf '{unit}' > /etc/systemd/system/arrived@.service; systemctl daemon-reload; "
                                      f"printf '{config}' > /etc/novpn/conf.d/sites.yaml; novpn reload")
        self.addCleanup(self.machine.run, "sh", "-c", "rm -f /etc/novpn/conf.d/sites.yaml /etc/systemd/system/arrived@.service; novpn reload")
        the_lab.wait_until(lambda: self.machine.show("ActiveState", "arrived@home.service") == "active", 20, "the unit of home",
                           self.machine.journal)
        self.assertEqual([w for w in self.status()["warnings"] if "unit" in w["code"]], [])
        # One that is not there is said, and nothing else.
        self.machine.run("sh", "-ec", "printf 'sites:\n  - {name: home, match: {network: 10.99.0.0/24}}\n' > /etc/novpn/conf.d/sites.yaml; novpn reload")
        the_lab.wait_until(lambda: [w["text"] for w in self.status()["warnings"] if w["code"] == "unit nowhere.service"], 20,
                           "a warning", self.machine.journal)

    def test_08c_the_bus_goes_and_comes_back(self):
        """What needs it waits, and is said once; all else goes on, and nobody has to restart the agent."""
        pid, unit = self.pid(), "arrived@bus.service"
        self.machine.run("sh", "-ec", "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n' > /etc/systemd/system/arrived@.service;"
                                      " systemctl daemon-reload; systemctl stop dbus.socket dbus.service")
        self.addCleanup(self.machine.run, "sh", "-c", "rm -f /etc/novpn/conf.d/sites.yaml /etc/systemd/system/arrived@.service; novpn reload;"
                                                      " systemctl start dbus.socket")
        self.machine.run("sh", "-ec", f"printf 'sites:\n  - {{name: home, match: {{network: 192.168.10.0/24}}, on_enter: {unit}}}\n'"
                                      " > /etc/novpn/conf.d/sites.yaml; novpn reload")

        def warnings():
            return [w["text"] for w in self.status()["warnings"] if w["code"] == f"unit {unit}"]
        the_lab.wait_until(warnings, 20, "a warning", self.machine.journal)
        before = self.kernel()
        self.lab.shell("ip rule del preference 64")
        the_lab.wait_until(lambda: self.kernel() == before, 20, "the rule put back", self.machine.journal)
        self.assertIn("/novpn", self.machine.run("novpn", "run", "cat", "/proc/self/cgroup").stdout)
        self.machine.run("systemctl", "start", "dbus.socket")
        the_lab.wait_until(lambda: self.machine.show("ActiveState", unit) == "active", 40, "the unit of home", self.machine.journal)
        the_lab.wait_until(lambda: not warnings(), 20, "no warning", self.machine.journal)
        self.assertEqual(len([e for e in self.entries() if unit in e["MESSAGE"] and int(e["PRIORITY"]) <= 4]), 1, self.machine.journal())
        self.assertEqual(self.pid(), pid)

    def test_08d_a_full_disk_costs_the_names_of_tables_alone(self):
        """The only files that it writes once it runs; they are written again at a reload."""
        names, pid, before = "/etc/iproute2/rt_tables.d", self.pid(), self.kernel()
        self.machine.run("mount", "-t", "tmpfs", "-o", "nr_inodes=1", "full", names)
        self.addCleanup(self.machine.run, "sh", "-c", f"umount {names} && novpn reload")
        self.machine.run("novpn", "reload")
        the_lab.wait_until(lambda: "o space left" in self.machine.journal(), 10, "a word about it", self.machine.journal)
        self.assertEqual((self.kernel(), self.pid(), self.status()["health"]), (before, pid, "ok"))

    def test_09_down_is_final_and_a_stop_leaves_nothing(self):
        for command in (["novpn", "down"], ["systemctl", "stop", "novpnd"]):
            with self.subTest(command[0]):
                self.machine.run(*command)
                the_lab.wait_until(lambda: self.machine.show("ActiveState") == "inactive", 20, "an end", self.machine.journal)
                self.assert_nothing_left()
                self.machine.run("systemctl", "reset-failed")  # A fast machine has seen too many starts by now.
                self.machine.run("systemctl", "start", "novpnd")
                self.wait_for_uplink()

    def assert_nothing_left(self):
        self.assertEqual(self.kernel(), self.before.split("# cgroups")[0])
        self.assertEqual(self.machine.run("sh", "-c", "find /etc/iproute2 -name 'novpn*'").stdout, "")

    def test_10_at_boot_it_is_in_force_before_the_network_and_the_first_login(self):
        self.machine.power_off()
        self.assertEqual(self.kernel_without_machine(), self.before.split("# cgroups")[0])
        self.machine.boot()
        self.wait_for_uplink()
        ready = int(self.machine.show("ActiveEnterTimestampMonotonic"))
        self.assertGreater(ready, 0)
        for unit in ("network-pre.target", "systemd-user-sessions.service"):
            self.assertGreaterEqual(int(self.machine.show("ActiveEnterTimestampMonotonic", unit)), ready, unit)

    def kernel_without_machine(self):
        return self.lab.snapshot().split("# cgroups")[0]

    def test_11_removal_and_purge_leave_nothing(self):
        self.machine.run("dpkg", "--remove", "novpn")
        self.assert_nothing_left()
        self.assertEqual(self.machine.run("sh", "-c", "ls /etc/novpn").stdout.split(), ["novpn.yaml"])
        self.machine.run("dpkg", "--purge", "novpn")
        self.assert_nothing_left()
        left = self.machine.run("sh", "-c", "find /etc /usr /lib/systemd /run /var/lib/systemd -xdev -name '*novpn*' ! -path '/run/host/*'"
                                " ! -path '/etc/systemd/system/novpnd.service.d*'").stdout
        self.assertEqual(left, "")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("systemd_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
