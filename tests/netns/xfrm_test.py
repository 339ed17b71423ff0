"""A mandatory IPsec policy takes everything, without a route and without a link. Nothing here can encrypt: what the policy
takes is lost, and so cannot be mistaken for what passes."""
import re
import signal
import unittest

from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab

PORT = 9999
FAMILIES = (4, 6)
OURS = "mark 0x4e000000/0xff000000"

# Prints each datagram that gets as far as a program.
SERVER = f"""
import socket
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", {PORT}))
print("ready", flush=True)
while True: print(sock.recv(100).decode(), flush=True)
"""

SENDER = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
sock.sendto(sys.argv[4].encode(), (sys.argv[2], int(sys.argv[3])))
"""


class PolicyMonitor:
    """Every change of policies on the laptop, by anybody, as text."""

    def __init__(self, lab):
        self.lab, self.output = lab, lab.directory / f"monitor-xfrm-{lab.count()}"
        lab.spawn("ip", "xfrm", "monitor", "policy", output=self.output)
        # It does not say when it listens: a change of ours that it reports is the proof.
        the_lab.wait_until(lambda: self._ends_with("198.18.0.1"), what="ip xfrm monitor listening")
        self.start = len(self.output.read_text())

    def _ends_with(self, address):
        canary = f"src {address} dst {address} dir in"
        self.lab.shell(f"ip xfrm policy add {canary}; ip xfrm policy delete {canary}")
        return re.search(rf"^Deleted src {re.escape(address)}/32", self.output.read_text(), re.MULTILINE)

    def changes(self):
        the_lab.wait_until(lambda: self._ends_with("198.18.0.2"), what="the monitor's last word")
        return [line for line in self.output.read_text()[self.start:].splitlines()
                if re.match(r"(Deleted |Updated |Flushed )?(src|policy)", line) and "198.18.0." not in line]


class Xfrm(LabTest):
    def setUp(self):
        super().setUp()
        self.before = self.lab.snapshot()

    def policies(self):
        """As the agent of a real VPN has them (strongSwan with its bypass of the LAN): each as selector, direction, rest."""
        found = []
        for family, any_prefix, lan in ((4, "0.0.0.0/0", f"{SITES['a'].net4}.0/24"), (6, "::/0", f"{SITES['a'].net6}:/64")):
            own = f"{self.lab.laptop_address(family)}/{32 if family == 4 else 128}"
            for near in (lan, "fe80::/10") if family == 6 else (lan,):
                found += [(f"src {near} dst {lan}", direction, "priority 175423") for direction in ("in", "fwd")]
                found.append((f"src {lan} dst {near}", "out", "priority 175423"))
            here, there = self.lab.laptop_address(family), VPN_SEEN[family]
            found.append((f"src {own} dst {any_prefix}", "out", f"priority 383616 tmpl src {here} dst {there} proto esp reqid 1 mode tunnel"))
            found += [(f"src {any_prefix} dst {own}", direction, f"priority 383616 tmpl src {there} dst {here} proto esp reqid 1 mode tunnel")
                      for direction in ("in", "fwd")]
        return found

    def vpn_up(self):
        self.theirs = self.policies()
        self.lab.shell("\n".join(f"ip xfrm policy add {selector} dir {direction} {rest}" for selector, direction, rest in self.theirs))

    def vpn_down(self):
        self.lab.shell("\n".join(f"ip xfrm policy delete {selector} dir {direction}" for selector, direction, _ in self.theirs))

    def wait_for_takeovers(self, present=True):
        want = [("xfrm", None, None)] if present else []
        return self.agent.wait_for(lambda s: all([(t["shape"], t["link"], t["table"]) for t in f["takeovers"]] == want
                                                 for f in s["families"].values()), f"takeovers {want}")

    def our_policies(self):
        return self.lab.shell("ip xfrm policy").count(OURS)

    def assert_others_lost(self):
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                answer = self.lab.probe(protocol, the_lab.ECHO[family], check=False, timeout=1)
                self.assertTrue(answer.startswith("no answer"), f"another process's {protocol} over IPv{family}: {answer}")

    def test_members_pass_and_others_do_not_leave_in_clear(self):
        self.start_agent()
        self.assert_same(self.our_policies(), 0, "policies of ours without a takeover")
        self.vpn_up()
        status = self.wait_for_takeovers()
        self.assertIn("IPsec policies", status["summary"])
        self.assert_same([c["state"] for c in status["classes"]], ["steering"], "state")
        sniffer = self.lab.sniff(*the_lab.ECHO.values(), *MEMBER_ECHO.values())
        self.assert_others_lost()
        self.assert_members_seen_at("a")
        # The members' packets came after: the sniffer has seen all that left before them.
        seen = the_lab.wait_until(lambda: [p for p in sniffer.packets("wlan0") if MEMBER_ECHO[6] in p], what="members' packets on the wire")
        self.assertTrue(seen)
        in_clear = [p for p in sniffer.packets() if any(re.search(rf"\b{re.escape(host)}\b", p) for host in the_lab.ECHO.values())]
        self.assert_same(in_clear, [], "ordinary packets in clear")
        self.vpn_down()
        self.wait_for_takeovers(False)
        self.assert_same(self.our_policies(), 0, "policies of ours after the takeover")
        for family in FAMILIES:
            self.assert_others_seen_as(self.lab.site_address("a", family), family)
        self.assert_members_seen_at("a")

    def test_open_flows_of_members_outlive_it(self):
        self.start_agent()
        flows = {family: self.lab.flow("hold", "tcp", family) for family in FAMILIES}
        self.vpn_up()
        self.wait_for_takeovers()
        for family, flow in flows.items():
            self.assert_same(flow.ask(), self.lab.site_address("a", family), f"the flow over IPv{family} under the policies")
        self.vpn_down()
        self.wait_for_takeovers(False)
        for family, flow in flows.items():
            self.assert_same(flow.ask(), self.lab.site_address("a", family), f"the flow over IPv{family} without them")

    def test_unsolicited_packets_still_do_not_pass(self):
        self.lab.shell(f"ip route add {SITES['a'].net4}.0/24 via {SITES['a'].seen4}", "internet")
        self.start_agent()
        server = self.lab.spawn(the_lab.PYTHON, "-c", SERVER)
        self.assert_same(the_lab.read_line(server), "ready", "the server")

        def send(source, family, text, namespace):
            self.lab.run(the_lab.PYTHON, "-c", SENDER, source, self.lab.laptop_address(family), PORT, text, namespace=namespace)

        for family in FAMILIES:
            send(the_lab.ECHO[family], family, f"before {family}", "internet")
            self.assert_same(the_lab.read_line(server), f"before {family}", "a datagram without policies")
        self.vpn_up()
        self.wait_for_takeovers()
        self.assert_members_seen_at("a")
        near = {4: SITES["a"].gateway, 6: f"{SITES['a'].net6}:1"}
        for family in FAMILIES:
            # From a host that members talk to as well. A neighbour's packet follows on the same wire: it ends the wait.
            for stranger in (the_lab.ECHO[family], MEMBER_ECHO[family]):
                send(stranger, family, "unasked", "internet")
            the_lab.wait_until(lambda: self.dropped_by_policy() >= 2 * (1 if family == 4 else 2), what="the packets' arrival")
            send(near[family], family, f"near {family}", "router_a")
            self.assert_same(the_lab.read_line(server), f"near {family}", "what gets in")

    def dropped_by_policy(self):
        stat = self.lab.shell("cat /proc/net/xfrm_stat")
        return int(re.search(r"^XfrmInTmplMismatch\s+(\d+)", stat, re.MULTILINE)[1])

    def test_ours_are_put_back_and_a_stop_leaves_the_kernel_as_before(self):
        self.vpn_up()
        under_vpn = self.lab.snapshot()
        self.start_agent()
        self.wait_for_takeovers()
        self.assert_same(self.our_policies(), 6, "policies of ours")
        self.lab.shell("ip xfrm policy delete src 0.0.0.0/0 dst 0.0.0.0/0 dir out mark 0x4e000000 mask 0xff000000")
        the_lab.wait_until(lambda: self.our_policies() == 6, what="the deleted policy")
        self.assert_members_seen_at("a")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(under_vpn)
        self.vpn_down()
        self.assert_state_is(self.before)

    def test_a_restarted_agent_adopts_without_a_write(self):
        self.start_agent()
        self.vpn_up()
        self.wait_for_takeovers()
        flow = self.lab.flow()
        steered = self.lab.snapshot()
        monitor, policies = self.lab.monitor(), PolicyMonitor(self.lab)
        for end in (lambda: self.agent.stop(signal.SIGUSR1), lambda: self.agent.kill9()):
            end()
            self.assert_state_is(steered)
            self.start_agent()
            self.wait_for_takeovers()
            self.assert_same(monitor.changes() + policies.changes(), [], "changes made by the restarted agent")
            self.assert_state_is(steered)
            self.assert_same(flow.ask(), SITES["a"].seen4, "the flow")
        self.agent.kill9()
        self.lab.novpn("down", "--force")
        self.assertIn("Deleted src ::/0 dst ::/0 ", policies.changes(), "what the monitor saw of 'down'")
        self.vpn_down()
        self.assert_state_is(self.before)

    def test_policies_that_went_while_no_agent_ran_leave_nothing_of_ours(self):
        self.start_agent()
        self.vpn_up()
        self.wait_for_takeovers()
        self.agent.kill9()
        self.vpn_down()
        self.assert_same(self.our_policies(), 6, "policies of the killed agent")
        self.start_agent()
        self.wait_for_takeovers(False)
        self.assert_same(self.our_policies(), 0, "policies of ours")

    def test_a_policy_that_none_of_ours_comes_before_is_named(self):
        self.start_agent()
        self.lab.shell("ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 0 action block")
        status = self.agent.wait_for(lambda s: s["health"] == "degraded", "degraded")
        self.assertIn("'src 0.0.0.0/0 dst 0.0.0.0/0 dir out", status["summary"])
        self.lab.shell("ip xfrm policy delete src 0.0.0.0/0 dst 0.0.0.0/0 dir out")
        self.agent.wait_for(lambda s: s["health"] == "ok", "ok")


if __name__ == "__main__":
    unittest.main(verbosity=2)
