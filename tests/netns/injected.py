"""What the tests with a preloaded agent share: a laptop that stands still but for what a test does to it, under a VPN
without a client, and processes that ask without being started each time."""
import collections
import contextlib
import difflib
import json
import pathlib
import platform
import re
import signal
import socket

from labtest import LabTest, SITES, the_lab
from inject import Inject
from inside import Cables, Packets, Shell
from lab import ECHO, MEMBER_ECHO, PYTHON, VPN_SEEN, read_line, wait_until

FAMILIES = (4, 6)
TUNNEL = "vpn0"
HALVES = f"""ip route add 0.0.0.0/1 dev {TUNNEL}; ip route add 128.0.0.0/1 dev {TUNNEL}
ip -6 route add ::/1 dev {TUNNEL}; ip -6 route add 8000::/1 dev {TUNNEL}"""
DUE, UNSURE = 3.0, 0.1  # Where an answer is due, and where there may be none.
WAITS = {"232", "281"}  # epoll_wait and epoll_pwait, on x86-64; other kernels do not tell of a process that is stopped.


class InjectedTest(LabTest):
    def setUp(self):
        super().setUp()
        self.inject = Inject(self.lab.directory)
        self.shell = Shell(self.lab, "laptop")
        self.lab.end(self.lab.dhcp.pop("wlan0"))
        self.sh("sysctl -qw net.ipv6.conf.wlan0.accept_ra=0")
        self.cables = Cables(self.lab.path_of("laptop"), self.lab.path_of("vpn"))
        self.cables.open(TUNNEL)
        for namespace, host in (("laptop", 2), ("vpn", 1)):
            self.lab.shell(f"""ip address add 10.66.1.{host}/24 dev {TUNNEL}
                ip address add 2001:db8:66:1::{host}/64 dev {TUNNEL} nodad; ip link set {TUNNEL} up""", namespace)
        self.packets = Packets(self.lab.path_of("laptop"))
        self.ordinary = self.lab.spawn(PYTHON, self.lab.directory / "probe.py", "serve")
        self.member = None
        self.arrive("a")

    def sh(self, script, check=True):
        return self.shell.run(script, check)

    def arrive(self, name):
        """At a site, with addresses and routes that nobody renews."""
        site = SITES[name]
        if self.lab.where["wlan0"] != site.router:
            self.lab.plug(name)
        self.sh(f"""ip address flush dev wlan0 scope global; ip -6 route flush dev wlan0 root 2000::/3; ip -6 route del default dev wlan0 || true
            ip address add {site.net4}.77/24 dev wlan0; ip address add {site.net6}:77/64 dev wlan0 nodad
            ip route add default via {site.gateway} dev wlan0 metric 600
            ip -6 route add default via {site.net6}:1 dev wlan0 metric 1024""")
        self.site = name

    # ---- the agent

    def ask_agent(self, method, timeout=60):
        """One call of the agent's interface; none where it dies over it."""
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(timeout)
                control.connect(str(self.lab.directory / "run/io.novpn.Agent"))
                control.sendall(json.dumps({"method": f"io.novpn.Agent.{method}", "parameters": {}}).encode() + b"\0")
                answer = b""
                while not answer.endswith(b"\0"):
                    part = control.recv(1 << 20)
                    if not part:
                        return None
                    answer += part
        except (ConnectionError, FileNotFoundError):
            return None
        return json.loads(answer[:-1])

    def is_dead(self):
        return self.agent.process.poll() is not None

    def start(self, config=None):
        """The agent, preloaded; it may die at once."""
        self.agent = self.lab.start_agent(config, ready=False, environment=self.inject.environment)
        wait_until(lambda: self.is_dead() or self.ask_agent("Plan"), 20, "the agent answering", self.agent.explain)

    def is_settled(self):
        plan = self.ask_agent("Plan")
        return plan is not None and not plan["parameters"].get("commands", ["?"])

    def settle(self, timeout=20):
        """Until nothing is left to do, or the agent is dead."""
        wait_until(lambda: self.is_dead() or self.is_settled(), timeout, "the agent having nothing left to do", self.agent.explain)

    def stop_where_it_waits(self):
        """Whether the agent stands now, and was not amid anything."""
        self.agent.process.send_signal(signal.SIGSTOP)
        proc = pathlib.Path(f"/proc/{self.agent.process.pid}")
        wait_until(lambda: self.is_dead() or proc.joinpath("stat").read_text().rpartition(") ")[2][0] == "T", 20, "the agent standing still")
        if self.is_dead() or platform.machine() != "x86_64" or proc.joinpath("syscall").read_text().split()[0] in WAITS:
            return True
        self.agent.process.send_signal(signal.SIGCONT)
        return False

    @contextlib.contextmanager
    def frozen(self):
        """The agent sees all that happens meanwhile in one look, and not half of it in a look that had begun before."""
        wait_until(self.stop_where_it_waits, 20, "the agent waiting for news", self.agent.explain)
        try:
            yield
        finally:
            self.agent.process.send_signal(signal.SIGCONT)

    def operations(self):
        """What the agent has done and said so, whatever made it."""
        lines = self.agent.log.read_text().splitlines()
        found = (re.search(r" info [^:]+: ((?:ip|nft|mkdir|rmdir|bpftool|ss|echo|rm) .*)", line) for line in lines)
        return collections.Counter(match[1] for match in found if match)

    def assert_state_is(self, before):
        """But for the kernel's numbers of BPF programs, which are new where these were made again."""
        lines = [re.sub(r"\(\d+, 'novpn", "('novpn", text).splitlines() for text in (before, self.lab.snapshot())]
        difference = "\n".join(difflib.unified_diff(*lines, n=0, lineterm=""))
        self.assertFalse(difference, difference)

    # ---- packets

    def join(self):
        self.member = self.lab.spawn(*self.lab.novpn_command("run", "--", PYTHON, self.lab.directory / "probe.py", "serve"))

    def question(self, process, *words):
        process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        return read_line(process, 20)

    def is_seen_at(self, family, seen):
        site = SITES[self.site]
        return seen == site.seen4 if family == 4 else seen.startswith(site.net6)

    def check_ordinary(self):
        """What is in no class leaves by the VPN."""
        for family, protocol in ((4, "udp"), (6, "tcp")):
            self.assertEqual(self.question(self.ordinary, "ask", protocol, ECHO[family], DUE), VPN_SEEN[family], f"IPv{family}")

    def check_member(self, answered):
        """By the uplink; or, where it need not be answered, at least not by the VPN."""
        for family in FAMILIES:
            for protocol in ("udp", "tcp"):
                seen = self.question(self.member, "ask", protocol, MEMBER_ECHO[family], DUE if answered else UNSURE)
                fine = self.is_seen_at(family, seen) or not answered and seen.startswith("no answer")
                if not fine:
                    self.fail(f"a member's {protocol} over IPv{family}: {seen}\n{self.agent.explain()}")

    def check_wire(self, members=True):
        """No packet of a member was in the tunnel since the last look, and none of another process outside."""
        for link, tunnel, source, destination, what in self.packets.take():
            ends = {source, destination}
            if members and tunnel and ends & set(MEMBER_ECHO.values()):
                # A lone RST is the kernel's own answer, of no socket.
                self.assertEqual(what, "tcp RST", f"a member's packet on {link}: {source} > {destination}")
            if not tunnel and link != "lo":
                self.assertFalse(ends & set(ECHO.values()), f"an ordinary packet on {link}: {source} > {destination} {what}")
