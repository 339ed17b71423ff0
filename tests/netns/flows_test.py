"""Open flows of members outlive what happens around them: the VPN, another gateway, the agent's death."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN


class OpenFlow(LabTest):
    def check(self, mode, family):
        self.start_agent()
        flow = self.lab.flow("hold", "tcp", family)
        address = self.lab.site_address("a", family)
        self.assert_same(flow.seen, address, "the flow at its start")
        self.vpn_up(mode)
        self.assert_same(flow.ask(), address, "the flow with the VPN up")
        self.vpn_down()
        self.assert_same(flow.ask(), address, "the flow with the VPN down again")
        self.assert_nothing_leaked()

    def test_survives_def1(self):
        self.check("def1", 4)

    def test_survives_plain(self):
        self.check("plain", 4)

    def test_survives_def1_by_ipv6(self):
        self.check("def1-ipv6", 6)

    def test_survives_another_gateway_on_the_same_link(self):
        self.start_agent()
        flows = {"before the VPN": self.lab.flow()}
        self.vpn_up("def1")
        flows["under the VPN"] = self.lab.flow()
        for gateway in (SITES["a"].second_gateway, SITES["a"].gateway):
            self.lab.change_gateway("a", gateway)
            self.wait_for_gateway(gateway)
            for since, flow in flows.items():
                self.assert_same(flow.ask(), SITES["a"].seen4, f"the flow that began {since} by {gateway}")
        self.assert_nothing_leaked()


class KilledAgent(LabTest):
    def check(self, mode):
        before = self.lab.snapshot()
        self.start_agent()
        if mode:
            self.vpn_up(mode)
        streams = {(protocol, family): self.lab.flow("stream", protocol, family) for protocol in ("tcp", "udp") for family in (4, 6)}
        steered = self.lab.snapshot()
        self.assertNotEqual(before, steered)
        monitor = self.lab.monitor()
        self.agent.kill9()
        self.assert_state_is(steered)
        self.start_agent()
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_members_seen_at("a")
        self.assert_same(monitor.changes(), [], "changes made by the restarted agent")
        self.assert_state_is(steered)
        monitor.stop()
        for (protocol, family), stream in streams.items():
            counts = stream.finish()
            what = f"{protocol} over IPv{family}: {counts}"
            self.assertGreater(counts["sent"], 10, what)
            self.assert_same(counts["answered"], counts["sent"], f"answers, {what}")
            self.assert_same((counts["retransmitted"], counts["errors"]), (0, []), f"losses, {what}")
            self.assert_same(counts["seen"], [self.lab.site_address("a", family)], f"addresses, {what}")
        self.assert_nothing_leaked()

    def test_without_vpn(self):
        self.check(None)

    def test_under_def1_ipv6(self):
        self.check("def1-ipv6")

    def test_under_plain_where_nothing_but_the_table_knows_the_gateway(self):
        self.check("plain")

    def test_steering_works_with_no_agent(self):
        self.start_agent()
        flow = self.lab.flow()
        self.vpn_up("def1")
        self.agent.kill9()
        self.assert_same(flow.ask(), SITES["a"].seen4, "the flow without an agent")
        self.assert_others_seen_as(VPN_SEEN[4])


if __name__ == "__main__":
    unittest.main(verbosity=2)
