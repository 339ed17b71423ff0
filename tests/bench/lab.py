"""A laptop and its router for the bench, made of network namespaces, and the words of its tables."""
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TABLE = 7866
BIRD = """
log stderr {{ warning, error, fatal }};
router id 10.99.0.2;
ipv4 table copied;
ipv4 table own;
protocol device {{ scan time 60; }}
protocol kernel from_main {{
  learn; scan time 60; kernel table 254;
  ipv4 {{ table copied; export none;
         import filter {{ if net = 0.0.0.0/0 && ifname !~ "tun*" then accept; reject; }}; }};
}}
protocol kernel to_own {{ scan time 60; kernel table {table}; ipv4 {{ table own; import none; export all; }}; }}
protocol pipe {{ table own; peer table copied; import all; export none; }}
"""
HOOK = """
copy() {{ echo "route replace default via $1 dev phy0 table {table}"; }}
{{
    set -- $(ip -4 route show default table main dev phy0)
    [ "$2" = via ] && copy "$3"
    ip -4 monitor route | while read -r line; do
        case $line in
        Deleted*|*" table "*) ;;
        "default via "*" dev phy0"*) set -- $line; copy "$3" ;;
        esac
    done
}} | ip -force -batch -
"""
LAPTOP = """
link set lo up
link add phy0 type veth peer name gw0 netns {router}
link set phy0 up
addr add 10.99.0.2/24 dev phy0
addr add 2001:db8:99::2/64 dev phy0 nodad
tuntap add dev tun0 mode tun
link set tun0 up
addr add 10.8.0.2/24 dev tun0
addr add 2001:db8:8::2/64 dev tun0 nodad
link add other0 type veth peer name other1
link set other1 up
link set other0 up
"""
ROUTER = """
link set lo up
link set gw0 up
addr add 10.99.0.1/24 dev gw0
addr add 10.99.0.254/24 dev gw0
addr add 2001:db8:99::1/64 dev gw0 nodad
addr add 2001:db8:99::254/64 dev gw0 nodad
"""
# Its own bpffs, or none: the machine's is left alone. The cgroups are the machine's, as the agent's are named for the
# network namespace.
MOUNTS = 'mount -t "$0" bench /sys/fs/bpf && echo ready && exec sleep infinity'

# The agent's tree of cgroups is one of the bench's own.
WRAPPER = ["sh", "-ec", 'echo $$ > "$0/cgroup.procs"; exec unshare --cgroup --mount --propagation private sh -ec '
           "'umount \"$0\"; mount -t cgroup2 bench \"$0\"; exec \"$@\"' \"$@\""]
APPS = "user.slice/user-0.slice/user@0.service/app.slice"


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], check=False, text=True, capture_output=True, **more)
    if done.returncode:
        sys.exit(f"bench: {' '.join(map(str, command))}: status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


class Lab:
    """A laptop with a physical link, a tun device and a link that is no way out, and its router."""
    _made = 0

    def __init__(self, programs, bench, bpffs=True):
        Lab._made += 1
        self.programs, self.bench, self.bpffs = programs, bench, bpffs
        self.name = f"nvbench{os.getpid()}x{Lab._made}"
        self.router = self.name + "r"
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="novpn-bench."))
        self.directory.chmod(0o755)
        accounting = pathlib.Path("/sys/fs/cgroup/cpuacct")
        self.cgroup = accounting / self.name if accounting.is_dir() else None
        self.tree = None
        self.mounts = None
        self.processes = []

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _make(self):
        run("ip", "netns", "add", self.name)
        run("ip", "netns", "add", self.router)
        run("ip", "-n", self.name, "-batch", "-", input=LAPTOP.format(router=self.router))
        run("ip", "-n", self.router, "-batch", "-", input=ROUTER)
        self.mounts = subprocess.Popen(["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--mount",
                                        "--propagation=private", "sh", "-c", MOUNTS, "bpf" if self.bpffs else "tmpfs"],
                                       stdout=subprocess.PIPE, text=True)
        if self.mounts.stdout.readline() != "ready\n":
            sys.exit("bench: no mount namespace")
        # The kernel's own IPv6 addresses are not there at once, and their coming would be news in the midst of a part.
        for _ in range(100):
            if "tentative" not in run("ip", "-n", self.name, "addr"):
                break
            time.sleep(0.05)
        if self.cgroup:
            self.cgroup.mkdir()
        self.configure('uplinks:\n  links: [phy0]\n')
        (self.directory / "bird.conf").write_text(BIRD.format(table=TABLE))
        (self.directory / "hook.sh").write_text(HOOK.format(table=TABLE))

    def __exit__(self, *_):
        for process in [*reversed(self.processes), *([self.mounts] if self.mounts else [])]:
            end(process)
        for name in (self.name, self.router):
            subprocess.run(["ip", "netns", "del", name], check=False)
        if self.tree:
            for path in sorted(self.tree.rglob("*"), reverse=True):
                if path.is_dir():
                    remove_cgroup(path)
            remove_cgroup(self.tree)
        if self.cgroup and self.cgroup.is_dir():
            remove_cgroup(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)

    def configure(self, text):
        (self.directory / "novpn.yaml").write_text(text)

    def with_apps(self):
        """A user's applications may be made below self.tree / APPS; what starts an agent that looks there."""
        mount = run("findmnt", "-n", "-o", "TARGET", "-t", "cgroup2").splitlines()[0]
        self.tree = pathlib.Path(mount) / self.name
        (self.tree / APPS).mkdir(parents=True)
        self.configure("uplinks:\n  links: [phy0]\nclasses:\n  novpn:\n    apps: [bench]\n")
        return [*WRAPPER, self.tree, mount]

    def inside(self, *command):
        # Not `ip netns exec`, which would mount another /sys without the cgroups.
        return ["nsenter", f"--net=/run/netns/{self.name}", f"--mount=/proc/{self.mounts.pid}/ns/mnt",
                *map(str, command)]

    def at_router(self, *command):
        return ["nsenter", f"--net=/run/netns/{self.router}", *map(str, command)]

    def spawn(self, command, **more):
        process = subprocess.Popen(command, text=True, **more)
        self.processes.append(process)
        return process

    def agent(self):
        return [self.programs / "novpnd", "--runtime-dir", self.directory / "run", "--config",
                self.directory / "novpn.yaml"]

    def novpn(self, *arguments):
        return [self.programs / "novpn", "--runtime-dir", self.directory / "run", *arguments]

    def start_agent(self, wrapper=()):
        """An agent whose class has found its uplink."""
        log = self.directory / "novpnd.log"
        with log.open("w") as output:
            # What is freed is kept back by the sanitizer, 256 MiB of it: more than an agent may grow.
            process = self.spawn(self.inside(*wrapper, *self.agent()), stdout=output, stderr=output,
                                 env={**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=1"})
        for _ in range(3000):
            status = subprocess.run(self.inside(*self.novpn("status", "--json")), text=True, capture_output=True, check=False)
            if status.returncode == 0 and json.loads(status.stdout)["families"]["ipv4"]["uplink"]:
                return process
            if process.poll() is not None:
                break
            time.sleep(0.01)
        sys.exit(f"bench: the agent has no uplink: {log.read_text()[-2000:]}{status.stdout}{status.stderr}")

    def contestants(self, family):
        there = {"bare loop": [self.bench / "bare_loop", "phy0", TABLE],
                 "libnl loop": [self.bench / "libnl_loop", "phy0", TABLE],
                 "agent": self.agent()}
        if family == 4 and shutil.which("bird"):
            there["BIRD 2"] = ["bird", "-f", "-c", self.directory / "bird.conf", "-s", self.directory / "bird.ctl",
                               "-P", self.directory / "bird.pid"]
        if family == 4:
            there["shell hook"] = ["sh", self.directory / "hook.sh"]
        return there

    def measure(self, contestant, **options):
        """What tests/bench/reaction.cpp says of one contestant, which it starts and ends."""
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        if self.cgroup:
            arguments += ["--cpu", self.cgroup / "cpuacct.usage"]
        done = subprocess.run(self.inside(self.bench / "reaction", "--table", TABLE, *arguments, "--", *contestant),
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"bench: {' '.join(map(str, contestant))}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout:
        process.stdout.close()
    if process.stdin:
        process.stdin.close()


def remove_cgroup(path):
    # What has just ended may still be counted.
    for _ in range(50):
        try:
            path.rmdir()
            return
        except OSError:
            time.sleep(0.02)


def memory_of(pid):
    """KiB by the names of proc_pid_smaps_rollup(5): "Rss", "Pss", "Private_Dirty"."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def median(values):
    values = [value for value in values if value is not None and value >= 0]
    return statistics.median(values) if values else None


def number(value, digits=1):
    return "–" if value is None else f"{value:,.{digits}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"
