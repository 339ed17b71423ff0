"""The class follows the place: on at home, off in the office, on again at home; real packets at each arrival."""
import json
import queue
import sys
import threading
import time
import unittest

from apps_test import APPS, Apps
from labtest import LabTest, SITES, VPN_SEEN, the_lab

CONFIG = """sites:
  - {name: office, match: {network: 10.20.0.0/16}, classes: {novpn: off}}
  - {name: home, match: {network: 192.168.10.0/24}}
"""
HOME, CAFE = "c0:ff:ee:00:11:22", "c0:ff:ee:00:11:33"
# The café has home's numbers, and another gateway.
WALK = f"""
classes:
  novpn: {{apps: [spotify]}}
sites:
  - {{name: office, match: {{domain: "*.corp.example"}}, classes: {{novpn: off}}}}
  - {{name: home, match: {{gateway_mac: "{HOME.upper()}", link: "wl*"}}, classes: {{novpn: {{add: {{apps: [steam]}}}}}}}}
  - {{name: cafe, match: {{network: 192.168.10.0/24}}, classes: {{novpn: {{apps: [zoom]}}}}}}
"""
# When the first packet came in by the link, on the clock of time.monotonic(), which is that of all processes.
FIRST_PACKET = """
import socket, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
sock.bind(("wlan0", 3))
print("ready", flush=True)
while sock.recvfrom(1)[1][2] == socket.PACKET_OUTGOING:
    pass
print(time.monotonic(), flush=True)
"""


class Sites(LabTest):
    def wait_for_site(self, name, state):
        return self.agent.wait_for(lambda s: (s["site"], s["classes"][0]["state"]) == (name, state), f"site {name}", timeout=20)

    def test_home_office_home(self):
        self.start_agent(CONFIG)
        self.wait_for_site("home", "steering")
        self.vpn_up("def1")
        self.assert_members_seen_at("a", families=(4,))
        flow = self.lab.flow("hold", "tcp", 4, member=True)
        self.assert_same(flow.seen, SITES["a"].seen4, "a member's flow at home")

        self.lab.roam("b")
        status = self.wait_for_site("office", "off")
        self.assert_same([(s["name"], s["matches"], s["failed"]) for s in status["sites"]],
                         [("office", "yes", []), ("home", "no", ["network"])], "sites")
        # What bypassed at home does not go on, and nothing new begins to.
        self.assertIn("no answer", flow.ask())
        refused = self.lab.novpn("run", "--", "true", check=False)
        self.assertIn("class novpn is off", refused.stderr)
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 20, "OpenVPN reconnecting from site B", self.agent.explain)

        self.lab.roam("a")
        self.wait_for_site("home", "steering")
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_members_seen_at("a", families=(4,))

    def test_reloads_with_sites_lose_no_packet_of_a_flow_that_they_do_not_concern(self):
        """Other sites, other selectors of the class, the class of others on and off: while packets go every 2 ms."""
        other = "classes: {other: {table: 7867, mark: 0x4f000000/0xff000000, preference: 70, destinations: [192.0.2.0/24]}}\n"
        configs = [
            CONFIG, "{}\n", WALK,
            other + CONFIG + "  - {name: c, match: {domain: x.example}, classes: {novpn: off}}\n",
            other + "sites:\n  - {name: home, match: {network: 192.168.10.0/24}, classes: {other: off, novpn: {add: {destinations: [192.0.2.9]}}}}\n",
            other + "sites:\n  - {name: home, match: {network: 192.168.10.0/24}, classes: {novpn: {destinations: [192.0.2.8]}}}\n",
        ]
        self.lab.shell(f"ip link set lan address {HOME}", "router_a")
        self.lab.shell("ip neighbour flush dev wlan0; ip -6 neighbour flush dev wlan0")
        self.start_agent("{}\n")
        self.vpn_up("def1")
        flows = {(protocol, member): self.lab.flow("stream", protocol, 4, member=member)
                 for protocol in ("tcp", "udp") for member in (True, False)}
        for config in configs * 3:
            (self.lab.directory / "novpn.yaml").write_text(config)
            self.lab.novpn("reload")
        for (protocol, member), flow in flows.items():
            counts = flow.finish()
            what = f"{'a member' if member else 'another process'} over {protocol}: {counts}"
            self.assertGreater(counts["sent"], 100, what)
            self.assertEqual((counts["answered"], counts["errors"]), (counts["sent"], []), what)
            self.assertEqual(counts["seen"], [SITES["a"].seen4 if member else VPN_SEEN[4]], what)


class Walk(Apps):
    def setUp(self):
        super().setUp()
        for app in ("spotify", "steam", "zoom"):
            path = self.make(f"{APPS}/app-{app}-1.scope")
            self.lab.spawn("sh", "-ec", f"echo $$ > {path}/cgroup.procs; exec sleep infinity")

    def members(self, *apps):
        return {f"{APPS}/app-{app}-1.scope" for app in apps}

    def follow(self):
        """Events with their time, as they come."""
        process = self.lab.spawn(*self.lab.novpn_command("watch", "--json"))
        events = queue.Queue()

        def read():
            for line in process.stdout:
                events.put((time.monotonic(), json.loads(line)))
        threading.Thread(target=read, daemon=True).start()
        events.get(timeout=self.patience)
        return events

    def arrive(self, events, where, site, name, apps, mac=None):
        """Roams, and tells how long it took from the first packet of the new network to the policy of the site."""
        self.lab.unplug()
        self.lab.forget()
        if mac:
            self.lab.shell(f"ip link set lan address {mac}", SITES[site].router)
        first = self.lab.spawn(sys.executable, "-c", FIRST_PACKET)
        the_lab.read_line(first)
        self.lab.connect("wlan0", site)
        while True:
            at, event = events.get(timeout=self.patience)
            if event["site"] == name:
                break
        print(f"{where}: {1000 * (at - float(the_lab.read_line(first))):.1f} ms from the first packet to the policy of site "
              f"{name} ({event['cause']}; the agent's part {event['reaction_us']} us)")
        self.wait_for_members(self.members(*apps))
        return self.agent.status()

    def test_home_office_cafe_home(self):
        self.lab.shell(f"ip link set lan address {HOME}", "router_a")
        self.lab.shell("ip neighbour flush dev wlan0; ip -6 neighbour flush dev wlan0")
        self.lab.hand_out("b", SITES["b"].gateway, "domain-name,Eu.Corp.Example")
        self.start_agent(WALK)
        self.agent.wait_for(lambda s: s["site"] == "home", "home", self.patience)
        self.wait_for_members(self.members("spotify", "steam"))
        self.assertIn({"key": "gateway_mac", "value": HOME}, self.agent.status()["place"])
        self.lab.vpn_up("def1")
        self.agent.wait_for(lambda s: s["families"]["ipv4"]["takeovers"], "a takeover", self.patience)
        self.assert_seen({"spotify": True, "steam": True, "zoom": False})
        events = self.follow()

        status = self.arrive(events, "office", "b", "office", [])
        self.assertEqual(status["classes"][0]["state"], "off")
        self.assertIn({"key": "domain", "value": "eu.corp.example"}, status["place"])
        self.assert_seen({"spotify": False, "steam": False, "zoom": False})

        status = self.arrive(events, "café", "a", "cafe", ["zoom"], CAFE)
        self.assertEqual({s["name"]: s["failed"] for s in status["sites"]}, {"office": ["domain"], "home": ["gateway_mac"], "cafe": []})
        self.assert_seen({"spotify": False, "steam": False, "zoom": True})

        self.arrive(events, "home again", "a", "home", ["spotify", "steam"], HOME)
        self.assert_seen({"spotify": True, "steam": True, "zoom": False})

    def assert_seen(self, outside):
        """Which apps leave outside the VPN now; the others, once the VPN has followed, by it."""
        the_lab.wait_until(lambda: self.lab.seen() == VPN_SEEN[4], 30, "the VPN", self.agent.explain)
        for app, is_outside in outside.items():
            want = SITES["a"].seen4 if is_outside else VPN_SEEN[4]
            self.assert_same(self.seen_from(f"{APPS}/app-{app}-1.scope"), want, f"{app} at {self.agent.status()['site']}")

    def test_without_an_answer_of_the_gateway_the_stricter_holds(self):
        """Home opens something: while its gateway does not answer, it may be any network."""
        self.lab.shell(f"ip link set lan address {HOME}", "router_a")
        self.lab.shell("""sysctl -qw net.ipv4.conf.lan.arp_ignore=8
            nft 'add table ip6 mute; add chain ip6 mute output { type filter hook output priority 0; };
                 add rule ip6 mute output icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit, nd-router-advert } drop'""",
                       "router_a")
        self.lab.shell("ip neighbour flush dev wlan0; ip -6 neighbour flush dev wlan0")
        self.start_agent(WALK.replace("office", "nowhere"))
        self.agent.wait_for(lambda s: ["gateway_mac"] in [v["failed"] for v in s["sites"] if v["matches"] == "unknown"],
                            "home not known", self.patience)
        self.wait_for_members([])
        self.lab.shell("sysctl -qw net.ipv4.conf.lan.arp_ignore=0; nft delete table ip6 mute", "router_a")
        self.wait_for_members(self.members("spotify", "steam"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
