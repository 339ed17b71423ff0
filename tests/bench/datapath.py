"""What a packet costs with the agent's rules, with the same by hand, and with none: pairs of samples, one without rules and
one with, in turns."""
import json
import pathlib
import statistics
import subprocess
import sys
import time

from lab import TABLE, Lab, end, number, remove_cgroup, run, table

ORDINARY, MEMBER = "10.88.0.2", "10.88.0.3"  # Of the router. The VPN has taken over the way to the second, and no more.
DISCARD, IPERF = 9, 5201
# A tun device has carrier while somebody holds it.
HOLD = """
import fcntl, os, struct, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
print("ready", flush=True)
sys.stdin.read()
"""
FAR_END = """
table netdev bench {
    counter arrived { }
    chain in { type filter hook ingress device "gw0" priority 0; udp dport 9 counter name arrived drop; }
}
"""
# What most firewalls begin with: the kernel follows connections from then on.
FIREWALL = """
table inet firewall {
    chain input { type filter hook input priority 0; ct state established,related accept; }
}
"""
BY_HAND = """
iptables -t mangle -A OUTPUT -m cgroup --cgroup 0x10001 -j MARK --set-mark 0x4e
iptables -t nat -A POSTROUTING -o phy0 -m mark --mark 0x4e -j MASQUERADE
ip rule add fwmark 0x4e lookup 7866
ip route add default via 10.99.0.1 dev phy0 table 7866
"""


class Side:
    """A lab with a far end that drops small packets, and talks to iperf3."""

    def __init__(self, programs, bench, bpffs=True):
        self.lab = Lab(programs, bench, bpffs)
        self.net_cls = None
        self.class_name = None

    def __enter__(self):
        self.lab.__enter__()
        try:
            self._make()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _make(self):
        lab = self.lab
        run("ip", "-n", lab.router, "-batch", "-", input=f"addr add {ORDINARY}/32 dev gw0\naddr add {MEMBER}/32 dev gw0\n")
        run(*lab.at_router("nft", "-f", "-"), input=FAR_END)
        lab.spawn(lab.at_router("iperf3", "-s", "-p", IPERF), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run("ip", "-n", lab.name, "-batch", "-", input=f"""
            route add default via 10.99.0.1 dev phy0 metric 100
            route add {ORDINARY} via 10.99.0.1 dev phy0""")

    def __exit__(self, *exception):
        for process in reversed(self.lab.processes):
            end(process)
        if self.net_cls:
            remove_cgroup(self.net_cls)
        self.lab.__exit__(*exception)

    def take_over(self):
        hold = self.lab.spawn(self.lab.inside(sys.executable, "-c", HOLD), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        hold.stdout.readline()
        run("ip", "-n", self.lab.name, "route", "add", "default", "dev", "tun0")

    def steer(self, classes):
        """The agent, with that many classes; a member is in the last of them."""
        more = [f"c{i}" for i in range(1, classes)]
        text = "uplinks:\n  links: [phy0]\nclasses:\n"
        text += "  novpn: {enabled: false}\n" if classes == 0 else "  novpn: {}\n"
        for i, name in enumerate(more):
            text += f"  {name}: {{table: {TABLE + 1 + i}, mark: {0x01000000 * (i + 1):#x}/0xff000000, preference: {100 + 3 * i}}}\n"
        self.lab.configure(text)
        self.class_name = more[-1] if more else "novpn"
        self.take_over()
        self.lab.start_agent()

    def guard_by_firewall(self):
        run(*self.lab.inside("nft", "-f", "-"), input=FIREWALL)

    def steer_by_hand(self):
        """What is told to do in a shell; or why it cannot be done here."""
        lab = self.lab
        mount = lab.directory / "net_cls"
        mount.mkdir()
        script = 'mount -t cgroup -o net_cls bench "$0" && mkdir "$0/$1" && echo 0x10001 > "$0/$1/net_cls.classid"'
        done = subprocess.run(lab.inside("sh", "-c", script, mount, lab.name), text=True, capture_output=True, check=False)
        if done.returncode:
            return done.stderr.strip()
        self.net_cls = pathlib.Path(f"/proc/{lab.mounts.pid}/root{mount}/{lab.name}")
        self.take_over()
        done = subprocess.run(lab.inside("sh", "-ec", BY_HAND), text=True, capture_output=True, check=False)
        return done.stderr.strip() if done.returncode else None

    def command(self, member, *words):
        if not member or (not self.class_name and not self.net_cls):
            return self.lab.inside(*words)
        if self.class_name:
            return self.lab.inside(*self.lab.novpn("run", "--class", self.class_name, "--", *words))
        # Its path there: /proc/PID/root is this machine's way to it.
        inside = str(self.net_cls).split("/root", 1)[1]
        return self.lab.inside("sh", "-ec", f'echo $$ > {inside}/cgroup.procs; exec "$@"', "sh", *words)

    def arrived(self):
        found = json.loads(run(*self.lab.at_router("nft", "-j", "list", "counters", "table", "netdev", "bench")))
        return next(item["counter"]["packets"] for item in found["nftables"] if "counter" in item)

    def blast(self, member, how, milliseconds):
        """Packets a second of processor time."""
        packets, _, cpu, refused = map(int, run(*self.command(member, self.lab.bench / "blast", MEMBER if member else ORDINARY,
                                                              DISCARD, milliseconds, how)).split())
        if refused:
            sys.exit(f"bench: {refused} of {packets} packets were refused")
        return packets * 1e9 / cpu

    def stream(self, member, megabytes):
        """Bits a second, and a second of the sender's processor time."""
        for _ in range(5):
            done = subprocess.run(self.command(member, "iperf3", "-c", MEMBER if member else ORDINARY, "-p", IPERF, "-n",
                                               f"{megabytes}M", "-J"), text=True, capture_output=True, check=False)
            if done.returncode == 0:
                told = json.loads(done.stdout)["end"]
                bits = told["sum_received"]["bits_per_second"]
                return bits, bits / max(told["cpu_utilization_percent"]["host_total"] / 100, 1e-4)
            time.sleep(0.2)  # It may not listen yet, or still end with the one before.
        return sys.exit(f"bench: iperf3: {done.stdout[-2000:]}{done.stderr}")

    def expect_packets(self, member):
        """They leave by the physical link: one in the tunnel would be timed in vain."""
        before = self.arrived()
        self.blast(member, "connected", 5)
        if self.arrived() == before:
            sys.exit("bench: no packet has come to the far end")


def pairs_of(sample, without, with_rules, pairs):
    """(one of the first, one of the second), measured in turns."""
    measured = []
    for i in range(pairs):
        order = (without, with_rules) if i % 2 == 0 else (with_rules, without)
        by_side = {side: sample(side) for side in order}
        measured.append((by_side[without], by_side[with_rules]))
    return measured


def ratio_cells(pairs):
    """The second's values as parts of the first's."""
    ratios = [with_rules / without for without, with_rules in pairs]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return [number(statistics.median(ratios), 3), f"{quartiles[0]:.3f} to {quartiles[2]:.3f}"]


def datapath(programs, bench, pairs, milliseconds, megabytes, classes):
    """classes: how many, each with and without BPF."""
    alone = [("none (A/A)", 0, "–"), ("a firewall", 0, "–")]
    set_ups = alone + [("agent", n, bpf) for n in classes for bpf in ("on", "off")] + [("by hand", 1, "–")]
    packets, streams, notes = [], [], []
    with Side(programs, bench) as without:
        for rules, count, bpf in set_ups:
            with Side(programs, bench, bpffs=bpf == "on") as side:
                if rules == "agent":
                    side.steer(count)
                elif rules == "a firewall":
                    side.guard_by_firewall()
                elif rules == "by hand" and (problem := side.steer_by_hand()):
                    notes.append(f"By hand: cannot be done here: {problem}\n")
                    continue
                what = [rules, "–" if (rules, count, bpf) in alone else count, bpf]
                for member in (False, True):
                    if member and rules != "none (A/A)" and count == 0:
                        continue
                    who = "member" if member else "ordinary"
                    side.expect_packets(member)
                    for how in ("connected", "sendto"):
                        measured = pairs_of(lambda side: side.blast(member, how, milliseconds), without, side, pairs)
                        each = statistics.median(mine for _, mine in measured)
                        packets.append([*what, who, how, pairs, number(each / 1e6, 3), number(1e9 / each, 0),
                                        *ratio_cells(measured)])
                    if rules == "agent" and count not in (classes[1], classes[-1]):
                        continue  # With so few packets there is nothing to see between one and the most.
                    measured = pairs_of(lambda side: side.stream(member, megabytes), without, side, pairs)
                    each = statistics.median(mine[0] for _, mine in measured)
                    streams.append([*what, who, pairs, number(each / 1e9, 2),
                                    *ratio_cells([(base[0], mine[0]) for base, mine in measured]),
                                    *ratio_cells([(base[1], mine[1]) for base, mine in measured])])
    head = ["rules", "classes", "BPF", "process"]
    return (f"## Data path\n\nRatio: of what the same process manages without any rule, by the median of pairs in turns, with the "
            "quartiles; A/A is another laptop without rules, and so the noise. A VPN has taken over, and a member goes where it "
            "would lead. With 0 classes the agent's one class is off. A firewall: the first rule of any stateful one alone, "
            "`ct state established,related accept` of what comes in; the kernel follows connections then, as under the "
            "agent's rules. By hand: net_cls, `iptables -m cgroup -j MARK`, a rule and MASQUERADE.\n\n"
            "### Small packets\n\nUDP, 60 bytes with all headers; packets a second of the sender's processor time, in which is "
            "the kernel's work to the far end of the veth.\n\n" +
            table([*head, "socket", "pairs", "Mpps", "ns a packet", "ratio", "quartiles"], packets) + "\n" +
            f"### TCP\n\niperf3, {megabytes} MB each: throughput, and bytes for the sender's processor time, which others on the "
            "machine disturb less.\n\n" +
            table([*head, "pairs", "Gbit/s", "ratio", "quartiles", "ratio by processor time", "quartiles"], streams) +
            "".join(notes))
