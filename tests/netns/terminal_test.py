"""`novpn run` as if the program were run directly: on a real terminal, under a real shell's job control."""
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import termios
import time
import unittest

from labtest import LabTest, the_lab

# What a process finds when it starts, as one line of JSON.
STATE = r"""
import json, os, resource, sys
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
def mask():
    old = os.umask(0)
    os.umask(old)
    return old
print(json.dumps({
    "arguments": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd(), "umask": mask(),
    "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())], "parent": os.getppid(), "session": os.getsid(0),
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
    "status": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd",
                                               "NoNewPrivs", "Seccomp", "NSpid", "TracerPid", "Cpus_allowed")},
    "descriptors": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")},
    "niceness": os.nice(0), "oom": open("/proc/self/oom_score_adj").read(),
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
}))
"""
WINDOW = (33, 101)


class Terminal:
    """An interactive bash on the laptop, on a terminal of its own."""

    def __init__(self, lab, prompt="ready> "):
        self.prompt = prompt
        environment = dict(lab.environment, PS1=prompt, PS2="", TERM="dumb", HISTFILE="", PATH=f"{lab.directory}/bin:{os.environ['PATH']}",
                           NOVPN_RUNTIME_DIR=f"{lab.directory}/run")
        command = lab.command("bash", "--norc", "--noprofile", "--noediting", "-i")
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir("/")
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python's own way is not the shell's.
            os.execvpe(command[0], command, environment)
        self.resize(24, 80)
        self.pending = ""
        self.until(prompt)

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, wanted, timeout=20):
        """What comes up to there."""
        end = time.monotonic() + timeout
        while wanted not in self.pending:
            if not select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {wanted!r} within {timeout} s, only {self.pending!r}")
            self.pending += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.pending = self.pending.partition(wanted)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def run(self, line):
        """What the line printed."""
        self.type(line + "\n")
        self.until("\n")  # The terminal's echo of it.
        return self.until(self.prompt).replace("\r", "")

    def status(self):
        return int(self.run("echo $?"))

    def foreground(self):
        return os.tcgetpgrp(self.fd)

    def close(self):
        os.close(self.fd)
        os.waitpid(self.pid, 0)


class OnATerminal(LabTest):
    def setUp(self):
        super().setUp()
        self.start_agent()
        self.terminal = Terminal(self.lab)
        self.addCleanup(self.terminal.close)
        self.shell_group = self.terminal.foreground()

    def start(self, line):
        """Types it, and waits until it has the terminal and says so."""
        self.terminal.type(line + "\n")
        self.terminal.until("\n")
        self.terminal.until("started")
        self.assertNotEqual(self.terminal.foreground(), self.shell_group)

    def test_control_c_and_control_backslash_end_it(self):
        for key, name in (("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)):
            self.start("novpn run sh -c 'echo start\"ed\"; exec sleep 1000'")
            self.terminal.type(key)
            self.terminal.until(self.terminal.prompt)
            self.assertEqual(self.terminal.status(), 128 + name)
            self.assertEqual(self.terminal.foreground(), self.shell_group)

    def test_control_z_stops_it_and_fg_and_bg_go_on(self):
        self.start("novpn run sh -c 'echo start\"ed\"; read word; echo \"<$word>\"'")
        self.terminal.type("\x1a")
        self.assertIn("Stopped", self.terminal.until(self.terminal.prompt))
        self.assertEqual(self.terminal.status(), 128 + signal.SIGTSTP)
        self.assertIn("Stopped", self.terminal.run("jobs"))
        self.terminal.type("fg\n")
        self.terminal.until("read word")  # bash names the job that it brings back.
        self.terminal.type("hello\n")
        self.terminal.until("<hello>")
        self.terminal.until(self.terminal.prompt)
        self.assertEqual(self.terminal.status(), 0)
        self.start("novpn run sh -c 'echo start\"ed\"; exec sleep 1000'")
        self.terminal.type("\x1a")
        self.terminal.until(self.terminal.prompt)
        self.terminal.run("bg")
        self.assertIn("Running", self.terminal.run("jobs"))
        self.assertEqual(self.terminal.run("kill %1; wait %1; echo $?").splitlines()[-1], str(128 + signal.SIGTERM))

    def test_in_the_background_it_may_not_read_the_terminal(self):
        self.terminal.run("novpn run cat &")
        the_lab.wait_until(lambda: "Stopped" in self.terminal.run("jobs"), 20, "a job that is stopped for reading")
        self.terminal.type("fg\n")
        self.terminal.until("novpn run cat")
        self.terminal.type("typed\n\x04")
        self.assertEqual(self.terminal.until(self.terminal.prompt).replace("\r", "").split(), ["typed", "typed"])
        self.assertEqual(self.terminal.status(), 0)

    def test_it_has_the_terminal_and_its_size(self):
        self.terminal.resize(*WINDOW)
        self.assertEqual(self.terminal.run("novpn run stty size").split(), [str(n) for n in WINDOW])
        self.assertRegex(self.terminal.run("novpn run tty"), r"^/dev/pts/\d+\n")
        self.start("novpn run bash -c 'trap \"stty size; exit 9\" WINCH; echo start\"ed\"; while :; do sleep 0.05; done'")
        self.terminal.resize(50, 132)
        self.assertIn("50 132", self.terminal.until(self.terminal.prompt))
        self.assertEqual(self.terminal.status(), 9)

    def test_pipes_and_statuses(self):
        self.assertEqual(self.terminal.run("echo word | novpn run cat | novpn run tr a-z A-Z"), "WORD\n")
        self.assertEqual(self.terminal.run("novpn run yes | head -1; echo ${PIPESTATUS[*]}"), f"y\n{128 + signal.SIGPIPE} 0\n")
        self.assertEqual(self.terminal.run("novpn run sh -c 'kill -KILL $$' | cat; echo ${PIPESTATUS[*]}").splitlines()[-1],
                         f"{128 + signal.SIGKILL} 0")
        self.assertEqual(self.terminal.run("novpn run sh -c 'exit 77'; echo $?"), "77\n")

    def test_a_session(self):
        """--shell: the login shell, interactive, in the class, and all that is started from it."""
        self.terminal.run(f"export PROMPT_COMMAND='PS1=\"{self.terminal.prompt}\"'")  # Files of the system and of root set PS1.
        outer = self.terminal.run("echo $$").strip()
        shell = self.lab.run("getent", "passwd", "root").stdout.strip().split(":")[-1]
        self.terminal.run("novpn run --shell")
        inner = self.terminal.run("echo $$").strip()
        self.assertNotEqual(inner, outer)
        self.assertEqual(os.path.realpath(f"/proc/{inner}/exe"), os.path.realpath(shell))
        self.assertEqual(self.terminal.run("echo $NOVPN_CLASS"), "novpn\n")
        self.assertRegex(self.terminal.run("cat /proc/self/cgroup"), rf"(?m)^0::/.*novpn-{self.lab.netns_inode()}/novpn$")
        self.terminal.type("sleep 1000\n")
        the_lab.wait_until(lambda: self.terminal.foreground() not in (self.shell_group, int(inner)), 20, "a job of the session")
        self.terminal.type("\x1a")
        self.assertIn("Stopped", self.terminal.until(self.terminal.prompt))
        self.terminal.run("kill %1; wait %1")
        self.terminal.run("exit 5")
        self.assertEqual((self.terminal.status(), self.terminal.run("echo $$").strip()), (5, outer))

    def test_a_session_of_a_user(self):
        """nobody's login shell is nologin(8), which says so."""
        said = self.lab.novpn("run", "--shell", uid=the_lab.NOBODY, check=False)
        self.assertEqual((said.returncode, "not available" in said.stdout), (1, True), said.stdout + said.stderr)


class AsRunDirectly(LabTest):
    def state(self, *before, shell_setup=""):
        """What a program finds that a shell starts, behind these words or without them."""
        (self.lab.directory / "state.py").write_text(STATE)
        words = " ".join(str(word) for word in before)
        script = f"{shell_setup}; {words} {the_lab.PYTHON} {self.lab.directory}/state.py 'a b' -- '' --help; exit $?"
        result = self.lab.run("bash", "-c", script)
        self.assertEqual(result.stderr, "")
        return json.loads(result.stdout)

    def test_it_finds_what_it_would_find_without(self):
        self.start_agent()
        run = self.lab.novpn_command("run", "--")
        setup = ("cd /var; umask 027; export STRANGE=$'a\\nb=c\\'\"' EMPTY=; trap '' HUP USR1; ulimit -Sn 200; ulimit -Sc 0; "
                 "exec 7</etc/passwd 9>/dev/null")
        direct, through = self.state(shell_setup=setup), self.state(*run, shell_setup=setup)
        self.assertEqual(through["environment"].pop("NOVPN_CLASS"), "novpn")
        for found in (direct, through):
            # The shell's, which are two.
            del found["parent"], found["session"], found["status"]["NSpid"]
            found["environment"].pop("_", None)  # bash's: the program that it started.
            found["descriptors"] = {fd: re.sub(r"pipe:\[\d+\]", "pipe", path) for fd, path in found["descriptors"].items()}
            del found["namespaces"]["pid_for_children"], found["namespaces"]["time_for_children"]
        self.assertEqual(sorted(direct["descriptors"])[-2:], ["7", "9"], "the comparison sees them")
        self.assertEqual(through, direct)

    def test_it_is_the_process_that_was_started(self):
        """No parent in between: its number, its parent and what ps(1) says are the program's."""
        self.start_agent()
        process = self.lab.spawn(*self.lab.novpn_command("run", "--", "sleep", "1000"))
        the_lab.wait_until(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 20, "the program")
        stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        self.assertEqual(int(stat[1]), os.getpid())
        self.assertEqual(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), "")
        os.kill(process.pid, signal.SIGUSR1)
        self.assertEqual(process.wait(20), -signal.SIGUSR1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
