"""`dns: uplink`: members' names are resolved by the uplink's resolver, whichever name server they ask; everybody else's by
the VPN's. Three real resolvers tell by their answers who was asked; a fourth stands for systemd-resolved's stub."""
import json
import unittest

from labtest import LabTest, SITES, the_lab
from clients import NetworkManager
from lab import PYTHON, VPN_DNS, VPN_DNS6, WHO, WHO_NAME
import bpf

CONFIG = "classes: {novpn: {dns: uplink}}\n"
STUBS = ("127.0.0.53", "127.0.0.54", "::1")


class DnsTest(LabTest):
    def lease(self, site, ipv6=True):
        """What systemd-networkd would write down of this site's lease and router."""
        index, local = self.lab.ifindex("wlan0"), self.lab.laptop_address()
        gateway = SITES[site].gateway
        self.write(f"/run/systemd/netif/leases/{index}", f"ADDRESS={local}\nROUTER={gateway}\nDNS={gateway}\nLIFETIME=3600\n")
        if ipv6:
            self.write(f"/run/systemd/netif/links/{index}", f"ADMIN_STATE=configured\nDNS={gateway} {SITES[site].net6}:1\n")

    def write(self, path, text):
        self.lab.run("sh", "-ec", f"umask 022; mkdir -p $(dirname {path}); cat > {path}.new; mv {path}.new {path}", input=text)

    def resolv_conf(self, *servers):
        self.lab.shell("cat > $LAB/resolv.conf <<E\n" + "".join(f"nameserver {server}\n" for server in servers) + "E")

    def stub(self):
        """Answers for whoever asks on loopback, as what the VPN pushed to systemd-resolved would be."""
        self.lab.spawn("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file", "--bind-interfaces",
                       *(f"--listen-address={stub}" for stub in STUBS), "--no-resolv", "--no-hosts",
                       f"--host-record={WHO_NAME},{','.join(WHO['stub'])}", output=self.lab.directory / "dnsmasq-stub.log")
        for stub in STUBS:
            the_lab.wait_until(lambda: self.ask("udp", stub, member=False).get("answer"), 15, f"the stub on {stub}")

    def query(self, *words, member=True):
        command = [PYTHON, self.lab.directory / "query.py", *words]
        return json.loads(self.lab.run(*(self.lab.novpn_command("run", "--", *command) if member else command)).stdout)

    def names(self, *options, member=True):
        return self.query("names", WHO_NAME, *options, member=member)

    def ask(self, way, server, member=True):
        return self.query(way, server, WHO_NAME, member=member)

    def dig(self, server, *options, member=True):
        command = ["dig", f"@{server}", WHO_NAME, "A", "+short", "+tries=1", "+time=3", *options]
        return self.lab.run(*(self.lab.novpn_command("run", "--", *command) if member else command), check=False).stdout.strip()

    def dns(self):
        return self.agent.status()["classes"][0]["dns"]

    def wait_for_dns(self, *asked, **claims):
        """asked: the name servers besides the stubs that others stand in for."""
        def holds(status):
            dns = status["classes"][0]["dns"]
            return claims.items() <= dns.items() and (not asked or set(dns["asked"]) == {"127.0.0.53", "127.0.0.54", *asked})
        return self.agent.wait_for(holds, f"DNS {claims}, asked {asked}", 20)["classes"][0]["dns"]

    def assert_resolved_by(self, who, member=True):
        """By glibc, over UDP and TCP."""
        for options in ((), ("use-vc",)):
            self.assert_same(self.names(*options, member=member), sorted(WHO[who]), f"getaddrinfo {options} of a {member=}")


class Dns(DnsTest):
    def start(self, mode="def1"):
        self.lease("a")
        self.start_agent(CONFIG)
        self.vpn_up(mode)
        return self.wait_for_dns(by="uplink")

    def test_the_name_server_that_the_vpn_pushed(self):
        dns = self.start()
        self.assertEqual((dns["servers"], dns["from"]), ([SITES["a"].gateway, f"{SITES['a'].net6}:1"], "networkd"))
        self.wait_for_dns(VPN_DNS)
        sniffer = self.lab.sniff(VPN_DNS, SITES["a"].gateway)
        self.assert_resolved_by("a")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"wlan0"})
        self.assert_resolved_by("vpn", member=False)
        for options in ((), ("+tcp",)):
            self.assert_same(self.dig(VPN_DNS, *options), WHO["a"][0], f"dig {options} of a member")
            self.assert_same(self.dig(VPN_DNS, *options, member=False), WHO["vpn"][0], f"dig {options}")
        self.assertIn("     names     by 192.168.10.1, 2001:db8:a::1 of the uplink (from systemd-networkd)", self.lab.novpn("status").stdout)
        self.assertIn("nss-resolve", self.lab.novpn("explain", "203.0.113.10").stdout)

    def test_the_stubs_and_the_vpns_name_server_by_ipv6(self):
        self.start()
        self.stub()
        self.resolv_conf(*STUBS[::2], VPN_DNS6)
        self.wait_for_dns("::1", VPN_DNS6)
        self.assert_resolved_by("a")
        self.assert_resolved_by("stub", member=False)
        for server, others in (*((stub, "stub") for stub in STUBS), (VPN_DNS6, "vpn")):
            for way in ("udp", "any", "tcp"):
                told = {"udp": {"peer": server, "from": server}, "any": {"from": server}, "tcp": {"peer": server}}[way]
                # The answer comes from whom was asked, as far as the program can tell.
                self.assert_same(self.ask(way, server), {"answer": WHO["a"][0], **told}, f"a member asking {server} by {way}")
                self.assert_same(self.ask(way, server, member=False), {"answer": WHO[others][0], **told}, f"asking {server} by {way}")
            for options in ((), ("+tcp",)):
                self.assert_same(self.dig(server, *options), WHO["a"][0], f"dig {options} {server} of a member")
        # A socket of IPv6 that speaks IPv4, and a server that nobody configured.
        for way in ("udp", "any", "tcp"):
            self.assert_same(self.ask(way, "::ffff:127.0.0.53").get("answer"), WHO["a"][0], f"the mapped stub by {way}")
        self.assert_same(self.ask("udp", SITES["a"].second_gateway).get("answer", "none"), WHO["a"][0], "another server")

    def test_a_roam_takes_the_resolver_along(self):
        self.start()
        self.stub()
        self.resolv_conf("127.0.0.53")
        self.assert_resolved_by("a")
        self.lab.roam("b")
        self.lease("b")
        # A resolver that has left with its network is asked no more; the lab's DHCP client has written resolv.conf anew.
        self.resolv_conf("127.0.0.53")
        self.wait_for_gateway(SITES["b"].gateway)
        self.wait_for_dns(by="uplink", servers=[SITES["b"].gateway, f"{SITES['b'].net6}:1"])
        self.assert_resolved_by("b")
        self.assert_resolved_by("stub", member=False)
        self.assertIn(f"127.0.0.53 by {SITES['b'].gateway}", self.agent.log.read_text())

    def test_a_restart_writes_nothing_and_a_stop_leaves_nothing(self):
        self.start()
        self.resolv_conf("127.0.0.53")
        self.wait_for_dns("127.0.0.53")
        self.assertEqual(len(self.lab.pins()), 12, self.lab.pins())
        self.agent.kill9()
        self.start_agent(CONFIG)
        self.wait_for_dns(by="uplink")
        log = self.agent.log.read_text()
        self.assertNotIn("bpftool", log)
        self.assertEqual(self.agent.stop(), 0)
        self.assertEqual(self.lab.pins(), [])

    def test_off_and_on_and_another_config(self):
        self.start()
        self.stub()
        self.resolv_conf("127.0.0.53")
        member = self.lab.directory / "novpn.yaml"
        member.write_text("classes: {novpn: {dns: vpn}}\n")
        self.lab.novpn("reload")
        self.assert_same(self.dns(), {"by": "vpn", "servers": [], "from": None, "asked": []}, "dns")
        self.assert_resolved_by("stub")
        self.assertEqual([pin for pin in self.lab.pins() if "-" in pin.rsplit("/", 1)[1] and "novpn-" not in pin.rsplit("/", 1)[1]], [])
        member.write_text(CONFIG)
        self.lab.novpn("reload")
        self.wait_for_dns(by="uplink")
        self.assert_resolved_by("a")

    def test_by_ipv4_alone_a_name_server_of_ipv6_is_refused_at_once(self):
        self.lease("a", ipv6=False)
        self.start_agent(CONFIG)
        self.vpn_up("def1-ipv6")
        self.resolv_conf(VPN_DNS6, VPN_DNS)
        self.wait_for_dns(VPN_DNS6, VPN_DNS, by="uplink", servers=[SITES["a"].gateway])
        for way in ("udp", "any", "tcp"):
            self.assert_same(self.ask(way, VPN_DNS6), {"error": "PermissionError"}, way)
        self.assert_resolved_by("a")
        self.assert_resolved_by("vpn", member=False)


    def test_a_socket_from_before_asks_whom_it_asked(self):
        self.start()
        process = self.lab.member(member=False)
        process.new("before", "udp")
        self.lab.novpn("add", str(process.process.pid))
        sniffer = self.lab.sniff(VPN_DNS, SITES["a"].gateway)
        self.assert_same(process.ask_dns("before", VPN_DNS).get("answers"), 1, "answers to a socket from before")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"tun0"})
        process.new("after", "udp")
        self.assert_same(process.ask_dns("after", VPN_DNS).get("answers"), 1, "answers to a socket that was made inside")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"tun0", "wlan0"})

    def test_each_class_has_its_own(self):
        """Also where one class's cgroup is inside another's: the inner one decides."""
        self.lease("a")
        self.start_agent("""
classes:
  novpn: {dns: uplink}
  work: {dns: vpn, table: 7867, mark: 0x4f000000/0xff000000, preference: 70}
""")
        self.vpn_up("def1")
        self.wait_for_dns(VPN_DNS, by="uplink")
        root = the_lab.cgroup_mount() / f"novpn-{self.lab.netns_inode()}"
        sniffer = self.lab.sniff(VPN_DNS, SITES["a"].gateway)
        work = self.lab.member("work")
        work.new("udp", "udp")
        self.assert_same(work.ask_dns("udp", VPN_DNS).get("answers"), 1, "answers to a member of work")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"tun0"})
        # The programs of novpn on its parent too: they leave a socket alone that has another class's mark.
        pins = f"/sys/fs/bpf/novpn-{self.lab.netns_inode()}"
        self.lab.run(PYTHON, "-c", bpf.ATTACH_PINNED, str(root), f"{pins}/novpn-sendmsg4", bpf.CGROUP_UDP4_SENDMSG)
        self.assert_same(work.ask_dns("udp", VPN_DNS).get("answers"), 1, "answers to a member of work inside novpn")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"tun0"})

    def test_doctor_names_what_is_asked_beside_dns(self):
        self.start()
        findings = {f["check"]: f for f in json.loads(self.lab.novpn("doctor", "--json", check=False).stdout)["findings"]}
        self.assertEqual(findings["names"]["state"], "ok", findings)
        self.lab.shell("echo 'hosts: files resolve dns' > $LAB/nsswitch.conf")
        findings = {f["check"]: f for f in json.loads(self.lab.novpn("doctor", "--json", check=False).stdout)["findings"]}
        self.assertEqual(findings["names"]["state"], "wrong", findings)


class Unknown(DnsTest):
    """udhcpc leaves no lease to read."""

    def test_resolv_conf_before_the_vpn_names_the_resolver(self):
        self.start_agent(CONFIG)
        self.wait_for_dns(by="uplink", **{"from": "resolv_conf"})
        self.assert_resolved_by("a")
        self.vpn_up("def1")
        self.wait_for_dns(VPN_DNS, by="uplink", servers=[SITES["a"].gateway])
        self.assert_resolved_by("a")
        self.assert_resolved_by("vpn", member=False)
        self.vpn_down()
        self.wait_for_dns(by="uplink", servers=[SITES["a"].gateway])
        self.assert_resolved_by("a")

    def test_nobody_names_the_resolver(self):
        self.lab.vpn_up("def1")
        self.start_agent(CONFIG)
        self.wait_for_takeover()
        self.wait_for_dns(VPN_DNS, by="none")
        self.assert_same(self.ask("udp", VPN_DNS), {"error": "PermissionError"}, "a member's query")
        self.assert_resolved_by("vpn", member=False)
        warnings = {warning["code"]: warning["text"] for warning in self.agent.status()["warnings"]}
        self.assertIn("cannot resolve names", warnings["dns"])
        # It is told at last.
        self.lease("a")
        self.wait_for_dns(by="uplink")
        self.assert_resolved_by("a")
        self.assertNotIn("dns", {warning["code"] for warning in self.agent.status()["warnings"]})


class ByNetworkManager(DnsTest):
    configured = False

    def test_networkmanager_names_the_resolvers(self):
        nm = NetworkManager(self.lab)
        nm.add_link("wlan0")
        nm.up("lab-wlan0")
        the_lab.wait_until(lambda: self.lab.has_default(4, "wlan0") and self.lab.has_default(6, "wlan0"), 20, "a lease and a router",
                           nm.log.read_text)
        self.lab.vpn_up("def1")
        self.start_agent(CONFIG)
        self.wait_for_dns(by="uplink", servers=[SITES["a"].gateway], **{"from": "networkmanager"})
        self.resolv_conf(VPN_DNS)
        self.wait_for_dns(VPN_DNS)
        self.assert_resolved_by("a")
        # In the place of the lease's.
        nm.nmcli("connection", "modify", "lab-wlan0", "ipv4.dns", SITES["a"].second_gateway, "ipv4.ignore-auto-dns", "yes",
                 "ipv6.dns", f"{SITES['a'].net6}:1", "ipv6.ignore-auto-dns", "yes")
        nm.nmcli("device", "reapply", "wlan0")
        self.resolv_conf("127.0.0.53")
        self.wait_for_dns("127.0.0.53", servers=[SITES["a"].second_gateway, f"{SITES['a'].net6}:1"])


class NoBpffs(DnsTest):
    bpffs = False

    def test_names_are_resolved_as_the_vpn_has_it(self):
        self.lease("a")
        self.start_agent(CONFIG)
        self.vpn_up("def1")
        self.assert_same(self.dns()["by"], "vpn", "dns")
        self.assert_resolved_by("vpn")
        warnings = {warning["code"]: warning["text"] for warning in self.agent.status()["warnings"]}
        self.assertIn("no bpffs", warnings["dns"])
        self.assertIn("dns: uplink cannot be done", self.agent.log.read_text())
        self.assertIn("no bpffs", self.lab.novpn("doctor", check=False).stdout)

    def test_check_refuses_it(self):
        path = self.lab.directory / "novpn.yaml"
        path.write_text("classes:\n  novpn:\n    dns: uplink\n")
        result = self.lab.novpn("check", path, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"{path}:3:10: classes.novpn.dns: uplink cannot be done on this machine: no bpffs", result.stderr)
        path.write_text("classes:\n  novpn:\n    dns: vpn\n")
        self.assertEqual(self.lab.novpn("check", path).stdout, f"{path}: ok\n")


if __name__ == "__main__":
    unittest.main()
