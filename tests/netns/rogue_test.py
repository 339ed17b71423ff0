"""A hostile network: another host of the LAN advertises itself as a router, speaks as the real one, or gives routes by router
advertisements and by the DHCP server. It can be the router that members' packets go by; none of it leads them into the tunnel."""
import unittest

from labtest import MEMBER_ECHO, LabTest, SITES, VPN_SEEN, the_lab
from lab import wait_until

ROGUE_MAC = "02:00:00:00:66:66"
ROGUE = {4: "192.168.10.66", 6: "fe80::66"}
HIGH, MEDIUM = 1, 0

# One router advertisement (RFC 4861 4.2) from any address of the link, with one route (RFC 4191 2.3) if asked for.
ADVERTISE = """
import socket, struct, sys
link, source, mac, preference, lifetime, *route = sys.argv[1:]
mac = bytes.fromhex(mac.replace(":", ""))
to = socket.inet_pton(socket.AF_INET6, "ff02::1")
body = struct.pack("!BBHBBHII", 134, 0, 0, 64, int(preference) << 3, int(lifetime), 0, 0) + bytes([1, 1]) + mac
if route:
    prefix, length, of_route = route
    body += struct.pack("!BBBBI", 24, 3, int(length), 1 << 3, int(of_route)) + socket.inet_pton(socket.AF_INET6, prefix)
header = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + socket.inet_pton(socket.AF_INET6, source) + to
pseudo = header[8:] + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6) + body
total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
while total >> 16:
    total = (total & 0xffff) + (total >> 16)
body = body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:]
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind((link, 0))
sock.send(bytes.fromhex("333300000001") + mac + b"\\x86\\xdd" + header + body)
"""

# What a network manager does with a lease that has option 121 (RFC 3442): its routes, and no other.
CLASSLESS = """#!/bin/sh
case "$1" in
bound | renew)
    ip -4 address flush dev "$interface"
    ip address add "$ip/$mask" dev "$interface"
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        if [ "$2" = 0.0.0.0 ]; then by=; else by="via $2"; fi
        ip route replace "$1" $by dev "$interface" proto dhcp src "$ip" metric "$LAB_METRIC" || echo "refused: $1 $2"
        shift 2
    done ;;
esac
"""


class Rogue(LabTest):
    def setUp(self):
        super().setUp()
        self.router = self.link_local("lan", "router_a")
        self.add_rogue()
        # As network managers take them.
        self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra_rt_info_max_plen=128")
        self.start_agent()
        self.assert_gateway(6, self.router)

    def link_local(self, link, namespace):
        return self.lab.shell(f"ip -6 -o address show dev {link} scope link", namespace).split()[3].split("/")[0]

    def add_rogue(self):
        """A host of site A's LAN that forwards what it gets to the router, and counts what is members'."""
        self.rogue = self.lab.spawn("unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity", namespace="router_a")
        the_lab.read_line(self.rogue)
        self.lab.shell(f"""
            # Where br_netfilter is loaded: a flow to the other host would be known here before it is to be masqueraded.
            [ ! -e /proc/sys/net/bridge ] || sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
            ip link add to_rogue type veth peer name lan0 netns {self.rogue.pid}
            ip link set to_rogue master lan up""", "router_a")
        self.in_rogue(f"""
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.lan0.accept_dad=0 \
                net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan0.send_redirects=0
            ip link set lan0 address {ROGUE_MAC}
            ip link set lan0 up
            ip address add {ROGUE[4]}/24 dev lan0
            ip address add {ROGUE[6]}/64 dev lan0 nodad
            ip route add default via {SITES['a'].gateway}
            ip -6 route add default via {self.router} dev lan0
            nft -f - <<'N'
            table inet lab {{
                counter members {{ }}
                chain count {{
                    type filter hook prerouting priority -300
                    ip daddr {MEMBER_ECHO[4]} counter name members
                    ip6 daddr {MEMBER_ECHO[6]} counter name members
                }}
                # No redirect: the laptop would go to the router by itself.
                chain quiet {{ type filter hook output priority 0; icmpv6 type nd-redirect drop; }}
            }}
N""")

    def in_rogue(self, script):
        return self.lab.run("nsenter", f"--net=/proc/{self.rogue.pid}/ns/net", "sh", "-ec", script, namespace="router_a").stdout

    def seen_by_rogue(self):
        return int(self.in_rogue("nft list counter inet lab members").split("packets")[1].split()[0])

    def advertise(self, source, preference, lifetime, *route):
        self.lab.run("nsenter", f"--net=/proc/{self.rogue.pid}/ns/net", the_lab.PYTHON, "-c", ADVERTISE, "lan0", source, ROGUE_MAC,
                     preference, lifetime, *route, namespace="router_a")

    def assert_gateway(self, family, gateway):
        def is_it(status):
            uplink = status["families"][f"ipv{family}"]["uplink"]
            return (uplink["gateway"] if uplink else None) == gateway
        return self.agent.wait_for(is_it, f"an IPv{family} uplink by {gateway}")

    def wait_for_route(self, where, what, there=True):
        wait_until(lambda: (what in self.lab.shell(f"ip {where}")) == there, what=f"{what!r} in ip {where}: {there}", detail=self.agent.explain)

    def assert_table_is_of_the_uplink(self):
        for family in (4, 6):
            for line in self.lab.shell(f"ip -{family} route show table 7866").splitlines():
                self.assertTrue(" dev wlan0 " in line or line.startswith("unreachable"), line)

    def assert_others_in_the_tunnel(self):
        for family in (4, 6):
            self.assert_others_seen_as(VPN_SEEN[family], family)

    def assert_nothing_of_members_in_the_tunnel(self, sniffer):
        self.assert_same(sniffer.packets("tun0"), [], "members' packets on tun0")
        self.assert_nothing_leaked()
        self.assert_table_is_of_the_uplink()


class RouterAdvertisements(Rogue):
    def setUp(self):
        super().setUp()
        self.vpn_up("def1-ipv6")
        self.sniffer = self.lab.sniff(*MEMBER_ECHO.values())

    def test_a_second_router_of_higher_preference(self):
        self.advertise(ROGUE[6], HIGH, 1800)
        self.wait_for_route("-6 route show default dev wlan0", f"via {ROGUE[6]}")
        # The one in use goes on, whatever another says of itself.
        self.assert_members_seen_at("a")
        self.assert_gateway(6, self.router)
        self.assert_same(self.seen_by_rogue(), 0, "members' packets by the second router")
        self.assert_others_in_the_tunnel()
        self.assert_nothing_of_members_in_the_tunnel(self.sniffer)

    def test_the_routers_lifetime_is_ended_in_its_name(self):
        # The router itself is silent meanwhile: its next advertisement may come at any time.
        self.lab.shell("nft 'table inet silent { chain output { type filter hook output priority 0; icmpv6 type nd-router-advert drop; }; }'", "router_a")
        self.advertise(self.router, MEDIUM, 0)
        self.wait_for_route("-6 route show default dev wlan0", "default", there=False)
        # Under a takeover what the agent knows of a default that is gone counts: the laptop is in the same network.
        self.agent.wait_for(lambda s: (s["families"]["ipv6"]["uplink"] or {}).get("from") == "memory", "the uplink from memory")
        self.assert_gateway(6, self.router)
        self.assert_members_seen_at("a")
        self.assert_others_in_the_tunnel()
        self.assert_nothing_of_members_in_the_tunnel(self.sniffer)
        # Its next word counts again.
        self.lab.shell("nft delete table inet silent", "router_a")
        self.lab.solicit_router()
        self.assert_gateway(6, self.router)
        self.assert_members_seen_at("a")
        self.assert_nothing_of_members_in_the_tunnel(self.sniffer)

    def test_a_route_of_an_advertisement(self):
        prefix = MEMBER_ECHO[6].replace("11", "")
        self.advertise(ROGUE[6], MEDIUM, 0, prefix, 64, 1800)
        self.wait_for_route("-6 route show table 7866", f"via {ROGUE[6]}")
        # The host is a router of the LAN as others are; what it gets is what would go to another one.
        self.assert_members_seen_at("a")
        self.assertGreater(self.seen_by_rogue(), 0, "members' packets by the second router")
        self.assert_gateway(6, self.router)
        self.assert_nothing_of_members_in_the_tunnel(self.sniffer)
        self.advertise(ROGUE[6], MEDIUM, 0, prefix, 64, 0)
        self.wait_for_route("-6 route show table 7866", f"via {ROGUE[6]}", there=False)
        seen = self.seen_by_rogue()
        self.assert_members_seen_at("a")
        self.assert_same(self.seen_by_rogue(), seen, "members' packets by the second router")
        self.assert_nothing_of_members_in_the_tunnel(self.sniffer)


class Leases(Rogue):
    def lease(self, *routes):
        """A real lease with option 121 from the site's DHCP server, and its default by the router."""
        site = SITES["a"]
        text = ",".join(f"{to},{by}" for to, by in (*routes, ("0.0.0.0/0", site.gateway)))
        self.lab.hand_out("a", site.gateway, f"classless-static-route,{text}")
        script = self.lab.directory / "classless-script"
        script.write_text(CLASSLESS)
        script.chmod(0o755)
        if "wlan0" in self.lab.dhcp:
            self.lab.end(self.lab.dhcp.pop("wlan0"))
        self.lab.shell("ip -4 address flush dev wlan0")
        log = self.lab.directory / f"udhcpc-{self.lab.count()}.log"
        self.lab.dhcp["wlan0"] = self.lab.spawn(
            "udhcpc", "--foreground", "--interface=wlan0", f"--script={script}", "-O", "staticroutes", "--timeout=1", "--retries=10",
            "--tryagain=1", output=log, environment={"LAB_METRIC": "600"})
        wait_until(lambda: self.lab.has_default(4, "wlan0"), 15, "a lease with routes", log.read_text)
        return log

    def test_routes_that_take_over_and_one_by_a_gateway_that_is_not_on_the_link(self):
        halves = [("0.0.0.0/1", ROGUE[4]), ("128.0.0.0/1", ROGUE[4])]
        log = self.lease(*halves, ("198.18.0.0/15", "10.66.66.1"))
        self.wait_for_route("route show table 7866", f"128.0.0.0/1 via {ROGUE[4]}")
        self.assertIn("refused: 198.18.0.0/15 10.66.66.1", log.read_text())
        self.vpn_up("def1-ipv6")
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_members_seen_at("a")
        self.assertGreater(self.seen_by_rogue(), 0, "members' packets by the gateway of the lease's routes")
        self.assert_gateway(4, SITES["a"].gateway)
        self.assertNotIn("10.66.66.1", self.lab.shell("ip route show table 7866"))
        self.assert_others_in_the_tunnel()
        self.assert_nothing_of_members_in_the_tunnel(sniffer)
        # The next lease says nothing of them.
        self.lease()
        self.wait_for_route("route show table 7866", ROGUE[4], there=False)
        seen = self.seen_by_rogue()
        self.assert_members_seen_at("a")
        self.assert_same(self.seen_by_rogue(), seen, "members' packets by the gateway of routes that are gone")
        self.assert_nothing_of_members_in_the_tunnel(sniffer)


if __name__ == "__main__":
    unittest.main(verbosity=2)
