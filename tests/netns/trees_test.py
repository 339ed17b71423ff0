"""What a member starts is a member, however it is started: scripts, daemons, sandboxes, launchers such as Steam's and Wine's, and
those that `novpn desktop-entry` writes. A program that hands its work over to an instance outside of the class is told of."""
import json
import os
import pathlib
import shutil
import unittest

from labtest import LabTest, SITES, the_lab
from lab import MEMBER_ECHO, wait_until

UPLINK = SITES["a"].seen4
# Forks, ends, and leaves a grandchild in a session of its own behind; as daemon(7) has it.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execvp(sys.argv[1], sys.argv[1:])
    os._exit(0)
os.wait()
"""
# Adopts what its children leave behind, as Steam's reaper and bwrap do, and ends with the last of them.
REAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
if os.fork() == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
# The first is the instance; what the others are asked for is handed over to it.
BROWSER = """
if [ -e instance ]; then
    echo "$1" > asked
    exit 0
fi
echo $$ > instance
while :; do sleep 0.1; done
"""


class Trees(LabTest):
    def setUp(self):
        super().setUp()
        self.start_agent()
        self.vpn_up("def1")
        self.count = 0

    def write(self, name, text, mode=0o755):
        path = self.lab.directory / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def probe(self):
        """A command that leaves what the internet sees of it in a file, and that file."""
        self.count += 1
        answer = self.lab.directory / f"answers/{self.count}"
        answer.parent.mkdir(exist_ok=True)
        answer.parent.chmod(0o777)
        script = self.write(f"probe-{self.count}.sh", f"#!/bin/sh\n{the_lab.PYTHON} {self.lab.directory}/probe.py tcp {MEMBER_ECHO[4]} > {answer}.part\n"
                                                      f"mv {answer}.part {answer}\n")
        return [script], answer

    def assert_outside(self, before, what, uid=None):
        command, answer = self.probe()
        self.lab.novpn("run", "--", *before, *command, uid=uid)
        wait_until(answer.exists, 20, f"an answer to {what}", self.agent.explain)
        self.assert_same(answer.read_text().strip(), UPLINK, what)

    def test_scripts_and_daemons(self):
        daemon = self.write("daemon.py", DAEMON)
        reaper = self.write("reaper.py", REAPER)
        launcher = self.write("launcher.sh", '#!/bin/sh\n"$@" &\nwait\n')
        chain = self.write("chain.sh", f'#!/usr/bin/env bash\nexec sh -c \'exec "$0" "$@"\' {launcher} "$@"\n')
        python = [the_lab.PYTHON]
        for what, before in {
                "a script": [launcher], "a script that becomes a script that starts one": [chain],
                "a process in a session of its own": ["setsid", "--fork"], "a daemon": [*python, daemon],
                "a daemon of a script": [launcher, *python, daemon], "under a reaper": [*python, reaper, *python, daemon],
                "with nohup in the background": ["sh", "-c", 'nohup "$@" > /dev/null 2>&1 &', "sh"],
                "with another priority": ["nice", "ionice", "-c3"],
                "under a time limit": ["timeout", "60"]}.items():
            with self.subTest(what):
                self.assert_outside(before, what)

    def test_sandboxes(self):
        """Other namespaces, as those of Steam's pressure-vessel, of bwrap and of browsers: all but that of the network."""
        for what, before, uid in (
                ("namespaces of root", ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup"], None),
                ("another user's process", ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "--no-new-privs"], None),
                ("no new privileges", ["setpriv", "--no-new-privs"], the_lab.NOBODY),
                ("namespaces of a user", ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"], the_lab.NOBODY)):
            with self.subTest(what):
                self.assert_outside(before, what, uid)

    def test_what_outlives_the_program_stays(self):
        """A launcher ends, its game plays on; then the game starts another program."""
        go = self.lab.directory / "go"
        command, answer = self.probe()
        waits = self.write("waits.sh", f"#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\nexec {command[0]}\n")
        self.lab.novpn("run", "--", the_lab.PYTHON, self.write("daemon.py", DAEMON), waits)
        self.agent.wait_for(lambda s: sum(m["processes"] for m in s["classes"][0]["members"]) >= 1, "one that lives on")
        go.touch()
        wait_until(answer.exists, 20, "its answer")
        self.assert_same(answer.read_text().strip(), UPLINK, "a program of what lives on")


class Handover(LabTest):
    def setUp(self):
        super().setUp()
        self.start_agent()
        self.home = self.lab.directory / "browser"
        self.home.mkdir()
        self.browser = self.home / "browser"
        shutil.copy("/bin/sh", self.browser)  # A program of its own name.
        (self.home / "script").write_text(BROWSER)
        entries = self.home / "share/applications"
        entries.mkdir(parents=True)
        (entries / "browser.desktop").write_text(f"[Desktop Entry]\nName=Browser\nExec={self.browser} %u\n")

    def started(self, *words, member=False):
        command = [self.browser, "script", *words]
        return ["env", "-C", self.home, f"XDG_DATA_DIRS={self.home}/share", f"XDG_DATA_HOME={self.home}/none",
                *(self.lab.novpn_command("run", "--") if member else []), *command]

    def start_instance(self, member):
        process = self.lab.spawn(*self.started(member=member), output=the_lab.subprocess.DEVNULL)
        wait_until((self.home / "instance").exists, 20, "the instance")
        return process

    def test_it_says_where_the_window_opened(self):
        instance = self.start_instance(member=False)
        said = self.lab.run(*self.started("https://example.com", member=True), check=False)
        self.assertEqual((said.returncode, said.stdout), (0, ""))
        # What watches ends after the program.
        self.assertIn(f"the window opened in PID {instance.pid} (browser), which is not in class novpn", said.stderr)
        self.assertEqual(len(said.stderr.splitlines()), 1)
        self.assertEqual((self.home / "asked").read_text(), "https://example.com\n")

    def test_it_says_nothing_where_the_instance_is_a_member(self):
        self.start_instance(member=True)
        said = self.lab.run(*self.started("https://example.com", member=True))
        self.assertEqual((said.stderr, (self.home / "asked").read_text()), ("", "https://example.com\n"))

    def test_it_says_nothing_of_programs_without_windows(self):
        """Two of them that run at once have nothing to do with each other."""
        self.start_instance(member=False)
        (self.home / "share/applications/browser.desktop").unlink()
        self.assertEqual(self.lab.run(*self.started("a", member=True)).stderr, "")

    def test_it_says_nothing_of_what_lives_on(self):
        """It has started its work elsewhere, in the class: a script that starts the program proper and ends."""
        self.start_instance(member=False)
        self.lab.run("mkfifo", self.home / "up", self.home / "stop")
        (self.home / "script").write_text('if [ "$1" = inner ]; then echo > up; read line < stop; exit; fi\n'
                                          "./browser script inner > /dev/null 2>&1 &\nread line < up\n")
        self.assertEqual(self.lab.run(*self.started("a", member=True)).stderr, "")
        (self.home / "stop").write_text("\n")

    def test_what_watches_is_neither_its_child_nor_a_member(self):
        self.start_instance(member=False)
        (self.home / "script").write_text("echo up; read line; exit 3")
        process = self.lab.spawn(*self.started(member=True))
        self.assertEqual(the_lab.read_line(process), "up")
        self.assertEqual(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), "")
        held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        self.assertEqual([path for path in held if path.startswith(("socket:", "anon_inode:"))], [])
        status = json.loads(self.lab.novpn("status", "--json").stdout)
        self.assertEqual(sum(m["processes"] for m in status["classes"][0]["members"]), 1)
        process.stdin.write(b"\n")
        self.assertEqual(process.wait(20), 3)

    def test_a_program_that_cannot_start_is_not_one_that_handed_over(self):
        self.start_instance(member=False)
        self.browser.unlink()
        said = self.lab.run(*self.started("a", member=True), check=False)
        self.assertEqual((said.returncode, len(said.stderr.splitlines())), (127, 1), said.stderr)


class Launcher(LabTest):
    """`novpn desktop-entry`, started by GLib as desktops do."""

    def test_it_starts_the_application_and_its_actions_in_the_class(self):
        self.start_agent()
        self.vpn_up("def1")
        home, system = self.lab.directory / "home", self.lab.directory / "system/applications"
        system.mkdir(parents=True)
        told = self.lab.directory / "told"
        program = self.lab.directory / "a program.py"
        program.write_text(f"#!{the_lab.PYTHON}\nimport json, os, subprocess, sys\n"
                           f"seen = subprocess.run([{the_lab.PYTHON!r}, '{self.lab.directory}/probe.py', 'tcp', {MEMBER_ECHO[4]!r}], stdout=-1, text=True)\n"
                           f"json.dump([os.environ.get('NOVPN_CLASS'), seen.stdout.strip(), sys.argv[1:]], open({str(told) + '.part'!r}, 'w'))\n"
                           f"os.rename({str(told) + '.part'!r}, {str(told)!r})\n")
        program.chmod(0o755)
        original = system / "org.example.App.desktop"
        original.write_text(f"""[Desktop Entry]
Type=Application
Name=App
DBusActivatable=true
Exec="{program}" --open=%u "a \\\\$HOME \\\\"b\\\\" \\\\\\\\ c" 100%%
Actions=new;

[Desktop Action new]
Name=New
Exec="{program}" new
""")
        strange = self.lab.directory / 'run $HOME "%u`'  # All that an Exec has a meaning for.
        strange.symlink_to(self.lab.directory / "run")
        settings = ["env", f"XDG_DATA_HOME={home}", f"XDG_DATA_DIRS={self.lab.directory}/system", f"HOME={self.lab.directory}",
                    f"NOVPN_RUNTIME_DIR={strange}"]
        novpn = self.lab.directory / "bin/novpn"
        path = self.lab.run(*settings, novpn, "desktop-entry", "org.example.App").stdout
        self.assertEqual(path, f"{home}/applications/org.example.App.desktop\n")

        written = pathlib.Path(path.strip())

        def told_by(*command):
            self.lab.run(*settings, *command)
            wait_until(told.exists, 20, "the application")
            found = json.loads(told.read_text())
            told.unlink()
            return found
        want = ['--open=https://example.com/a%20b', 'a $HOME "b" \\ c', "100%"]
        self.assertEqual(told_by("gio", "launch", written, "https://example.com/a%20b"), ["novpn", UPLINK, want])
        self.assertEqual(told_by("gio", "launch", original, "https://example.com/a%20b")[::2], [None, want], "the test's own file")
        action = [line.removeprefix("Exec=") for line in written.read_text().splitlines() if line.startswith("Exec=")][1]
        written.write_text(f"[Desktop Entry]\nType=Application\nName=New\nExec={action}\n")
        self.assertEqual(told_by("gio", "launch", written), ["novpn", UPLINK, ["new"]])

    def test_what_it_refuses(self):
        home = self.lab.directory / "home/applications"
        home.mkdir(parents=True)
        (home / "mine.desktop").write_text("[Desktop Entry]\nExec=mine\n")
        settings = ["env", f"XDG_DATA_HOME={home.parent}", f"XDG_DATA_DIRS={self.lab.directory}"]
        for arguments, said in ((["absent"], "no such application is installed"), (["mine"], "is a file of your own"),
                                (["--class", "a;b", "mine"], "is no name of a class")):
            self.assert_refused(self.lab.run(*settings, *self.lab.novpn_command("desktop-entry", *arguments), check=False), said)
        self.assertEqual([path.name for path in home.iterdir()], ["mine.desktop"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
