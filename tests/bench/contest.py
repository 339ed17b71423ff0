"""Tables in which contestants take turns: reaction, scale, storm, idle."""
import contextlib
import pathlib
import subprocess
import sys
import time

from lab import APPS, Lab, memory_of, median, number, run, table

SCENARIOS = ["gateway", "takeover", "flap", "same", "halves"]


def gap_of(name):
    """Between two changes, in µs: the hook needs longer."""
    return 3000 if name == "shell hook" else 1000


def reaction(lab, rounds, count):
    rows = []
    for family in (4, 6):
        for scenario in SCENARIOS:
            measured = {}
            for _ in range(rounds):
                for name, command in lab.contestants(family).items():
                    # BIRD deletes the default in a takeover: it would only be waited for.
                    if name == "BIRD 2" and scenario == "takeover":
                        continue
                    measured.setdefault(name, []).append(
                        lab.measure(command, scenario=scenario, family=family, count=count, gap=gap_of(name)))
            bare = measured["bare loop"]
            for name, runs in measured.items():
                ratios = [run["p50"] / base["p50"] for run, base in zip(runs, bare) if run["p50"] > 0 < base["p50"]]
                rows.append([f"IPv{family}", scenario, name, sum(run["n"] for run in runs),
                             sum(run["missed"] for run in runs), sum(run["ahead"] for run in runs),
                             number(median(run["p50"] for run in runs)), number(median(ratios), 2),
                             number(median(run["p99"] for run in runs)),
                             number(max(run["max"] for run in runs)),
                             number(median(run["cpu_per_event"] for run in runs)),
                             sum(run["absent"] for run in runs) if scenario not in ("flap", "same") else "–"])
    return ("## Reaction\n\nFrom the change to the class's table having the right default; medians of rounds. Ratio: of "
            "p50 to the bare loop's of the same round. Ahead: the table was right before the change, as the uplink was "
            "remembered; counted as 0 µs. Absent: how often the default of the table was deleted (a link that goes "
            "down takes it along). BIRD 2 deletes the table's default in a takeover, and is not waited for.\n\n" +
            table(["family", "scenario", "contestant", "n", "missed", "ahead", "p50 µs", "ratio", "p99 µs", "max µs",
                   "CPU µs an event", "absent"], rows))


def scale(lab, sizes, count):
    rows, there = [], 0
    for size in sizes:
        if size > there:
            subprocess.run(lab.inside(lab.bench / "reaction", "--fill", size, "--link", "phy0"), check=True)
        there = max(there, size)
        for name, command in lab.contestants(4).items():
            # Seconds for each start, and nothing more to learn.
            if name == "libnl loop" and size > 10_000:
                continue
            starts = [lab.measure(command, count=1)["start_us"] for _ in range(2)]
            last = lab.measure(command, count=count, gap=gap_of(name))
            rows.append([f"{size:,}", name, number(median(starts + [last["start_us"]]) / 1e3), number(last["p50"]),
                         number(last["p99"]), number(last["max"]), last["missed"], number(last["cpu_per_event"]),
                         f"{last['rss_kib']:,}", f"{last['pss_kib']:,}", f"{last['dirty_kib']:,}",
                         number(last["stop_us"] / 1e3)])
    subprocess.run(lab.inside(lab.bench / "reaction", "--clear", there, "--link", "phy0"), check=True)
    return ("## Scale\n\nWith so many unrelated routes in main. Start: from exec to the first right table. The libnl "
            "loop reads them all into a cache, with 100,000 for seconds: left out there.\n\n" +
            table(["routes", "contestant", "start ms", "p50 µs", "p99 µs", "max µs", "missed", "CPU µs an event",
                   "RSS KiB", "PSS KiB", "private dirty KiB", "stop ms"], rows))


def storm(lab, rounds, routes, others):
    rows = []
    apps = lab.with_apps()
    for kind, amount in (("routes", routes), ("links", others), ("scopes", others)):
        measured = {}
        for _ in range(rounds):
            for name, command in lab.contestants(4).items():
                if kind == "scopes":  # Nobody else is concerned.
                    if name != "agent":
                        continue
                    command = [*apps, *command]
                measured.setdefault(name, []).append(
                    lab.measure(command, scenario="storm", storm=kind, amount=amount, tree=lab.tree / APPS))
        for name, runs in measured.items():
            rows.append([f"{amount:,} {kind}", name, number(median(run["cpu_ms"] for run in runs), 2),
                         number(median(run["cpu_ms"] * 1e3 / (2 * amount) for run in runs), 2),
                         sum(run["overruns"] for run in runs), number(median(run["during"] for run in runs)),
                         number(median(run["after"] for run in runs)), number(max(run["max"] for run in runs)),
                         sum(run["missed"] for run in runs)])
    return ("## Storm\n\nEach comes and goes: unrelated routes; a link that is no way out, up and down; scopes of an application "
            "of the class, 20 at once. Another gateway comes 20 ms after the first, and one right after the last: how long "
            "until the table is right, by the medians of rounds, and the longest of all. Events: comings and goings.\n\n" +
            table(["storm", "contestant", "CPU ms", "CPU µs an event", "overruns", "during µs", "after µs", "max µs",
                   "missed"], rows))


def idle(programs, bench, seconds):
    """Each in a lab of its own, all at the same time: nobody is there to be disturbed."""
    rows, running = [], {}
    with contextlib.ExitStack() as labs:
        for name in labs.enter_context(Lab(programs, bench)).contestants(4):
            lab = labs.enter_context(Lab(programs, bench))
            run("ip", "-n", lab.name, "route", "replace", "default", "via", "10.99.0.1", "dev", "phy0")
            running[name] = lab.spawn(lab.inside(*lab.contestants(4)[name]), stderr=subprocess.DEVNULL)
        time.sleep(5 if seconds > 5 else 1)
        pids = {name: [process.pid, *descendants(process.pid)] for name, process in running.items()}
        before = {name: sum(map(switches, pids[name])) for name in running}
        time.sleep(seconds)
        for name, process in running.items():
            if process.poll() is not None:
                sys.exit(f"bench: idle: {name} has ended with {process.returncode}")
            after = sum(map(switches, pids[name]))
            memory = [memory_of(pid) for pid in pids[name]]
            rows.append([name, len(pids[name]), after - before[name],
                         *(f"{sum(each[what] for each in memory):,}" for what in ("Rss", "Pss", "Private_Dirty"))])
        for pid in [child for each in pids.values() for child in each[1:]]:
            subprocess.run(["kill", str(pid)], check=False, stderr=subprocess.DEVNULL)
    return (f"## Idle\n\n{seconds} s without a change, each in a laptop of its own.\n\n" +
            table(["contestant", "processes", "wake-ups", "RSS KiB", "PSS KiB", "private dirty KiB"], rows))


def descendants(pid):
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def switches(pid):
    status = [path.read_text(encoding="utf-8") for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(line.split()[1]) for text in status for line in text.splitlines() if "ctxt_switches" in line)
