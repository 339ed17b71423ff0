"""A seeded random walk over everything that happens to a laptop with VPNs, with the real agent and real packets.

Each step is one event. Once the agent has settled the kernel is what a fresh agent would install; members' packets are
answered by way of the uplink where there is one, and two counters stay 0: members' packets in a tunnel, and ordinary
packets at the uplink's host that should have been in the tunnel.

Usage: roam_soak.py [--seed N]... [--steps N] [--keep-going] [--events WORD,...] [--faults] [--trace]
--faults: the kernel also refuses some of the agent's writes, by a preloaded library (inject.py).
A failure prints its seed, its step and the last events; the same seed replays it.
"""
import argparse
import collections
import errno
import json
import os
import pathlib
import random
import re
import signal
import socket
import sys
import time

from labtest import the_lab
from lab import ECHO, MEMBER_ECHO, PYTHON, SITES, VPN_SEEN, read_line, wait_until
from inject import Inject
from inside import Cables, Packets, Router, Shell

FAMILIES = (4, 6)
TABLE = 7866
RULES = 4  # of ours, in each family: a way around for port 53 by UDP and TCP, its end, and the lookup.
# Where an answer is due, and where none may come: then a silent drop is waited out.
DUE, UNSURE = 3.0, 0.1
EVENTS = []


def event(weight, when=lambda walk: True):
    def add(function):
        EVENTS.append((function.__name__, weight, when, function))
        return function
    return add


class Port:
    """A physical link of the laptop, and what the walk did to it."""

    def __init__(self, name, metric):
        self.name, self.base, self.metric = name, name, metric
        self.router = "router_a"  # namespace of its other end
        self.exists, self.up, self.site = True, True, None
        self.addresses_of = None  # the site that its lease came from
        self.visited = set()      # sites whose routers it heard since its addresses were removed
        self.complete = False     # they and their defaults are all there
        self.bridge = None
        self.client = None

    @property
    def leased(self):
        return self.site is not None and self.addresses_of == self.site and self.complete

    @property
    def stale(self):
        """It still has addresses and routers of another site. The kernel itself takes what a router advertises."""
        return self.site is not None and bool(self.visited - {self.site})

    def cleaned(self):
        self.addresses_of, self.complete = None, False
        self.visited = {self.site} - {None}

    @property
    def link(self):
        """What carries the addresses."""
        return self.bridge or self.name


class Takeover:
    def __init__(self, name, shape, families, undo, metric):
        self.name, self.shape, self.families, self.undo = name, shape, families, undo
        self.metric = metric  # of its default in main; none where it takes over by more than that


class Gauges:
    """What an agent holds of the machine, as it grows: at its first sample and at most. An agent that was started anew begins
    anew."""
    MOST_GROWTH = {"KiB": 128 << 10, "descriptors": 16}  # Half of it for the sanitizer's view of a second thread.

    def __init__(self):
        self.of = {}    # pid: the first sample
        self.most = collections.Counter()

    def sample(self, pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        now = {"KiB": int(re.search(r"VmRSS:\s+(\d+)", status)[1]), "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
               "threads": int(re.search(r"Threads:\s+(\d+)", status)[1])}
        first = self.of.setdefault(pid, now)
        for name, most in self.MOST_GROWTH.items():
            assert now[name] - first[name] <= most, f"the agent grows: {first}, and now {now}"
        for name, value in now.items():
            self.most[name] = max(self.most[name], value)

    def __str__(self):
        return ", ".join(f"{value} {name}" for name, value in sorted(self.most.items()))


class Walk:
    def __init__(self, lab, seed, trace=False, faults=False):
        self.gauges = Gauges()
        self.inject = Inject(lab.directory) if faults else None
        self.lab, self.random, self.trace = lab, random.Random(seed), trace
        self.history = collections.deque(maxlen=40)
        self.wire = []  # what passed during the last check, for the message of a failure
        self.shells = {name: Shell(lab, name) for name in ("laptop", "router_a", "router_b")}
        self.cables = Cables(lab.path_of("laptop"), lab.path_of("vpn"))
        self.routers = {name: Router(lab.path_of(site.router), "lan", f"{site.net6}:") for name, site in SITES.items()}
        self.at_laptop, self.at_internet = Packets(lab.path_of("laptop")), Packets(lab.path_of("internet"))
        self.ports = [Port("wlan0", 600), Port("eth0", 100)]
        self.ports[0].site, self.ports[0].addresses_of, self.ports[0].complete = "a", "a", True
        self.ports[0].visited = {"a"}
        self.ports[0].client = lab.dhcp["wlan0"]
        self.takeovers = []
        self.openvpn = None            # its mode, while it runs
        self.agent_is = "running"      # or stopped, or dead
        self.displaced = {}            # family: port whose default a tunnel replaced while the agent looked on
        self.counts = collections.Counter()
        self.kept = 0
        self.step = 0
        self.tunnels_made = 0
        self.inode, self.objects = lab.netns_inode(), None
        # Two links may be at one site: neither answers for the other's address.
        self.sh("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
        # A bridge has the lowest address of its ports: without one of its own a router's would change with every roam, and
        # laptops that stay would look for it elsewhere for seconds.
        for router in ("router_a", "router_b"):
            self.sh("ip link set lan address $(ip -o link show lan | sed 's/.*ether \\([^ ]*\\).*/\\1/')", router)
        (lab.directory / "novpn.yaml").write_text("")
        self.agent = lab.start_agent("", environment=self.environment)
        self.ordinary = lab.spawn(PYTHON, lab.directory / "probe.py", "serve")
        self.join()

    # ---- tools

    @property
    def environment(self):
        return self.inject.environment if self.inject else None

    def sh(self, script, namespace="laptop", check=True):
        return self.shells[namespace].run(script, check)

    def note(self, text):
        self.history.append(f"step {self.step}: {text}")
        if self.trace:
            print(f"{time.monotonic():.3f} {self.history[-1]}", flush=True)

    def ask_agent(self, method):
        """One call of the agent's interface; none while nobody answers."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(10)
            control.connect(str(self.lab.directory / "run/io.novpn.Agent"))
            control.sendall(json.dumps({"method": f"io.novpn.Agent.{method}", "parameters": {}}).encode() + b"\0")
            answer = b""
            while not answer.endswith(b"\0"):
                part = control.recv(1 << 20)
                assert part, f"{method}: the agent closed the connection"
                answer += part
        reply = json.loads(answer[:-1])
        assert "error" not in reply, reply
        return reply["parameters"]

    def join(self):
        """A member of the class, by `novpn run`."""
        self.member = self.lab.spawn(*self.lab.novpn_command("run", "--", PYTHON, self.lab.directory / "probe.py", "serve"))
        self.question(self.member, "drop")  # It is in before anything happens to the agent.
        self.kept = 0

    def question(self, process, *words, timeout=10.0):
        process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        return read_line(process, timeout)

    # ---- what is

    def physical(self):
        return [port for port in self.ports if port.exists]

    def carrying(self):
        return [port for port in self.physical() if port.up and port.site]

    def look(self):
        """Main's routes and the addresses, as the kernel has them."""
        text = self.sh("ip -j -4 route show; echo @; ip -j -6 route show; echo @; ip -j address show")
        routes4, routes6, links = (json.loads(part.strip() or "[]") for part in text.split("@\n"))
        return {4: routes4, 6: routes6}, {link["ifname"]: link for link in links}

    def expected_sites(self, family, routes, links):
        """Sites of which one has to answer a member; empty where no default of main says so."""
        best = {}
        for port in self.carrying():
            link = links.get(port.link)
            if not link or port.stale:
                continue
            addresses = [a for a in link["addr_info"] if a["family"] == ("inet" if family == 4 else "inet6") and a["scope"] == "global"]
            if not addresses:
                continue
            for route in routes[family]:
                if route["dst"] == "default" and route.get("dev") == port.link and route.get("type", "unicast") == "unicast":
                    best.setdefault(route.get("metric", 0), set()).add(port.site)
        return best[min(best)] if best else set()

    def is_covered(self, family, routes):
        """An ordinary packet has to be in a tunnel."""
        # What OpenVPN displaced it puts back when it likes, and without a metric: better than another VPN's default.
        physical = [route.get("metric", 0) for route in routes[family] if route["dst"] == "default" and not re.match("vpn|tun", route.get("dev", ""))]
        if any(family in takeover.families and (takeover.metric is None or all(takeover.metric < metric for metric in physical))
               for takeover in self.takeovers):
            return True
        # OpenVPN reconnects when it likes: its routes tell whether it is there.
        tunnel = {route["dst"] for route in routes[family] if route.get("dev") == "tun0" and route.get("type", "unicast") == "unicast"}
        return bool(tunnel & ({"default", "128.0.0.0/1"} if family == 4 else {"default", "2000::/4", "2000::/3"}))

    # ---- what has to hold

    def settle(self):
        def empty():
            self.planned = self.ask_agent("Plan")["commands"]
            return not self.planned
        wait_until(empty, 10, "the agent having nothing left to do", lambda: "\n".join(self.planned))

    def settled_without_drift(self):
        """Asked again where a router's advertisement came between the two looks."""
        self.settle()
        try:
            self.check_drift()
        except AssertionError as drift:
            self.drift = str(drift)
            return False
        return True

    def check_drift(self):
        """What a fresh agent would do to this kernel, and what is ours beside it."""
        text = self.sh("\n".join([
            f"{self.lab.directory}/bin/novpn plan --config {self.lab.directory}/novpn.yaml",
            "echo @", "ip -o -N route show table all proto 78", "ip -o -N -6 route show table all proto 78",
            "echo @", "ip -o -N rule show | grep 'proto 78' || true", "echo @", "ip -o -N -6 rule show | grep 'proto 78' || true",
            "echo @", "nft list tables", "echo @", "find /sys/fs/bpf -type f"]))
        fresh, routes, rules4, rules6, tables, pins = ([line for line in part.splitlines() if line.strip()] for part in text.split("@"))
        if fresh != ["nothing to change"]:
            fresh = [line for line in fresh if not self.is_memory(line)]
            if fresh:
                raise AssertionError("a fresh agent would do:\n" + "\n".join(fresh))
        strays = [line for line in routes if not re.search(rf"table {TABLE}\b", line)]
        assert not strays, f"stray routes: {strays}"
        for rules in (rules4, rules6):
            assert len(rules) == RULES, f"{len(rules)} rules of ours: {rules}"
        assert sum("novpn" in line for line in tables) == 1, tables
        objects = pins + [str(path) for path in the_lab.cgroups_of(self.inode)]
        self.objects = self.objects or objects
        assert sorted(objects) == sorted(self.objects), f"pins and cgroups: {objects}, at first {self.objects}"

    def is_memory(self, line):
        """A difference that only memory explains: a fresh agent does not know a default that is gone from main while its
        link and address are not (it may guess another, or none), nor which of two equal defaults was in use."""
        if not hasattr(self, "_status_step") or self._status_step != self.step:
            self._status, self._status_step = self.ask_agent("Status"), self.step
        for family, version in (("ipv4", 4), ("ipv6", 6)):
            uplink = self._status["families"][family]["uplink"]
            if not uplink:
                continue
            remembered = uplink["from"] == "memory"
            tied = uplink["from"] == "main" and len(self.tied(version)) > 1
            if not (remembered or tied):
                continue
            ip = "ip" if version == 4 else "ip -6"
            if re.match(rf"{ip} route (del|replace) default .*table {TABLE}\b", line):
                return True
            if re.match(r"nft (add|delete) element inet novpn links_novpn", line):
                return True
        return False

    def tied(self, family):
        routes = [route for route in self.look()[0][family] if route["dst"] == "default"]
        metrics = [route.get("metric", 0) for route in routes]
        return [route for route in routes if metrics.count(route.get("metric", 0)) > 1]

    def take_packets(self, covered, certain):
        """Counts what passed since the last call. covered, certain: families in which an ordinary packet belongs in a tunnel."""
        taken, at_internet = self.at_laptop.take(), self.at_internet.take()
        self.wire = [f"laptop {link}: {source} > {destination} {what}" for link, _tunnel, source, destination, what in taken]
        self.wire += [f"internet {link}: {source} > {destination} {what}" for link, _tunnel, source, destination, what in at_internet]
        for link, tunnel, source, destination, what in taken:
            family = 6 if ":" in source else 4
            if {source, destination} & set(MEMBER_ECHO.values()):
                # A lone RST is the kernel's own answer to an unsolicited packet, as of a flow that a flushed table forgot.
                # No socket sent it, and what is unsolicited is never marked.
                tunnel = tunnel and what != "tcp RST"
                self.counts["member packets, tunnel" if tunnel else "member packets, uplink"] += 1
                if tunnel:
                    self.leaks.append(f"{link}: {source} > {destination} {what}")
            elif {source, destination} & set(ECHO.values()):
                self.counts["ordinary packets, tunnel" if tunnel else "ordinary packets, uplink"] += 1
        for link, _tunnel, source, destination, what in at_internet:
            if destination in ECHO.values() and link in ("to_a", "to_b"):
                family = 6 if ":" in destination else 4
                if family in covered and certain:
                    self.counts["ordinary packets astray"] += 1
                    self.astray.append(f"{link}: {source} > {destination} {what}")

    def check_packets(self, routes, links, strict):
        self.leaks, self.astray = [], []
        covered = {family for family in FAMILIES if self.is_covered(family, routes)}
        self.take_packets((), False)  # what is left of the event itself
        steady = not self.openvpn
        protocols = ("tcp", "udp") if self.step % 2 else ("udp", "tcp")
        wrong = []
        for family, protocol in zip(FAMILIES, protocols):
            if self.member:
                wrong += self.check_member(family, protocol, routes, links, strict)
            wrong += self.check_ordinary(family, protocol, routes, links, covered, steady)
        if self.member:
            self.ask_kept()
        if not steady:
            # It may have come or gone meanwhile: then this step says nothing about it.
            after = self.look()[0]
            covered &= {family for family in FAMILIES if self.is_covered(family, after)}
            steady = [r for r in routes[4] + routes[6] if r.get("dev") == "tun0"] == [r for r in after[4] + after[6] if r.get("dev") == "tun0"]
        self.take_packets(covered, steady)
        assert not self.leaks, f"members' packets in a tunnel: {self.leaks}"
        assert not self.astray, f"ordinary packets at the uplink's host: {self.astray}"
        assert not wrong, "\n".join(wrong)

    def site_of(self, family, seen):
        return next((name for name, site in SITES.items() if (seen == site.seen4 if family == 4 else seen.startswith(site.net6))), None)

    def check_member(self, family, protocol, routes, links, strict):
        due = self.expected_sites(family, routes, links)
        displaced = self.displaced.get(family)
        if not due and displaced and displaced.leased:
            due = {displaced.site}
        # A link that came to another site with its old lease may be the better one by its metric, to the kernel too.
        due = due if strict and not any(port.stale for port in self.carrying()) else set()
        seen = self.question(self.member, "ask", protocol, MEMBER_ECHO[family], DUE if due else UNSURE)
        if due and protocol == "udp" and seen == "no answer: ETIMEDOUT":
            # The kernel began to look for the gateway while the link had no carrier, and drops what waits when it gives up.
            seen = self.question(self.member, "ask", protocol, MEMBER_ECHO[family], DUE)
            self.counts["second tries"] += 1
        elif due and self.inject and self.site_of(family, seen) not in due:
            # A router's advertisement came after the agent had settled, and the kernel refused what it asked for: it tries again.
            self.settle()
            seen = self.question(self.member, "ask", protocol, MEMBER_ECHO[family], DUE)
            self.counts["tries after a refusal"] += 1
        site = self.site_of(family, seen)
        self.counts["members answered" if site else "members unanswered"] += 1
        if due and site not in due or not due and not site and not seen.startswith("no answer"):
            return [f"a member's {protocol} over IPv{family}: {seen}, not of site {' or '.join(due) or 'any'}"]
        return []

    def check_ordinary(self, family, protocol, routes, links, covered, steady):
        in_tunnel = family in covered and steady
        sites = {port.site for port in self.carrying()}
        defaults = [route for route in routes[family] if route["dst"] == "default"]
        direct = (family not in covered and not self.openvpn and len(sites) == 1 and defaults
                  and self.expected_sites(family, routes, links) and not any("linkdown" in route.get("flags", []) for route in defaults)
                  and len({route.get("dev") for route in defaults}) == 1)
        if family not in covered and not direct:
            # Its packet could wait for a neighbour on a link without carrier, and leave when it is a tunnel's turn.
            return []
        seen = self.question(self.ordinary, "ask", protocol, ECHO[family], DUE if in_tunnel or direct else UNSURE)
        self.counts["ordinary answered" if not seen.startswith("no") else "ordinary unanswered"] += 1
        if in_tunnel and seen != VPN_SEEN[family]:
            return [f"an ordinary process's {protocol} over IPv{family}: {seen}, not by the VPN"]
        if direct and self.site_of(family, seen) not in sites:
            # A router that still looks for the laptop elsewhere loses a packet or two: no business of the agent's.
            seen = self.question(self.ordinary, "ask", protocol, ECHO[family], DUE)
            self.counts["second tries"] += 1
        if direct and self.site_of(family, seen) not in sites:
            return [f"an ordinary process's {protocol} over IPv{family}: {seen}, not by the only link"]
        return []

    def ask_kept(self):
        """Sockets that stay open over many events may end or hang, but their packets may not go astray."""
        if self.kept < 4:
            protocol, family = (("tcp", 4), ("udp", 4), ("tcp", 6), ("udp", 6))[self.kept]
            answer = self.question(self.member, "keep", protocol, MEMBER_ECHO[family], UNSURE)
            # One that was refused is no socket.
            self.kept += not answer.startswith("no answer")
            return
        self.question(self.member, "again", self.step % 4)
        if self.step % 50 == 0:
            self.drop_kept()

    def drop_kept(self):
        if self.member:
            self.question(self.member, "drop")
        self.kept = 0

    def check(self):
        if self.agent_is == "running":
            assert self.agent.process.poll() is None, f"novpnd ended with {self.agent.process.returncode}"
            wait_until(self.settled_without_drift, 5, "a kernel as a fresh agent would have it", lambda: self.drift)
            self.gauges.sample(self.agent.process.pid)
        routes, links = self.look()
        self.check_packets(routes, links, strict=self.agent_is == "running")

    # ---- links

    def stop_client(self, port):
        if port.client:
            self.lab.end(port.client)
            port.client = None

    def forget(self, port):
        """As a network manager that has noticed: nothing of the old network is left."""
        self.stop_client(port)
        self.flush(port.link)
        port.cleaned()
        self.touched(port)

    def flush(self, link):
        self.sh(f"ip address flush dev {link} scope global; ip -6 route flush dev {link} proto ra; ip -6 route flush dev {link} root 2000::/3")

    def touched(self, port):
        self.displaced = {family: of for family, of in self.displaced.items() if of is not port}

    def carrier(self, port, wanted):
        state = "UP" if wanted else "LOWERLAYERDOWN|DOWN"
        wait_until(lambda: re.search(rf" state ({state}) ", self.sh(f"ip -o link show dev {port.name}")), 5, f"{port.name} {state}")

    def plug(self, port, site):
        router = SITES[site].router
        if port.router != router:
            self.sh(f"ip link set port-{port.base} nomaster netns {self.lab.name_of(router)}", port.router)
            port.router = router
        self.sh(f"ip link set port-{port.base} master lan; ip link set port-{port.base} up", router)
        port.site = site
        port.visited.add(site)
        if port.up:
            self.carrier(port, True)
        self.touched(port)

    def lease(self, port):
        self.stop_client(port)
        if port.stale:
            self.forget(port)
        log = self.lab.directory / f"udhcpc-{self.lab.count()}.log"
        port.client = self.lab.spawn("udhcpc", "--foreground", f"--interface={port.link}", f"--script={self.lab.directory}/dhcp-script",
                                     "--timeout=1", "--retries=10", "--tryagain=1", output=log,
                                     environment={"LAB_METRIC": str(port.metric)})
        net6 = SITES[port.site].net6
        want4 = rf"default via {re.escape(SITES[port.site].gateway)} dev {port.link} "
        self.routers[port.site].advertise()

        def connected():
            text = self.sh(f"ip -4 route show default dev {port.link} proto dhcp; ip -6 route show default dev {port.link};"
                           f" ip -6 -o address show dev {port.link} scope global")
            if "via fe80" in text and net6 in text and "tentative" not in text:
                return f"via {SITES[port.site].gateway}" in text
            self.routers[port.site].advertise()  # While there is no link-local address yet the kernel does not listen.
            return False

        wait_until(connected, 15, f"a lease and a router on {port.link} ({want4})", lambda: self.sh("ip address; ip route; ip -6 route") + log.read_text())
        # The script ends after its last command.
        wait_until(lambda: not self.lab._children(port.client.pid), what="the script of udhcpc")
        port.addresses_of, port.complete = port.site, True
        self.displaced = {}  # the agent remembers the one used last

    def pick(self, condition):
        return self.random.choice([port for port in self.physical() if condition(port)])

    def some(condition):
        return lambda walk: any(condition(port) for port in walk.physical())

    pluggable = staticmethod(lambda port: port.up and not port.site)
    connectable = staticmethod(lambda port: port.up and port.site and not port.leased)
    connected = staticmethod(lambda port: port.up and port.site and port.leased and port.client)

    @event(6, some(lambda port: port.site and port.up))
    def carrier_lost(self):
        port = self.pick(lambda port: port.site and port.up)
        self.note(f"{port.name} loses carrier")
        self.sh(f"ip link set port-{port.base} down", port.router)
        self.carrier(port, False)
        port.site = None
        self.touched(port)

    @event(8, some(pluggable))
    def carrier_back(self):
        port = self.pick(self.pluggable)
        site = self.random.choice("ab")
        self.note(f"{port.name} has carrier at site {site}")
        self.plug(port, site)

    @event(5, some(lambda port: port.addresses_of))
    def network_manager_forgets(self):
        port = self.pick(lambda port: port.addresses_of)
        self.note(f"{port.name}: addresses and routes removed")
        self.forget(port)

    @event(25, some(connectable))
    def connected_by_dhcp_and_ra(self):
        port = self.pick(self.connectable)
        self.note(f"{port.link}: a lease and a router at site {port.site}")
        self.lease(port)

    @event(8, some(lambda port: port.up and port.site))
    def roam(self):
        port = self.pick(lambda port: port.up and port.site)
        site = "b" if port.site == "a" else "a"
        self.note(f"{port.name} roams to site {site}")
        self.sh(f"ip link set port-{port.base} down", port.router)
        self.carrier(port, False)
        self.forget(port)
        self.plug(port, site)
        self.lease(port)

    @event(3, some(lambda port: port.up))
    def admin_down(self):
        port = self.pick(lambda port: port.up)
        self.note(f"{port.name} down")
        self.stop_client(port)
        self.sh(f"ip link set {port.name} down")
        port.up = port.complete = False
        self.touched(port)

    @event(12, some(lambda port: not port.up))
    def admin_up(self):
        port = self.pick(lambda port: not port.up)
        self.note(f"{port.name} up")
        self.sh(f"ip link set {port.name} up")
        port.up = True
        if port.site:
            self.carrier(port, True)

    @event(3, some(connected))
    def address_removed(self):
        port = self.pick(self.connected)
        self.note(f"{port.link}: IPv4 address removed")
        self.sh(f"ip -4 address flush dev {port.link}")
        port.complete = False
        self.touched(port)

    @event(2, some(lambda port: not port.bridge))
    def link_deleted(self):
        port = self.pick(lambda port: not port.bridge)
        self.note(f"{port.name} is unplugged from USB")
        self.stop_client(port)
        self.sh(f"ip link del {port.name}")
        port.exists, port.site = False, None
        port.cleaned()
        self.touched(port)

    @event(10, lambda walk: len(walk.physical()) < len(walk.ports))
    def link_created(self):
        port = self.random.choice([port for port in self.ports if not port.exists])
        port.name, port.router, port.exists, port.up = port.base, "router_a", True, True
        self.note(f"{port.name} is back with a new index")
        self.sh(f"ip link add port-{port.base} type veth peer name {port.base} netns {self.lab.name_of('laptop')}", "router_a")
        self.sh(f"ip link set {port.base} up")

    @event(3, some(lambda port: not port.bridge and port.name == port.base))
    def renamed(self):
        port = self.pick(lambda port: not port.bridge and port.name == port.base)
        self.rename(port, f"{port.base}x")

    @event(6, some(lambda port: not port.bridge and port.name != port.base))
    def renamed_back(self):
        port = self.pick(lambda port: not port.bridge and port.name != port.base)
        self.rename(port, port.base)

    def rename(self, port, name):
        self.note(f"{port.name} is renamed to {name}")
        # udhcpc goes by the name: the next lease is a new client's.
        self.stop_client(port)
        self.sh(f"ip link set {port.name} name {name}")
        port.name = name

    @event(2, some(lambda port: port.up and port.site and not port.bridge))
    def moved_to_a_bridge(self):
        port = self.pick(lambda port: port.up and port.site and not port.bridge)
        bridge = f"br-{port.base}"
        self.note(f"{port.name} moves to {bridge}")
        self.forget(port)
        self.sh(f"ip link add {bridge} type bridge; ip link set {bridge} up; ip link set {port.name} master {bridge}")
        # A router may have been heard on the port itself meanwhile. From now on none is.
        self.flush(port.name)
        port.bridge = bridge
        wait_until(lambda: " state UP " in self.sh(f"ip -o link show dev {bridge}"), what=f"{bridge} up")
        self.lease(port)

    @event(6, some(lambda port: port.bridge))
    def moved_out_of_the_bridge(self):
        port = self.pick(lambda port: port.bridge)
        self.note(f"{port.name} leaves {port.bridge}")
        self.stop_client(port)
        self.sh(f"ip link del {port.bridge}")
        port.bridge = None
        port.cleaned()
        self.touched(port)

    @event(4, some(lambda port: port.site and port.up))
    def flaps(self):
        port = self.pick(lambda port: port.site and port.up)
        times = self.random.randint(2, 6)
        self.note(f"{port.name} flaps {times} times")
        self.sh(f"ip link set port-{port.base} down; ip link set port-{port.base} up\n" * times, port.router)
        self.carrier(port, True)
        self.touched(port)

    # ---- leases and routers

    @event(5, some(connected))
    def lease_renewed(self):
        port = self.pick(self.connected)
        self.note(f"{port.link}: the lease is renewed")
        gone = not self.sh(f"ip -4 route show default dev {port.link} proto dhcp").strip()
        self.sh("true" if gone else f"ip route replace $(ip -4 route show default dev {port.link} proto dhcp | head -n1) dev {port.link}")

    @event(5, some(connected))
    def new_gateway(self):
        port = self.pick(self.connected)
        site = SITES[port.site]
        gateway = self.random.choice((site.gateway, site.second_gateway))
        self.note(f"{port.link}: a lease with gateway {gateway}")
        # As udhcpc's own script has it: between the two there is no default.
        self.sh(f"ip route del default dev {port.link} proto dhcp || true; ip route add default via {gateway} dev {port.link} proto dhcp metric {port.metric}")
        self.displaced = {}

    @event(4, some(lambda port: port.up and port.site))
    def router_advertisement(self):
        port = self.pick(lambda port: port.up and port.site)
        self.note(f"a router advertisement at site {port.site}")
        self.displaced = {}
        self.routers[port.site].advertise()

    @event(3, some(lambda port: port.up and port.site))
    def router_goodbye(self):
        port = self.pick(lambda port: port.up and port.site)
        self.note(f"the router of site {port.site} says goodbye")
        self.displaced = {}
        self.routers[port.site].advertise(0)

    # ---- VPNs

    def next_tunnel(self):
        self.tunnels_made += 1
        number = self.tunnels_made % 60 + 20  # a metric too: better than every physical one
        name = f"vpn{number}"
        self.cables.open(name)
        for namespace, host in (("laptop", 2), ("vpn", 1)):
            self.lab_sh(namespace, f"""ip address add 10.66.{number}.{host}/24 dev {name}
                ip address add 2001:db8:66:{number}::{host}/64 dev {name} nodad; ip link set {name} up""")
        return name, number

    def lab_sh(self, namespace, script):
        if namespace not in self.shells:
            self.shells[namespace] = Shell(self.lab, namespace)
        self.shells[namespace].run(script)

    def takeover(self, shape, commands, undo="", families=None):
        """commands: for "4" and "6"; both have {ip} and {dev}."""
        families = families or self.random.choice(((4,), (6,), (4, 6), (4, 6)))
        name, number = self.next_tunnel()
        self.note(f"{name} takes over by {shape} (IPv{', IPv'.join(map(str, families))})")
        before = self.look() if shape == "replaced" else None
        for family in families:
            self.sh(commands[family].format(dev=name, number=number))
        if before:
            self.remember_displaced(families, *before)
        undo = {family: undo.get(family, "").format(dev=name, number=number) for family in families} if undo else {}
        self.takeovers.append(Takeover(name, shape, families, undo, number if shape in ("lower_metric", "replaced") else None))

    def remember_displaced(self, families, routes, links):
        for family in families:
            # A link that only has carrier has a router's default too. Of several defaults that go one after the other the
            # last one in use is remembered, and which that is the order of deletion says.
            links_of = {route.get("dev") for route in routes[family] if route["dst"] == "default" and not re.match("vpn|tun", route.get("dev", ""))}
            ports = [port for port in self.carrying() if port.leased and {port.link} == links_of]
            if self.agent_is == "running" and ports and self.expected_sites(family, routes, links):
                self.displaced[family] = ports[0]
            elif links_of:
                self.displaced.pop(family, None)  # that of an earlier takeover is not the last one any more

    @event(4, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_split(self):
        four, six = self.random.choice((
            (["0.0.0.0/1", "128.0.0.0/1"], ["::/1", "8000::/1"]),
            (["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"], ["2000::/3"]),
            ([f"{n * 32}.0.0.0/3" for n in range(8)], ["::/3", "2000::/4", "3000::/4", "fc00::/7"])))
        self.takeover(f"{four[0]} and so on", {4: "\n".join(f"ip route add {p} dev {{dev}} metric {{number}}" for p in four),
                                               6: "\n".join(f"ip -6 route add {p} dev {{dev}} metric {{number}}" for p in six)})

    @event(4, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_lower_metric(self):
        self.takeover("lower_metric", {family: f"ip -{family} route add default dev {{dev}} metric {{number}}" for family in FAMILIES})

    @event(4, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_replacing_the_default(self):
        physical = "while ip -{f} route show default | grep -vE ' (vpn|tun)[0-9]'; do ip -{f} route del $(ip -{f} route show default | grep -vE ' (vpn|tun)[0-9]' | head -n1 | sed 's/ expires [0-9]*sec//; s/ hoplimit [0-9]*//; s/ pref medium//; s/ linkdown//; s/ dead//'); done"
        self.takeover("replaced", {4: physical.replace("{f}", "4") + "\nip route add default dev {dev} metric {number}",
                                   6: physical.replace("{f}", "6") + "\nip -6 route add default dev {dev} metric {number}"})

    @event(4, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_table_52(self):
        if any(takeover.shape == "table 52" for takeover in self.takeovers):
            return self.vpn_by_split()
        add, undo = {}, {}
        for family in FAMILIES:
            ip = f"ip -{family}"
            rules = (f"preference 5210 fwmark 0x80000/0xff0000 lookup main", f"preference 5230 fwmark 0x80000/0xff0000 lookup default",
                     f"preference 5250 fwmark 0x80000/0xff0000 type unreachable", f"preference 5270 lookup 52")
            add[family] = f"{ip} route add default dev {{dev}} table 52\n" + "\n".join(f"{ip} rule add {rule}" for rule in rules)
            undo[family] = "\n".join(f"{ip} rule del {rule}" for rule in rules)
        return self.takeover("table 52", add, undo)

    @event(2, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_table_220(self):
        if any(takeover.shape == "table 220" for takeover in self.takeovers):
            return self.vpn_by_split()
        return self.takeover("table 220",
                             {f: f"ip -{f} rule add preference 220 lookup 220\nip -{f} route add default dev {{dev}} table 220" for f in FAMILIES},
                             {f: f"ip -{f} rule del preference 220 lookup 220" for f in FAMILIES})

    @event(5, lambda walk: len(walk.takeovers) < 2)
    def vpn_by_inverted_mark(self):
        if any(takeover.shape.startswith("wg-quick") for takeover in self.takeovers):
            return self.vpn_by_lower_metric()
        late = self.random.random() < 0.5
        preferences = ("", "") if late else ("preference 32765", "preference 32764")
        add, undo = {}, {}
        for family in FAMILIES:
            ip = f"ip -{family}"
            # Its own order. Without a preference the kernel puts each before the second rule there is.
            rules = (f"not fwmark 0xca6c lookup 51820 {preferences[0]}", f"lookup main suppress_prefixlength 0 {preferences[1]}")
            add[family] = f"{ip} route add default dev {{dev}} table 51820\n" + "\n".join(f"{ip} rule add {rule}" for rule in rules)
            undo[family] = "\n".join(f"{ip} rule del {rule}" for rule in rules)
        return self.takeover("wg-quick's rules" + (", before ours" if late else ""), add, undo)

    @event(12, lambda walk: walk.takeovers)
    def vpn_ends(self):
        takeover = self.random.choice(self.takeovers)
        self.takeovers.remove(takeover)
        crash = self.random.random() < 0.3
        self.note(f"{takeover.name} ({takeover.shape}) {'crashes' if crash else 'ends'}")
        undo = "\n".join(takeover.undo.values())
        if undo and not crash:
            self.sh(undo)
        self.cables.close(takeover.name)
        wait_until(lambda: f" {takeover.name}:" not in self.sh("ip -o link show"), what=f"the end of {takeover.name}")
        if undo and crash:
            # Rules that a crash left would collide with the next of its kind.
            self.settle_if_running()
            self.sh(undo)
        if takeover.shape == "replaced":
            self.restore_defaults(takeover.families)
            self.displaced = {family: port for family, port in self.displaced.items() if family not in takeover.families}

    def settle_if_running(self):
        if self.agent_is == "running":
            self.settle()

    def restore_defaults(self, families):
        for port in self.carrying():
            if port.leased and 4 in families:
                # As OpenVPN: the gateway alone is remembered.
                self.sh(f"ip route replace default via {SITES[port.site].gateway} dev {port.link} metric {port.metric}")
            if port.leased and 6 in families:
                self.routers[port.site].advertise()

    def can_reach_the_vpn(self):
        """By a physical default that works."""
        routes, links = self.look()
        defaults = [route for route in routes[4] if route["dst"] == "default"]
        return bool(self.expected_sites(4, routes, links)) and len({route.get("dev") for route in defaults}) == 1

    @event(3, lambda walk: not walk.openvpn and not walk.takeovers and sum(p.leased for p in walk.carrying()) == 1 and not any(p.stale for p in walk.ports))
    def openvpn_up(self):
        if not self.can_reach_the_vpn():
            return self.note("(OpenVPN cannot reach its server)")
        mode = self.random.choice(sorted(the_lab.VPN_MODES))
        self.note(f"OpenVPN connects ({mode})")
        before = self.look()
        self.lab.vpn_up(mode)
        self.openvpn = mode
        if mode == "plain":
            self.remember_displaced((4,), *before)

    @event(5, lambda walk: walk.openvpn)
    def openvpn_down(self):
        self.note("OpenVPN ends")
        self.lab.vpn_down()
        self.openvpn_is_gone()

    @event(2, lambda walk: walk.openvpn)
    def openvpn_killed(self):
        self.note("OpenVPN is killed")
        self.lab.openvpn.kill()
        self.lab.openvpn.wait(5)
        self.lab.openvpn = None
        self.openvpn_is_gone()

    def openvpn_is_gone(self):
        self.openvpn = None
        wait_until(lambda: " tun0:" not in self.sh("ip -o link show"), what="the end of tun0")
        self.displaced.pop(4, None)

    @event(3, lambda walk: walk.openvpn)
    def openvpn_reconnects(self):
        self.note("OpenVPN reconnects")
        self.lab.openvpn.send_signal(self.random.choice((signal.SIGUSR1, signal.SIGHUP)))

    # ---- the agent

    @event(2, lambda walk: walk.agent_is == "running")
    def agent_restarted(self):
        self.note("the agent is restarted by SIGUSR1")
        assert self.agent.stop(signal.SIGUSR1) == 0, self.agent.log.read_text()
        self.start_agent()

    @event(2, lambda walk: walk.agent_is == "running")
    def agent_killed(self):
        self.note("the agent is killed")
        self.agent.kill9()
        self.agent_is = "dead"
        self.displaced = {}

    @event(25, lambda walk: walk.agent_is == "dead")
    def agent_started(self):
        self.note("the agent is started")
        self.start_agent()

    def start_agent(self):
        if self.inject:
            self.inject.reset()
        self.agent = self.lab.start_agent("", ready=False, environment=self.environment)
        wait_until(self.answers, 10, "novpnd answering", self.agent.log.read_text)
        self.agent_is = "running"

    def answers(self):
        if self.agent.process.poll() is not None:
            raise AssertionError(f"novpnd ended with {self.agent.process.returncode}: {self.agent.log.read_text()}")
        try:
            return self.ask_agent("Status")
        except OSError:
            return None

    @event(1, lambda walk: walk.agent_is == "running")
    def agent_ended(self):
        self.note("the agent ends by SIGTERM and is started again")
        self.lab.end(self.member)
        assert self.agent.stop() == 0, self.agent.log.read_text()
        left = self.sh("ip -N route show table all proto 78; ip -N -6 route show table all proto 78; ip -N rule | grep 'proto 78' || true;"
                       " ip -N -6 rule | grep 'proto 78' || true; nft list tables | grep novpn || true").strip()
        assert not left, f"left by an agent that ended: {left}"
        # What was displaced is known to nobody now.
        self.displaced = {}
        self.start_agent()
        self.join()

    @event(3, lambda walk: walk.agent_is == "running")
    def suspended(self):
        self.note("the agent is stopped")
        self.agent.process.send_signal(signal.SIGSTOP)
        self.agent_is = "stopped"
        self.displaced = {}

    @event(25, lambda walk: walk.agent_is == "stopped")
    def resumed(self):
        self.note("the agent goes on")
        self.agent.process.send_signal(signal.SIGCONT)
        self.agent_is = "running"

    @event(4, lambda walk: walk.inject and walk.agent_is == "running")
    def the_kernel_refuses(self):
        first = self.inject.get("writes") + self.random.randint(1, 6)
        last = first + self.random.choice((0, 0, 1, 3))
        error = self.random.choice((errno.ENOBUFS, errno.ENOMEM, errno.EINTR, errno.EBUSY))
        done = self.random.randrange(2)
        self.note(f"writes {first} to {last} will be refused: {errno.errorcode[error]}{', though done' if done else ''}")
        self.inject.set(refuse_from=first, refuse_to=last, refuse_with=error, after_all=done)

    # ---- other tools

    @event(5, lambda walk: walk.agent_is == "running")
    def another_tool_deletes(self):
        self.drop_kept()  # What they send until the repair would be the other tool's doing.
        what = self.random.choice((
            f"ip rule del preference 64", f"ip -6 rule del preference 64", "ip rule del preference 63; ip -6 rule del preference 65",
            f"ip route flush table {TABLE}", f"ip -6 route flush table {TABLE}", f"ip route del default table {TABLE} || true",
            f"ip -6 route del default table {TABLE} || true", "nft delete table inet novpn", "nft flush ruleset",
            "nft flush set inet novpn links_novpn", "nft flush chain inet novpn output",
            "ip route add 198.18.0.0/24 dev lo table 9999 proto 77; ip route del 198.18.0.0/24 dev lo table 9999 proto 77"))
        self.note(f"another tool: {what}")
        self.sh(what, check=False)

    # ---- the walk

    def take_step(self, only):
        self.step += 1
        possible = [(function, weight) for name, weight, when, function in EVENTS
                    if when(self) and (not only or name in only or name in ("agent_started", "resumed"))]
        functions, weights = zip(*possible)
        self.random.choices(functions, weights)[0](self)
        self.counts["steps"] += 1
        self.check()

    def explain(self):
        tables = f"ip -4 rule; ip -6 rule; ip -4 route show table all | grep -v 'table local'; ip -6 route show table all | grep -v 'table local'; ip address; nft list ruleset"
        return "\n".join(["the last events:", *self.history, "status:", json.dumps(self.agent.process.poll() is None and self.agent_is == "running" and self.ask_agent("Status")),
                          "log:", self.agent.log.read_text()[-6000:], "kernel:", self.sh(tables, check=False),
                          "packets of the step:", *self.wire, "neighbours:", self.sh("ip neighbour", check=False),
                          *(f"{router}: {self.sh('ip neighbour; bridge fdb show br lan', router, check=False)}" for router in ("router_a", "router_b"))])


def soak(seed, steps, only, trace, out, faults=False, until=None):
    """Walks that many steps, or until that time (time.monotonic()). The step that failed, or none."""
    started = time.monotonic()
    with the_lab.Lab(wired=True) as lab:
        walk = Walk(lab, seed, trace, faults)
        try:
            while walk.step < steps and (until is None or time.monotonic() < until):
                walk.take_step(only)
            for counter in ("member packets, uplink", "ordinary packets, tunnel"):
                # A walk that was cut short may have met neither.
                assert walk.counts[counter] or walk.step < 200, f"the counters see nothing: {walk.counts}"
        except Exception as failure:
            if walk.agent_is == "stopped":
                walk.agent.process.send_signal(signal.SIGCONT)
            print(f"FAILED: seed {seed}, step {walk.step}: {type(failure).__name__}: {failure}\n{walk.explain()}\n"
                  f"FAILED: seed {seed}, step {walk.step}: {str(failure).splitlines()[0] if str(failure) else failure!r}\n"
                  f"replay: roam_soak.py --seed {seed} --steps {walk.step}", file=out, flush=True)
            return walk.step
        finally:
            if walk.agent_is == "stopped":
                walk.agent.process.send_signal(signal.SIGCONT)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(walk.counts.items()))
        print(f"ok: seed {seed}: {counts}; members' packets in a tunnel: {walk.counts['member packets, tunnel']}, ordinary packets astray:"
              f" {walk.counts['ordinary packets astray']}; the agent at most: {walk.gauges}; {time.monotonic() - started:.0f} s", file=out, flush=True)
    return None


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, action="append")
    options.add_argument("--steps", type=int, default=2000, help="in all, shared among the seeds")
    options.add_argument("--keep-going", action="store_true", help="after a failure go on with the next seed, for ever new ones")
    options.add_argument("--events", help="these only")
    options.add_argument("--faults", action="store_true", help="the kernel refuses some writes")
    options.add_argument("--trace", action="store_true", help="say each event as it comes")
    given = options.parse_args()
    seeds = given.seed or [1]
    only = set(given.events.split(",")) if given.events else None
    left, failed = given.steps, 0
    while left > 0 and seeds:
        seed = seeds.pop(0)
        share = left if given.keep_going and not seeds else max(1, left // (len(seeds) + 1))
        step = soak(seed, share, only, given.trace, sys.stdout, given.faults)
        left -= step or share
        if step is not None:
            failed += 1
            if not given.keep_going:
                return 1
            if not seeds:
                seeds = [seed + 1]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
