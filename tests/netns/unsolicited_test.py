"""A packet that comes to the uplink unasked is never marked, nor is what answers it."""
import json
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab

PORT = 9999
MARKED = "0xff000000 == 0x4e000000"

# After all of ours: what did the packet look like in the end? Port 7000 is the members' own flows, as a proof that the
# counters count.
COUNTERS = "table inet witness {\n" + "".join(f"counter {name} {{ }}\n" for name in ("arrived", "marked", "answered", "answer_marked", "member")) + f"""
    chain arriving {{
        type filter hook input priority 300
        meta l4proto {{ tcp, udp }} th dport {PORT} counter name arrived
        meta l4proto {{ tcp, udp }} th dport {PORT} meta mark & {MARKED} counter name marked
        meta l4proto {{ tcp, udp }} th dport {PORT} ct mark & {MARKED} counter name marked
        tcp sport 7000 meta mark & {MARKED} counter name member
    }}
    chain early {{
        type filter hook prerouting priority -100
        meta l4proto {{ tcp, udp }} th dport {PORT} meta mark & {MARKED} counter name marked
    }}
    chain leaving {{
        type filter hook postrouting priority 300
        meta l4proto {{ tcp, udp }} th sport {PORT} counter name answered
        meta l4proto {{ tcp, udp }} th sport {PORT} meta mark & {MARKED} counter name answer_marked
    }}
}}
"""

# An ordinary server: one TCP connection or datagram after the other is answered with its own first bytes.
SERVER = f"""
import selectors, socket
selector = selectors.DefaultSelector()
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.bind(("::", {PORT}))
    if kind == socket.SOCK_STREAM: sock.listen()
    selector.register(sock, selectors.EVENT_READ, kind)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.data == socket.SOCK_STREAM:
            with key.fileobj.accept()[0] as connection: connection.sendall(connection.recv(100))
        else:
            key.fileobj.sendto(*key.fileobj.recvfrom(100))
"""

CLIENT = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[3]]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
sock.settimeout(3)
sock.connect((host, port))
sock.send(b"unasked")
print(sock.recv(100).decode())
"""

SENDER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
sock.sendto(b"unasked", (sys.argv[2], int(sys.argv[3])))
"""


class Unsolicited(LabTest):
    def counts(self):
        found = json.loads(self.lab.run("nft", "-j", "list", "counters", "table", "inet", "witness").stdout)
        return {item["counter"]["name"]: item["counter"]["packets"] for item in found["nftables"] if "counter" in item}

    def check(self):
        server = self.lab.spawn(the_lab.PYTHON, "-c", SERVER)
        the_lab.read_line(server)
        self.lab.run("nft", "-f", "-", input=COUNTERS)
        self.assert_members_seen_at("a")
        # From the same network: an answer to it needs no default route, so it comes back whatever the VPN did.
        for family in (4, 6):
            for protocol in ("tcp", "udp"):
                answer = self.lab.run(the_lab.PYTHON, "-c", CLIENT, self.lab.laptop_address(family), PORT, protocol, namespace="router_a")
                self.assertEqual(answer.stdout.strip(), "unasked")
        counts = self.counts()
        for name in ("arrived", "answered", "member"):
            self.assertGreater(counts[name], 0, counts)
        self.assert_same((counts["marked"], counts["answer_marked"]), (0, 0), f"marked packets ({counts})")

    def test_without_vpn(self):
        self.start_agent()
        self.check()

    def test_under_def1_ipv6(self):
        self.start_agent()
        self.vpn_up("def1-ipv6")
        self.check()
        self.assert_others_seen_as(VPN_SEEN[4])

    def test_under_def1_ipv6_with_a_strict_reverse_path_filter(self):
        """src_valid_mark of the uplink changes nothing for what has no mark."""
        self.lab.shell("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.wlan0.rp_filter=1")
        self.start_agent()
        self.vpn_up("def1-ipv6")
        self.assert_same(self.lab.shell("sysctl -n net.ipv4.conf.wlan0.src_valid_mark").strip(), "1", "src_valid_mark")
        self.check()

    def test_with_a_strict_reverse_path_filter_one_for_the_tunnels_address_is_refused(self):
        # KERNEL-FACTS 16: a rule that marks what fails the filter would let it in.
        self.lab.shell("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.wlan0.rp_filter=1")
        self.start_agent()
        self.vpn_up("def1")
        self.lab.run("nft", "-f", "-", input=COUNTERS)
        self.lab.shell(f"ip route add 10.8.0.2 via {self.lab.laptop_address()} dev lan", "router_a")
        self.lab.shell("ip address add 203.0.113.99/32 dev lo", "router_a")
        # The way back to 203.0.113.99 is the tunnel. The neighbour's packet follows on the same wire: its count ends the wait.
        for source, destination in (("203.0.113.99", "10.8.0.2"), (SITES["a"].gateway, self.lab.laptop_address())):
            self.lab.run(the_lab.PYTHON, "-c", SENDER, source, destination, PORT, namespace="router_a")
        the_lab.wait_until(lambda: self.counts()["arrived"] > 0, what="the neighbour's packet")
        self.assert_same(self.counts()["arrived"], 1, "packets let in")


if __name__ == "__main__":
    unittest.main(verbosity=2)
