"""Hostile local users at the real agent's socket and cgroups: nobody is steered who should not be, and others are served."""
import json
import os
import pathlib
import shutil
import unittest

from labtest import LabTest, the_lab
from lab import DAEMON, NOBODY, wait_until

# Runs as the user. Each line of stdin is Python; the answer's repr is a line of stdout.
CLIENT = r"""
import array, json, os, random, signal, socket, sys, threading
PATH = sys.argv[1]
def open_socket():
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(PATH)
    return sock
def receive(sock):
    data = b""
    while not data.endswith(b"\0"):
        part = sock.recv(65536)
        if not part:
            return "closed"
        data += part
    reply = json.loads(data[:-1])
    return reply.get("error", "done").rsplit(".", 1)[-1]
def call(method, **parameters):
    return raw(json.dumps({"method": "io.novpn.Agent." + method, "parameters": parameters}).encode() + b"\0")
def raw(data, descriptors=()):
    with open_socket() as sock:
        try:
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else [])
            return receive(sock)
        except OSError as error:
            return type(error).__name__
def garbage(count):
    # Each its own connection; the answers are of no interest.
    chance = random.Random(5)
    for n in range(count):
        with open_socket() as sock:
            try:
                sock.send(chance.randbytes(chance.randrange(1, 4000)) + b"\0" * chance.randrange(3))
            except OSError:
                pass
    return count
def thread_number():
    found = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: (found.append(threading.get_native_id()), done.wait()), daemon=True)
    thread.start()
    while not found:
        pass
    return found[0]
def write(path, text):
    try:
        with open(path, "w") as file:
            file.write(text)
        return "written"
    except OSError as error:
        return type(error).__name__
def make(path):
    try:
        os.mkdir(path)
        return "made"
    except OSError as error:
        return type(error).__name__
held = []
def hold(count):
    # Half a call each, and never an end.
    for _ in range(count):
        try:
            sock = open_socket()
            sock.send(b'{"method":"io.novpn.Agent.Place"')
            held.append(sock)
        except OSError:
            pass
    return len(held)
def drop():
    while held:
        held.pop().close()
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class Client:
    def __init__(self, lab, uid, *wrapper):
        script = lab.directory / "client.py"
        script.write_text(CLIENT)
        self.process = lab.spawn(*wrapper, the_lab.PYTHON, script, lab.directory / "run/io.novpn.Agent", uid=uid)

    def ask(self, text):
        self.process.stdin.write(f"{text}\n".encode())
        return eval(the_lab.read_line(self.process, 60))

    def place(self, pid, class_name="novpn"):
        return self.ask(f"call('Place', **{{'class': {class_name!r}, 'pid': {pid!r}}})")

    def pid(self):
        return self.ask("os.getpid()")


class Hostile(LabTest):
    def setUp(self):
        super().setUp()
        self.start_agent()

    def members(self):
        return sum(m["processes"] for m in self.agent.status()["classes"][0]["members"])

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.agent.process.pid}/fd"))

    def assert_well(self):
        """The agent is the one that was started, moves nobody, and serves who may be served."""
        self.assertIsNone(self.agent.process.poll())
        self.assert_same(self.members(), 0, "members")
        self.assertEqual(self.lab.novpn("run", "--", "id", "-u", uid=NOBODY).stdout, f"{NOBODY}\n")

    def test_processes_of_others_and_numbers_that_are_none(self):
        client = Client(self.lab, NOBODY)
        others = {"root's": self.lab.spawn("sleep", "1000").pid, "another user's": self.lab.spawn("sleep", "1000", uid=DAEMON).pid,
                  "the agent's": self.agent.process.pid, "init": 1, "a kernel thread": 2, "the test's": os.getpid()}
        for what, pid in others.items():
            self.assertIn(client.place(pid), ("NotAllowed", "NoSuchProcess"), what)
            self.assertIn(client.ask(f"call('Release', pid={pid})"), ("NotAllowed", "NoSuchProcess", "NotSteered"), what)
        for pid in (0, -1, 2**31, 2**63, -2**63, 1.5, "1", None, True, [1], {"pid": 1}):
            self.assertIn(client.place(pid), ("InvalidParameter", "NoSuchProcess"), pid)
        ended = self.lab.spawn("true", uid=NOBODY)
        ended.wait(20)
        self.assertEqual(client.place(ended.pid), "NoSuchProcess")
        self.assertEqual(client.place(client.ask("thread_number()")), "NoSuchProcess", "a thread is no process")
        for name in ("", "..", "../..", "novpn/..", "novpn\0", "novpn ", "NOVPN", "x" * 60000, "init.scope"):
            self.assertEqual(client.place(client.pid(), name), "NoSuchClass", name[:20])
        self.assert_well()
        self.assertEqual(client.place(client.pid()), "done", "one's own")
        self.assert_same(self.members(), 1, "members")

    def test_processes_with_more_rights_than_their_user(self):
        """Their real uid is the user's, the effective one is root's, as sudo's and passwd's."""
        sleep = self.lab.directory / "sleep"
        shutil.copy("/bin/sleep", sleep)
        sleep.chmod(0o4755)
        raised = self.lab.spawn(sleep, "1000", uid=NOBODY)
        status = pathlib.Path(f"/proc/{raised.pid}/status")
        wait_until(lambda: "Name:\tsleep" in status.read_text(), 20, "the program")
        self.assertRegex(status.read_text(), rf"Uid:\t{NOBODY}\t0\t", "the test's own program")
        self.assertEqual(Client(self.lab, NOBODY).place(raised.pid), "NotAllowed")
        self.assert_well()

    def test_who_is_not_allowed(self):
        client = Client(self.lab, DAEMON)
        self.assertEqual(client.place(client.pid()), "NotAllowed")
        for method in ("Down", "Reload"):
            self.assertEqual(client.ask(f"call({method!r})"), "NotAllowed")
        self.assertEqual(client.ask("call('SetEnabled', **{'class': 'novpn', 'enabled': False})"), "NotAllowed")
        self.assertEqual(client.ask("call('Status')"), "done", "anybody may read")
        self.assert_well()

    def test_another_pid_namespace(self):
        """Numbers mean something else there: 1 is the caller itself."""
        client = Client(self.lab, NOBODY, "unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child")
        self.assertEqual(client.pid(), 1)
        for pid in (1, 2, os.getpid()):
            self.assertEqual(client.place(pid), "NotAllowed")
        self.assert_well()

    def test_root_of_a_user_namespace_is_nobodys_root(self):
        client = Client(self.lab, DAEMON, "unshare", "--user", "--map-root-user")
        self.assertEqual(client.ask("os.geteuid()"), 0)
        self.assertEqual(client.ask("call('Down')"), "NotAllowed")
        self.assertEqual(client.place(client.pid()), "NotAllowed")
        self.assert_well()

    def test_cgroups_are_not_joined_past_the_agent(self):
        self.lab.novpn("run", "true")
        cgroup = the_lab.cgroups_of(self.lab.netns_inode())[-1]
        for uid in (NOBODY, DAEMON):
            client = Client(self.lab, uid)
            self.assertEqual(client.ask(f"write({str(cgroup / 'cgroup.procs')!r}, '0')"), "PermissionError")
            self.assertEqual(client.ask(f"make({str(cgroup / 'mine')!r})"), "PermissionError")
        self.assert_well()

    def test_garbage_descriptors_and_halves(self):
        client = Client(self.lab, NOBODY)
        self.lab.novpn("status")
        before = self.descriptors()
        self.assertEqual(client.ask("garbage(300)"), 300)
        for _ in range(50):
            # Sent along, they are not taken.
            client.ask("raw(b'{\"method\":\"io.novpn.Agent.Metrics\"}\\0', [0, 1, 2] * 80)")
        wait_until(lambda: self.descriptors() <= before, 20, "closed connections", lambda: self.descriptors())
        client.ask("hold(2000)")
        self.assertLess(self.descriptors(), before + 300, "connections of one user are bounded")
        self.assertEqual(self.lab.novpn("status").returncode, 0, "root is served meanwhile")
        self.assertEqual(self.lab.novpn("status", uid=DAEMON).returncode, 0, "and another user")
        client.ask("drop()")
        wait_until(lambda: self.descriptors() <= before, 20, "closed connections", lambda: self.descriptors())
        self.assert_well()


if __name__ == "__main__":
    unittest.main(verbosity=2)
