#!/usr/bin/env python3
"""Times the agent beside a bare loop, BIRD 2 and a shell hook, in network namespaces of its own, and writes Markdown.

Contestants take turns within a round, so that what disturbs the machine disturbs all; compare ratios, not numbers of
different runs. --smoke: everything once and short, to see that it runs; says nothing about time.
"""
import argparse
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TABLE = 7866
SCENARIOS = ["gateway", "takeover", "flap", "same", "halves"]
BIRD = """
log stderr {{ warning, error, fatal }};
router id 10.99.0.2;
ipv4 table copied;
ipv4 table own;
protocol device {{ scan time 60; }}
protocol kernel from_main {{
  learn; scan time 60; kernel table 254;
  ipv4 {{ table copied; export none;
         import filter {{ if net = 0.0.0.0/0 && ifname !~ "tun*" then accept; reject; }}; }};
}}
protocol kernel to_own {{ scan time 60; kernel table {table}; ipv4 {{ table own; import none; export all; }}; }}
protocol pipe {{ table own; peer table copied; import all; export none; }}
"""
HOOK = """
copy() {{ echo "route replace default via $1 dev phy0 table {table}"; }}
{{
    set -- $(ip -4 route show default table main dev phy0)
    [ "$2" = via ] && copy "$3"
    ip -4 monitor route | while read -r line; do
        case $line in
        Deleted*|*" table "*) ;;
        "default via "*" dev phy0"*) set -- $line; copy "$3" ;;
        esac
    done
}} | ip -force -batch -
"""


def run(*command, **more):
    return subprocess.run(command, check=True, text=True, capture_output=True, **more).stdout


class Lab:
    """A laptop with a physical link and a tun device, and its router."""

    def __init__(self, programs, bench):
        self.programs, self.bench = programs, bench
        self.name = f"nvbench{os.getpid()}"
        self.router = self.name + "r"
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="novpn-bench."))
        accounting = pathlib.Path("/sys/fs/cgroup/cpuacct")
        self.cgroup = accounting / self.name if accounting.is_dir() else None

    def __enter__(self):
        run("ip", "netns", "add", self.name)
        run("ip", "netns", "add", self.router)
        commands = f"""
            link set lo up
            link add phy0 type veth peer name gw0 netns {self.router}
            link set phy0 up
            addr add 10.99.0.2/24 dev phy0
            addr add 2001:db8:99::2/64 dev phy0 nodad
            tuntap add dev tun0 mode tun
            link set tun0 up
            addr add 10.8.0.2/24 dev tun0
            addr add 2001:db8:8::2/64 dev tun0 nodad"""
        run("ip", "-n", self.name, "-batch", "-", input=commands)
        run("ip", "-n", self.router, "-batch", "-", input="""
            link set gw0 up
            addr add 10.99.0.1/24 dev gw0
            addr add 10.99.0.254/24 dev gw0
            addr add 2001:db8:99::1/64 dev gw0 nodad
            addr add 2001:db8:99::254/64 dev gw0 nodad""")
        # The kernel's own addresses are not there at once, and their coming would be news.
        while "tentative" in run("ip", "-n", self.name, "addr"):
            time.sleep(0.05)
        if self.cgroup:
            self.cgroup.mkdir()
        (self.directory / "novpn.yaml").write_text('uplinks:\n  links: [phy0]\n')
        (self.directory / "bird.conf").write_text(BIRD.format(table=TABLE))
        (self.directory / "hook.sh").write_text(HOOK.format(table=TABLE))
        return self

    def __exit__(self, *_):
        for name in (self.name, self.router):
            subprocess.run(["ip", "netns", "del", name], check=False)
        if self.cgroup:
            for _ in range(50):
                try:
                    self.cgroup.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)
        shutil.rmtree(self.directory, ignore_errors=True)

    def inside(self, *command):
        # Not `ip netns exec`, which would mount another /sys without the cgroups.
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, command)]

    def agent(self, programs=None):
        directory = self.directory / "run"
        return [programs or self.programs / "novpnd", "--runtime-dir", directory, "--config",
                self.directory / "novpn.yaml"]

    def contestants(self, family):
        there = {"bare loop": [self.bench / "bare_loop", "phy0", TABLE], "agent": self.agent()}
        if family == 4 and shutil.which("bird"):
            there["BIRD 2"] = ["bird", "-f", "-c", self.directory / "bird.conf", "-s", self.directory / "bird.ctl",
                               "-P", self.directory / "bird.pid"]
        if family == 4:
            there["shell hook"] = ["sh", self.directory / "hook.sh"]
        return there

    def measure(self, contestant, **options):
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        if self.cgroup:
            arguments += ["--cpu", self.cgroup / "cpuacct.usage"]
        done = subprocess.run(self.inside(self.bench / "reaction", "--table", TABLE, *arguments, "--", *contestant),
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"bench: {contestant}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)


def median(values):
    values = [value for value in values if value >= 0]
    return statistics.median(values) if values else None


def number(value, digits=1):
    return "–" if value is None else f"{value:.{digits}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def reaction(lab, rounds, count, scenarios):
    rows = []
    for family in (4, 6):
        for scenario in scenarios:
            measured = {}
            for _ in range(rounds):
                for name, command in lab.contestants(family).items():
                    # BIRD deletes the default in a takeover: it would only be waited for.
                    if name == "BIRD 2" and scenario == "takeover":
                        continue
                    gap = 3000 if name == "shell hook" else 1000
                    measured.setdefault(name, []).append(
                        lab.measure(command, scenario=scenario, family=family, count=count, gap=gap))
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
            "down takes it along).\n\n" +
            table(["family", "scenario", "contestant", "n", "missed", "ahead", "p50 µs", "ratio", "p99 µs", "max µs",
                   "CPU µs an event", "absent"], rows))


def scale(lab, sizes, count):
    rows, there = [], 0
    for size in sizes:
        if size > there:
            subprocess.run(lab.inside(lab.bench / "reaction", "--fill", size, "--link", "phy0"), check=True)
        there = max(there, size)
        for name, command in lab.contestants(4).items():
            starts = [lab.measure(command, count=1)["start_us"] for _ in range(2)]
            last = lab.measure(command, count=count, gap=3000 if name == "shell hook" else 1000)
            rows.append([f"{size:,}", name, number(median(starts + [last["start_us"]]) / 1e3), number(last["p50"]),
                         number(last["p99"]), last["missed"], last["rss_kib"], last["pss_kib"], last["dirty_kib"],
                         number(last["stop_us"] / 1e3)])
    subprocess.run(lab.inside(lab.bench / "reaction", "--clear", there, "--link", "phy0"), check=True)
    return ("## Scale\n\nWith so many unrelated routes in main. Start: from exec to the first right table.\n\n" +
            table(["routes", "contestant", "start ms", "p50 µs", "p99 µs", "missed", "RSS KiB", "PSS KiB",
                   "private dirty KiB", "stop ms"], rows))


def storm(lab, rounds, routes):
    rows = []
    for _ in range(rounds):
        for name, command in lab.contestants(4).items():
            run = lab.measure(command, scenario="storm", routes=routes)
            rows.append([name, number(run["cpu_ms"], 2), run["overruns"], number(run["first"]), number(run["last"]),
                         run["missed"]])
    return (f"## Storm\n\n{routes:,} unrelated routes are added and deleted; another gateway comes 200 ms after the "
            "first and one after the last.\n\n" +
            table(["contestant", "CPU ms", "overruns", "during µs", "after µs", "missed"], rows))


def idle(lab, seconds):
    rows = []
    run("ip", "-n", lab.name, "route", "replace", "default", "via", "10.99.0.1", "dev", "phy0")
    for name, command in {"bare loop": lab.contestants(4)["bare loop"], "agent": lab.agent()}.items():
        process = subprocess.Popen(lab.inside(*command), stderr=subprocess.DEVNULL)
        time.sleep(5 if seconds > 5 else 1)

        def switches(pid=process.pid):
            status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

        before = switches()
        time.sleep(seconds)
        after = switches()
        rollup = dict(line.split()[:2] for line in
                      pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:])
        rows.append([name, after - before, rollup["Rss:"], rollup["Pss:"], rollup["Private_Dirty:"]])
        process.send_signal(signal.SIGTERM)
        process.wait()
        # The agent does not touch a table in which somebody else's routes are.
        subprocess.run(["ip", "-n", lab.name, "route", "flush", "table", str(TABLE)], stderr=subprocess.DEVNULL, check=False)
    return (f"## Idle\n\n{seconds} s without a change.\n\n" +
            table(["contestant", "wake-ups", "RSS KiB", "PSS KiB", "private dirty KiB"], rows))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--programs", type=pathlib.Path, required=True, help="where novpnd is")
    options.add_argument("--bench", type=pathlib.Path, required=True, help="where reaction and bare_loop are")
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--only", action="append", choices=["reaction", "scale", "storm", "idle"])
    options.add_argument("--output", type=pathlib.Path)
    chosen = options.parse_args()
    wanted = chosen.only or ["reaction", "scale", "storm", "idle"]
    parts = {
        "reaction": lambda lab: reaction(lab, 1 if chosen.smoke else chosen.rounds, 5 if chosen.smoke else chosen.count,
                                         SCENARIOS),
        "scale": lambda lab: scale(lab, [10, 100] if chosen.smoke else [10, 1_000, 10_000, 100_000, 1_000_000],
                                   3 if chosen.smoke else 300),
        "storm": lambda lab: storm(lab, 1 if chosen.smoke else 3, 2_000 if chosen.smoke else 200_000),
        "idle": lambda lab: idle(lab, 1 if chosen.smoke else 60),
    }
    text = ["# Performance\n", f"Measured by `sudo packaging/bench` on Linux {platform.release()}, {os.cpu_count()} "
            f"CPUs, load {os.getloadavg()[0]:.1f} at the start. Compare ratios within this run, not numbers of two runs.\n"]
    for name in wanted:
        with Lab(chosen.programs.resolve(), chosen.bench.resolve()) as lab:
            text.append(parts[name](lab))
            print(text[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
