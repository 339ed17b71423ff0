"""A throw-away laptop made of network namespaces, for the tests and the demo.

    laptop wlan0 --+-- router of site A 192.168.10.1, 2001:db8:a::/64 --+
                   |                                                    +-- internet 203.0.113.10 -- vpn 203.0.113.20
                   +-- router of site B 10.20.0.1,    2001:db8:b::/64 --+

Roaming moves the other end of wlan0 to the other site's bridge. Addresses come from a real DHCP server and real router
advertisements; the VPN is a real OpenVPN. The internet host answers with the address that it saw: 198.51.100.2 is site
A's router, 198.51.100.6 site B's, 203.0.113.20 the VPN server. Nothing is linked to the host's own network.

By hand:  lab.py up [--config FILE]   a laptop with the agent, left running    lab.py remove DIRECTORY   ends it
"""
import grp
import json
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time

import bpf

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
# The distribution's own interpreter can be run by an ordinary user of the laptop; another one may sit in root's home.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
NAMESPACES = ("laptop", "router_a", "router_b", "internet", "vpn")
NOBODY, DAEMON = 65534, 1  # An ordinary user in group novpn, and one who is not.

ECHO = {4: "203.0.113.10", 6: "2001:db8:ffff::10"}
# The same host by addresses that only members of a class talk to: a packet for them in the tunnel is a leak.
MEMBER_ECHO = {4: "203.0.113.11", 6: "2001:db8:ffff::11"}
VPN_SEEN = {4: "203.0.113.20", 6: "2001:db8:ffff:2::20"}
VPN_DNS, VPN_DNS6 = "10.8.0.1", "2001:db8:8:1::1"
# What each resolver says of one name, by IPv4 and IPv6: who was asked.
WHO_NAME = "who.example"
WHO = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2", "2001:db8::2"), "vpn": ("192.0.2.3", "2001:db8::3"),
       "stub": ("192.0.2.4", "2001:db8::4")}
VPN_NAME = "files.corp.example"  # Resolved by the VPN's name server only, as MEMBER_ECHO.


class Site:
    def __init__(self, name, net4, net6, seen4, transit4, transit6):
        self.name = name
        self.router = f"router_{name}"
        self.net4, self.net6 = net4, net6            # prefixes without their host part
        self.gateway, self.second_gateway = f"{net4}.1", f"{net4}.2"
        self.seen4 = seen4                           # what the internet sees of the laptop at this site, by IPv4
        self.transit4, self.transit6 = transit4, transit6  # the internet's end of the router's uplink


SITES = {
    "a": Site("a", "192.168.10", "2001:db8:a:", "198.51.100.2", "198.51.100.1", "2001:db8:ffff:a:"),
    "b": Site("b", "10.20.0", "2001:db8:b:", "198.51.100.6", "198.51.100.5", "2001:db8:ffff:b:"),
}

VPN_MODES = {
    "no-routes": [],  # The tunnel alone: a test leads into it by rules of its own.
    "def1": ["--redirect-gateway", "def1"],
    "plain": ["--redirect-gateway"],
    "def1-ipv6": ["--redirect-gateway", "def1", "ipv6"],
    "none": [],  # a tunnel that takes nothing over: what it would is up to the test
}

DHCP_SCRIPT = """#!/bin/sh
# What NetworkManager does with a lease: one address, one default with `proto dhcp`, a source and its metric.
set -e
case "$1" in
deconfig)
    ip -4 address flush dev "$interface" ;;
bound | renew)
    if ! ip -4 -o address show dev "$interface" | grep -q " $ip/"; then
        ip -4 address flush dev "$interface"
        ip address add "$ip/$mask" broadcast + dev "$interface"
    fi
    ip route replace default via "$router" dev "$interface" proto dhcp src "$ip" metric "$LAB_METRIC"
    { echo "nameserver $dns"; [ -z "$domain" ] || echo "search $domain"; } > "$LAB/resolv.dhcp"
    "$LAB/resolvconf" ;;
esac
"""

VPN_SCRIPT = """#!/bin/sh
# What a VPN client does to the names: as long as it is up, its own server inside the tunnel is the only one.
case "$script_type" in
up) echo "nameserver %s" > "$LAB/resolv.vpn" ;;
down) rm -f "$LAB/resolv.vpn" ;;
esac
"$LAB/resolvconf"
""" % VPN_DNS

RESOLVCONF = """#!/bin/sh
# Written in place: the laptop's /etc/resolv.conf is this file, bind-mounted.
if [ -e "$LAB/resolv.vpn" ]; then cat "$LAB/resolv.vpn"; else cat "$LAB/resolv.dhcp"; fi > "$LAB/resolv.conf"
"""

# The kernel asks for a router once a link has got carrier, but not when the loss was too short for it to notice; a network
# manager always asks. RFC 4861 4.1: type 133, hop limit 255, to all routers.
SOLICIT_ROUTER = """
import socket, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.sendto(bytes([133]) + bytes(7), ("ff02::2", 0, 0, socket.if_nametoindex(sys.argv[1])))
"""

# The laptop's own view of the machine: an empty /run (the host's systemd and resolver are not the laptop's), its own
# resolv.conf, nsswitch.conf and group file, and the programs under test. /sys stays, and with it the cgroups, but for bpffs:
# an empty one, or none. The VPN's servers have a /run of their own too: wireguard-go's socket lies there, and is named for
# the link alone.
MOUNTS = {"vpn": "mount -t tmpfs -o mode=755 lab-run /run && echo ready && exec sleep infinity", "laptop": """
set -e
resolv=$(readlink -m /etc/resolv.conf)
mount -t tmpfs -o mode=755 lab-run /run
mkdir -p "$(dirname "$resolv")"
[ -e "$resolv" ] || : > "$resolv"
mount --bind "$LAB/resolv.conf" "$resolv"
mount --bind "$LAB/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$LAB/group" /etc/group
mount -t "$BPFFS" lab-bpf /sys/fs/bpf
[ -z "$BIN" ] || mount --bind "$BIN" "$LAB/bin"
[ -z "$BIN" ] || mount -o remount,bind,ro "$LAB/bin"
echo ready
exec sleep infinity
"""}


# How many times as long a slow agent is waited for: under valgrind.
PATIENCE = float(os.environ.get("NOVPN_LAB_PATIENCE", 1))
# Of places that are tried one by one, each with agents of its own, where so many in all would take an hour: one in so many.
ONE_IN = int(os.environ.get("NOVPN_LAB_ONE_IN", 1))


def wait_until(condition, timeout=5.0, what="the condition", detail=None):
    """Polls until condition() is true and returns its value. detail() explains a failure."""
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            more = f"\n{detail()}" if detail else ""
            raise AssertionError(f"{what}: not within {timeout} s (last: {value!r}){more}")
        time.sleep(0.01)


def read_line(process, timeout=5.0):
    """A line of process.stdout (an unbuffered pipe), without its end."""
    line = b""
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            raise AssertionError(f"{shlex.join(process.args)[:200]}: no line within {timeout} s, only {line!r}")
        byte = process.stdout.read(1)
        if not byte:
            raise AssertionError(f"{shlex.join(process.args)[:200]}: ended with {process.wait()} after {line!r}")
        line += byte
    return line.decode().rstrip("\n")


class Flow:
    """A socket of probe.py on the laptop that stays open."""

    def __init__(self, process):
        self.process = process
        self.seen = read_line(process)

    def ask(self):
        """The address that the internet host sees of this very socket now."""
        self.process.stdin.write(b"\n")
        return read_line(self.process)

    def finish(self):
        """Ends a stream and returns its counts."""
        self.process.stdin.close()
        return json.loads(read_line(self.process))


class Member:
    """A member.py on the laptop: member.connect("name", "203.0.113.11") calls that function in there."""

    def __init__(self, process):
        self.process = process
        read_line(process)

    def __getattr__(self, function):
        def call(*arguments, **options):
            words = [repr(a) for a in arguments] + [f"{name}={value!r}" for name, value in options.items()]
            self.process.stdin.write(f"{function}({', '.join(words)})\n".encode())
            return json.loads(read_line(self.process, 10))
        return call


class Sniffer:
    """Packets to or from some hosts on the laptop's links."""

    def __init__(self, process, path):
        self.process, self.path = process, path

    def packets(self, link=""):
        """All until now: it may not have come to print the last ones yet."""
        told = self._lines().count("told")
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: self._lines().count("told") > told, what="the sniffer's last word")
        return [line for line in self._lines() if line.startswith(link) and line not in ("ready", "told")]

    def _lines(self):
        return self.path.read_text().splitlines()


class Monitor:
    """Every change of routes, rules, links' settings and nft tables on the laptop, by anybody, as text."""

    def __init__(self, lab):
        self.lab = lab
        self.outputs = [lab.directory / f"monitor-{kind}-{lab.count()}" for kind in ("ip", "nft")]
        commands = (["ip", "-o", "monitor", "route", "rule", "netconf"], ["nft", "monitor"])
        self.processes = [lab.spawn(*command, output=path) for command, path in zip(commands, self.outputs)]
        # Neither says when it listens: a change of ours that both report is the proof.
        wait_until(lambda: self._canary_seen("198.18.0.1", repeat=True), what="ip monitor and nft monitor listening")
        self.start = [len(path.read_text()) for path in self.outputs]

    def _canary_seen(self, address, repeat=False):
        if repeat:
            self._canary(address)
        # The kernel keeps the order: once this is printed, everything before it is too.
        return all(re.search(rf"(delete|Deleted).*lab_{i}|Deleted.*{address}", path.read_text())
                   for i, path in zip((address.replace(".", "_"),) * 2, self.outputs))

    def _canary(self, address):
        name = "lab_" + address.replace(".", "_")
        self.lab.shell(f"ip route add {address} dev lo table 4000; ip route del {address} dev lo table 4000;"
                       f"nft add table ip {name}; nft delete table ip {name}")

    def changes(self):
        """What was printed since the start, without the canaries."""
        self._canary("198.18.0.2")
        wait_until(lambda: self._canary_seen("198.18.0.2"), what="the monitors' last word")
        text = [path.read_text()[start:] for path, start in zip(self.outputs, self.start)]
        # `nft monitor` names the generation and the process after each transaction.
        return [line for line in "\n".join(text).splitlines()
                if line and not re.search(r"198\.18\.0|lab_198_18|^# new generation", line)]

    def stop(self):
        for process in self.processes:
            self.lab.end(process)


class Agent:
    """One run of novpnd on the laptop."""

    def __init__(self, lab, process, log):
        self.lab, self.process, self.log = lab, process, log

    @property
    def pid(self):
        return self.process.pid

    def status(self):
        result = self.lab.novpn("status", "--json")
        return json.loads(result.stdout)

    def stop(self, with_signal=signal.SIGTERM, timeout=10):
        """Ends the agent and returns its exit status."""
        self.process.send_signal(with_signal)
        return self.process.wait(timeout * PATIENCE)

    def kill9(self):
        return self.stop(signal.SIGKILL)

    def wait_for(self, claim, what, timeout=5.0):
        """Polls status until claim(status) holds, and returns that status."""
        last = {}

        def holds():
            last["status"] = self.status()
            return last["status"] if claim(last["status"]) else None

        return wait_until(holds, timeout, what, self.explain)

    def explain(self):
        """All that helps to understand a failure."""
        status = self.lab.novpn("status", "--json", check=False)
        return (f"status: {status.stdout}{status.stderr}\nlog: {self.log.read_text()[-4000:]}\n"
                f"kernel: {self.lab.snapshot(sysctls=False)}")


class Lab:
    _made = 0

    def __init__(self, wired=False, bin_dir=None, configured=True, bpffs=True):
        """wired: a second link eth0, not plugged in to begin with. bin_dir: where novpnd and novpn are.
        configured: wlan0 has its lease of site A; else it is plugged in there, and a client of the test's own does the rest.
        bpffs: whether the laptop has one."""
        Lab._made += 1
        self.prefix = f"nv{os.getpid()}" + (f".{Lab._made}" if Lab._made > 1 else "")
        self.directory = pathlib.Path(f"/tmp/novpn-lab-{self.prefix}")
        self.links = {"wlan0": 600, "eth0": 100} if wired else {"wlan0": 600}  # name: metric of its default
        self.where = {link: "router_a" for link in self.links}                 # namespace of its other end
        self.dhcp = {}
        self.configured = configured
        self.bin_dir = pathlib.Path(bin_dir or os.environ.get("NOVPN_BIN_DIR", SOURCE / "build/dev/agent")).resolve()
        self.first_act = self.bin_dir.parent / "tests/first_act"
        self.processes = []
        self.mounts = {}
        self.bpffs = bpffs
        self.keep = False
        self.openvpn = None
        self._count = 0

    # ---- a lab's life

    def __enter__(self):
        sweep()
        try:
            self._start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *_exception):
        if self.keep:
            return
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        remove(self.directory)

    def _start(self):
        self.directory.mkdir(mode=0o755)
        self._write_files()
        for namespace in NAMESPACES:
            subprocess.run(["ip", "netns", "add", self.name_of(namespace)], check=True)
        environment = dict(self.environment, BIN=str(self.bin_dir) if self.bin_dir.is_dir() else "",
                           BPFFS="bpf" if self.bpffs else "tmpfs")
        self.mounts = {namespace: self._unshare(namespace, script, environment) for namespace, script in MOUNTS.items()}
        (self.directory / "mounts").write_text(f"{self.mounts['laptop'].pid}\n")
        self._make_links()
        self._start_servers()
        if self.configured:
            self.connect("wlan0", "a")
        else:
            self.plug("a")

    def _unshare(self, namespace, script, environment):
        """A process that holds a mount namespace open."""
        process = subprocess.Popen(["nsenter", f"--net={self.path_of(namespace)}", "unshare", "--mount", "--propagation=private", "sh", "-c", script],
                                   stdout=subprocess.PIPE, bufsize=0, env=environment)
        self.processes.append(process)
        read_line(process)
        return process

    @property
    def environment(self):
        path = f"{self.directory}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "LAB": str(self.directory), "HOME": "/root", "LANG": "C.UTF-8",
                "NOVPN_RUNTIME_DIR": str(self.directory / "run"), **{k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")}}

    def _write_files(self):
        def write(name, text, mode=0o644):
            path = self.directory / name
            path.write_text(text)
            path.chmod(mode)

        (self.directory / "bin").mkdir()
        (self.directory / "run").mkdir()
        write("resolv.conf", "nameserver 192.0.2.53\n")
        write("resolv.dhcp", "nameserver 192.0.2.53\n")
        write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        groups = [line for line in pathlib.Path("/etc/group").read_text().splitlines() if not line.startswith("novpn:")]
        free = next(gid for gid in range(900, 0, -1) if gid not in {g.gr_gid for g in grp.getgrall()})
        write("group", "\n".join(groups + [f"novpn:x:{free}:nobody", ""]))
        write("dhcp-script", DHCP_SCRIPT, 0o755)
        write("vpn-script", VPN_SCRIPT, 0o755)
        write("resolvconf", RESOLVCONF, 0o755)
        for program in ("echo.py", "hang.py", "member.py", "probe.py", "query.py", "sniff.py"):
            shutil.copy(HERE / program, self.directory)

    def _make_links(self):
        for namespace in NAMESPACES:
            # No duplicate detection and no wait before the router solicitation: these cost seconds and show nothing.
            # IPv4 settings are inherited from the machine, IPv6 ones are not: rp_filter is said here, so that it is the same anywhere.
            self.shell("""
                sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.src_valid_mark=0 \
                    net.ipv4.conf.default.src_valid_mark=0 net.ipv4.ip_forward=0
                sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
                    net.ipv6.conf.default.router_solicitation_delay=0 net.ipv6.conf.default.router_solicitation_interval=1
                ip link set lo up""", namespace)
        # As systemd does: anyone may ping.
        self.shell("sysctl -qw net.ipv4.ping_group_range='0 2147483647'")
        for namespace in NAMESPACES[1:]:
            self.shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", namespace)
        internet = self.name_of("internet")
        for site in SITES.values():
            self.shell(f"""
                ip link add lan type bridge
                ip address add {site.gateway}/24 dev lan
                ip address add {site.second_gateway}/24 dev lan
                ip address add {site.net6}:1/64 dev lan nodad
                ip link set lan up
                ip link add wan type veth peer name to_{site.name} netns {internet}
                ip address add {site.seen4}/30 dev wan
                ip address add {site.transit6}:2/64 dev wan nodad
                ip link set wan up""", site.router)
        # From the other end: the names of network namespaces lie in /run, which the VPN host sees its own of.
        self.shell(f"ip link add to_vpn type veth peer name wan netns {self.name_of('vpn')}", "internet")
        self.shell(f"""
            ip address add {VPN_SEEN[4]}/28 dev wan
            ip address add {VPN_SEEN[6]}/64 dev wan nodad
            ip link set wan up""", "vpn")
        addresses = [*ECHO.values(), *MEMBER_ECHO.values()]
        self.shell("\n".join([f"ip address add {address} dev lo" for address in addresses] + [
            f"""ip address add {site.transit4}/30 dev to_{site.name}
                ip address add {site.transit6}:1/64 dev to_{site.name} nodad
                ip link set to_{site.name} up
                ip route add {site.net6}:/64 via {site.transit6}:2""" for site in SITES.values()] + [
            """ip address add 203.0.113.17/28 dev to_vpn
               ip address add 2001:db8:ffff:2::1/64 dev to_vpn nodad
               ip link set to_vpn up"""]), "internet")
        for site in SITES.values():
            self.shell(f"""
                ip route add default via {site.transit4}
                ip route add default via {site.transit6}:1
                nft -f - <<E
                table ip lab {{ chain nat {{ type nat hook postrouting priority 100; oifname wan masquerade; }}; }}
                table inet lab {{
                    counter ordinary4 {{ }}
                    counter ordinary6 {{ }}
                    counter wrong_source {{ }}
                    chain count {{
                        type filter hook prerouting priority -300
                        iifname != lan accept
                        ip daddr {ECHO[4]} counter name ordinary4
                        ip6 daddr {ECHO[6]} counter name ordinary6
                        ip daddr {MEMBER_ECHO[4]} ip saddr != {site.net4}.0/24 counter name wrong_source
                        ip6 daddr {MEMBER_ECHO[6]} ip6 saddr != {site.net6}:/64 counter name wrong_source
                    }}
                }}
E""",
                       site.router)
        # What enters by a tunnel is counted, members' packets apart: they have no business there.
        self.shell(f"""
            ip route add default via 203.0.113.17
            ip route add default via 2001:db8:ffff:2::1
            nft -f - <<E
            table inet lab {{
                counter tunnel {{ }}
                counter leaked {{ }}
                chain nat {{ type nat hook postrouting priority 100; oifname wan masquerade; }}
                chain count {{
                    type filter hook prerouting priority -300
                    iifname {{ lo, wan }} accept
                    counter name tunnel
                    ip daddr {MEMBER_ECHO[4]} counter name leaked
                    ip6 daddr {MEMBER_ECHO[6]} counter name leaked
                }}
            }}
E""", "vpn")
        for link in self.links:
            self.shell(f"ip link add port-{link} type veth peer name {link} netns {self.name_of('laptop')}", "router_a")
            self.shell(f"ip link set {link} up")

    def _start_servers(self):
        echo = self.spawn(PYTHON, self.directory / "echo.py", *ECHO.values(), *MEMBER_ECHO.values(),
                          namespace="internet", output=subprocess.PIPE)
        for site in SITES.values():
            self._write_dhcp_options(site, site.gateway)
            self.spawn("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file",
                       "--interface=lan", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--enable-ra",
                       f"--dhcp-range={site.net4}.100,{site.net4}.150,1h", f"--dhcp-range={site.net6}:,ra-only,64,1h",
                       f"--dhcp-optsfile={self.directory}/dhcp-options-{site.name}",
                       f"--dhcp-leasefile={self.directory}/leases-{site.name}",
                       "--no-resolv", "--no-hosts", f"--host-record=echo.example,{ECHO[4]},{ECHO[6]}",
                       f"--host-record={WHO_NAME},{','.join(WHO[site.name])}",
                       namespace=site.router, output=self.directory / f"dnsmasq-{site.name}.log")
        self._make_pki()
        pki = self.directory
        self.spawn("openvpn", "--dev", "tun0", "--proto", "udp", "--port", 1194, "--disable-dco", "--topology", "subnet",
                   "--server", "10.8.0.0", "255.255.255.0", "--server-ipv6", "2001:db8:8:1::/64",
                   "--ca", pki / "ca.crt", "--cert", pki / "server.crt", "--key", pki / "server.key", "--dh", "none",
                   "--keepalive", 1, 3, "--log", pki / "openvpn-server.log",
                   namespace="vpn", output=subprocess.DEVNULL)
        read_line(echo)
        self._wait_for_log("openvpn-server.log", "Initialization Sequence Completed")
        self.spawn("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file",
                   f"--listen-address={VPN_DNS},{VPN_DNS6}", "--bind-interfaces", "--no-resolv", "--no-hosts",
                   f"--host-record=echo.example,{ECHO[4]},{ECHO[6]}",
                   f"--host-record={VPN_NAME},{MEMBER_ECHO[4]},{MEMBER_ECHO[6]}",
                   f"--host-record={WHO_NAME},{','.join(WHO['vpn'])}",
                   namespace="vpn", output=self.directory / "dnsmasq-vpn.log")

    def _make_pki(self):
        """A throw-away authority and two certificates; elliptic keys, because RSA ones take seconds to make."""
        new_key = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        script = f"{new_key} -x509 -days 30 -subj '/CN=lab authority' -keyout ca.key -out ca.crt\n"
        for name in ("server", "client"):
            script += f"""{new_key} -subj /CN={name} -keyout {name}.key -out {name}.csr
                printf 'keyUsage=digitalSignature\\nextendedKeyUsage={name}Auth\\n' > {name}.ext
                openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext -out {name}.crt\n"""
        subprocess.run(["sh", "-ec", script], cwd=self.directory, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait_for_log(self, name, text, timeout=15, after=0):
        path = self.directory / name
        wait_until(lambda: path.exists() and text in path.read_text(errors="replace")[after:], timeout,
                   f"{text!r} in {name}", lambda: path.read_text(errors="replace")[-3000:])

    # ---- processes

    def count(self):
        self._count += 1
        return self._count

    def name_of(self, namespace):
        return f"{self.prefix}-{namespace}"

    def path_of(self, namespace):
        return f"/run/netns/{self.name_of(namespace)}"

    def command(self, *command, namespace="laptop", uid=None):
        """What to execute on the host to run `command` in there. It stays one process: no fork in between."""
        enter = ["nsenter", f"--net={self.path_of(namespace)}"]
        if namespace in self.mounts:
            # Not `ip netns exec`: that mounts a new /sys, without the cgroups.
            enter.append(f"--mount=/proc/{self.mounts[namespace].pid}/ns/mnt")
        if uid is not None:
            user = {NOBODY: "nobody", DAEMON: "daemon"}.get(uid, str(uid))
            enter += ["setpriv", f"--reuid={user}", f"--regid={uid}", "--init-groups"]
        return enter + [str(word) for word in command]

    def run(self, *command, namespace="laptop", uid=None, check=True, timeout=20, input=None):
        result = subprocess.run(self.command(*command, namespace=namespace, uid=uid), env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout * PATIENCE, cwd="/",
                                **({"input": input} if input is not None else {"stdin": subprocess.DEVNULL}))
        if check and result.returncode != 0:
            raise AssertionError(f"{shlex.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def shell(self, script, namespace="laptop", check=True):
        return self.run("sh", "-ec", script, namespace=namespace, check=check).stdout

    def spawn(self, *command, namespace="laptop", uid=None, output=subprocess.PIPE, environment=None):
        """Starts a process; it ends with the lab. output: PIPE, DEVNULL or a file that gets both stdout and stderr."""
        file = open(output, "ab", buffering=0) if isinstance(output, pathlib.Path) else None
        process = subprocess.Popen(self.command(*command, namespace=namespace, uid=uid), bufsize=0, cwd="/",
                                   env={**self.environment, **(environment or {})}, start_new_session=True,
                                   stdin=subprocess.PIPE if output == subprocess.PIPE else subprocess.DEVNULL,
                                   stdout=file or output, stderr=file or (None if output == subprocess.PIPE else output))
        if file:
            file.close()
        self.processes.append(process)
        return process

    def end(self, process, timeout=5):
        if process.poll() is None:
            process.terminate()
        process.wait(timeout * PATIENCE)

    # ---- the network

    def plug(self, site, link="wlan0"):
        """The cable, or the radio: carrier comes. No address yet."""
        router, port = SITES[site].router, f"port-{link}"
        if self.where[link] != router:
            self.shell(f"ip link set {port} nomaster netns {self.name_of(router)}", self.where[link])
            self.where[link] = router
        self.shell(f"ip link set {port} master lan; ip link set {port} up", router)
        self._wait_for_state("UP", link)

    def unplug(self, link="wlan0"):
        """Carrier goes; addresses and routes stay, as the kernel keeps them."""
        self.shell(f"ip link set port-{link} down", self.where[link])
        self._wait_for_state("LOWERLAYERDOWN|DOWN", link)

    def _wait_for_state(self, state, link):
        # The kernel tells of carrier with a delay, and of a change that was taken back in time not at all.
        wait_until(lambda: re.search(f" state ({state}) ", self.shell(f"ip -o link show dev {link}")), what=f"{link} {state}")

    def forget(self, link="wlan0"):
        """What a network manager does once it has noticed the loss: no address, no route of that link is left."""
        if link in self.dhcp:
            self.end(self.dhcp.pop(link))
        self.shell(f"ip -4 address flush dev {link} scope global")
        self.forget_routers(link)

    def forget_routers(self, link="wlan0"):
        """The same for what router advertisements left."""
        self.shell(f"ip -6 address flush dev {link} scope global; ip -6 route flush dev {link} proto ra;"
                   f" ip -6 route flush dev {link} root 2000::/3")

    def lease(self, link="wlan0"):
        """Gets an address by DHCP and by router advertisement, and waits for both."""
        self.dhcp[link] = self.spawn("udhcpc", "--foreground", f"--interface={link}", f"--script={self.directory}/dhcp-script",
                                     "--timeout=1", "--retries=10", "--tryagain=1", output=self.directory / f"udhcpc-{link}.log",
                                     environment={"LAB_METRIC": str(self.links[link])})
        self.wait_for_defaults(link, self.directory / f"udhcpc-{link}.log")

    def wait_for_defaults(self, link, log):
        """Until DHCP and a router advertisement have both given an address and a default. log: the DHCP client's."""
        def connected():
            if self.has_default(6, link):
                return self.has_default(4, link)
            self.solicit_router(link)
            return False

        wait_until(connected, 15, f"a lease and a router on {link}",
                   lambda: self.shell("ip address; ip route; ip -6 route") + log.read_text())

    def solicit_router(self, link="wlan0"):
        # Fails while the link-local address is missing.
        self.run(PYTHON, "-c", SOLICIT_ROUTER, link, check=False)

    def connect(self, link, site):
        self.plug(site, link)
        self.lease(link)

    def roam(self, site, link="wlan0"):
        """To another site: carrier lost, everything of the old site forgotten, carrier back, a new lease."""
        self.unplug(link)
        self.forget(link)
        self.connect(link, site)

    def has_default(self, family, link):
        routes = self.shell(f"ip -{family} route show default dev {link}")
        source = self.shell(f"ip -{family} -o address show dev {link} scope global")
        return bool(routes and source and "tentative" not in source)

    def _write_dhcp_options(self, site, gateway, *more):
        (self.directory / f"dhcp-options-{site.name}").write_text(
            "".join(f"option:{option}\n" for option in (f"router,{gateway}", f"dns-server,{site.gateway}", *more)))

    def hand_out(self, site, gateway, *more):
        """The site's DHCP server names that gateway from now on. more: options, as dnsmasq(8) has them after `option:`."""
        self._write_dhcp_options(SITES[site], gateway, *more)
        server = next(p for p in self.processes if f"--dhcp-optsfile={self.directory}/dhcp-options-{site}" in p.args)
        server.send_signal(signal.SIGHUP)

    def change_gateway(self, site, gateway, link="wlan0"):
        """The site's DHCP server names another gateway; the laptop renews its lease and keeps its address."""
        self.hand_out(site, gateway)
        log = self.directory / f"udhcpc-{link}.log"

        def renewed():
            # One request at a time: udhcpc takes a second one for impatience and drops the address.
            leases = log.read_text().count("lease of ")
            self.dhcp[link].send_signal(signal.SIGUSR1)
            wait_until(lambda: log.read_text().count("lease of ") > leases, what="the renewed lease", detail=log.read_text)
            # The script ends after that line.
            wait_until(lambda: not self._children(self.dhcp[link].pid), what="the script of udhcpc")
            return f"via {gateway} " in self.shell(f"ip route show default dev {link} proto dhcp")

        # dnsmasq says nothing when it has read its file again: renew until the answer is the new one.
        wait_until(renewed, what=f"a lease with gateway {gateway}", detail=lambda: self.shell("ip route") + log.read_text())

    @staticmethod
    def _children(pid):
        return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def vpn_up(self, mode="def1"):
        assert self.openvpn is None
        log, pki = f"openvpn-{self.count()}.log", self.directory
        self.openvpn = self.spawn(
            "openvpn", "--client", "--dev", "tun0", "--proto", "udp", "--remote", VPN_SEEN[4], 1194, "--nobind", "--disable-dco",
            "--ca", pki / "ca.crt", "--cert", pki / "client.crt", "--key", pki / "client.key", "--remote-cert-tls", "server",
            "--connect-retry", 1, 1, "--verb", 4, "--script-security", 2, "--setenv", "LAB", pki,
            "--up", pki / "vpn-script", "--down", pki / "vpn-script", *VPN_MODES[mode], "--log", pki / log,
            output=subprocess.DEVNULL)
        self._wait_for_log(log, "Initialization Sequence Completed")

    def vpn_down(self):
        self.end(self.openvpn)
        self.openvpn = None

    def vpn_kill(self):
        """A crash: the client has no time to put anything back, nor to run its script."""
        self.openvpn.kill()
        self.vpn_down()
        (self.directory / "resolv.vpn").unlink()
        self.shell("$LAB/resolvconf")

    # ---- looking

    def probe(self, *arguments, member=False, uid=None, check=True, timeout=3):
        """probe.py on the laptop, inside `novpn run` for a member: its answer, or "no answer: ..."."""
        command = ["env", f"NOVPN_PROBE_TIMEOUT={timeout}", PYTHON, self.directory / "probe.py", *arguments]
        if member:
            command = self.novpn_command("run", "--", *command)
        result = self.run(*command, uid=uid, check=False)
        if result.returncode != 0 and (check or not result.stdout):
            raise AssertionError(f"{shlex.join(map(str, command))}: {result.stdout}{result.stderr}")
        return result.stdout.strip()

    def seen(self, protocol="tcp", family=4, member=False, uid=None):
        """The address that the internet host sees, or why there is none."""
        return self.probe(protocol, (MEMBER_ECHO if member else ECHO)[family], member=member, uid=uid, check=False)

    def flow(self, mode="hold", protocol="tcp", family=4, member=True, uid=None):
        """A socket that stays open: Flow.ask() for "hold", Flow.finish() for "stream"."""
        command = [PYTHON, self.directory / "probe.py", mode, protocol, (MEMBER_ECHO if member else ECHO)[family]]
        return Flow(self.spawn(*(self.novpn_command("run", "--", *command) if member else command), uid=uid))

    def member(self, class_name="novpn", cgroup=None, member=True):
        """A process with sockets to call for: in a class, in a cgroup, or an ordinary one (member=False)."""
        command = ["env", "NOVPN_PROBE_TIMEOUT=3", PYTHON, self.directory / "member.py"]
        if cgroup is not None:
            command = ["sh", "-ec", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh", *command]
        elif member:
            command = self.novpn_command("run", "--class", class_name, "--", *command)
        return Member(self.spawn(*command))

    def laptop_address(self, family=4, link="wlan0"):
        return self.shell(f"ip -{family} -o address show dev {link} scope global").split()[3].split("/")[0]

    def ifindex(self, link):
        return json.loads(self.run("ip", "-j", "link", "show", "dev", link).stdout)[0]["ifindex"]

    def site_address(self, site, family=4, link="wlan0"):
        """What the internet sees of the laptop without a VPN: the router's address; by IPv6 the laptop's own."""
        return SITES[site].seen4 if family == 4 else self.laptop_address(6, link)

    def sniff(self, *hosts):
        path = self.directory / f"sniff-{self.count()}"
        process = self.spawn(PYTHON, self.directory / "sniff.py", *hosts, output=path)
        wait_until(lambda: path.exists() and path.read_text().startswith("ready"), what="the sniffer")
        return Sniffer(process, path)

    def tunnel_packets(self):
        """{"tunnel": N, "leaked": N}: packets that reached the VPN server by the tunnel; `leaked` were members'."""
        return self._counters("vpn")

    def uplink_packets(self):
        """{"ordinary4", "ordinary6", "wrong_source": N}: what the sites' routers got of the laptop outside any tunnel. With a
        takeover in that family the first two have no business there; the third were members', and not from the laptop's
        own address."""
        sites = [self._counters(site.router) for site in SITES.values()]
        return {name: sum(counters[name] for counters in sites) for name in sites[0]}

    def _counters(self, namespace):
        found = json.loads(self.run("nft", "-j", "list", "counters", "table", "inet", "lab", namespace=namespace).stdout)
        return {item["counter"]["name"]: item["counter"]["packets"] for item in found["nftables"] if "counter" in item}

    def rules(self, family=4):
        """The rules in their order, as `ip -j rule` has them."""
        return json.loads(self.run("ip", "-j", f"-{family}", "rule").stdout)

    def monitor(self):
        return Monitor(self)

    def netns_inode(self):
        return os.stat(self.path_of("laptop")).st_ino

    def snapshot(self, sysctls=True):
        """The laptop's kernel state as text, without what changes by itself (lifetimes, counters)."""
        parts = [
            "ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all",
            "ip -4 -o address", "ip -6 -o address", "nft -s list ruleset", "ip xfrm policy",
        ]
        if sysctls:
            parts += ["sysctl -a -r '^net\\.ipv[46]\\.conf\\.' 2>/dev/null",
                      "sysctl net.ipv4.ip_forward net.ipv4.fwmark_reflect net.ipv4.tcp_fwmark_accept net.ipv6.fwmark_reflect"]
        text = []
        for part in parts:
            lines = self.shell(part).splitlines()
            # Position means something for rules (by preference) and nft, not for routes.
            text += [f"# {part}"] + (sorted(lines) if " route " in part else lines)
        cgroups = [f"{path} {bpf.attached(path)}" for path in sorted(cgroups_of(self.netns_inode()))]
        return strip_volatile("\n".join(text + ["# cgroups"] + cgroups + ["# pins"] + self.pins())) + "\n"

    def pins(self):
        """What of novpn is in the laptop's bpffs."""
        return self.shell("find /sys/fs/bpf -path '*/novpn*' | sort").splitlines()

    # ---- the agent

    def start_agent(self, config=None, ready=True, environment=None, wrapper=()):
        """novpnd on the laptop. config: YAML text, None for the built-in default. wrapper: a program that starts it."""
        command = [*wrapper, self.directory / "bin/novpnd", "--runtime-dir", self.directory / "run"]
        if config is not None:
            (self.directory / "novpn.yaml").write_text(config)
            command += ["--config", self.directory / "novpn.yaml"]
        log = self.directory / f"novpnd-{self.count()}.log"
        # What is freed is kept back by the sanitizer, 256 MiB of it: more than an agent may grow.
        environment = {"ASAN_OPTIONS": "quarantine_size_mb=8", **(environment or {})}
        agent = Agent(self, self.spawn(*command, output=log, environment=environment), log)
        if ready:
            def answers():
                if agent.process.poll() is not None:
                    raise AssertionError(f"novpnd ended with {agent.process.returncode}: {log.read_text()}")
                return self.novpn("status", check=False).returncode == 0
            wait_until(answers, 10, "novpnd answering", log.read_text)
        return agent

    def novpn_command(self, *arguments):
        return [self.directory / "bin/novpn", "--runtime-dir", self.directory / "run", *arguments]

    def novpn(self, *arguments, **options):
        return self.run(*self.novpn_command(*arguments), **options)


def strip_volatile(text):
    text = re.sub(r" expires -?\d+sec", "", text)
    text = re.sub(r"valid_lft \w+ +preferred_lft \w+", "", text)
    return re.sub(r"[ \\]+$", "", text, flags=re.MULTILINE)


def cgroup_mount():
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return pathlib.Path(fields.split()[4])
    return None


def cgroups_of(netns_inode):
    """The cgroups that agents of that network namespace made, parents first."""
    mount = cgroup_mount()
    found = []
    for top in mount.glob(f"novpn-{netns_inode}") if mount else ():
        found += [top] + sorted(path for path in top.rglob("*") if path.is_dir())
    return found


def in_net_cls(script):
    """What a shell says in the root of the hierarchy of net_cls, which is the machine's; empty where nobody has used it."""
    in_use = any(line.split()[:2] != ["net_cls", "0"] for line in pathlib.Path("/proc/cgroups").read_text().splitlines()
                 if line.startswith("net_cls"))
    if not in_use:
        return ""
    # For a moment, where nobody sees it.
    mount = "d=$(mktemp -d); mount -t cgroup -o net_cls lab $d; cd $d; trap 'cd /; umount $d; rmdir $d' EXIT; "
    return subprocess.run(["unshare", "--mount", "--propagation=private", "sh", "-ec", mount + script], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def processes_in(namespace):
    result = subprocess.run(["ip", "netns", "pids", namespace], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [int(pid) for pid in result.stdout.split()]


def remove(directory):
    """Ends what still runs in a lab's namespaces, and removes every trace of it."""
    directory = pathlib.Path(directory)
    prefix = directory.name.removeprefix("novpn-lab-")
    names = [f"{prefix}-{namespace}" for namespace in NAMESPACES if os.path.exists(f"/run/netns/{prefix}-{namespace}")]
    for with_signal in (signal.SIGTERM, signal.SIGKILL):
        for name in names:
            for pid in processes_in(name):
                try:
                    os.kill(pid, with_signal)
                except ProcessLookupError:
                    pass
        try:
            wait_until(lambda: not any(processes_in(name) for name in names), 3, "the lab's processes ending")
            break
        except AssertionError:
            continue
    for name in names:
        for cgroup in reversed(cgroups_of(os.stat(f"/run/netns/{name}").st_ino)):
            cgroup.rmdir()
        in_net_cls(f"find . -depth -path './novpn-{os.stat(f'/run/netns/{name}').st_ino}*' -type d -exec rmdir {{}} +")
        subprocess.run(["ip", "netns", "delete", name], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def sweep():
    """Removes the labs of test processes that were killed."""
    for directory in pathlib.Path("/tmp").glob("novpn-lab-nv*"):
        pid = int(re.match(r"novpn-lab-nv(\d+)", directory.name)[1])
        if not os.path.exists(f"/proc/{pid}") and not (directory / "kept").exists():
            remove(directory)


def keep(lab):
    """Leaves the lab up after this process, with a script to enter the laptop and one to remove it all."""
    lab.keep = True
    (lab.directory / "kept").touch()
    settings = " ".join(shlex.quote(f"{name}={value}") for name, value in lab.environment.items())
    enter, gone = lab.directory / "enter", lab.directory / "remove"
    enter.write_text(f'#!/bin/sh\n[ $# -gt 0 ] || set -- bash\nexec env {settings} {shlex.join(lab.command())} "$@"\n')
    for program in ("lab.py", "bpf.py"):
        shutil.copy(HERE / program, lab.directory / program)
    gone.write_text(f"#!/bin/sh\nexec {PYTHON} {lab.directory}/lab.py remove {lab.directory}\n")
    for script in (enter, gone):
        script.chmod(0o755)
    return enter, gone


def main(arguments):
    if arguments[:1] == ["remove"] and len(arguments) == 2:
        remove(arguments[1])
    elif arguments[:1] == ["up"] and (len(arguments) == 1 or arguments[1] == "--config"):
        with Lab() as lab:
            lab.start_agent(pathlib.Path(arguments[2]).read_text() if len(arguments) > 2 else None)
            enter, gone = keep(lab)
            print(f"enter: {enter}\nremove: {gone}")
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
