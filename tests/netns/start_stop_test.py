"""Starting, stopping, and every reason not to start: all of it, or nothing."""
import pathlib
import re
import signal
import socket
import unittest

from labtest import LabTest, SITES, the_lab


class StartStop(LabTest):
    def setUp(self):
        super().setUp()
        self.before = self.lab.snapshot()

    def test_sigterm_and_sigint_release_everything(self):
        for with_signal in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(with_signal.name):
                self.start_agent()
                self.assertNotEqual(self.before, self.lab.snapshot())
                self.assert_same(self.agent.stop(with_signal), 0, "exit status")
                self.assert_state_is(self.before)

    def test_sigterm_releases_everything_under_a_vpn(self):
        self.lab.vpn_up("def1-ipv6")
        before = self.lab.snapshot()
        self.start_agent()
        self.assert_members_seen_at("a")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(before)

    def test_sigusr1_leaves_everything_and_the_next_agent_writes_nothing(self):
        self.start_agent()
        steered = self.lab.snapshot()
        monitor = self.lab.monitor()
        self.assert_same(self.agent.stop(signal.SIGUSR1), 0, "exit status")
        self.assert_state_is(steered)
        self.start_agent()
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_same(monitor.changes(), [], "changes")
        self.assert_state_is(steered)
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assert_state_is(self.before)

    def test_an_agent_with_nothing_to_do_writes_nothing(self):
        self.start_agent()
        monitor = self.lab.monitor()
        # Each makes it look again: a renewed lease, a router advertisement, a foreign table.
        self.lab.dhcp["wlan0"].send_signal(signal.SIGUSR1)
        self.lab.run(the_lab.PYTHON, "-c", the_lab.SOLICIT_ROUTER, "wlan0")
        self.lab.shell("nft add table ip foreign")
        self.lab.shell("nft delete table ip foreign")
        self.assert_same(self.lab.novpn("plan").stdout.strip().count("\n"), 0, "lines of `novpn plan`")
        changes = [line for line in monitor.changes() if "foreign" not in line]
        # udhcpc's script replaces its own default; the kernel tells even when it is the same.
        changes = [line for line in changes if "proto dhcp" not in line]
        self.assert_same(changes, [], "changes")

    def test_readiness_is_notified(self):
        path = str(self.lab.directory / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(path)
            notified.settimeout(10)
            self.agent = self.lab.start_agent(environment={"NOTIFY_SOCKET": path})
            # A line for `systemctl status` may come before.
            self.assertTrue(any(b"READY=1" in said for said in iter(lambda: notified.recv(4096), None)))

    USED = (1, 12, 19, 39)  # DAC_OVERRIDE, NET_ADMIN, SYS_PTRACE, BPF

    def test_it_keeps_those_rights_alone_that_it_uses(self):
        self.start_agent()
        self.assert_rights(self.USED)

    def test_it_keeps_the_right_to_mount_with_net_cls_alone(self):
        self.start_agent("marking: net_cls\n")
        self.assert_rights((*self.USED, 21))  # SYS_ADMIN

    def assert_rights(self, capabilities):
        used = sum(1 << capability for capability in capabilities)
        tasks = list(pathlib.Path(f"/proc/{self.agent.pid}/task").iterdir())
        for task in tasks:
            status = dict(re.findall(r"^(\w+):\t(\S+)$", (task / "status").read_text(), re.MULTILINE))
            held = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")}
            self.assertEqual(held, {"CapPrm": used, "CapEff": used, "CapBnd": used, "CapInh": 0, "CapAmb": 0}, task)
            self.assertEqual(status["NoNewPrivs"], "1", task)
            self.assertEqual(status["Seccomp"], "2", f"{task}: a filter of system calls")
        self.assertTrue(tasks)

    def test_a_second_agent_is_refused(self):
        self.start_agent()
        steered = self.lab.snapshot()
        result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run2", check=False)
        self.assert_refused(result, "network namespace")
        self.assert_state_is(steered)
        self.assertEqual(self.agent.status()["families"]["ipv4"]["uplink"]["gateway"], SITES["a"].gateway)

    def test_down(self):
        self.start_agent()
        self.lab.novpn("down")
        self.assert_same(self.agent.process.wait(5), 0, "exit status")
        self.assert_state_is(self.before)

    def test_down_is_roots(self):
        self.start_agent()
        result = self.lab.novpn("down", uid=the_lab.NOBODY, check=False)
        self.assert_refused(result)
        self.assertIsNone(self.agent.process.poll())

    def test_down_by_force_is_for_an_agent_that_is_dead(self):
        self.start_agent()
        steered = self.lab.snapshot()
        self.assert_refused(self.lab.novpn("down", "--force", check=False))
        self.assert_state_is(steered)
        self.agent.kill9()
        self.lab.novpn("down", "--force")
        self.assert_state_is(self.before)
        # With nothing left there is nothing to do, and that is no error.
        self.lab.novpn("down", "--force")

    def test_plan_tells_what_a_start_would_do_and_does_nothing(self):
        plan = self.lab.novpn("plan").stdout
        self.assertIn(f"default via {SITES['a'].gateway} dev wlan0", plan)
        self.assertIn("unreachable", plan)
        self.assertIn("nft ", plan)
        self.assert_state_is(self.before)

    def test_no_agent(self):
        for arguments in (["status"], ["run", "--", "true"]):
            with self.subTest(arguments[0]):
                result = self.lab.novpn(*arguments, check=False)
                self.assertEqual(result.returncode, 125 if arguments[0] == "run" else 1, result.stderr)
                self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)


class Refused(LabTest):
    def setUp(self):
        super().setUp()
        self.before = self.lab.snapshot()

    def start(self, *wrapper, config=None, uid=None):
        command = [*wrapper, self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run"]
        if config is not None:
            path = self.lab.directory / "bad.yaml"
            path.write_text(config)
            command += ["--config", path]
        result = self.lab.run(*command, uid=uid, check=False)
        self.assert_state_is(self.before)
        return result

    def test_not_root(self):
        self.assert_refused(self.start(uid=the_lab.NOBODY), "CAP_NET_ADMIN")

    def test_no_cap_net_admin(self):
        result = self.start("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
        self.assert_refused(result, "CAP_NET_ADMIN")

    def test_bad_yaml(self):
        self.assert_refused(self.start(config="classes: [\n"), "bad.yaml:")

    def test_unknown_key(self):
        self.assert_refused(self.start(config="classes:\n  novpn:\n    colour: red\n"), "bad.yaml:3:", "colour")

    def test_no_such_config(self):
        result = self.lab.run(self.lab.directory / "bin/novpnd", "--config", "/nowhere.yaml",
                              "--runtime-dir", self.lab.directory / "run", check=False)
        self.assert_refused(result, "/nowhere.yaml")
        self.assert_state_is(self.before)


if __name__ == "__main__":
    unittest.main(verbosity=2)
