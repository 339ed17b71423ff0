"""Scopes that come and go, by the thousand: the maps and the programs are what the tree is, after each; and how soon."""
import json
import os
import random
import statistics
import time
import unittest

from apps_test import APPS, OTHERS, Apps
import bpf
from lab import DAEMON, NOBODY, PYTHON, read_line, wait_until


class Nft:
    """libnftables in a process on the laptop that stays, so that a listing costs no program's start. It sees no cgroup: for each
    number it would search the whole tree for a name."""
    SCRIPT = """
import ctypes, sys
lib = ctypes.CDLL("libnftables.so.1")
for name, result in (("nft_ctx_new", ctypes.c_void_p), ("nft_ctx_get_output_buffer", ctypes.c_char_p)):
    getattr(lib, name).restype = result
context = ctypes.c_void_p(lib.nft_ctx_new(0))
lib.nft_ctx_buffer_output(context)
lib.nft_ctx_output_set_flags(context, 1 << 4)  # NFT_CTX_OUTPUT_JSON
print("ready", flush=True)
for line in sys.stdin:
    assert lib.nft_run_cmd_from_buffer(context, line.encode()) == 0, line
    print(lib.nft_ctx_get_output_buffer(context).decode().replace("\\n", ""), flush=True)
"""

    def __init__(self, lab):
        self.process = lab.spawn("unshare", "--mount", "--propagation=private", "sh", "-ec",
                                 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"', "sh", PYTHON, "-c", self.SCRIPT)
        self.output = self.process.stdout.fileno()
        read_line(self.process)

    def list(self, what):
        self.process.stdin.write(f"list {what}\n".encode())
        text = b""
        while not text.endswith(b"\n"):
            more = os.read(self.output, 1 << 16)
            if not more:
                raise AssertionError(f"listing {what}: ended with {self.process.wait()}")
            text += more
        return json.loads(text)["nftables"]


class Churn(Apps):
    def test_a_thousand_scopes_at_random(self):
        """After each that comes or goes, what is in the maps and who is marked at birth is what is in the tree."""
        self.start_agent()
        nft = Nft(self.lab)
        chance = random.Random(7)
        names = [f"app-gnome-spotify-{n}.scope" for n in range(20)] + [f"app-gnome-other-{n}.scope" for n in range(5)] + \
            [f"app-flatpak-com.valvesoftware.Steam-{n}.scope" for n in range(10)]
        slices = [APPS, f"{APPS}/app-a.slice", f"{APPS}/app-a.slice/app-a-b.slice", OTHERS]
        for path in slices:
            self.make(path, DAEMON if path == OTHERS else NOBODY)

        def in_tree():
            return {str(path.relative_to(self.root)): path for path in self.root.rglob("*.scope")}

        def state():
            """(what the maps have, what has the program)"""
            ids = {path.stat().st_ino: name for name, path in in_tree().items()}
            maps = [item["map"] for item in nft.list("table inet novpn") if "map" in item]
            numbers = {int(key) for each in maps if each["name"].startswith("cgroup_level_") for key, _verdict in each.get("elem", [])}
            found = {ids.get(number, number) for number in numbers - {own}}
            return found, {name for name, path in in_tree().items() if bpf.attached(path)}

        own = (self.root / f"novpn-{self.lab.netns_inode()}/novpn").stat().st_ino
        began = time.monotonic()
        for step in range(1000):
            path = self.root / chance.choice(slices) / chance.choice(names)
            if path.exists():
                path.rmdir()
                if chance.random() < 0.3:
                    path.mkdir()  # Another one of the same name.
            else:
                path.mkdir()
            want = {name for name in in_tree() if name.startswith(APPS) and "-other-" not in name}
            wait_until(lambda: state() == (want, want), self.patience, f"step {step}: the maps and programs of {sorted(want)}", self.agent.explain)
        print(f"1,000 scopes that came and went, compared each time, in {time.monotonic() - began:.0f} s")
        self.assert_same(self.agent.status()["repairs"], 0, "repairs")
        self.assert_same(self.lab.novpn("plan").stdout.strip().count("\n"), 0, "what is left to do")
        for path in in_tree().values():
            path.rmdir()
        wait_until(lambda: state() == (set(), set()), self.patience, "empty maps", self.agent.explain)

    def test_a_storm_of_them(self):
        """As fast as they can be made and removed: what is left at the end is what counts."""
        self.start_agent()
        chance = random.Random(11)
        live = set()
        for n in range(1000):
            path = f"{APPS}/app-gnome-spotify-{n % 50}.scope"
            if path in live:
                (self.root / path).rmdir()
                live.discard(path)
            if chance.random() < 0.6:
                self.make(path, NOBODY)
                live.add(path)
        wait_until(lambda: self.elements() == live, self.patience, "the maps as the tree", self.agent.explain)
        self.assert_same(self.agent.status()["repairs"], 0, "repairs")

    def test_how_fast(self):
        """Says what it measures: from the creation to the mark at birth, which comes after the map's element."""
        self.start_agent()
        nft = Nft(self.lab)
        took = []
        for n in range(200):
            path = self.root / APPS / f"app-gnome-spotify-{n}.scope"
            began = time.perf_counter()
            path.mkdir()
            wait_until_attached(path, self.patience)
            took.append((time.perf_counter() - began) * 1e3)
            path.rmdir()
            # Idle again: what is measured is a laptop where one program starts.
            wait_until(lambda: "elem" not in nft.list("map inet novpn cgroup_level_5")[-1]["map"], self.patience, "an empty map", self.agent.explain)
        took.sort()
        print(f"creation to in class: median {statistics.median(took):.2f} ms, 95 % {took[189]:.2f} ms, worst {took[-1]:.2f} ms")


def wait_until_attached(path, patience):
    end = time.monotonic() + patience
    while not bpf.attached(path):
        if time.monotonic() > end:
            raise AssertionError(f"{path}: no program within {patience} s")
        time.sleep(5e-5)  # The agent may have to share this processor.


if __name__ == "__main__":
    unittest.main(verbosity=2)
