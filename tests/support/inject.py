"""Ends the agent, or has the kernel refuse or answer badly, at the Nth of its writes or answers: the page that inject.cpp,
preloaded into novpnd, reads."""
import mmap
import os
import pathlib
import struct

LIBRARY = pathlib.Path(os.environ.get("NOVPN_INJECT_LIBRARY", "libnovpn_inject.so"))
CELLS = ("writes", "kill_at", "refuse_from", "refuse_to", "refuse_with", "after_all", "answers", "spoil_from", "spoil_to", "spoil_how")
INTERRUPTED, CUT, EMPTY_ACK, FAILS = 1, 2, 3, 4  # spoil_how
FOR_EVER = 2**63


class Inject:
    """One agent at a time. Numbers count from the agent's start; a reset() begins a new count."""

    def __init__(self, directory):
        self.path = pathlib.Path(directory) / "inject"
        self.path.write_bytes(bytes(8 * len(CELLS)))
        with open(self.path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 8 * len(CELLS))

    @property
    def environment(self):
        assert LIBRARY.is_absolute() and LIBRARY.exists(), f"NOVPN_INJECT_LIBRARY: no {LIBRARY}"
        # Its functions are AddressSanitizer's own in a build with that: they are called by ours.
        options = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0:quarantine_size_mb=8"]))
        return {"LD_PRELOAD": str(LIBRARY), "NOVPN_INJECT": str(self.path), "ASAN_OPTIONS": options}

    def get(self, cell):
        return struct.unpack_from("=Q", self.page, 8 * CELLS.index(cell))[0]

    def set(self, **cells):
        for cell, value in cells.items():
            struct.pack_into("=Q", self.page, 8 * CELLS.index(cell), value)

    def reset(self):
        """No more of it, and the counts from 0."""
        self.set(**{cell: 0 for cell in CELLS})
