"""`novpn run`: what it starts, as whom, and what it answers."""
import signal
import time
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab


class Run(LabTest):
    def setUp(self):
        super().setUp()
        self.start_agent()

    def status_of(self, *command):
        return self.lab.novpn("run", "--", *command, check=False).returncode

    def test_exit_status(self):
        self.assertEqual(self.status_of("sh", "-c", "exit 7"), 7)
        self.assertEqual(self.status_of("true"), 0)
        self.assertEqual(self.status_of("/nowhere/to/be/found"), 127)
        self.assertEqual(self.status_of("/etc/passwd"), 126)

    def test_environment_and_cgroup(self):
        self.assertEqual(self.lab.novpn("run", "--", "sh", "-c", "echo $NOVPN_CLASS").stdout, "novpn\n")
        cgroup = self.lab.novpn("run", "--", "cat", "/proc/self/cgroup").stdout
        self.assertRegex(cgroup, rf"(?m)^0::/.*novpn-{self.lab.netns_inode()}/novpn$")

    def test_options_of_the_command_are_its_own(self):
        self.assertEqual(self.lab.novpn("run", "sh", "-c", "echo $0", "--help").stdout, "--help\n")

    def test_children_are_members_too(self):
        self.vpn_up("def1")
        probe = f"{the_lab.PYTHON} {self.lab.directory}/probe.py tcp {the_lab.MEMBER_ECHO[4]}"
        seen = self.lab.novpn("run", "--", "sh", "-c", f"({probe}); exit $?").stdout.strip()
        self.assert_same(seen, SITES["a"].seen4, "a member's child")

    def test_an_ordinary_user_of_the_group(self):
        self.vpn_up("def1")
        self.assert_same(self.lab.seen(member=True, uid=the_lab.NOBODY), SITES["a"].seen4, "a member of group novpn")
        self.assert_same(self.lab.novpn("run", "--", "id", "-u", uid=the_lab.NOBODY).stdout, f"{the_lab.NOBODY}\n", "its uid")
        self.assert_same(self.lab.seen(uid=the_lab.NOBODY), VPN_SEEN[4], "the same user outside of `novpn run`")

    def test_an_ordinary_user_outside_the_group(self):
        result = self.lab.novpn("run", "--", "id", "-u", uid=the_lab.DAEMON, check=False)
        self.assertEqual((result.returncode, result.stdout), (125, ""), result.stderr)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)

    def test_waits_for_an_agent_that_is_restarted(self):
        for end in (lambda: self.agent.stop(signal.SIGUSR1), lambda: self.agent.kill9()):
            end()
            program = self.lab.spawn(*self.lab.novpn_command("run", "--", "cat", "/proc/self/cgroup"))
            time.sleep(0.3)
            self.assert_same(program.poll(), None, "its exit status before there is an agent")
            program.send_signal(signal.SIGSTOP)  # However long this agent takes to start.
            self.start_agent()
            program.send_signal(signal.SIGCONT)
            said = program.communicate(timeout=30)[0].decode()
            self.assert_same(program.returncode, 0, "its exit status")
            self.assertRegex(said, rf"(?m)^0::/.*novpn-{self.lab.netns_inode()}/novpn$")
        self.agent.stop()
        result = self.lab.novpn("run", "--", "true", check=False)
        self.assertEqual(result.returncode, 125, "after a stop")
        self.assertFalse((self.lab.directory / "run" / "io.novpn.Agent").exists(), "what a stop leaves to wait for")

    def test_members_are_counted(self):
        flow = self.lab.flow()
        status = self.agent.wait_for(lambda s: sum(m["processes"] for m in s["classes"][0]["members"]) == 1, "one member")
        self.assertGreaterEqual(status["classes"][0]["packets"]["marked"], 1)
        self.lab.end(flow.process)
        self.agent.wait_for(lambda s: sum(m["processes"] for m in s["classes"][0]["members"]) == 0, "no member")


if __name__ == "__main__":
    unittest.main(verbosity=2)
