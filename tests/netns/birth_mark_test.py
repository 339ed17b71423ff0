"""Sockets of members have the class's mark from birth: connect() picks the uplink's address, and nothing is masqueraded."""
import json
import pathlib
import re
import signal
import unittest

from labtest import ECHO, LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab
import bpf

MARK, MASK = 0x4e000000, 0xff000000
# Bits of another program's, outside of our mask.
FOREIGN, FOREIGN_TOO = 0x00340000, 0x00000012


class BirthMarkTest(LabTest):
    marking = "auto"

    def start(self, mode=None, rp_filter=0, config=""):
        self.lab.shell(f"sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter} net.ipv4.conf.wlan0.rp_filter={rp_filter}")
        self.start_agent(f"marking: {self.marking}\n{config}")
        if mode:
            self.vpn_up(mode)

    @property
    def cgroup(self):
        return the_lab.cgroup_mount() / f"novpn-{self.lab.netns_inode()}" / "novpn"

    def packets(self):
        return self.agent.status()["classes"][0]["packets"]

    def source(self, family):
        """The address that a member's socket has."""
        return self.lab.laptop_address(family)

    def assert_flows(self, member, families=(4, 6), name=""):
        """Each kind of socket, asked twice."""
        for family in families:
            seen = self.lab.site_address("a", family)
            answers = []
            for kind in ("tcp", "udp"):
                socket = f"{name}{kind}{family}"
                member.new(socket, kind, family)
                member.connect(socket, MEMBER_ECHO[family])
                answers += [member.ask(socket), member.ask(socket)]
            member.new(f"{name}any{family}", "udp", family)
            # As QUIC does: one socket, several destinations, and back to the first.
            answers += [member.ask_to(f"{name}any{family}", host) for host in (MEMBER_ECHO[family], ECHO[family], MEMBER_ECHO[family])]
            self.assert_same([a.get("seen", a) for a in answers], [seen] * len(answers), f"what the internet sees by IPv{family}")
            member.new(f"{name}ping{family}", "ping", family)
            self.assertNotIn("error", member.ping(f"{name}ping{family}", MEMBER_ECHO[family]), f"ping by IPv{family}")

    def check(self, mode, rp_filter):
        self.start(mode, rp_filter)
        member = self.lab.member()
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_flows(member)
        for family in (4, 6):
            mark = member.new("mark", "tcp", family)["mark"]
            self.assert_same(mark, self.mark_at_birth, f"the mark of a new IPv{family} socket")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"wlan0"})
        sources = {line.split()[2] for line in sniffer.packets("wlan0 out")}
        self.assertEqual(sources, {self.source(4), self.source(6)})
        self.assert_nothing_leaked()
        return member


class BothWays:
    """What either way of marking has to give."""

    def test_dns_by_the_vpn(self):
        """Port 53 takes the ordinary path, whatever the socket does."""
        self.start("def1-ipv6")
        # The VPN's server answers to its address in the tunnel only, by both families.
        servers = {4: the_lab.VPN_DNS, 6: the_lab.VPN_DNS6}
        member = self.lab.member()
        sniffer = self.lab.sniff(*servers.values())
        for family, server in servers.items():
            for kind in ("tcp", "udp", "any"):
                name = f"dns{kind}{family}"
                member.new(name, kind.replace("any", "udp"), family)
                if kind != "any":
                    self.assertNotIn("error", member.connect(name, server, port=53), name)
                for _ in range(2):
                    answer = member.ask_dns(name, server if kind == "any" else None)
                    self.assert_same(answer.get("answers", answer), 1, f"answers to {name}")
        self.assertEqual({line.split()[0] for line in sniffer.packets()}, {"tun0"})
        # Neither the uplink's address in the tunnel, nor a count of what is not the class's.
        self.assertNotIn(self.source(4), " ".join(sniffer.packets()))
        self.assert_same(self.packets(), {"marked": 0, "masqueraded": 0, "dropped": 0}, "packets")

    def test_dns_that_another_program_marks_too(self):
        """A mark set in an output chain has the kernel look for another route, without ports: no rule on port 53 matches there."""
        self.start("def1")
        self.lab.run("nft", "-f", "-", input=f"""table inet foreign {{
            chain output {{
                type route hook output priority -100
                meta l4proto {{ tcp, udp }} th dport 53 meta mark set meta mark | {FOREIGN:#x}
            }}
        }}""")
        member = self.lab.member()
        for kind in ("tcp", "udp"):
            member.new(kind, kind)
            self.assertNotIn("error", member.connect(kind, the_lab.VPN_DNS, port=53), kind)
            for _ in range(2):
                answer = member.ask_dns(kind, None)
                self.assert_same(answer.get("answers", answer), 1, f"answers by {kind}")

    def test_dns_without_a_vpn(self):
        self.start()
        member = self.lab.member()
        for kind in ("tcp", "udp"):
            member.new(kind, kind)
            member.connect(kind, SITES["a"].gateway, port=53)
            answer = member.ask_dns(kind, None)
            self.assert_same(answer.get("answers", answer), 1, f"answers by {kind}")
        self.assert_same(self.packets()["dropped"], 0, "dropped packets")

    def test_others_are_not_touched(self):
        self.start("def1")
        other = self.lab.member(member=False)
        self.assert_same(other.new("a", "tcp")["mark"], 0, "the mark of another process's socket")
        other.connect("a", ECHO[4])
        self.assert_same(other.ask("a").get("seen"), VPN_SEEN[4], "what the internet sees of another process")
        self.assert_same(self.packets(), {"marked": 0, "masqueraded": 0, "dropped": 0}, "packets")

    def test_a_socket_from_before_keeps_its_path(self):
        self.start("def1")
        process = self.lab.member(member=False)
        process.new("before", "tcp")
        process.connect("before", ECHO[4])
        process.new("fresh", "udp")
        self.lab.novpn("add", str(process.process.pid))
        self.assert_same(process.ask("before").get("seen"), VPN_SEEN[4], "the flow from before")
        self.assert_same(process.ask_to("fresh", ECHO[4])["mark"], 0, "the mark of a socket from before")
        process.new("after", "tcp")
        self.assertNotIn("error", process.connect("after", MEMBER_ECHO[4]))
        self.assert_same(process.ask("after").get("seen"), SITES["a"].seen4, "a flow that began inside")


class Nft(BothWays, BirthMarkTest):
    marking = "nft"
    mark_at_birth = 0

    def test_without_vpn(self):
        self.check(None, 0)

    def test_def1_ipv6(self):
        member = self.check("def1-ipv6", 2)
        self.assertGreater(self.packets()["masqueraded"], 0)
        self.assert_same(self.agent.status()["classes"][0]["backend"], ["nft"], "backend")
        self.assertEqual((self.lab.pins(), bpf.attached(self.cgroup)), ([], []))
        self.assert_same(member.new("a", "tcp")["mark"], 0, "mark")

    def test_plain(self):
        self.check("plain", 0)


class NoBpffs(BirthMarkTest):
    """auto is nft where what is attached could not be removed by another agent."""
    bpffs = False

    def test_falls_back_without_a_warning(self):
        self.start("def1")
        status = self.agent.status()
        self.assert_same((status["classes"][0]["backend"], status["warnings"], status["health"]), (["nft"], [], "ok"), "status")
        lines = [line for line in self.agent.log.read_text().splitlines() if "bpf" in line]
        self.assert_same(len(lines), 1, f"lines about it: {lines}")
        self.assertIn("info", lines[0])
        self.assertIn("mount -t bpf", lines[0])
        self.assertEqual(bpf.attached(self.cgroup), [])
        self.assert_members_seen_at("a")


class Refused(LabTest):
    def start_refused(self, *wrapper):
        before = self.lab.snapshot()
        config = self.lab.directory / "bpf.yaml"
        config.write_text("marking: bpf\n")
        result = self.lab.run(*wrapper, self.lab.directory / "bin/novpnd", "--config", config,
                              "--runtime-dir", self.lab.directory / "run", check=False)
        self.assert_state_is(before)
        return result

    def test_bpf_without_the_right_to(self):
        drop = "-bpf,-sys_admin"
        result = self.start_refused("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--")
        self.assert_refused(result, "marking", "CAP_BPF", "auto or nft")

    def test_bpf_without_bpffs(self):
        self.lab.shell("umount /sys/fs/bpf")
        result = self.start_refused()
        self.assert_refused(result, "marking", "mount -t bpf bpf /sys/fs/bpf", "auto or nft")

    def test_auto_without_the_right_to(self):
        drop = "-bpf,-sys_admin"
        self.agent = self.lab.start_agent(wrapper=["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--"])
        self.assert_same(self.agent.status()["classes"][0]["backend"], ["nft"], "backend")
        self.assert_members_seen_at("a")


class Born(BothWays, BirthMarkTest):
    mark_at_birth = MARK

    def assert_own_source(self, member, families=(4, 6)):
        """getsockname() is the uplink's address, and so nothing was masqueraded."""
        for family in families:
            for name in (f"tcp{family}", f"udp{family}"):
                self.assert_same(member.ask(name)["local"], self.source(family), f"the address of socket {name}")
        packets = self.packets()
        self.assertGreater(packets["marked"], 0)
        self.assert_same((packets["masqueraded"], packets["dropped"]), (0, 0), "masqueraded and dropped packets")

    def check_born(self, mode, rp_filter):
        member = self.check(mode, rp_filter)
        self.assert_own_source(member)
        self.assert_same(self.agent.status()["classes"][0]["backend"], ["bpf", "nft"], "backend")

    def test_without_vpn(self):
        self.check_born(None, 0)

    def test_def1(self):
        self.check_born("def1", 0)

    def test_plain_with_a_loose_reverse_path_filter(self):
        self.check_born("plain", 2)

    def test_def1_ipv6_with_a_loose_reverse_path_filter(self):
        self.check_born("def1-ipv6", 2)

    def test_plain(self):
        self.check_born("plain", 0)

    def test_def1_ipv6(self):
        self.check_born("def1-ipv6", 0)

    def test_other_bits_of_the_mark_survive(self):
        self.start("def1")
        # On the wire the mark is gone: counted as late as ours can be.
        self.lab.run("nft", "-f", "-", input=f"""table inet witness {{
            counter both {{ }}
            counter other {{ }}
            chain leaving {{
                type filter hook postrouting priority 300
                ip daddr {MEMBER_ECHO[4]} meta mark {MARK | FOREIGN | FOREIGN_TOO:#x} counter name both accept
                ip daddr {MEMBER_ECHO[4]} counter name other
            }}
        }}""")
        bpf.attach_marking(self.cgroup, FOREIGN)
        member = self.lab.member()
        # Set by another program at birth, and by the process itself afterwards.
        self.assert_same(member.new("tcp", "tcp", mark=FOREIGN_TOO)["mark"], MARK | FOREIGN | FOREIGN_TOO, "the mark of the socket")
        member.connect("tcp", MEMBER_ECHO[4])
        self.assert_same(member.ask("tcp").get("seen"), SITES["a"].seen4, "what the internet sees")
        found = json.loads(self.lab.run("nft", "-j", "list", "counters", "table", "inet", "witness").stdout)
        counts = {item["counter"]["name"]: item["counter"]["packets"] for item in found["nftables"] if "counter" in item}
        self.assertGreater(counts["both"], 2)
        self.assert_same(counts["other"], 0, "packets with another mark")

    def test_a_mark_that_the_program_overwrites_is_nfts_to_mend(self):
        self.start("def1")
        member = self.lab.member()
        member.new("tcp", "tcp")
        self.assertIn("mark", member.set_mark("tcp", FOREIGN))
        member.connect("tcp", MEMBER_ECHO[4])
        answer = member.ask("tcp")
        self.assert_same((answer.get("seen"), answer.get("mark")), (SITES["a"].seen4, FOREIGN), "what the internet sees, and the mark")
        self.assertGreater(self.packets()["masqueraded"], 0)

    def test_a_nested_class_wins(self):
        """The program of a cgroup further down runs first; those above leave its mark alone."""
        games = "classes:\n  games: {table: 7000, mark: 0x4f000000/0xff000000, preference: 80}\n"
        self.start("def1", config=games)
        nested = self.cgroup / "nested"
        nested.mkdir()
        self.addCleanup(lambda: nested.exists() and nested.rmdir())
        # A program as ours is for `games`, on a cgroup in a class: bits of another class.
        bpf.attach_marking(nested, 0x4f000000)
        inside = self.lab.member(cgroup=nested)
        self.assert_same(inside.new("a", "tcp")["mark"], 0x4f000000, "the mark of a socket of the nested class")
        bpf.detach(nested, "foreign")
        self.assert_same(inside.new("b", "tcp")["mark"], MARK, "the mark of a socket of the class above")
        inside.connect("b", MEMBER_ECHO[4])
        self.assert_same(inside.ask("b").get("seen"), SITES["a"].seen4, "what the internet sees of a cgroup in the class")
        inside.process.terminate()
        inside.process.wait(5)

    def test_without_an_uplink_connect_is_refused_at_once(self):
        self.start("def1-ipv6")
        member = self.lab.member()
        self.lab.unplug()
        self.lab.forget()
        self.agent.wait_for(lambda s: s["classes"][0]["state"] == "blocked", "class blocked")
        for family in (4, 6):
            for kind in ("tcp", "udp"):
                name = f"{kind}{family}"
                member.new(name, kind, family)
                refused = member.connect(name, MEMBER_ECHO[family])
                self.assertIn(refused.get("error"), ("EHOSTUNREACH", "ENETUNREACH"), f"{name}: {refused}")
        self.assert_nothing_leaked()
        self.lab.connect("wlan0", "b")
        self.wait_for_gateway(SITES["b"].gateway)
        member.new("tcp", "tcp")
        member.connect("tcp", MEMBER_ECHO[4])
        self.assert_same(member.ask("tcp").get("seen"), SITES["b"].seen4, "what the internet sees at the other site")

    def test_a_service_inside_answers_where_it_was_asked(self):
        self.start("def1-ipv6")
        service = self.lab.member()
        service.new("service", "tcp", family=6)
        service.listen("service", 9999, "::")
        sniffer = self.lab.sniff(ECHO[4], ECHO[6], "10.8.0.1")

        def ask(host, namespace, number, source=""):
            client = self.lab.spawn(the_lab.PYTHON, "-c", CLIENT, host, 9999, source, namespace=namespace)
            accepted = service.accept("service", f"accepted{number}")
            self.assert_same(the_lab.read_line(client), "unasked", f"the answer to {namespace}")
            return accepted

        # A neighbour, by the uplink.
        accepted = ask(self.source(4), "router_a", 1)
        self.assert_same((accepted["mark"], accepted["local"]), (MARK, f"::ffff:{self.source(4)}"), "the accepted socket")
        # A stranger on the internet, by IPv6, which no router translates: the answer leaves by the uplink, VPN or not.
        ask(self.source(6), "internet", 2, ECHO[6])
        # The far end of the tunnel, by the tunnel: its address never gets to the uplink.
        tunnel = re.search(r"inet (10\.8\.0\.\d+)", self.lab.shell("ip -4 address show dev tun0"))[1]
        ask(tunnel, "vpn", 3)
        out = [line.split() for line in sniffer.packets() if " out " in line]
        self.assertEqual({(line[0], line[2]) for line in out}, {("wlan0", self.source(6)), ("tun0", tunnel)})
        self.assert_same(self.packets()["dropped"], 0, "dropped packets")

    def test_a_flow_that_connection_tracking_forgot_goes_on(self):
        self.start("def1")
        member = self.lab.member()
        member.new("tcp", "tcp")
        member.connect("tcp", MEMBER_ECHO[4])
        member.ask("tcp")
        self.lab.run("conntrack", "-F")
        self.assert_same(member.ask("tcp").get("seen"), SITES["a"].seen4, "the flow that was forgotten")
        self.assert_same(self.packets()["dropped"], 0, "dropped packets")
        self.assert_nothing_leaked()

    def test_a_class_that_is_off_and_on_again(self):
        self.start("def1")
        member = self.lab.member()
        self.lab.novpn("off")
        self.assertEqual((bpf.attached(self.cgroup), self.lab.pins()), ([], []))
        self.assert_same(self.agent.status()["classes"][0]["backend"], ["nft"], "backend")
        self.assert_same(member.new("off", "tcp")["mark"], 0, "the mark of a socket")
        self.lab.novpn("on")
        self.assert_same(member.new("on", "tcp")["mark"], MARK, "the mark of a socket")

    def test_another_mark_after_a_reload(self):
        self.start("def1")
        before = bpf.attached(self.cgroup)
        (self.lab.directory / "novpn.yaml").write_text("classes:\n  novpn:\n    mark: 0x4f000000/0xff000000\n")
        self.lab.novpn("reload")
        after = bpf.attached(self.cgroup)
        self.assertEqual(len(after), 1)
        self.assertNotEqual(before, after)
        member = self.lab.member()
        self.assert_same(member.new("a", "tcp")["mark"], 0x4f000000, "the mark of a socket")
        (self.lab.directory / "novpn.yaml").write_text("marking: nft\n")
        self.lab.novpn("reload")
        self.assertEqual((bpf.attached(self.cgroup), self.lab.pins()), ([], []))
        self.assert_same(member.new("b", "tcp")["mark"], 0, "the mark of a socket")
        member.connect("b", MEMBER_ECHO[4])
        self.assert_same(member.ask("b").get("seen"), SITES["a"].seen4, "what the internet sees")


class Life(BirthMarkTest):
    """Adopted without a write, repaired, removed. The snapshots of the lab have programs and pins, by their ids."""

    def setUp(self):
        super().setUp()
        self.before = self.lab.snapshot()

    def assert_in_force(self):
        self.assert_same([name[:5] for _, name in bpf.attached(self.cgroup)], ["novpn"], "attached programs")
        self.assert_same(self.lab.pins()[-1].split("/")[-1], "novpn", "pins")

    def test_a_restart_adopts_it_without_a_write(self):
        self.start()
        steered = self.lab.snapshot()
        self.assert_in_force()
        for end in (lambda: self.agent.stop(signal.SIGUSR1), lambda: self.agent.kill9()):
            end()
            self.assert_state_is(steered)
            self.start_agent()
            self.assert_same([line for line in self.agent.log.read_text().splitlines() if "bpftool" in line], [], "operations")
            self.assert_state_is(steered)
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(self.before)

    def test_down_by_force_removes_it(self):
        self.start()
        self.agent.kill9()
        self.assert_in_force()
        self.lab.novpn("down", "--force")
        self.assert_state_is(self.before)

    def test_an_agent_that_died_between_pin_and_attach_leaves_what_the_next_one_mends(self):
        self.start()
        self.agent.kill9()
        name = bpf.attached(self.cgroup)[0][1]
        bpf.detach(self.cgroup, name)
        self.start_agent()
        operations = [line for line in self.agent.log.read_text().splitlines() if "bpftool" in line]
        self.assert_same(len(operations), 1, f"operations: {operations}")
        self.assertIn("cgroup attach", operations[0])
        self.assert_in_force()

    def test_the_program_of_a_class_that_is_no_more_is_found_and_removed(self):
        self.start(config="classes:\n  games: {table: 7000, mark: 0x4f000000/0xff000000, preference: 80}\n")
        self.assert_same(len(self.lab.pins()), 3, f"directory and pins: {self.lab.pins()}")
        self.agent.kill9()
        self.start_agent()
        self.assert_same([pathlib.Path(pin).name for pin in self.lab.pins()[1:]], ["novpn"], "pins")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(self.before)

    def test_what_another_program_takes_off_is_put_back(self):
        self.start()
        bpf.detach(self.cgroup, bpf.attached(self.cgroup)[0][1])
        self.lab.shell("rm /sys/fs/bpf/novpn-*/novpn")
        the_lab.wait_until(lambda: bpf.attached(self.cgroup), what="the program", detail=self.agent.explain)
        self.assert_in_force()

    def test_programs_of_others_stay(self):
        self.start()
        bpf.attach_marking(self.cgroup, FOREIGN)
        self.lab.novpn("off")
        self.assert_same([name for _, name in bpf.attached(self.cgroup)], ["foreign"], "attached programs")
        self.lab.novpn("on")
        self.assert_same({name[:5] for _, name in bpf.attached(self.cgroup)}, {"forei", "novpn"}, "attached programs")

    def test_a_program_that_allows_none_beside_it_leaves_nft_alone(self):
        self.start()
        self.lab.novpn("off")
        # On the class's cgroup, without BPF_F_ALLOW_MULTI: ours is refused.
        bpf.attach_marking(self.cgroup, FOREIGN, flags=0)
        self.lab.novpn("on")
        self.assert_same(self.agent.status()["classes"][0]["backend"], ["nft"], "backend")
        self.assert_members_seen_at("a")
        self.assertIn("pending", [w["code"] for w in self.agent.status()["warnings"]])


CLIENT = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
sock = socket.create_connection((host, port), 3, (sys.argv[3], 0) if sys.argv[3] else None)
sock.send(b"unasked")
print(sock.recv(100).decode(), flush=True)
"""

if __name__ == "__main__":
    unittest.main(verbosity=2)
