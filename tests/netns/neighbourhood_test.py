"""What lies around the laptop works from inside a class as without it: hosts of the LAN, multicast, broadcast, bridges of
containers, routes that the DHCP server gave, loopback; and a service of a class answers the LAN."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab

LAN = {4: SITES["a"].gateway, 6: f"{SITES['a'].net6}:1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
BEHIND_A_ROUTE = {4: "10.99.0.1", 6: "2001:db8:99::1"}
CONTAINER = {4: "172.17.0.2", 6: "fd00:17::2"}
MULTICAST = {4: "224.0.0.251", 6: "ff02::fb"}
BROADCAST = ("255.255.255.255", "192.168.10.255")

# Answers what is sent to a group or to everyone, from the address that it has itself: as mDNS and SSDP responders do.
RESPONDER = """
import selectors, socket, struct, sys
group4, group6, link = sys.argv[1:]
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
four.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
four.bind(("", 7001))
four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4xi", socket.inet_aton(group4), socket.if_nametoindex(link)))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
six.bind(("::", 7001))
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, group6) + struct.pack("I", socket.if_nametoindex(link)))
selector = selectors.DefaultSelector()
for sock in (four, six):
    selector.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        text, peer = key.fileobj.recvfrom(2048)
        key.fileobj.sendto(peer[0].encode(), peer)
"""

# Prints the address that the responder saw. With a LINK it names the link, as mDNS does; without one routing decides.
ASK_EVERYONE = """
import socket, struct, sys
address, link = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
ipv6 = ":" in address
sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(3)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
index = socket.if_nametoindex(link) if link else 0
if link and ipv6:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
elif link:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), index))
try:
    sock.sendto(b"who is there?", (address, 7001, 0, index) if ipv6 else (address, 7001))
    print(sock.recv(2048).decode())
except OSError as error:
    print("no answer:", error)
"""


class NeighbourhoodTest(LabTest):
    def setUp(self):
        super().setUp()
        self.before = self.lab.snapshot()

    def echo(self, *addresses, namespace="laptop", inside=()):
        the_lab.read_line(self.lab.spawn(*inside, the_lab.PYTHON, self.lab.directory / "echo.py", *addresses, namespace=namespace))

    def link_local(self, link, namespace):
        return self.lab.run("ip", "-6", "-o", "address", "show", "dev", link, "scope", "link", namespace=namespace).stdout.split()[3].split("/")[0]

    def assert_reached(self, address, seen_as, what):
        for protocol in ("tcp", "udp"):
            self.assert_same(self.lab.probe(protocol, address, member=True, check=False), seen_as, f"{what}: a member's {protocol} to {address}")

    def check(self, mode):
        """Every claim under one takeover."""
        self.echo(*LAN.values(), namespace="router_a")
        self.echo(*LOOPBACK.values())
        self.start_agent()
        self.vpn_up(mode)
        own = {4: self.lab.laptop_address(4), 6: self.lab.laptop_address(6)}
        self.assert_members_seen_at("a")
        self.echo(*own.values())
        for family in (4, 6):
            self.assert_reached(LAN[family], own[family], "a host of the LAN")
            self.assert_reached(LOOPBACK[family], LOOPBACK[family], "loopback")
            self.assert_reached(own[family], own[family], "the laptop's own address")
        self.check_link_local()
        self.check_routes_of_the_lease(own)
        self.check_everyone(own)
        self.check_container()
        self.check_service()
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_nothing_leaked()
        if self.bpffs:
            self.assert_same(self.agent.status()["classes"][0]["packets"]["dropped"], 0, "dropped packets")
        self.agent.stop()

    def check_link_local(self):
        theirs, ours = self.link_local("lan", "router_a"), self.link_local("wlan0", "laptop")
        self.echo(f"{theirs}%lan", namespace="router_a")
        self.assert_reached(f"{theirs}%wlan0", ours, "a link-local address")

    def check_routes_of_the_lease(self, own):
        """DHCP option 121: another router of the LAN leads to some networks."""
        self.lab.shell("".join(f"ip address add {address} dev lo\n" for address in BEHIND_A_ROUTE.values()), "router_a")
        self.echo(*BEHIND_A_ROUTE.values(), namespace="router_a")
        self.lab.shell(f"""
            ip route add 10.99.0.0/16 via {SITES['a'].second_gateway} dev wlan0 proto dhcp metric 600
            ip -6 route add 2001:db8:99::/48 via {LAN[6]} dev wlan0 proto ra metric 600""")
        for family in (4, 6):
            self.agent.wait_for(lambda _: "99" in self.lab.shell(f"ip -{family} route show table 7866 proto 78"), "a copy of the lease's route")
            self.assert_reached(BEHIND_A_ROUTE[family], own[family], "a network of the lease's routes")

    def check_everyone(self, own):
        the_lab.read_line(self.lab.spawn(the_lab.PYTHON, "-c", RESPONDER, MULTICAST[4], MULTICAST[6], "lan", namespace="router_a"))
        ours = self.link_local("wlan0", "laptop")
        for address, link, seen_as in [(MULTICAST[4], None, own[4]), (MULTICAST[4], "wlan0", own[4]), (MULTICAST[6], "wlan0", ours),
                                       *((address, None, own[4]) for address in BROADCAST)]:
            command = self.lab.novpn_command("run", "--", the_lab.PYTHON, "-c", ASK_EVERYONE, address, *([link] if link else []))
            answer = self.lab.run(*command).stdout.strip().split("%")[0]
            if link or address == BROADCAST[1] or self.bpffs:
                self.assert_same(answer, seen_as, f"a member asks everyone at {address} by {link}")
            else:
                # The kernel sends it by the link of the source that it chose before nft marked, the tunnel's
                # (ip_route_output_key_hash_rcu in net/ipv4/route.c): the guard refuses it.
                self.assertIn("Operation not permitted", answer)

    def check_container(self):
        """Behind a bridge like docker's or libvirt's; what it sends is its own."""
        container = self.lab.spawn("unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity")
        the_lab.read_line(container)
        inside = ("nsenter", f"--net=/proc/{container.pid}/ns/net")
        self.lab.shell(f"""
            ip link add docker0 type bridge
            ip address add 172.17.0.1/16 dev docker0
            ip address add fd00:17::1/64 dev docker0 nodad
            ip link set docker0 up
            ip link add vethc type veth peer name eth0 netns {container.pid}
            ip link set vethc master docker0 up
            nsenter --net=/proc/{container.pid}/ns/net sh -ec '
                sysctl -qw net.ipv6.conf.eth0.accept_dad=0
                ip address add {CONTAINER[4]}/16 dev eth0
                ip address add {CONTAINER[6]}/64 dev eth0 nodad
                ip link set eth0 up'""")
        self.echo(*CONTAINER.values(), inside=inside)
        for family, bridge in ((4, "172.17.0.1"), (6, "fd00:17::1")):
            reached = lambda: self.lab.probe("udp", CONTAINER[family], member=True, check=False, timeout=1) == bridge
            the_lab.wait_until(reached, 10, f"a member's packets to {CONTAINER[family]}", self.agent.explain)
            self.assert_reached(CONTAINER[family], bridge, "a container")
        self.lab.shell("ip link del docker0")
        self.lab.end(container)

    def check_service(self):
        """A server that a member is: its clients are on the LAN."""
        self.lab.shell("ip address add 192.168.10.77/24 dev wlan0; ip address add 2001:db8:a::77/64 dev wlan0 nodad")
        own = {4: "192.168.10.77", 6: "2001:db8:a::77"}
        service = self.lab.spawn(*self.lab.novpn_command("run", "--", the_lab.PYTHON, self.lab.directory / "echo.py", *own.values()))
        the_lab.read_line(service)
        for family, address in own.items():
            for protocol in ("tcp", "udp"):
                asked = self.lab.run(the_lab.PYTHON, self.lab.directory / "probe.py", protocol, address, namespace="router_a", check=False)
                self.assert_same(asked.stdout.strip(), LAN[family], f"a member's service asked by {protocol} over IPv{family}")
        self.lab.end(service)

    def test_under_halves(self):
        self.check("def1-ipv6")

    def test_under_a_replaced_default(self):
        self.check("plain")


if __name__ == "__main__":
    unittest.main(verbosity=2)
