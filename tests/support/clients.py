"""Real VPN and DHCP clients on the lab's laptop, each VPN with its server on the lab's VPN host. OpenVPN itself is in lab.py."""
import os
import pathlib
import signal

from lab import SITES, VPN_SEEN, processes_in, wait_until


class WgQuick:
    """wg-quick(8) on wireguard-go, with all of IPv4 and IPv6 by its tunnel wg0: rules, a table and nft tables of its own."""

    def __init__(self, lab):
        self.lab = lab
        self.config = lab.directory / "wg0.conf"
        keys = {side: lab.run("wg", "genkey").stdout.strip() for side in ("server", "client")}
        public = {side: lab.run("wg", "pubkey", input=key).stdout.strip() for side, key in keys.items()}
        self.config.write_text(
            f"[Interface]\nPrivateKey = {keys['client']}\nAddress = 10.7.0.2/24, 2001:db8:8:7::2/64\n"
            f"[Peer]\nPublicKey = {public['server']}\nEndpoint = {VPN_SEEN[4]}:51820\nAllowedIPs = 0.0.0.0/0, ::/0\n"
            "PersistentKeepalive = 1\n")
        self.config.chmod(0o600)
        lab.spawn("wireguard-go", "--foreground", "wg0", namespace="vpn", output=lab.directory / "wireguard-server.log")
        wait_until(lambda: lab.run("wg", "show", "wg0", namespace="vpn", check=False).returncode == 0, what="the WireGuard server")
        lab.run("wg", "set", "wg0", "listen-port", 51820, "private-key", "/dev/stdin", "peer", public["client"],
                "allowed-ips", "10.7.0.2/32,2001:db8:8:7::2/128", namespace="vpn", input=keys["server"])
        lab.shell("ip address add 10.7.0.1/24 dev wg0; ip address add 2001:db8:8:7::1/64 dev wg0; ip link set wg0 up", "vpn")

    def up(self):
        self.lab.run("wg-quick", "up", self.config)

    def down(self):
        self.lab.run("wg-quick", "down", self.config)

    def kill(self):
        """A crash: the link goes with wireguard-go; rules and nft tables stay."""
        for pid in processes_in(self.lab.name_of("laptop")):
            if pathlib.Path(f"/proc/{pid}/comm").read_text() == "wireguard-go\n":
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "wg0" not in self.lab.shell("ip -o link"), what="wg0 gone")


class OpenConnect:
    """openconnect with the distribution's vpnc-script, against ocserv. routes: what the server hands out, ("default",) for all;
    or the prefixes that go by the tunnel, and only they."""

    def __init__(self, lab, routes=("default",)):
        self.lab = lab
        here = lab.directory
        (here / "ocserv.conf").write_text("\n".join([
            'auth = "certificate"', "cert-user-oid = 2.5.4.3", "tcp-port = 443", "udp-port = 443", "run-as-user = root", "run-as-group = root",
            f"server-cert = {here}/server.crt", f"server-key = {here}/server.key", f"ca-cert = {here}/ca.crt",
            f"socket-file = {here}/ocserv.sock", f"pid-file = {here}/ocserv.pid", "isolate-workers = false", "use-occtl = false",
            "device = vpns", "ipv4-network = 10.9.0.0/24", "ipv6-network = 2001:db8:8:9::/64", "ipv6-subnet-prefix = 128",
            "dns = 10.9.0.1", "cisco-client-compat = true", "dtls-legacy = true", "keepalive = 5", "dpd = 2", "mobile-dpd = 2",
            *(f"route = {route}" for route in routes), ""]))
        lab.spawn("ocserv", "--foreground", "--config", here / "ocserv.conf", namespace="vpn", output=here / "ocserv.log")
        wait_until(lambda: lab.shell("ss -Hltn sport = 443", "vpn"), what="ocserv", detail=(here / "ocserv.log").read_text)
        key = lab.shell(f"openssl x509 -in {here}/server.crt -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64")
        self.pin = f"pin-sha256:{key.strip()}"
        self.process = None

    def up(self):
        here, self.log = self.lab.directory, self.lab.directory / f"openconnect-{self.lab.count()}.log"
        self.process = self.lab.spawn(
            "openconnect", "--protocol=anyconnect", "--servercert", self.pin, "--certificate", here / "client.crt", "--sslkey", here / "client.key",
            "--non-inter", "--interface", "tun0", "--reconnect-timeout", 30, "--script", "/usr/share/vpnc-scripts/vpnc-script; echo ended: $reason",
            f"{VPN_SEEN[4]}:443", output=self.log)
        wait_until(lambda: "ended: connect" in self.log.read_text(), 10, "openconnect up", self.log.read_text)

    def down(self):
        self.lab.end(self.process)

    def kill(self):
        """A crash: the tunnel goes, and vpnc-script is not called."""
        self.process.kill()
        self.process.wait()


# Nobody but the laptop's root is on this bus.
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/> <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/> <allow receive_type="signal"/>
    <allow receive_type="method_return"/> <allow receive_type="error"/>
  </policy>
</busconfig>
"""


def start_bus(lab):
    """A system bus of the laptop's own."""
    (lab.directory / "bus.conf").write_text(BUS)
    lab.shell("mkdir -p /run/dbus")
    lab.spawn("dbus-daemon", "--nofork", f"--config-file={lab.directory}/bus.conf", output=lab.directory / "bus.log")
    wait_until(lambda: lab.run("test", "-S", "/run/dbus/system_bus_socket", check=False).returncode == 0, what="the bus")


NETWORK_MANAGER_CONF = """[main]
plugins=keyfile
no-auto-default=*
auth-polkit=false
dhcp=internal
dns=none
hostname-mode=none
[device-lab]
match-device=interface-name:wlan0,interface-name:eth0
managed=1
"""

# With a /sys that cannot be written NetworkManager does not wait for udev to announce a link.
NETWORK_MANAGER = """
mount -t sysfs -o ro sysfs /sys
mount --bind "$LAB/nm/etc" /etc/NetworkManager
mount --bind "$LAB/nm/state" /var/lib/NetworkManager
exec NetworkManager --no-daemon --log-level=INFO
"""


class NetworkManager:
    """NetworkManager and a system bus of its own; it manages the laptop's links, and OpenVPN by its plugin. For a lab that
    is not configured."""

    def __init__(self, lab):
        self.lab = lab
        here = lab.directory
        for directory in ("nm/etc/conf.d", "nm/etc/system-connections", "nm/state"):
            (here / directory).mkdir(parents=True)
        (here / "nm/etc/NetworkManager.conf").write_text(NETWORK_MANAGER_CONF)
        start_bus(lab)
        self.start()

    def start(self):
        self.log = self.lab.directory / f"networkmanager-{self.lab.count()}.log"
        self.process = self.lab.spawn("unshare", "--mount", "--propagation=private", "sh", "-ec", NETWORK_MANAGER, output=self.log)
        wait_until(lambda: self.nmcli("general", check=False).returncode == 0, 10, "NetworkManager answering", self.log.read_text)

    def stop(self):
        self.lab.end(self.process, 10)

    def nmcli(self, *arguments, check=True):
        """Waits for what it asks for: an activation, a deactivation."""
        return self.lab.run("nmcli", "--wait", 20, *arguments, check=check, timeout=30)

    def add_link(self, link):
        """A connection "lab-LINK", by DHCP and router advertisement. One that it finds and assumes is named for the link alone."""
        self.nmcli("connection", "add", "type", "ethernet", "ifname", link, "con-name", f"lab-{link}")

    def add_openvpn(self):
        """The lab's OpenVPN server as a connection named vpn."""
        here = self.lab.directory
        self.nmcli("connection", "add", "type", "vpn", "con-name", "vpn", "ifname", "*", "vpn-type", "openvpn", "vpn.data",
                   f"remote={VPN_SEEN[4]}:1194,connection-type=tls,cert-pass-flags=4,dev=tun0,dev-type=tun,"
                   f"ca={here}/ca.crt,cert={here}/client.crt,key={here}/client.key")

    def up(self, connection):
        self.nmcli("connection", "up", connection)

    def down(self, connection):
        self.nmcli("connection", "down", connection)
        if connection == "vpn":
            self.wait_for_vpn_gone()

    def wait_for_vpn_gone(self):
        """NetworkManager calls the connection down before OpenVPN has ended and taken its link along. It takes a helper that leaves the
        bus for a failure of the next connection, too."""
        wait_until(lambda: "vpn" not in self.active(), 20, "NetworkManager giving the VPN up", self.log.read_text)
        wait_until(lambda: "tun0" not in self.lab.shell("ip -brief link"), 20, "tun0 gone", self.log.read_text)
        names = ("dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.ListNames")
        wait_until(lambda: "NetworkManager.openvpn" not in self.lab.run(*names).stdout, 20, "NetworkManager's OpenVPN helper gone",
                   self.log.read_text)

    def active(self):
        """The names of the connections that are up."""
        return set(self.nmcli("-t", "-g", "NAME", "connection", "show", "--active").stdout.split()) - {"lo"}


# Read by the distribution's dhclient-script before it does anything; what it would do to names is the lab's business.
DHCLIENT_HOOK = """
make_resolv_conf() {
    echo "nameserver $new_domain_name_servers" > "$LAB/resolv.dhcp"
    "$LAB/resolvconf"
}
set_hostname() { :; }
"""


class Dhclient:
    """ISC dhclient with the distribution's dhclient-script on wlan0. It renews by itself, every few seconds, as the sites' servers tell
    it to. For a lab that is not configured."""
    leases = "/var/lib/dhcp"

    def __init__(self, lab):
        self.lab = lab
        hooks = lab.directory / "dhcp-hooks"
        hooks.mkdir()
        (hooks / "dhclient-enter-hooks").write_text(DHCLIENT_HOOK)
        # The laptop's own: the machine's leases and hooks are not the laptop's.
        lab.shell(f"mkdir -p {self.leases}; mount -t tmpfs -o mode=755 lab-leases {self.leases}; mount --bind {hooks} /etc/dhcp")
        for site in SITES:
            self.hand_out(site, SITES[site].gateway)
        self.log, self.process = lab.directory / "dhclient.log", None

    def hand_out(self, site, gateway):
        self.lab.hand_out(site, gateway, "T1,4")  # dnsmasq ignores a time of 2

    def command(self, *options):
        environment = ("-e", f"LAB={self.lab.directory}", "-e", f"PATH={self.lab.environment['PATH']}")
        return ("dhclient", "-4", "-d", "-v", *options, "-cf", "/dev/null", *environment, "-lf", f"{self.leases}/dhclient.wlan0.leases",
                "-pf", self.lab.directory / "dhclient.pid", "wlan0")

    def start(self):
        before = self.bound()
        self.process = self.lab.spawn(*self.command(), output=self.log)
        wait_until(lambda: self.bound() > before, 20, "dhclient's lease", self.log.read_text)

    def bound(self):
        # Its script has ended by then.
        return self.log.read_text().count("bound to ") if self.log.exists() else 0

    def renew(self):
        before = self.bound()
        wait_until(lambda: self.bound() > before, 20, "dhclient renewing", self.log.read_text)

    def release(self):
        """`dhclient -r` ends the other one, and waits for that."""
        release = self.lab.spawn(*self.command("-r"), output=self.lab.directory / "dhclient-release.log")
        self.process.wait(10)
        release.wait(10)

    def obtain(self):
        self.start()

    def lose(self):
        """A laptop that falls asleep: the old address stays until another server has refused it."""
        self.process.kill()
        self.process.wait()

    def find(self):
        self.start()


class Udhcpc:
    """busybox's udhcpc with the distribution's script on wlan0. For a lab that is not configured."""

    def __init__(self, lab):
        self.lab = lab
        self.log, self.process = lab.directory / "udhcpc.log", None

    def hand_out(self, site, gateway):
        self.lab.hand_out(site, gateway)

    def start(self):
        self.process = self.lab.spawn("udhcpc", "--foreground", "--interface=wlan0", "--script=/etc/udhcpc/default.script", "--timeout=1",
                                      "--retries=10", "--tryagain=1", output=self.log)
        self._wait_for("lease of", 0)

    def renew(self):
        self._signal(signal.SIGUSR1, "lease of")

    def release(self):
        self._signal(signal.SIGUSR2, "entering released state")

    def obtain(self):
        self.renew()

    def lose(self):
        self.release()

    def find(self):
        self.obtain()

    def _signal(self, number, answer):
        before = self.log.read_text().count(answer)
        self.process.send_signal(number)
        self._wait_for(answer, before)

    def _wait_for(self, answer, before):
        wait_until(lambda: self.log.read_text().count(answer) > before, 15, f"udhcpc's {answer!r}", self.log.read_text)
        # The script ends after that line.
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_until(lambda: not children.read_text(), what="the script of udhcpc")


STRONGSWAN_CONF = """
charon-systemd {
  load_modular = no
  load = random nonce aes sha1 sha2 hmac kdf gmp kernel-netlink socket-default bypass-lan vici updown
  filelog { lab { path = LAB/charon.log
      default = 1
      flush_line = yes } }
  plugins { vici { socket = unix://LAB/charon.vici } }
}
"""

# Neighbour discovery passes, as strongSwan's own examples have it: the kernel asks policies about it too.
SWANCTL_CONF = "connections {" + "".join(f"""
  vpn{family} {{ remote_addrs = {VPN_SEEN[family]}
    local {{ auth = psk
      id = laptop }}
    remote {{ auth = psk
      id = gateway }}
    children {{ all{family} {{ remote_ts = {everything}
        start_action = trap }} }} }}""" for family, everything in ((4, "0.0.0.0/0"), (6, "::/0"))) + """
  discovery { children {""" + "".join(f"""
      type{kind} {{ local_ts = ::/0[ipv6-icmp/{kind}]
        remote_ts = ::/0[ipv6-icmp/{kind}]
        mode = pass
        start_action = trap }}""" for kind in (135, 136)) + """ } }
}
secrets { ike { secret = lab } }
"""


class StrongSwan:
    """charon with a tunnel for everything, IPv4 and IPv6, that comes up on demand: its policies are there, the tunnel is not."""

    def __init__(self, lab):
        self.lab = lab
        (lab.directory / "strongswan.conf").write_text(STRONGSWAN_CONF.replace("LAB", str(lab.directory)))
        (lab.directory / "swanctl.conf").write_text(SWANCTL_CONF)
        self.log, self.socket = lab.directory / "charon.log", lab.directory / "charon.vici"
        self.process = None

    def start(self):
        """charon alone, without any connection."""
        self.process = self.lab.spawn("charon-systemd", output=self.lab.directory / "charon.out",
                                      environment={"STRONGSWAN_CONF": str(self.lab.directory / "strongswan.conf")})
        wait_until(lambda: self.swanctl("--stats", check=False).returncode == 0, 10, "charon answering",
                   lambda: (self.lab.directory / "charon.out").read_text() + self.log.read_text())

    def swanctl(self, *arguments, check=True):
        return self.lab.run("env", f"STRONGSWAN_CONF={self.lab.directory}/strongswan.conf", "swanctl", *arguments, "--uri", f"unix://{self.socket}", check=check)

    def load(self):
        """Loads the connections, and with them the policies."""
        return self.swanctl("--load-all", "--file", self.lab.directory / "swanctl.conf").stdout

    def stop(self):
        self.lab.end(self.process)

    def kill(self):
        """A crash: rules, table 220 and policies stay."""
        self.process.kill()
        self.process.wait()
