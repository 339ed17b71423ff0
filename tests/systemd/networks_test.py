"""systemd-networkd and NetworkManager, each as a service of a real systemd that configures the laptop's link, beside the package
with the settings that it brings: what they do to the link costs members nothing that does not belong to the link.
"""
import os
import subprocess
import sys
import unittest

import machine
from machine import the_lab

NETWORK = """[Match]
Name=wlan0
[Network]
DHCP=ipv4
IPv6AcceptRA=yes
[DHCPv4]
RouteMetric=600
"""
NETWORK_MANAGER = """[main]
plugins=keyfile
dns=none
no-auto-default=*
[keyfile]
unmanaged-devices=none
[device-wlan0]
match-device=interface-name:wlan0
managed=1
"""
PROFILE = """[connection]
id=home
type=ethernet
interface-name=wlan0
[ipv4]
method=auto
[ipv6]
method=auto
"""


class NetworkTest(machine.MachineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab.forget("wlan0")  # what the lab's own DHCP client did

    @classmethod
    def put(cls, path, text, mode="644"):
        cls.machine.run("sh", "-ec", f'mkdir -p "${{1%/*}}"; printf %s "$2" > "$1"; chmod {mode} "$1"', "sh", path, text)

    def wait_for(self, condition, what, unit):
        the_lab.wait_until(condition, 30, what, lambda: self.machine.run("journalctl", "-n", "40", "--no-pager", "-u", unit, "-u", "novpnd").stdout)

    def wait_for_vpn(self, unit):
        self.wait_for(lambda: self.uplink() == "wlan0" and self.status()["families"]["ipv4"]["takeovers"], "an uplink under the VPN", unit)

    def rules(self):
        return self.machine.run("sh", "-c", "ip rule; ip -6 rule").stdout

    def assert_outside(self):
        probe = ["python3", "/root/probe.py", "tcp"]
        self.assertEqual(self.output("novpn", "run", *probe, the_lab.MEMBER_ECHO[4]), the_lab.SITES["a"].seen4 + "\n")

    def lost_rules(self, monitor):
        """Those of ours that somebody took away while the monitor ran."""
        return [line for line in monitor.changes() if line.startswith("Deleted") and "fwmark 0x4e" in line]

    def backstop_lost(self, monitor):
        return [line for line in monitor.changes() if line.startswith("Deleted unreachable default") and "7866" in line]


class Networkd(NetworkTest):
    UNIT = "systemd-networkd"

    def setUp(self):
        self.put("/etc/systemd/network/10-wlan0.network", NETWORK)
        self.machine.run("systemctl", "restart", self.UNIT)
        the_lab.wait_until(lambda: self.lab.has_default(4, "wlan0"), 30, "a lease of networkd",
                           lambda: self.machine.run("networkctl", "status", "wlan0").stdout)
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        self.wait_for_vpn(self.UNIT)

    def reconfigure(self):
        """The address goes and is got again."""
        changes = self.lab.directory / "addresses"
        addresses = self.lab.spawn("ip", "-o", "-4", "monitor", "address", output=changes)

        def is_heard():
            self.lab.shell("ip addr add 198.18.0.3/32 dev lo; ip addr del 198.18.0.3/32 dev lo")
            return "198.18.0.3" in changes.read_text()
        the_lab.wait_until(is_heard, 30, "ip monitor listening")
        self.machine.run("networkctl", "reconfigure", "wlan0")
        is_lost = lambda: any(line.startswith("Deleted") and "wlan0" in line for line in changes.read_text().splitlines())
        self.wait_for(lambda: self.lab.has_default(4, "wlan0") and is_lost(), "a new lease", self.UNIT)
        self.lab.end(addresses)

    def test_1_reconfigure_leaves_our_rules_and_the_backstop(self):
        before, monitor = self.rules(), self.lab.monitor()
        self.reconfigure()
        self.wait_for_vpn(self.UNIT)
        self.assertEqual((self.lost_rules(monitor), self.backstop_lost(monitor)), ([], []))
        monitor.stop()
        self.assertEqual(self.rules(), before)
        self.assert_outside()
        findings = self.machine.run("novpn", "doctor", "--json", check=False).stdout
        self.assertIn("leaves rules and routes of others alone", findings)

    def test_2_a_restart_too(self):
        before, monitor = self.rules(), self.lab.monitor()
        self.machine.run("systemctl", "restart", self.UNIT)
        self.wait_for_vpn(self.UNIT)
        self.assertEqual(self.lost_rules(monitor), [])
        monitor.stop()
        self.assertEqual(self.rules(), before)
        self.assert_outside()

    def test_3_without_the_drop_in_they_are_put_back(self):
        """And so the first test can fail."""
        drop_in = self.machine.run("sh", "-c", "ls /usr/lib/systemd/networkd.conf.d/50-novpn.conf").stdout.strip()
        self.put(drop_in.replace("/usr/lib", "/etc"), "")  # masks it
        self.machine.run("systemctl", "restart", self.UNIT)
        self.wait_for_vpn(self.UNIT)
        before, monitor = self.rules(), self.lab.monitor()
        self.reconfigure()
        self.wait_for(lambda: self.rules() == before, "the rules back", self.UNIT)
        self.assertNotEqual(self.lost_rules(monitor), [])
        monitor.stop()
        self.wait_for_vpn(self.UNIT)
        self.assert_outside()
        findings = self.machine.run("novpn", "doctor", "--json", check=False).stdout
        self.assertIn("deletes novpn's rules and routes", findings)


class NetworkManager(NetworkTest):
    UNIT = "NetworkManager"

    def setUp(self):
        self.put("/etc/NetworkManager/NetworkManager.conf", NETWORK_MANAGER)
        self.put("/etc/NetworkManager/system-connections/home.nmconnection", PROFILE, "600")
        self.machine.run("systemctl", "start", self.UNIT)
        self.machine.run("nmcli", "--wait", "30", "connection", "up", "home")
        the_lab.wait_until(lambda: self.lab.has_default(4, "wlan0"), 30, "a lease of NetworkManager", lambda: self.machine.run("nmcli").stdout)
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        self.wait_for_vpn(self.UNIT)

    def test_it_touches_nothing_of_ours_and_needs_no_drop_in(self):
        before, monitor = self.rules(), self.lab.monitor()
        for command in (["nmcli", "device", "reapply", "wlan0"], ["systemctl", "restart", self.UNIT],
                        ["nmcli", "--wait", "30", "connection", "up", "home"]):
            with self.subTest(" ".join(command)):
                self.wait_for(lambda: self.machine.run("nmcli", "general", check=False).returncode == 0, "NetworkManager answering", self.UNIT)
                self.machine.run(*command)
                self.wait_for_vpn(self.UNIT)
                self.assert_outside()
        self.assertEqual((self.lost_rules(monitor), self.backstop_lost(monitor)), ([], []))
        monitor.stop()
        self.assertEqual(self.rules(), before)
        self.machine.run("nmcli", "networking", "off")
        self.wait_for(lambda: self.status()["health"] == "blocked", "nothing to leave by", self.UNIT)
        # It has put the tunnel down too, which is a link like any other to it.
        self.machine.run("nmcli", "networking", "on")
        self.wait_for(lambda: self.uplink() == "wlan0", "an uplink", self.UNIT)
        self.wait_for(lambda: subprocess.run(self.machine.service("novpn", "run", "python3", "/root/probe.py", "tcp", the_lab.MEMBER_ECHO[4]),
                                             text=True, capture_output=True).stdout == the_lab.SITES["a"].seen4 + "\n", "members outside", self.UNIT)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("networks_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
