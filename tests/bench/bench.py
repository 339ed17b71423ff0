#!/usr/bin/env python3
"""Times the agent beside a bare loop, a libnl loop, BIRD 2 and a shell hook, and packets under its rules, in network
namespaces of its own, and writes Markdown.

Contestants take turns within a round, so that what disturbs the machine disturbs all; compare ratios, not numbers of
different runs. --smoke: everything once and short, to see that it runs; says nothing about time.
"""
import argparse
import os
import pathlib
import platform
import signal
import sys

import contest
from datapath import datapath
from lab import Lab
from memory import memory
from micro import micro

# By name: what a part is measured with, in full and as a smoke test.
FULL = {"scale": ([10, 1_000, 10_000, 100_000, 1_000_000], 300), "storm": (3, 200_000, 1_000), "idle": (60,),
        "datapath": (25, 100, 100, [0, 1, 10, 64]), "micro": (0.1, 5), "memory": (1_000_000,)}
SMOKE = {"scale": ([10, 100], 3), "storm": (1, 2_000, 20), "idle": (1,), "datapath": (1, 5, 1, [0, 3]), "micro": (0.001, 1),
         "memory": (10_000,)}
PARTS = ["reaction", *FULL]


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def head(command):
    return ("# Performance\n\n"
            f"Measured by `sudo packaging/bench{command}` on Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs ({cpu_model()}), "
            f"load {os.getloadavg()[0]:.1f} at the start. Compare ratios within this run, not numbers of two runs.\n")


def measure(name, chosen, sizes):
    programs, bench = chosen.programs.resolve(), chosen.bench.resolve()
    if name == "micro":
        return micro(bench, *sizes)
    if name == "idle":
        return contest.idle(programs, bench, *sizes)
    if name == "datapath":
        pairs, *more = sizes
        return datapath(programs, bench, chosen.pairs or pairs, *more)
    with Lab(programs, bench) as lab:
        if name == "memory":
            return memory(lab, chosen.events or sizes[0], chosen.most_growth)
        return getattr(contest, name)(lab, *sizes)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--programs", type=pathlib.Path, required=True, help="where novpnd and novpn are")
    options.add_argument("--bench", type=pathlib.Path, required=True, help="where reaction, bare_loop and the others are")
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--rounds", type=int, default=4, help="in which contestants of a reaction take turns")
    options.add_argument("--count", type=int, default=500, help="of changes to react to, a contestant, scenario and round")
    options.add_argument("--pairs", type=int, help="of samples of the data path")
    options.add_argument("--events", type=int, help="that the agent's memory is watched over")
    options.add_argument("--most-growth", type=float, metavar="BYTES", help="of that memory, an event: fails beyond")
    options.add_argument("--only", action="append", choices=PARTS)
    options.add_argument("--output", type=pathlib.Path)
    options.add_argument("--command", default="", help="the options of packaging/bench, for the first lines")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by SIGTERM"))  # The labs are removed.
    sizes = dict(SMOKE if chosen.smoke else FULL)
    sizes["reaction"] = (1, 3) if chosen.smoke else (chosen.rounds, chosen.count)
    text = [head(chosen.command)]
    for name in chosen.only or PARTS:
        text.append(measure(name, chosen, sizes[name]))
        print(text[-1], flush=True)
        if chosen.output:  # After each, so that what was measured is not lost with what comes next.
            chosen.output.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
