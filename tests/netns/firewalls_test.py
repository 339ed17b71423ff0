"""Firewalls of others that drop what members send: named by `novpn status` and `novpn doctor`, with a command that mends it.
Those that drop nothing of it are not."""
import json
import unittest

from interference_test import DOCKER, NFT, UFW, Firewalld, ufw_itself
from labtest import LabTest, VPN_SEEN
from lab import MEMBER_ECHO

VPN_SERVER = "203.0.113.20"

# As VPN clients and howtos have it: out by the tunnel, to the VPN's server and by DHCP; nothing else.
KILL_SWITCH_NFT = f"""
nft -f - <<'RULES'
table inet killswitch {{
    chain output {{
        type filter hook output priority filter; policy drop;
        oif lo accept
        oifname "tun0" accept
        ip daddr {VPN_SERVER} accept
        udp dport 67 accept
        meta l4proto ipv6-icmp accept
        ct state established,related accept
    }}
}}
RULES
"""
REJECT_NFT = f"""
nft -f - <<'RULES'
table ip vpnguard {{
    chain allowed {{
        oifname {{ lo, tun0 }} accept
        ip daddr {{ {VPN_SERVER}, 192.168.10.0/24 }} accept
        counter reject with icmp admin-prohibited
    }}
    chain out {{ type filter hook output priority 0; policy accept; jump allowed; }}
}}
RULES
"""
KILL_SWITCH_IPTABLES = f"""
iptables -A OUTPUT -o lo -j ACCEPT
iptables -A OUTPUT -o tun0 -j ACCEPT
iptables -A OUTPUT -d {VPN_SERVER} -j ACCEPT
iptables -A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -P OUTPUT DROP
"""
# Of ufw that denies what goes out and allows tun0: the shape of its chains.
UFW_DENY_OUT = UFW + f"""
iptables -N ufw-before-output
iptables -N ufw-user-output
iptables -P OUTPUT DROP
iptables -A OUTPUT -j ufw-before-output
iptables -A ufw-before-output -o lo -j ACCEPT
iptables -A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A ufw-before-output -j ufw-user-output
iptables -A ufw-user-output -o tun0 -j ACCEPT
iptables -A ufw-user-output -d {VPN_SERVER} -j ACCEPT
"""
# Rules that drop something, but nothing that is sent here.
HARMLESS = """
nft -f - <<'RULES'
table inet tidy {
    chain out { type filter hook output priority 0; policy accept; ct state invalid drop; tcp dport 25 reject; }
    chain post { type filter hook postrouting priority 0; policy accept; oifname "docker0" drop; }
}
RULES
"""


class NamedFirewall(LabTest):
    def warning(self):
        return next((w["text"] for w in self.agent.status()["warnings"] if w["code"] == "firewall"), None)

    def doctor(self):
        result = self.lab.novpn("doctor", "--json", check=False, timeout=60)
        return json.loads(result.stdout)["findings"]


class KillSwitches(NamedFirewall):
    def check(self, rules, name):
        self.start_agent()
        self.vpn_up("def1")
        self.assert_members_seen_at("a", families=(4,))
        self.assertIsNone(self.warning())
        self.lab.shell(rules)
        self.assertIsNone(self.warning(), "nobody has sent anything yet")
        self.lab.probe("tcp", MEMBER_ECHO[4], member=True, check=False)
        self.assert_others_seen_as(VPN_SEEN[4])

        status = self.agent.status()
        self.assertEqual((status["health"], status["summary"]), ("degraded", self.warning()), self.agent.explain())
        self.assertIn("Class novpn is held up", status["summary"])
        self.assertIn(name, status["summary"])
        self.assertNotIn("tidy", status["summary"])
        self.assertIn(status["summary"], self.lab.novpn("status").stdout.splitlines()[0])

        findings = self.doctor()
        named = [f for f in findings if f["check"] == "firewall" and f["text"].startswith("ipv4")]
        self.assertEqual([f["state"] for f in named], ["wrong"], findings)
        self.assertIn(name, named[0]["text"])
        # What the doctor says is typed.
        for finding in findings:
            if finding["check"] == "firewall":
                self.lab.shell(finding["mend"].removeprefix("sudo "))
        self.assert_members_seen_at("a", families=(4,))
        self.assertIsNone(self.warning())
        self.assertEqual(self.agent.status()["health"], "ok", self.agent.explain())
        self.assertEqual([f for f in self.doctor() if f["state"] == "wrong"], [])
        self.assert_nothing_leaked()

    def test_nft_with_a_drop_policy(self):
        self.check(KILL_SWITCH_NFT, "table inet killswitch, chain output (policy drop)")

    def test_nft_that_rejects_at_the_end_of_a_chain(self):
        self.check(REJECT_NFT, "table ip vpnguard, chain out")

    def test_iptables_nft(self):
        self.check(KILL_SWITCH_IPTABLES.replace("iptables", "iptables-nft"), "table ip filter, chain OUTPUT (policy drop)")

    def test_iptables_legacy(self):
        self.check(KILL_SWITCH_IPTABLES.replace("iptables", "iptables-legacy"), "table filter of iptables-legacy")

    def test_ufw_that_denies_what_goes_out(self):
        self.check(UFW_DENY_OUT.replace("tables", "tables-nft"), "table ip filter, chain OUTPUT (policy drop)")

    def test_ufw_itself_that_denies_what_goes_out(self):
        self.check(ufw_itself("default deny outgoing", "allow out on tun0", f"allow out to {VPN_SERVER}"),
                   "table ip filter, chain OUTPUT (policy drop)")

    def test_beside_a_firewall_that_drops_less(self):
        self.check(HARMLESS + KILL_SWITCH_NFT, "table inet killswitch, chain output (policy drop)")

    def test_it_is_named_by_a_new_agent_too_and_forgotten_when_it_goes(self):
        self.start_agent()
        self.vpn_up("def1")
        self.lab.shell(KILL_SWITCH_NFT)
        self.lab.probe("tcp", MEMBER_ECHO[4], member=True, check=False)
        self.agent.kill9()
        self.start_agent()
        self.assertIn("table inet killswitch", self.warning() or self.agent.explain())
        self.lab.shell("nft delete table inet killswitch")
        self.assertIsNone(self.warning())
        self.assertEqual(self.agent.status()["health"], "ok")


class ElsewhereThanInFilter(NamedFirewall):
    """Before our marking, or behind our guard: what is lost there is in no counter of ours. doctor's packet does not leave."""

    def check(self, tool, table, chain, name):
        self.start_agent()
        self.vpn_up("def1")
        self.assert_members_seen_at("a", families=(4,))
        self.lab.shell(f"{tool} -t {table} -A {chain} -d {VPN_SERVER} -j ACCEPT; {tool} -t {table} -A {chain} ! -o lo -m mark ! --mark 0 -j DROP")
        findings = self.doctor()
        named = [f for f in findings if f["check"] == "firewall" and name in f["text"]]
        self.assertEqual({f["state"] for f in named}, {"wrong"}, findings)
        for finding in named:
            self.lab.shell(finding["mend"].removeprefix("sudo "))
        self.assert_members_seen_at("a", families=(4,))
        self.assertEqual([f for f in self.doctor() if f["state"] == "wrong"], [])

    def test_in_raw_by_iptables_nft(self):
        self.check("iptables-nft", "raw", "OUTPUT", "table ip raw, chain OUTPUT")

    def test_in_raw_by_iptables_legacy(self):
        self.check("iptables-legacy", "raw", "OUTPUT", "table raw of iptables-legacy")

    def test_in_mangle_behind_the_route_by_iptables_nft(self):
        self.check("iptables-nft", "mangle", "POSTROUTING", "table ip mangle, chain POSTROUTING")

    def test_in_mangle_behind_the_route_by_iptables_legacy(self):
        self.check("iptables-legacy", "mangle", "POSTROUTING", "table mangle of iptables-legacy")


class NotNamed(NamedFirewall):
    def start(self):
        self.start_agent()
        self.vpn_up("def1-ipv6")

    def check(self):
        for family in (4, 6):
            self.assert_members_seen_at("a", families=(family,))
            self.assertIsNone(self.warning(), self.agent.explain())
        # A port that nobody listens at, and a host that is not there: no firewall's doing.
        for host, port in ((MEMBER_ECHO[4], 9), ("192.168.10.77", 7000)):
            connect = f"import socket; socket.create_connection(({host!r}, {port}), 0.5)"
            self.lab.novpn("run", "--", "python3", "-c", connect, check=False)
        self.assertIsNone(self.warning(), self.agent.explain())
        self.assertEqual(self.agent.status()["health"], "ok")
        self.assertEqual([f for f in self.doctor() if f["state"] == "wrong"], [])

    def test_none(self):
        self.start()
        self.check()

    def test_docker(self):
        self.start()
        self.lab.shell(DOCKER.replace("iptables", "iptables-legacy"))
        self.check()

    def test_ufw(self):
        self.start()
        self.lab.shell(UFW.replace("tables", "tables-nft"))
        self.check()

    def test_ufw_itself(self):
        self.start()
        self.lab.shell(ufw_itself())
        self.check()

    def test_nft_that_drops_what_comes_in(self):
        self.start()
        self.lab.shell(NFT)
        self.check()

    def test_rules_that_drop_something_else(self):
        self.start()
        self.lab.shell(HARMLESS)
        self.check()

    def test_firewalld(self):
        self.start()
        firewalld = Firewalld(self.lab)
        self.check()
        firewalld.reload()
        self.check()
        firewalld.stop()

    def test_no_way_out_by_ipv6_is_no_firewall(self):
        """What the backstop refuses was never sent. Marked by nft, as sockets that BPF marks are refused before."""
        self.start_agent("marking: nft\n")
        self.vpn_up("def1-ipv6")
        self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra=0; ip -6 route flush dev wlan0 default; "
                       "ip -6 address flush dev wlan0 scope global")
        self.agent.wait_for(lambda s: not s["families"]["ipv6"]["uplink"], "no uplink by IPv6")
        self.lab.shell(HARMLESS)
        for _ in range(3):
            self.lab.probe("udp", MEMBER_ECHO[6], member=True, check=False)
        self.assertIsNone(self.warning(), self.agent.explain())


if __name__ == "__main__":
    unittest.main(verbosity=2)
