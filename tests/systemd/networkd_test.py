"""systemd-networkd beside the agent: with the drop-in of the package `networkctl reconfigure` leaves our rules and routes alone;
without it the agent puts them back."""
import os
import sys
import unittest

import machine
from machine import the_lab

DROP_IN = "/etc/systemd/networkd.conf.d/50-novpn.conf"


class Networkd(machine.MachineTest):
    def configure(self):
        """What the lab's DHCP client did for wlan0 becomes networkd's, to the same end."""
        address, gateway = self.lab.laptop_address(), the_lab.SITES["a"].gateway
        network = rf"[Match]\nName=wlan0\n[Network]\nAddress={address}/24\nGateway={gateway}\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n"
        self.machine.run("sh", "-ec", f"mkdir -p /etc/systemd/network; printf '{network}' > /etc/systemd/network/10-wlan0.network")

    def is_configured(self):
        return "configured" in self.machine.run("networkctl", "--no-pager", "--no-legend", "list", "wlan0", check=False).stdout.split()

    def ours(self):
        rules = [line for family in "46" for line in self.lab.shell(f"ip -{family} rule").splitlines() if "proto 78" in line]
        routes = [line for line in self.lab.shell("ip -4 route show table 7866").splitlines() if "proto 78" in line]
        return rules, routes

    def reconfigure(self, *command):
        self.machine.run(*command)
        the_lab.wait_until(self.is_configured, 20, "networkd's end", self.log)
        self.wait_for_uplink()

    def rules_added(self):
        journal = self.machine.run("journalctl", "--no-pager", "-u", "novpnd").stdout
        return len([line for line in journal.splitlines() if "ip rule add preference 64 fwmark" in line])

    def log(self):
        return self.machine.run("journalctl", "--no-pager", "-n", "40", "-u", "systemd-networkd", "-u", "novpnd", check=False).stdout

    def assert_members_outside(self):
        member = self.output("novpn", "run", "python3", "/root/probe.py", "tcp", the_lab.MEMBER_ECHO[4])
        self.assertEqual(member, the_lab.SITES["a"].seen4 + "\n", self.log())

    def test_reconfigure_with_the_drop_in_and_without(self):
        self.wait_for_uplink()
        self.configure()
        self.reconfigure("systemctl", "start", "systemd-networkd")
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)
        self.assert_members_outside()
        before, repairs, monitor = self.ours(), self.status()["repairs"], self.lab.monitor()
        self.assertTrue(all(before))
        self.reconfigure("networkctl", "reconfigure", "wlan0")
        self.assertEqual([line for line in monitor.changes() if "Deleted" in line and "proto 78" in line and " rule" in line], [])
        monitor.stop()
        self.assertEqual((self.ours()[0], self.status()["repairs"]), (before[0], repairs), self.log())
        self.assert_members_outside()
        findings = self.machine.run("novpn", "doctor", check=False).stdout
        self.assertRegex(findings, r"ok +networkd")

        self.machine.run("sh", "-ec", f"mkdir -p $(dirname {DROP_IN}); ln -s /dev/null {DROP_IN}")
        added = self.rules_added()
        self.reconfigure("systemctl", "restart", "systemd-networkd")
        self.reconfigure("networkctl", "reconfigure", "wlan0")
        the_lab.wait_until(lambda: self.ours() == before, 20, "the repair", lambda: f"{self.ours()}, not {before}\n{self.log()}")
        # Not counted as a repair: the uplink's default goes with them, and so what is desired has changed.
        self.assertGreater(self.rules_added(), added, self.log())
        self.assert_members_outside()
        self.assertRegex(self.machine.run("novpn", "doctor", check=False).stdout, r"wrong +networkd")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("networkd_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
