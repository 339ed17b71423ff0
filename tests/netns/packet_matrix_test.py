"""Every way of marking by every shape of takeover by every kind of socket: what a member's socket and the wire say.

Prints a table, one line a flow. `socket` is getsockname(), `wire` the source of what left by the uplink, `reply` the
number of answers of those asked for, `leak` the number of packets that were seen by another link or with another
source.  A flow is right when the wire has the uplink's address, everything is answered and nothing leaks; with BPF the
socket has that address too. Arguments name shapes: packet_matrix_test.py -v PacketMatrix.test_replaced
"""
import itertools
import unittest

import xfrm_test
from labtest import ECHO, LabTest, MEMBER_ECHO, VPN_SEEN, the_lab

# With 1 the agent sets src_valid_mark on the uplink.
RP_FILTERS = (0, 1, 2)
MARKINGS = ("bpf", "nft")
KINDS = ("tcp", "udp", "quic", "ping")

# What a tunnel that is up does to routes and rules, {ip} being both `ip -4` and `ip -6`.
SHAPES = {
    "none": "",
    "lower_metric": "{ip} route add default dev tun0 metric 50",
    "split": "{ip} route add {halves[0]} dev tun0; {ip} route add {halves[1]} dev tun0",
    "replaced": "{ip} route del default dev wlan0; {ip} route add default dev tun0",
    # As wg-quick: without preferences.
    "inverted_mark_rule": """{ip} route add default dev tun0 table 51820
        {ip} rule add not fwmark 0xca6c lookup 51820
        {ip} rule add lookup main suppress_prefixlength 0""",
    # As Tailscale.
    "catch_all_rule": """{ip} route add default dev tun0 table 52
        {ip} route add throw {lan} table 52
        [ {family} = 6 ] || {ip} route add throw {server} table 52
        {ip} rule add preference 5270 lookup 52""",
    # As strongSwan: no link and no route. What the policies take is lost here, as nothing can encrypt.
    "xfrm": None,
}
# Under these a socket that nft marks has the tunnel's address, which is masqueraded.
WITH_TUNNEL = [shape for shape in SHAPES if shape not in ("none", "xfrm")]
HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
LAN = {4: "192.168.10.0/24", 6: "2001:db8:a::/64"}
HEAD = ("marking", "shape", "rp_filter", "family", "kind", "socket", "wire", "reply", "leak", "")


class PacketMatrix(LabTest):
    rows = []

    @classmethod
    def tearDownClass(cls):
        widths = [max(len(str(row[i])) for row in (HEAD, *cls.rows)) for i in range(len(HEAD))]
        for row in (HEAD, *cls.rows):
            print("  ".join(f"{value!s:{width}}" for value, width in zip(row, widths)).rstrip())
        print(f"{len(cls.rows)} flows, {sum(1 for row in cls.rows if row[-1])} wrong", flush=True)

    def take_over_by_policies(self):
        for selector, direction, rest in xfrm_test.Xfrm.policies(self):
            self.lab.shell(f"ip xfrm policy add {selector} dir {direction} {rest}")
        self.agent.wait_for(lambda s: all([t["shape"] for t in f["takeovers"]] == ["xfrm"] for f in s["families"].values()), "the policies")
        for family in (4, 6):
            answer = self.lab.probe("udp", ECHO[family], check=False, timeout=0.3)
            self.assertTrue(answer.startswith("no answer"), f"another process's udp over IPv{family}: {answer}")

    def take_over(self, shape):
        if shape == "xfrm":
            return self.take_over_by_policies()
        self.lab.vpn_up("none")
        self.lab.shell(f"ip route add {VPN_SEEN[4]} via {the_lab.SITES['a'].gateway} dev wlan0")
        # The next router advertisement would bring a replaced default back.
        self.lab.shell("sysctl -qw net.ipv6.conf.wlan0.accept_ra_defrtr=0")
        for family in (4, 6):
            self.lab.shell(SHAPES[shape].format(ip=f"ip -{family}", family=family, halves=HALVES[family], lan=LAN[family], server=VPN_SEEN[4]))
        wanted = [] if shape == "none" else [(shape, "tun0")]
        self.agent.wait_for(lambda s: all([(t["shape"], t["link"]) for t in f["takeovers"]] == wanted for f in s["families"].values()),
                            f"takeovers {wanted} in both families")
        for family in (4, 6):
            self.assert_others_seen_as(VPN_SEEN[family] if wanted else self.lab.site_address("a", family), family)

    def choose(self, marking, rp_filter):
        self.lab.shell(f"sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter} net.ipv4.conf.wlan0.rp_filter={rp_filter}")
        (self.lab.directory / "novpn.yaml").write_text(f"marking: {marking}\n")
        self.lab.novpn("reload")
        self.assert_same(self.agent.status()["classes"][0]["backend"], [marking] if marking == "nft" else ["bpf", "nft"], "backend")

    def flow(self, member, kind, family):
        """(getsockname(), answers, answers asked for)"""
        host = MEMBER_ECHO[family]
        member.new("s", "udp" if kind == "quic" else kind, family)
        if kind in ("tcp", "udp"):
            local = member.connect("s", host).get("local", "none")
            answers = [member.ask("s") for _ in range(3)]
        elif kind == "quic":
            answers = [member.ask_to("s", to) for to in (host, ECHO[family], host)]
            local = "any"
        else:
            answers = [member.ping("s", host) for _ in range(3)]
            local = "any"
        member.close("s")
        wrong = [answer for answer in answers if answer.get("seen", self.lab.site_address("a", family)) != self.lab.site_address("a", family)]
        return local, sum(1 for answer in answers if "error" not in answer) - len(wrong), len(answers)

    def measure(self, marking, shape, rp_filter, names):
        member = self.lab.member()
        for family, kind in itertools.product((4, 6), KINDS):
            sniffer = self.lab.sniff(MEMBER_ECHO[family], ECHO[family])
            local, answered, asked = self.flow(member, kind, family)
            # One capture has them all in order: what left stands before its answer.
            the_lab.wait_until(lambda: sum(1 for line in sniffer.packets() if " in " in line) >= answered, what="the answers in the capture")
            packets = [line.split() for line in sniffer.packets()]
            self.lab.end(sniffer.process)
            uplink = self.lab.laptop_address(family)
            out = [(link, source) for link, direction, source, _ in packets if direction == "out"]
            leaks = sum(1 for link, source in out if (link, source) != ("wlan0", uplink))
            leaks += sum(1 for link, direction, *_ in packets if direction == "in" and link != "wlan0")
            wire = {source for link, source in out if link == "wlan0"}
            masqueraded = shape in WITH_TUNNEL and marking == "nft"
            wanted_local = "any" if kind in ("quic", "ping") else names["tun0", family] if masqueraded else uplink
            right = (local == wanted_local and wire == {uplink} and answered == asked and leaks == 0)
            say = {names[key]: f"{key[0]}" for key in names}
            self.rows.append((marking, shape, rp_filter, f"ipv{family}", kind, say.get(local, local),
                              ",".join(sorted(say.get(a, a) for a in wire)) or "-", f"{answered}/{asked}", leaks, "" if right else "WRONG"))
        member.process.terminate()
        member.process.wait(5)

    def check(self, shape):
        self.start_agent("marking: auto\n")
        self.take_over(shape)
        names = {("wlan0", family): self.lab.laptop_address(family) for family in (4, 6)}
        if shape != "xfrm":
            names |= {("tun0", family): self.lab.laptop_address(family, "tun0") for family in (4, 6)}
        begin = len(self.rows)
        for marking, rp_filter in itertools.product(MARKINGS, RP_FILTERS):
            self.choose(marking, rp_filter)
            before = self.packets()
            self.measure(marking, shape, rp_filter, names)
            after = self.packets()
            masqueraded = after["masqueraded"] - before["masqueraded"]
            wanted = marking == "nft" and shape in WITH_TUNNEL
            self.assert_same(masqueraded > 0, wanted, f"{masqueraded} flows masqueraded, {marking} under {shape}")
            self.assertGreater(after["marked"] - before["marked"], 0)
            self.assert_same(after["dropped"], before["dropped"], f"dropped packets, {marking} under {shape}")
        self.assert_nothing_leaked()
        wrong = [row for row in self.rows[begin:] if row[-1]]
        self.assert_same(wrong, [], "flows that are not right")

    def packets(self):
        return self.agent.status()["classes"][0]["packets"]


for a_shape in SHAPES:
    setattr(PacketMatrix, f"test_{a_shape}", lambda self, shape=a_shape: self.check(shape))

if __name__ == "__main__":
    unittest.main(verbosity=2)
