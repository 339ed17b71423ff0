"""net_cls under a real systemd, as novpnd(8) says: /etc/fstab mounts it, a drop-in lets the unit write there. In the order of
their names."""
import os
import re
import subprocess
import sys
import unittest

import machine
from machine import the_lab

MOUNT = "/run/net_cls"


def from_the_manual():
    """The line of /etc/fstab and the drop-in, as they are printed."""
    section = (machine.SOURCE / "docs/man/novpnd.8").read_text().split(".SH NET_CLS")[1].split(".SH")[0]
    blocks = [block.replace("\\-", "-") for block in re.findall(r"\.nf\n(.*?)\.fi\n", section, re.DOTALL)]
    assert len(blocks) == 2, blocks
    return blocks


class NetCls(machine.MachineTest):
    @classmethod
    def setUpClass(cls):
        # A container may mount a hierarchy that is there already, and make none.
        cls.holder = subprocess.Popen(["unshare", "--mount", "--propagation=private", "sh", "-ec",
                                       "mount -t cgroup -o net_cls held /mnt; echo ready; exec sleep infinity"], stdout=subprocess.PIPE, bufsize=0)
        cls.addClassCleanup(cls.end_holder)
        the_lab.read_line(cls.holder, 10)
        super().setUpClass()

    @classmethod
    def end_holder(cls):
        cls.holder.terminate()
        cls.holder.wait(10)
        cls.holder.stdout.close()

    def write(self, path, text):
        self.machine.run("sh", "-ec", f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{text}\nEND")

    def cgroups(self):
        return self.machine.run("sh", "-c", f"find {MOUNT} -name 'novpn*'").stdout.split()

    def assert_a_member_is_outside(self):
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)
        self.assertEqual(self.status()["classes"][0]["backend"], ["nft", "net_cls"], self.machine.journal())
        self.assertEqual(self.output("novpn", "run", "python3", "/root/probe.py", "tcp", the_lab.MEMBER_ECHO[4]).strip(), the_lab.SITES["a"].seen4, self.machine.journal())
        self.assertEqual(self.output("python3", "/root/probe.py", "tcp", the_lab.ECHO[4]).strip(), the_lab.VPN_SEEN[4])
        self.assertIn("net_cls:/novpn-", self.output("novpn", "run", "cat", "/proc/self/cgroup"))

    def test_1_without_the_mount_the_agent_says_what_to_do(self):
        self.wait_for_uplink()
        self.write("/etc/novpn/novpn.yaml", "marking: net_cls")
        result = self.machine.run("systemctl", "reload", "novpnd", check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("novpnd(8)", self.machine.journal())

    def test_2_as_the_manual_says(self):
        fstab, drop_in = from_the_manual()
        self.assertIn(MOUNT, fstab)
        self.write("/etc/fstab", fstab)
        self.write("/etc/systemd/system/novpnd.service.d/override.conf", drop_in)
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "restart", "novpnd", timeout=90)
        self.wait_for_uplink()
        self.assert_a_member_is_outside()
        self.assertEqual(len(self.cgroups()), 2)

    def test_3_at_boot(self):
        self.machine.power_off()
        self.machine.boot()
        self.wait_for_uplink()
        self.assert_a_member_is_outside()

    def test_4_a_stop_leaves_nothing_but_the_mount(self):
        self.machine.run("systemctl", "stop", "novpnd")
        self.assertEqual(self.cgroups(), [])
        self.assertIn(f" {MOUNT} ", self.machine.run("cat", "/proc/mounts").stdout)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("net_cls_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
