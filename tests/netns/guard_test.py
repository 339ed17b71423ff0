"""The guard: what of a member would leave by another link than those of its class's table is dropped and counted. What is not a
member's is never marked, translated or counted."""
import json
import unittest

from labtest import ECHO, LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

# By the last hook there is: what leaves, and looks like ours or was translated.
WITNESS = f"""table inet witness {{
    counter ordinary {{ }}
    counter marked {{ }}
    counter translated {{ }}
    chain leaving {{
        type filter hook postrouting priority 300
        ip daddr {ECHO[4]} jump count
        ip6 daddr {ECHO[6]} jump count
    }}
    chain count {{
        counter name ordinary
        meta mark & 0xff000000 == 0x4e000000 counter name marked
        ct mark & 0xff000000 == 0x4e000000 counter name marked
        ct status snat counter name translated
    }}
}}"""


class Guard(LabTest):
    config = None

    def packets(self):
        return self.agent.status()["classes"][0]["packets"]

    def start(self, mode="def1-ipv6"):
        self.start_agent(self.config)
        self.vpn_up(mode)
        self.sniffer = self.lab.sniff(*MEMBER_ECHO.values())

    def assert_dropped(self, member, kind, family, bound=None):
        """A packet of that kind does not leave, and is counted."""
        before = self.packets()["dropped"]
        member.new("s", kind, family)
        if bound:
            member.bind_to("s", bound)
        what = f"{kind} over IPv{family}"
        told = member.ping("s", MEMBER_ECHO[family]) if kind == "ping" else member.connect("s", MEMBER_ECHO[family])
        if kind == "udp":
            told = member.ask("s")
        self.assertIn("error", told, what)
        member.close("s")
        self.assertGreater(self.packets()["dropped"], before, what)

    def check(self, **bound):
        member = self.lab.member()
        for family in (4, 6):
            for kind in ("tcp", "udp", "ping"):
                self.assert_dropped(member, kind, family, **bound)
        self.assert_same(self.sniffer.packets("tun0"), [], "members' packets in the tunnel")
        self.assert_nothing_leaked()
        self.assert_others_seen_as(VPN_SEEN[4])
        self.assert_others_seen_as(VPN_SEEN[6], 6)

    def test_a_rule_that_leads_members_astray(self):
        self.start()
        # Preference 0 and 1 leave ours no place before it.
        for family in (4, 6):
            self.lab.shell(f"ip -{family} route add default dev tun0 table 99; ip -{family} rule add preference 1 fwmark 0x4e000000/0xff000000 lookup 99")
        self.agent.wait_for(lambda s: s["health"] == "degraded", "the rule named")
        self.check()

    def test_a_socket_that_is_bound_to_the_tunnel(self):
        self.start()
        self.check(bound="tun0")

    def test_members_reach_this_machine_and_the_lan(self):
        self.start()
        before = self.packets()["dropped"]
        echo = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "echo.py", "127.0.0.1", self.lab.laptop_address())
        the_lab.read_line(echo)
        member = self.lab.member()
        for name, host in (("lo", "127.0.0.1"), ("own", self.lab.laptop_address())):
            member.new(name, "tcp")
            member.connect(name, host)
            self.assertNotIn("error", member.ask(name), host)
        member.new("lan", "ping")
        self.assertNotIn("error", member.ping("lan", SITES["a"].gateway))
        self.assert_same(self.packets()["dropped"], before, "dropped packets")

    def test_ordinary_packets_are_none_of_ours(self):
        self.start()
        self.lab.run("nft", "-f", "-", input=WITNESS)
        self.assert_members_seen_at("a")
        before = self.packets()
        ordinary = self.lab.member(member=False)
        for family in (4, 6):
            for kind in ("tcp", "udp"):
                ordinary.new("s", kind, family)
                ordinary.connect("s", ECHO[family])
                for _ in range(3):
                    self.assert_same(ordinary.ask("s").get("seen"), VPN_SEEN[family], f"an ordinary {kind} over IPv{family}")
            ordinary.new("p", "ping", family)
            self.assertNotIn("error", ordinary.ping("p", ECHO[family]))
        self.assert_same(self.packets(), before, "what the class has counted")
        found = json.loads(self.lab.run("nft", "-j", "list", "counters", "table", "inet", "witness").stdout)
        counts = {item["counter"]["name"]: item["counter"]["packets"] for item in found["nftables"] if "counter" in item}
        self.assertGreater(counts["ordinary"], 12, counts)
        self.assert_same((counts["marked"], counts["translated"]), (0, 0), f"ordinary packets that were touched ({counts})")


class GuardByNft(Guard):
    config = "marking: nft\n"


if __name__ == "__main__":
    unittest.main(verbosity=2)
