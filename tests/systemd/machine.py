"""A real systemd, booted by systemd-nspawn on the lab's laptop: this machine's own tree below an overlay in memory.

What is written there is gone at the end. Services that this machine has enabled are not started in there. cgroup v2 alone
is at /sys/fs/cgroup, and bpffs is mounted as on a real machine, which systemd leaves out in a container.
"""
import atexit
import functools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parent.parent / "support"
sys.path.insert(0, str(SUPPORT))
import lab as the_lab  # noqa: E402

SOURCE = SUPPORT.parent.parent
BUILD = pathlib.Path(os.environ.get("NOVPN_BIN_DIR", SOURCE / "build/dev/agent")).resolve().parent
# A sanitizer's program maps its shadow memory and, at its end, traces itself.
SANITIZED = "[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n"

BPFFS_UNIT = """
[Unit]
DefaultDependencies=no
Before=local-fs.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount -t bpf bpf /sys/fs/bpf
"""
# What this machine starts is none of the test's business, and policy-rc.d would forbid packages to start services.
PREPARE = """
set -e
mkdir "$DIR/changes" "$DIR/root"
mount -t tmpfs -o mode=755 changes "$DIR/changes"
mkdir "$DIR/changes/upper" "$DIR/changes/work"
mount -t overlay -o "lowerdir=/,upperdir=$DIR/changes/upper,workdir=$DIR/changes/work" root "$DIR/root"
cd "$DIR/root"
rm -rf etc/systemd/system etc/rc?.d etc/fstab etc/novpn usr/sbin/policy-rc.d
mkdir -p etc/systemd/system/local-fs.target.wants
printf '%s' "$BPFFS_UNIT" > etc/systemd/system/bpffs.service
ln -s ../bpffs.service etc/systemd/system/local-fs.target.wants/
cp "$DIR"/*.deb "$LAB"/probe.py root/
chmod 755 root root/probe.py
"""


class Machine:
    def __init__(self, lab, package):
        self.lab = lab
        self.name = lab.prefix.replace(".", "-") + "-systemd"
        self.directory = lab.directory / "machine"
        self.directory.mkdir()
        self.package = shutil.copy(package, self.directory)
        self.nspawn = self.init = None
        # Where systemd-nspawn shall make its cgroups. Without one of their own they would be in the root.
        cgroup2 = the_lab.cgroup_mount()
        self.cgroups = [cgroup2 / self.name]
        if (cgroup2.parent / "systemd").is_dir() and cgroup2.name == "unified":
            self.cgroups.append(cgroup2.parent / "systemd" / self.name)
        # The overlay lives in a mount namespace of its own, and goes with it.
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", PREPARE + "echo ready; exec sleep infinity"], bufsize=0, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, env=dict(lab.environment, DIR=str(self.directory), BPFFS_UNIT=BPFFS_UNIT))
        lab.processes.append(self.holder)
        the_lab.read_line(self.holder, 20)

    def boot(self):
        for cgroup in self.cgroups:
            cgroup.mkdir(exist_ok=True)
        join = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in self.cgroups)
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.directory}/root", f"--machine={self.name}", "--register=no",
                   "--keep-unit", "--resolv-conf=off", "--capability=all", "--system-call-filter=bpf", "--console=pipe",
                   f"--network-namespace-path={self.lab.path_of('laptop')}", "systemd.unit=multi-user.target"]
        with open(self.directory / "boot.log", "ab") as log:
            self.nspawn = subprocess.Popen(
                ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "sh", "-ec", f"{join} exec {shlex.join(command)}"],
                env=dict(os.environ, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        the_lab.wait_until(self._is_up, 60, "systemd in its namespace", lambda: (self.directory / "boot.log").read_text()[-3000:])
        # As on a real machine: nobody makes cgroups there without CAP_DAC_OVERRIDE. systemd-nspawn makes it 0755.
        self.run("chmod", "555", "/sys/fs/cgroup")

    def _is_up(self):
        if self.nspawn.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended with {self.nspawn.returncode}: {(self.directory / 'boot.log').read_text()}")
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        self.init = int(children[0]) if children else None
        return self.init and self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def power_off(self):
        if self.nspawn is None:
            return
        if self.init and self.nspawn.poll() is None:
            try:
                os.kill(self.init, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
                self.nspawn.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        if self.nspawn.poll() is None:
            self.nspawn.terminate()
        self.nspawn.wait(20)
        self.nspawn = self.init = None
        for cgroup in self.cgroups:
            for path, _, _ in os.walk(cgroup, topdown=False):
                the_lab.wait_until(lambda path=path: not self._populated(path), 10, f"no process in {path}")
                os.rmdir(path)

    @staticmethod
    def _populated(path):
        return pathlib.Path(path, "cgroup.procs").read_text().strip()

    def remove(self):
        self.power_off()
        self.lab.end(self.holder)

    def command(self, *command):
        """What to execute on the host. It stays outside the machine's cgroups: a service manager's tools do not mind."""
        return ["nsenter", f"--target={self.init}", "--all", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
                "DEBIAN_FRONTEND=noninteractive", *map(str, command)]

    def run(self, *command, check=True, timeout=60):
        result = subprocess.run(self.command(*command), text=True, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)
        if check and result.returncode != 0:
            raise AssertionError(f"{shlex.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}\n{self.journal()}")
        return result

    def service(self, *command, user=None):
        """A command to execute on the host that runs `command` as a unit of its own, with its pipes."""
        options = [f"--uid={user}"] if user else []
        return self.command("systemd-run", "--quiet", "--pipe", "--wait", "--collect", *options, *command)

    def show(self, property_, unit="novpnd.service"):
        return self.run("systemctl", "show", "--value", "-p", property_, unit).stdout.strip()

    def journal(self):
        return self.run("journalctl", "--no-pager", "-n", "60", "-u", "novpnd", check=False).stdout if self.init else ""


@functools.cache
def build_package():
    """Once, for all the classes of a program; NOVPN_PACKAGE is one that is built already."""
    if "NOVPN_PACKAGE" in os.environ:
        return pathlib.Path(os.environ["NOVPN_PACKAGE"])
    out = tempfile.TemporaryDirectory(prefix="novpn-deb-")
    atexit.register(out.cleanup)
    built = subprocess.run([SOURCE / "packaging/build-deb", "--of", BUILD, out.name], text=True, capture_output=True)
    if built.returncode != 0:
        raise AssertionError(built.stdout[-3000:] + built.stderr[-3000:])
    return pathlib.Path(built.stdout.splitlines()[-1])


class MachineTest(unittest.TestCase):
    """The package built, and installed on a machine that runs."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.package = build_package()
        cls.lab = cls.enterClassContext(the_lab.Lab())
        cls.before = cls.lab.snapshot()
        cls.machine = Machine(cls.lab, cls.package)
        cls.addClassCleanup(cls.machine.remove)
        cls.machine.boot()
        cls.machine.run("sh", "-ec", f"mkdir -p /etc/systemd/system/novpnd.service.d; printf '{SANITIZED}' > /etc/systemd/system/novpnd.service.d/test.conf")
        cls.machine.run("dpkg", "-i", f"/root/{cls.package.name}")

    def status(self):
        return json.loads(self.machine.run("novpn", "status", "--json").stdout)

    def uplink(self):
        uplink = self.status()["families"]["ipv4"]["uplink"]
        return uplink and uplink["link"]

    def wait_for_uplink(self):
        the_lab.wait_until(lambda: self.machine.run("novpn", "status", check=False).returncode == 0 and self.uplink() == "wlan0",
                           20, "an agent with an uplink", self.machine.journal)

    def pid(self):
        return int(self.machine.show("MainPID"))

    def output(self, *command, user=None):
        result = subprocess.run(self.machine.service(*command, user=user), text=True, capture_output=True, timeout=30)
        return result.stdout + result.stderr
