"""The agent starts under a takeover that left neither the default nor a host route: other programs know the gateway."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab
from clients import NetworkManager

# What Debian's dhclient-script does to addresses and routes. Without ROUTES: a client whose routes a VPN has displaced.
DHCLIENT_SCRIPT = """#!/bin/sh
case "$reason" in
BOUND | RENEW | REBIND | REBOOT)
    ip -4 address replace "$new_ip_address/$new_subnet_mask" broadcast + dev "$interface"
    [ -z "$ROUTES" ] || ip route replace default via "${new_routers%% *}" dev "$interface" ;;
esac
"""
LEASES = "/var/lib/dhcp"
BUS = "/run/dbus/system_bus_socket"

# In place of the bus: passes on what both say, until a client has made a call of this name; then that client's bus has ended.
CUT_AT = """
import os, select, socket, sys, threading
place, call = sys.argv[1], sys.argv[2].encode()
os.rename(place, place + ".real")
listener = socket.socket(socket.AF_UNIX)
listener.bind(place)
os.chmod(place, 0o666)
listener.listen()
print("ready", flush=True)
def serve(client):
    bus = socket.socket(socket.AF_UNIX)
    bus.connect(place + ".real")
    while True:
        for end in select.select([client, bus], [], [])[0]:
            said = end.recv(65536)
            if end is client and call in said:
                print("cut", flush=True)
            if not said or end is client and call in said:
                client.close()
                bus.close()
                return
            (bus if end is client else client).sendall(said)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class ColdStart(LabTest):
    def setUp(self):
        super().setUp()
        # The laptop's own: the machine's leases are not the laptop's.
        self.lab.shell(f"mkdir -p {LEASES}; mount -t tmpfs -o mode=755 lab-leases {LEASES}")
        self.script = self.lab.directory / "dhclient-script"
        self.script.write_text(DHCLIENT_SCRIPT)
        self.script.chmod(0o755)

    def end_dhcp(self):
        """No DHCP client, no IPv4 address. The lease files stay."""
        self.lab.end(self.lab.dhcp.pop("wlan0"))
        self.lab.shell("ip -4 address flush dev wlan0")

    def dhclient(self, routes=True):
        """A real dhclient holds the lease of wlan0; udhcpc, the lab's own, keeps no file."""
        log = self.lab.directory / f"dhclient-{self.lab.count()}.log"
        self.lab.dhcp["wlan0"] = self.lab.spawn(
            "dhclient", "-4", "-d", "-1", "-cf", "/dev/null", "-sf", self.script, "-lf", f"{LEASES}/dhclient.wlan0.leases",
            "-pf", self.lab.directory / f"{log.name}.pid", "-e", f"ROUTES={'yes' if routes else ''}", "wlan0", output=log)
        the_lab.wait_until(lambda: "bound to" in log.read_text(), 15, "dhclient's lease", log.read_text)

    def networkmanager(self, profile="ipv4.method auto"):
        """A real NetworkManager has wlan0, by DHCP unless the profile says otherwise."""
        self.nm = NetworkManager(self.lab)
        self.nm.add_link("wlan0")
        self.nm.nmcli("connection", "modify", "lab-wlan0", *profile.split())
        self.nm.up("lab-wlan0")
        # It is up once either family is, and as the other comes NetworkManager writes both anew: what a VPN took away, too.
        the_lab.wait_until(lambda: self.lab.shell("ip -4 -o address show dev wlan0") and self.known_to_networkmanager("IP6.GATEWAY"),
                           20, "both families", self.nm.log.read_text)

    def known_to_networkmanager(self, field):
        return self.nm.nmcli("--get-values", field, "device", "show", "wlan0").stdout.strip()

    def take_over(self, gateway):
        """OpenVPN deletes the default. Its own packets go by a rule and a table instead of a host route in main."""
        self.lab.vpn_up("plain")
        server = VPN_SEEN[4]
        self.lab.shell(f"ip route add default via {gateway} dev wlan0 table 100; ip rule add to {server} lookup 100;"
                       f"ip route del {server}")
        self.assertEqual(self.lab.shell(f"ip route show default dev wlan0; ip route show {server}"), "")
        self.assert_others_seen_as(VPN_SEEN[4])

    def start_blind(self):
        """An agent that has asked all sources, and has judged what they gave."""
        self.agent = self.lab.start_agent("log: {level: debug}\n")
        log = self.agent.log
        the_lab.wait_until(lambda: "the sources gave" in log.read_text(), what="the sources' answer", detail=log.read_text)
        return log.read_text()

    def assert_uplink(self, family, source, gateway):
        def found(status):
            uplink = status["families"][family]["uplink"]
            return uplink and (uplink["link"], uplink["from"], uplink["gateway"]) == ("wlan0", source, gateway)
        return self.agent.wait_for(found, f"{family} uplink by {gateway} from {source}")

    def router_address(self):
        return self.lab.shell("ip -6 -o address show dev lan scope link", "router_a").split()[3].split("/")[0]

    def cut_bus_at(self, call):
        bus = self.lab.spawn(the_lab.PYTHON, "-c", CUT_AT, BUS, call)
        the_lab.read_line(bus)
        return bus

    def mend_bus(self, bus):
        self.lab.end(bus)
        self.lab.shell(f"mv {BUS}.real {BUS}")

    def test_ipv4_by_the_lease_of_dhclient(self):
        self.end_dhcp()
        self.dhclient()
        self.take_over(SITES["a"].gateway)
        self.start_agent()
        self.assert_uplink("ipv4", "lease", SITES["a"].gateway)
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assertGreater(self.lab.tunnel_packets()["tunnel"], 0)
        self.assert_nothing_leaked()
        # It is known from now on, also where the file is gone; and a new agent has its own table.
        self.lab.shell(f"rm {LEASES}/*; ip address add 192.0.2.9/32 dev lo")
        self.assert_uplink("ipv4", "lease", SITES["a"].gateway)
        self.agent.kill9()
        self.start_agent()
        self.assert_uplink("ipv4", "table", SITES["a"].gateway)
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()

    def take_over_from_networkmanager(self):
        """OpenVPN deletes a default by site A, and NetworkManager's Ip4Config has no gateway any more."""
        the_lab.wait_until(lambda: self.known_to_networkmanager("IP4.GATEWAY") == SITES["a"].gateway, what="NetworkManager to see the default")
        self.take_over(SITES["a"].gateway)
        the_lab.wait_until(lambda: self.known_to_networkmanager("IP4.GATEWAY") == "", what="NetworkManager to see the takeover")

    def assert_uplink_by_networkmanager(self):
        self.take_over_from_networkmanager()
        self.start_agent()
        self.assert_uplink("ipv4", "networkmanager", SITES["a"].gateway)
        self.assert_members_seen_at("a", families=(4,))
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_nothing_leaked()

    def test_ipv4_by_networkmanagers_lease(self):
        self.end_dhcp()
        self.networkmanager()
        self.assert_uplink_by_networkmanager()

    def test_ipv4_by_networkmanagers_static_profile(self):
        self.end_dhcp()
        site = SITES["a"]
        self.networkmanager(f"ipv4.method manual ipv4.addresses {site.net4}.77/24 ipv4.gateway {site.gateway}")
        self.assert_uplink_by_networkmanager()

    def test_a_link_that_is_never_a_default_of_networkmanagers(self):
        self.end_dhcp()
        self.networkmanager("ipv4.never-default yes")
        the_lab.wait_until(lambda: f" routers = {SITES['a'].gateway} " in self.known_to_networkmanager("DHCP4.OPTION"),
                           what="NetworkManager to know the lease's router")
        self.lab.shell(f"ip route add default via {SITES['a'].gateway} dev wlan0")
        self.take_over_from_networkmanager()
        self.start_blind()
        self.assert_same(self.agent.status()["families"]["ipv4"]["uplink"], None, "IPv4 uplink")
        self.assert_nothing_leaked()

    def test_the_bus_ends_amid_a_call_to_networkmanager(self):
        """Half of what it would have said is nothing: that the link is never a default came with the other half."""
        self.end_dhcp()
        self.networkmanager("ipv4.never-default yes")
        self.lab.shell(f"ip route add default via {SITES['a'].gateway} dev wlan0")
        self.take_over_from_networkmanager()
        for call in ("GetManagedObjects", "GetAppliedConnection"):
            with self.subTest(call):
                bus = self.cut_bus_at(call)
                log = self.start_blind()
                self.assert_same(the_lab.read_line(bus), "cut", "what became of the call")
                self.assertIn("the sources gave 1 hints", log)  # The IPv6 router, which the kernel knows.
                self.assert_same(self.agent.status()["families"]["ipv4"]["uplink"], None, "IPv4 uplink")
                self.assert_nothing_leaked()
                self.mend_bus(bus)
                self.agent.stop()
        # As the user changes their mind, over a bus that holds.
        self.start_blind()
        self.nm.nmcli("connection", "modify", "lab-wlan0", "ipv4.never-default", "no")
        self.nm.nmcli("device", "reapply", "wlan0")
        self.assert_uplink("ipv4", "main", SITES["a"].gateway)
        self.assert_nothing_leaked()

    def dns(self):
        dns = self.agent.status()["classes"][0]["dns"]
        return dns["by"], dns["from"], dns["servers"]

    def ask_anew(self):
        """As the sources are where an address is new; their answer has been judged when this returns."""
        answers = self.agent.log.read_text().count("the sources gave")
        self.lab.shell(f"ip address add 192.0.2.{self.lab.count()}/32 dev lo")
        the_lab.wait_until(lambda: self.agent.log.read_text().count("the sources gave") > answers, what="the sources' answer")
        self.lab.novpn("plan")

    def test_name_servers_go_on_where_networkmanager_does_not_answer(self):
        """As long as the link is in the same networks; and it is asked again."""
        self.end_dhcp()
        mine, another = SITES["a"].gateway, "192.168.10.53"
        self.networkmanager(f"ipv4.ignore-auto-dns yes ipv4.dns {mine}")
        self.lab.vpn_up("def1")
        self.agent = self.lab.start_agent("log: {level: debug}\nclasses: {novpn: {dns: uplink}}\n")
        self.agent.wait_for(lambda _: self.dns() == ("uplink", "networkmanager", [mine]), "NetworkManager's name server")
        bus = self.cut_bus_at("GetManagedObjects")
        self.ask_anew()
        self.assert_same(the_lab.read_line(bus), "cut", "what became of the call")
        self.assert_same(self.dns(), ("uplink", "networkmanager", [mine]), "DNS while the bus ends amid calls")
        self.mend_bus(bus)
        self.nm.nmcli("connection", "modify", "lab-wlan0", "ipv4.dns", another)
        self.nm.nmcli("device", "reapply", "wlan0")
        self.agent.wait_for(lambda _: self.dns() == ("uplink", "networkmanager", [another]), "another name server, by asking again", 20)
        self.nm.stop()
        self.ask_anew()
        self.assert_same(self.dns(), ("uplink", "networkmanager", [another]), "DNS without NetworkManager")
        self.nm.start()
        self.ask_anew()
        self.assert_same(self.dns(), ("uplink", "networkmanager", [another]), "DNS while NetworkManager starts")
        the_lab.wait_until(lambda: self.known_to_networkmanager("IP4.DNS") == another, 20, "NetworkManager knowing it again", self.nm.log.read_text)
        self.ask_anew()
        self.assert_same(self.dns(), ("uplink", "networkmanager", [another]), "DNS with NetworkManager")
        self.nm.stop()
        self.lab.plug("b")
        self.lab.shell("ip -4 address flush dev wlan0; ip address add 10.20.0.77/24 dev wlan0; ip route add default via 10.20.0.1 dev wlan0")
        self.wait_for_gateway("10.20.0.1")
        self.ask_anew()
        # Who serves there instead is resolv.conf's affair, where the VPN has no way out and ends.
        self.assertNotIn(another, self.dns()[2], "the other site's name server")

    def test_ipv6_by_the_routers_advertisement(self):
        self.lab.vpn_up("def1-ipv6")
        # As a client that replaces the IPv6 default; the next advertisement would bring it back.
        self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra_defrtr=0; ip -6 route del default dev wlan0")
        self.start_agent()
        self.assert_uplink("ipv6", "ra", self.router_address())
        self.assert_uplink("ipv4", "main", SITES["a"].gateway)
        self.assert_members_seen_at("a")
        for family in (4, 6):
            self.assert_others_seen_as(VPN_SEEN[family], family)
        self.assert_nothing_leaked()

    def test_the_lease_of_another_network_is_not_used(self):
        self.end_dhcp()
        self.dhclient()
        self.end_dhcp()
        self.lab.unplug()
        self.lab.forget()
        self.lab.connect("wlan0", "b")
        self.take_over(SITES["b"].gateway)
        log = self.start_blind()
        self.assertIn("the sources gave 2 hints", log)  # The lease, and the IPv6 router that nobody asked for.
        status = self.agent.status()
        self.assert_same(status["families"]["ipv4"]["uplink"], None, "IPv4 uplink")
        self.assert_same([c["uplinks"]["ipv4"] for c in status["classes"]], [None], "the class's IPv4 uplink")
        self.assertIn("no answer", self.lab.seen("tcp", 4, member=True))
        self.assert_members_seen_at("b", families=(6,))
        self.assert_nothing_leaked()
        # A lease of this network, while the agent runs.
        self.end_dhcp()
        self.dhclient(routes=False)
        self.assert_uplink("ipv4", "lease", SITES["b"].gateway)
        self.lab.shell(f"ip route replace default via {SITES['b'].gateway} dev wlan0 table 100")  # gone with the address
        self.assert_members_seen_at("b")
        self.assert_nothing_leaked()

    def test_a_gateway_of_a_lease_that_is_not_on_the_link(self):
        self.end_dhcp()
        self.lab.hand_out("a", "10.66.66.1")
        self.dhclient(routes=False)  # The kernel takes no such route.
        self.lab.shell(f"ip route add default via {SITES['a'].gateway} dev wlan0")
        self.take_over(SITES["a"].gateway)
        self.assertIn("option routers 10.66.66.1;", self.lab.shell(f"cat {LEASES}/*"))
        self.start_blind()
        self.assert_same(self.agent.status()["families"]["ipv4"]["uplink"], None, "IPv4 uplink")
        self.assertIn("no answer", self.lab.seen("tcp", 4, member=True))
        self.assert_members_seen_at("a", families=(6,))
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_nothing_leaked()
        # One that is on the link is taken.
        self.end_dhcp()
        self.lab.hand_out("a", SITES["a"].gateway)
        self.dhclient(routes=False)
        self.assert_uplink("ipv4", "lease", SITES["a"].gateway)
        self.lab.shell(f"ip route replace default via {SITES['a'].gateway} dev wlan0 table 100")  # gone with the address
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()

    def test_a_lease_on_a_disk_that_hangs(self):
        self.end_dhcp()
        self.dhclient()
        self.take_over(SITES["a"].gateway)
        hang = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "hang.py", LEASES)
        the_lab.read_line(hang)
        self.agent = self.lab.start_agent()
        log = self.agent.log.read_text
        the_lab.wait_until(lambda: "one hangs" in log(), what="the agent to say so", detail=log)
        # The loop goes on, with another question and with a client.
        self.lab.shell("ip address add 192.0.2.9/32 dev lo")
        self.assert_same(self.agent.status()["families"]["ipv4"]["uplink"], None, "IPv4 uplink")
        self.lab.end(hang)
        self.assert_uplink("ipv4", "lease", SITES["a"].gateway)
        self.assert_same(log().count("one hangs"), 1, "times that it is said")
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()


if __name__ == "__main__":
    unittest.main(verbosity=2)
