"""Strict reverse path filtering: replies to members arrive all the same, by src_valid_mark of the uplink alone, which is as it
was before once nothing of ours is there."""
import json
import signal
import unittest

from interference_test import Firewalld
from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

STRICT = "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.wlan0.rp_filter=1"
SETTING = "src_valid_mark"
# A datagram that is too large for the far side of the router, and a host that refuses: what a member's socket is told.
TOO_LARGE, MTU = 1400, 1280
ERRORS = f"""
import errno, json, select, socket, sys
def told(host, port, size):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: IP_PMTUDISC_PROBE leaves the size alone and lets the router object.
    sock.setsockopt(*((socket.IPPROTO_IPV6, 23, 3) if ":" in host else (socket.IPPROTO_IP, 10, 3)))
    sock.setsockopt(*((socket.IPPROTO_IPV6, 25, 1) if ":" in host else (socket.IPPROTO_IP, 11, 1)))  # RECVERR
    sock.connect((host, port))
    sock.send(bytes(size))
    poll = select.poll()
    poll.register(sock, 0)
    if not poll.poll(3000): return "nothing"
    return errno.errorcode[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
print(json.dumps([told(sys.argv[1], 9, 10), told(sys.argv[1], 7000, {TOO_LARGE})]))
"""


class ReversePath(LabTest):
    wired = True

    def setting(self, link, name=SETTING):
        return int(self.lab.shell(f"sysctl -n net.ipv4.conf.{link}.{name}"))

    def settings(self):
        return {link: self.setting(link) for link in ("all", "default", "lo", "wlan0", "eth0")}

    def assert_set_on(self, *links):
        wanted = {link: int(link in links) for link in self.settings()}
        self.assert_same(self.settings(), wanted, SETTING)

    def strict(self):
        self.lab.shell(STRICT)
        self.before = self.lab.snapshot()

    def assert_replies(self):
        for family, text in ((4, SITES["a"].seen4), (6, self.lab.laptop_address(6))):
            for protocol in ("tcp", "udp"):
                self.assert_same(self.lab.seen(protocol, family, member=True), text, f"a member's {protocol} over IPv{family}")

    def test_set_on_the_uplink_only_and_reset_by_a_stop(self):
        self.strict()
        self.start_agent()
        self.assert_set_on("wlan0")
        self.vpn_up("def1-ipv6")
        self.assert_replies()
        self.assert_others_seen_as(VPN_SEEN[4])
        self.vpn_down()
        self.assert_set_on("wlan0")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(self.before)

    def test_not_touched_where_it_is_not_needed(self):
        for value in (0, 2):
            with self.subTest(rp_filter=value):
                self.lab.shell(STRICT.replace("=1", f"={value}"))
                self.start_agent()
                self.vpn_up("def1")
                self.assert_set_on()
                self.assert_same(self.setting("wlan0", "tag"), 0, "tag")
                self.vpn_down()
                self.agent.stop()

    def test_errors_of_the_network_reach_a_member(self):
        """ICMP by a router on the way, and by the host itself."""
        self.lab.shell(STRICT)
        self.lab.shell(f"ip link set to_a mtu {MTU}", "internet")
        self.lab.shell(f"ip link set wan mtu {MTU}", "router_a")
        self.start_agent()
        self.vpn_up("def1-ipv6")
        for family in (4, 6):
            command = self.lab.novpn_command("run", "--", the_lab.PYTHON, "-c", ERRORS, MEMBER_ECHO[family])
            self.assert_same(self.lab.run(*command).stdout.strip(), '["ECONNREFUSED", "EMSGSIZE"]', f"errors over IPv{family}")
        self.assert_nothing_leaked()

    def test_a_filter_that_becomes_strict_is_noticed(self):
        self.start_agent()
        self.vpn_up("def1")
        self.assert_set_on()
        self.lab.shell(STRICT)
        the_lab.wait_until(lambda: self.setting("wlan0"), what=SETTING, detail=self.agent.explain)
        self.assert_replies()
        self.lab.shell(STRICT.replace("=1", "=2"))
        the_lab.wait_until(lambda: not self.setting("wlan0"), what=f"{SETTING} reset", detail=self.agent.explain)
        self.assert_same(self.setting("wlan0", "tag"), 0, "tag")

    def test_moves_with_the_uplink(self):
        self.strict()
        self.start_agent()
        self.vpn_up("def1")
        self.lab.connect("eth0", "b")
        self.wait_for_gateway(SITES["b"].gateway, "eth0")
        self.assert_set_on("eth0")
        self.assert_members_seen_at("b", families=(4,), link="eth0")
        self.lab.unplug("eth0")
        self.lab.forget("eth0")
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_set_on("wlan0")
        self.assert_replies()

    def test_a_new_agent_adopts_it_and_restores_it(self):
        self.strict()
        self.start_agent()
        for end in (lambda: self.agent.kill9(), lambda: self.agent.stop(signal.SIGUSR1)):
            end()
            self.assert_set_on("wlan0")
            self.start_agent()
            self.assertNotIn("sysctl -w", self.agent.log.read_text())
        self.agent.stop()
        self.assert_state_is(self.before)

    def test_after_a_crash_down_restores_it(self):
        self.strict()
        self.start_agent()
        self.agent.kill9()
        # Whatever else of ours is gone: the link itself says whose it is.
        self.lab.shell("nft flush ruleset")
        self.lab.novpn("down", "--force")
        self.assert_state_is(self.before)

    def test_after_a_crash_a_new_agent_restores_what_is_not_the_uplink_any_more(self):
        self.strict()
        self.start_agent()
        self.agent.kill9()
        self.lab.connect("eth0", "b")
        self.start_agent()
        self.wait_for_gateway(SITES["b"].gateway, "eth0")
        self.assert_set_on("eth0")
        self.assert_same(self.setting("wlan0", "tag"), 0, "tag of wlan0")

    def test_somebody_elses_stays_theirs(self):
        self.lab.shell(f"sysctl -qw net.ipv4.conf.wlan0.{SETTING}=1")
        self.strict()
        self.start_agent()
        self.assert_same(self.setting("wlan0", "tag"), 0, "tag")
        self.vpn_up("def1")
        self.assert_replies()
        self.vpn_down()
        self.agent.kill9()
        self.lab.novpn("down", "--force")
        self.assert_state_is(self.before)

    def test_reset_by_somebody_else_is_put_back_at_once(self):
        """Of that no netlink tells. The log is read, as a status would be a look."""
        self.strict()
        self.start_agent()
        self.vpn_up("def1")
        for _ in range(3):
            self.lab.shell(f"sysctl -qw net.ipv4.conf.wlan0.{SETTING}=0")
            the_lab.wait_until(lambda: self.setting("wlan0"), what=f"{SETTING} put back", detail=self.agent.log.read_text)
        self.assert_replies()
        self.assertEqual(self.agent.status()["repairs"], 3)

    def test_of_all_is_followed(self):
        """conf.all speaks for every link: then nothing of ours is needed, and without it again it is."""
        self.strict()
        self.start_agent()
        self.assert_set_on("wlan0")
        self.lab.shell(f"sysctl -qw net.ipv4.conf.all.{SETTING}=1")
        the_lab.wait_until(lambda: not self.setting("wlan0"), what=f"{SETTING} taken back", detail=self.agent.log.read_text)
        self.lab.shell(f"sysctl -qw net.ipv4.conf.all.{SETTING}=0")
        the_lab.wait_until(lambda: self.setting("wlan0"), what=f"{SETTING} of the link", detail=self.agent.log.read_text)
        self.vpn_up("def1")
        self.assert_replies()

    def test_a_tag_of_somebody_else_is_named_and_kept(self):
        self.lab.shell("sysctl -qw net.ipv4.conf.wlan0.tag=5")
        self.strict()
        self.start_agent()
        warnings = {w["code"]: w["text"] for w in self.agent.status()["warnings"]}
        self.assertIn("wlan0.tag", warnings["rp_filter"])
        self.agent.stop()
        self.assert_state_is(self.before)


class StrictIpv6(LabTest):
    """firewalld's: `fib saddr . mark . iif oif missing drop`, where the VPN has replaced the IPv6 default."""

    def check(self, marking):
        self.start_agent(f"marking: {marking}\n")
        self.lab.vpn_up("none")
        self.lab.shell(f"""sysctl -qw net.ipv6.conf.wlan0.accept_ra_defrtr=0
            ip -6 route del default dev wlan0; ip -6 route add default dev tun0""")
        self.wait_for_takeover(("ipv6",))
        firewalld = Firewalld(self.lab)
        ruleset = self.lab.shell("nft list ruleset")
        self.assertIn("fib saddr . mark . iif oif missing drop", ruleset)
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[6], 6)
        self.assert_nothing_leaked()
        # A stranger's packet for the tunnel's address has no business at the uplink: the filter still drops it.
        self.assert_unsolicited_is_dropped()
        firewalld.stop()

    def assert_unsolicited_is_dropped(self):
        tunnels = self.lab.laptop_address(6, "tun0")
        self.lab.run("nft", "-f", "-", input=f"""table inet witness {{
            counter arrived {{ }}
            counter near {{ }}
            chain arriving {{
                type filter hook input priority -300
                iifname wlan0 ip6 daddr {tunnels} udp dport 9999 counter name arrived
                iifname wlan0 udp dport 9998 counter name near
            }}
        }}""")
        self.lab.shell(f"ip -6 route add {tunnels} via {self.lab.laptop_address(6)} dev lan; ip address add 2001:db8:ffff::99/128 dev lo nodad", "router_a")
        sender = "import socket, sys; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0)); s.sendto(b'x', (sys.argv[2], int(sys.argv[3])))"
        for source, destination, port in (("2001:db8:ffff::99", tunnels, 9999), (f"{SITES['a'].net6}:1", self.lab.laptop_address(6), 9998)):
            self.lab.run(the_lab.PYTHON, "-c", sender, source, destination, port, namespace="router_a")

        def counted(name):
            return int(self.lab.shell(f"nft -j list counter inet witness {name}").split('"packets": ')[1].split(",")[0].rstrip("}"))

        the_lab.wait_until(lambda: counted("near"), what="the neighbour's packet")
        self.assert_same(counted("arrived"), 0, "packets let in")

    def test_marked_by_bpf(self):
        self.check("auto")

    def test_marked_by_nft(self):
        self.check("nft")


# Others' filters that stand before conntrack, or before the chain that restores marks by it; both families at once. As
# firewalld had it until 0.9; by hand; as in ip6tables(8); and NixOS's.
NFT_RAW = """
nft -f - <<'RULES'
table inet early {{
    chain pre {{ type filter hook prerouting priority {priority}; jump judge; }}
    chain judge {{
        icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
        udp dport 68 accept
        iif != lo {fib} oif missing counter drop
    }}
}}
RULES
"""
FIREWALLD_WAS = NFT_RAW.format(priority="raw + 10", fib="fib saddr . mark . iif")
RPFILTER = """
for f in iptables ip6tables; do
    $f -t raw -A PREROUTING -p udp --dport 68 -j ACCEPT
    $f -t raw -A PREROUTING -m rpfilter --validmark --invert -j DROP
done
"""
NIXOS = """
for f in iptables ip6tables; do
    $f -t mangle -N nixos-fw-rpfilter
    $f -t mangle -A nixos-fw-rpfilter -m rpfilter --validmark -j RETURN
    $f -t mangle -A nixos-fw-rpfilter -p udp --dport 68 -j RETURN
    $f -t mangle -A nixos-fw-rpfilter -j DROP
    $f -t mangle -A PREROUTING -j nixos-fw-rpfilter
done
"""
STRANGER = {4: "203.0.113.99", 6: "2001:db8:ffff::99"}
PORTS = {"wildcard": 9101, "bound": 9102, "listening": 9103}
SEND = """
import socket, sys
source, destination, port, kind = sys.argv[1:]
sock = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, getattr(socket, kind))
sock.bind((source, 0))
sock.settimeout(0.5)
try:
    sock.connect((destination, int(port)))
    sock.send(b"unasked")
except TimeoutError:
    pass
"""
# First and last of all that a packet passes on its way in.
WITNESS = """
table inet witness {
    counter near { }
    counter arrived { }
    counter marked { }
    chain first {
        type filter hook prerouting priority -398
        th dport { 9101, 9102, 9103 } meta mark & 0xff000000 == 0x4e000000 counter name marked
    }
    chain last {
        type filter hook input priority -300
        meta l4proto { tcp, udp } th dport { 9101, 9102, 9103 } counter name arrived
        udp dport 9998 counter name near
    }
}
"""


class EarlyFilters(LabTest):
    def start(self, config=None):
        self.start_agent(config)
        self.vpn_up("def1-ipv6")
        self.lab.shell("""sysctl -qw net.ipv6.conf.wlan0.accept_ra_defrtr=0
            ip -6 route del default dev wlan0; ip -6 route add default dev tun0""")
        self.wait_for_takeover(("ipv4", "ipv6"))

    def has_answers_early(self):
        return "chain early" in self.lab.shell("nft list table inet novpn")

    def counted(self, name):
        return int(self.lab.shell(f"nft -j list counter inet witness {name}").split('"packets": ')[1].split(",")[0].rstrip("}"))

    def assert_the_filter_bites(self):
        """An ordinary process that binds itself to the uplink: nothing of ours is for it. By IPv6 it has no route there."""
        other = self.lab.member(member=False)
        other.new("s", "udp")
        other.bind_to("s", "wlan0")
        self.assert_same(other.ask_to("s", the_lab.ECHO[4]).get("error"), "ETIMEDOUT", "an ordinary answer")

    def assert_answers(self):
        self.assert_members_seen_at("a")
        member = self.lab.member()
        for family in (4, 6):
            member.new(f"u{family}", "udp", family)
            self.assert_same(member.ask_to(f"u{family}", MEMBER_ECHO[family]).get("seen"), self.lab.site_address("a", family), f"UDP without a peer over IPv{family}")
            member.new(f"p{family}", "ping", family)
            self.assert_same(member.ping(f"p{family}", MEMBER_ECHO[family]).get("error"), None, f"a ping over IPv{family}")
        self.assert_nothing_leaked()

    def assert_unsolicited_is_dropped(self):
        """Whatever listens in the class."""
        self.lab.run("nft", "-f", "-", input=WITNESS)
        self.lab.shell(f"ip address add {STRANGER[4]}/32 dev lo; ip address add {STRANGER[6]}/128 dev lo nodad", "router_a")
        member = self.lab.member()
        member.new("wildcard", "udp", 6)  # of both families
        self.assert_same(member.bind("wildcard", "::", PORTS["wildcard"]).get("error"), None, "wildcard")
        for family in (4, 6):
            own = self.lab.laptop_address(family)
            member.new(f"bound{family}", "udp", family)
            self.assert_same(member.bind(f"bound{family}", own, PORTS["bound"]).get("error"), None, "bound")
            member.new(f"listening{family}", "tcp", family)
            self.assert_same(member.listen(f"listening{family}", PORTS["listening"], own).get("error"), None, "listening")
        for family in (4, 6):
            own = self.lab.laptop_address(family)
            for name, port in PORTS.items():
                kind = "SOCK_STREAM" if name == "listening" else "SOCK_DGRAM"
                self.lab.run(the_lab.PYTHON, "-c", SEND, STRANGER[family], own, port, kind, namespace="router_a")
            near = SITES["a"].gateway if family == 4 else f"{SITES['a'].net6}:1"
            before = self.counted("near")
            self.lab.run(the_lab.PYTHON, "-c", SEND, near, own, 9998, "SOCK_DGRAM", namespace="router_a")
            the_lab.wait_until(lambda: self.counted("near") > before, what="the neighbour's packet")
        self.assert_same((self.counted("arrived"), self.counted("marked")), (0, 0), "a stranger's packets let in, and marked")
        # The counters count: from next door they do arrive, and what listens is a member's.
        self.lab.run(the_lab.PYTHON, "-c", SEND, SITES["a"].gateway, self.lab.laptop_address(), PORTS["bound"], "SOCK_DGRAM", namespace="router_a")
        the_lab.wait_until(lambda: self.counted("arrived"), what="a neighbour's packet for the member")
        self.assert_same(self.counted("marked"), 0, "a neighbour's packets marked")

    def check(self, rules, config=None):
        self.start(config)
        self.assertFalse(self.has_answers_early())
        self.lab.shell(rules)
        the_lab.wait_until(self.has_answers_early, what="answers told early", detail=self.agent.log.read_text)
        self.assert_the_filter_bites()
        self.assert_answers()
        self.assert_unsolicited_is_dropped()
        self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra_defrtr=1")
        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.assert_members_seen_at("b", families=(4,))

    def test_of_nft_as_firewalld_had_it(self):
        self.check(FIREWALLD_WAS)
        self.lab.shell("nft delete table inet early")
        the_lab.wait_until(lambda: not self.has_answers_early(), what="nothing of it left", detail=self.agent.log.read_text)

    def test_of_nft_where_nft_marks_alone(self):
        """With the tunnel's source address, which is masqueraded."""
        self.check(FIREWALLD_WAS, "marking: nft\n")

    def test_of_iptables_nft_in_raw(self):
        self.check(RPFILTER.replace("tables", "tables-nft"))

    def test_of_iptables_nft_in_mangle_as_nixos_has_it(self):
        self.check(NIXOS.replace("tables", "tables-nft"))

    def test_of_iptables_legacy_that_was_there_before(self):
        """Nobody tells when it comes, and its rules cannot be read: its table is enough."""
        self.lab.shell(RPFILTER.replace("tables", "tables-legacy"))
        self.start()
        self.assertTrue(self.has_answers_early())
        self.assert_the_filter_bites()
        self.assert_answers()
        self.assert_unsolicited_is_dropped()

    def test_errors_of_the_network_reach_a_member(self):
        self.lab.shell(f"ip link set to_a mtu {MTU}", "internet")
        self.lab.shell(f"ip link set wan mtu {MTU}", "router_a")
        self.start()
        self.lab.shell(FIREWALLD_WAS)
        the_lab.wait_until(self.has_answers_early, what="answers told early", detail=self.agent.log.read_text)
        for family in (4, 6):
            command = self.lab.novpn_command("run", "--", the_lab.PYTHON, "-c", ERRORS, MEMBER_ECHO[family])
            self.assert_same(self.lab.run(*command).stdout.strip(), '["ECONNREFUSED", "EMSGSIZE"]', f"errors over IPv{family}")

    def test_one_that_does_not_go_by_marks_is_named(self):
        self.start()
        for rules, mend in ((NFT_RAW.format(priority="raw", fib="fib saddr . iif"), "fib saddr . mark . iif"),
                            ("iptables-nft -t raw -A PREROUTING -m rpfilter --invert -j DROP", "--validmark")):
            with self.subTest(mend):
                self.lab.shell(rules)
                findings = json.loads(self.lab.novpn("doctor", "--json", check=False, timeout=60).stdout)["findings"]
                named = [f for f in findings if f["check"] == "rpfilter" and f["state"] == "wrong" and mend in f["mend"]]
                self.assertEqual(len(named), 1, findings)
        self.assertFalse(self.has_answers_early())


if __name__ == "__main__":
    unittest.main(verbosity=2)
