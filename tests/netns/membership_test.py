"""Joining and leaving a class with open sockets: a flow keeps the path it began on, or ends."""
import signal
import unittest

from labtest import LabTest, SITES, VPN_SEEN
from lab import wait_until

UPLINK = SITES["a"].seen4
TWO_CLASSES = """
classes:
  novpn: {%s}
  work: {via: "tun*", table: 7867, mark: 0x4f000000/0xff000000, preference: 70}
"""


class Membership(LabTest):
    def start(self, config=None):
        self.start_agent(config)
        self.vpn_up("def1")

    def old_sockets(self):
        return self.agent.status()["classes"][0]["members"][0]["old_sockets"]

    def run_in(self, name):
        command = ["run", "--class", name, "--", "python3", self.lab.directory / "probe.py", "tcp", "203.0.113.10"]
        return self.lab.novpn(*command, check=False).stdout.strip()

    def assert_ended(self, flow):
        self.assertIn("no answer", flow.ask(), self.agent.explain())
        self.assert_nothing_leaked()


class Add(Membership):
    def test_an_open_socket_keeps_its_path_and_is_counted(self):
        self.start()
        flow = self.lab.flow(member=False)
        self.assert_same(flow.seen, VPN_SEEN[4], "the flow at its start")
        self.assertRegex(self.lab.novpn("add", flow.process.pid).stdout,
                         r"; 1 of its open sockets was made before and keeps its path\n  tcp 10\.8\.0\.\d+:\d+ to 203\.0\.113\.10:7000, of python3\S* \(\d+\)\n$")
        self.assert_same(self.old_sockets(), 1, "old sockets")
        self.assert_same(flow.ask(), VPN_SEEN[4], "the flow of a process that joined")

    def test_without_vpn_there_is_nothing_to_tell_of_a_process_without_sockets(self):
        self.start_agent()
        process = self.lab.spawn("sleep", "60")
        self.lab.novpn("add", process.pid)
        self.assert_same(self.agent.status()["classes"][0]["members"][0]["processes"], 1, "processes")
        self.assert_same(self.old_sockets(), 0, "old sockets")

    def test_a_process_of_another_user_is_refused(self):
        self.start_agent()
        process = self.lab.spawn("sleep", "60")
        self.assertEqual(self.lab.novpn("add", process.pid, uid=65534, check=False).returncode, 1)
        self.assert_same(self.agent.status()["classes"][0]["members"][0]["processes"], 0, "processes")


class Leave(Membership):
    def test_remove_ends_the_sockets_of_the_process_only(self):
        self.start()
        leaving, staying = self.lab.flow(), self.lab.flow()
        self.assert_same(leaving.seen, UPLINK, "the flow at its start")
        self.assertIn("1", self.lab.novpn("remove", leaving.process.pid).stdout)
        self.assert_ended(leaving)
        self.assert_same(staying.ask(), UPLINK, "the flow of another member")

    def test_remove_may_keep_them(self):
        self.start("classes: {novpn: {on_leave: keep}}")
        flow = self.lab.flow()
        self.lab.novpn("remove", flow.process.pid)
        self.assert_same(flow.ask(), UPLINK, "the flow of a process that left")
        self.assert_nothing_leaked()

    def test_remove_of_an_ordinary_process_is_refused(self):
        self.start_agent()
        process = self.lab.spawn("sleep", "60")
        self.assertEqual(self.lab.novpn("remove", process.pid, check=False).returncode, 1)

    def test_off_ends_the_sockets_of_the_class_and_on_takes_new_ones(self):
        self.start()
        flows = [self.lab.flow("hold", protocol) for protocol in ("tcp", "udp")]
        bystander = self.lab.flow(member=False)
        self.lab.novpn("off")
        for flow in flows:
            self.assert_ended(flow)
        self.assert_same(bystander.ask(), VPN_SEEN[4], "a flow of an ordinary process")
        self.assert_same(self.agent.status()["classes"][0]["state"], "off", "state")
        refused = self.lab.novpn("run", "true", check=False)
        self.assertEqual(refused.returncode, 125, refused.stderr)
        self.lab.novpn("on")
        self.assert_members_seen_at("a", families=(4,))

    def test_off_for_a_while(self):
        self.start_agent()
        self.lab.novpn("off", "--for", "1s")
        self.assert_same(self.agent.status()["classes"][0]["state"], "off", "state")
        wait_until(lambda: self.agent.status()["classes"][0]["state"] == "steering", 5, "the class being on again")

    def test_off_may_keep_them(self):
        self.start("classes: {novpn: {on_leave: keep}}")
        flow = self.lab.flow()
        self.lab.novpn("off")
        self.assert_same(flow.ask(), UPLINK, "the flow of a class that is off")
        self.assert_nothing_leaked()


class SeveralClasses(Membership):
    def test_each_goes_its_own_way(self):
        self.start(TWO_CLASSES % "")
        self.assert_same(self.run_in("novpn"), UPLINK, "a member of novpn")
        self.assert_same(self.run_in("work"), VPN_SEEN[4], "a member of work")
        self.vpn_down()
        self.assert_same(self.run_in("novpn"), UPLINK, "a member of novpn without VPN")
        self.assertIn("no answer", self.run_in("work"), "a class bound to a tunnel goes nowhere else")

    def test_reload_adds_and_removes_a_class_and_touches_no_other(self):
        self.start("classes: {novpn: {}}")
        streams = [self.lab.flow("stream", protocol) for protocol in ("tcp", "udp")]
        config = self.lab.directory / "novpn.yaml"
        config.write_text(TWO_CLASSES % "")
        self.lab.novpn("reload")
        self.assert_same(self.run_in("work"), VPN_SEEN[4], "a member of the new class")
        config.write_text("classes: {novpn: {}}")
        self.agent.process.send_signal(signal.SIGHUP)
        self.agent.wait_for(lambda s: len(s["classes"]) == 1, "one class")
        self.assertNotIn("7867", self.lab.shell("ip rule; ip -6 rule; ip route show table all"))
        for stream in streams:
            counts = stream.finish()
            self.assertGreater(counts["sent"], 10, counts)
            self.assert_same((counts["answered"], counts["errors"]), (counts["sent"], []), f"a stream across reloads: {counts}")
        self.assert_nothing_leaked()

    def test_other_numbers_by_reload_lose_no_packet(self):
        self.start("classes: {novpn: {}}")
        stream = self.lab.flow("stream", "udp")
        (self.lab.directory / "novpn.yaml").write_text("classes: {novpn: {table: 7900, preference: 90}}")
        self.lab.novpn("reload")
        self.assertNotIn("7866", self.lab.shell("ip rule; ip -6 rule; ip route show table all"))
        counts = stream.finish()
        self.assert_same((counts["answered"], counts["errors"]), (counts["sent"], []), f"a stream across the reload: {counts}")
        self.assert_nothing_leaked()

    def test_a_bad_config_changes_nothing(self):
        self.start_agent("classes: {novpn: {}}")
        before = self.lab.snapshot()
        (self.lab.directory / "novpn.yaml").write_text("classes: {novpn: {tabel: 5}}")
        result = self.lab.novpn("reload", check=False)
        self.assert_refused(result, "novpn.yaml:1:", "tabel", "table")
        self.assert_state_is(before)
        self.assertIn("tabel", self.lab.novpn("status").stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
