"""decide() and diff() alone, by Google Benchmark."""
import json
import math

from lab import number, run, table


def micro(bench, seconds, repetitions):
    """seconds: for each size, at least."""
    out = json.loads(run(bench / "micro", "--benchmark_format=json", f"--benchmark_min_time={seconds}",
                         f"--benchmark_repetitions={repetitions}", "--benchmark_enable_random_interleaving=true"))
    times = {}
    for each in out["benchmarks"]:
        if each["run_type"] == "iteration":
            call, of, size = each["name"].split("/")[:3]
            times.setdefault((call, of), {}).setdefault(int(size), []).append(each["cpu_time"])
    sizes = sorted({size for by_size in times.values() for size in by_size})
    rows = []
    for (call, of), by_size in sorted(times.items()):
        best = {size: min(values) for size, values in by_size.items()}
        last, before = sizes[-1], sizes[-2]
        growth = math.log(best[last] / best[before]) / math.log(last / before)
        rows.append([call, of, *(number(best[size]) for size in sizes), number(growth, 2)])
    return ("## decide and diff\n\nOn a laptop under a VPN, with so many links, routes in main, or scopes of an application of the "
            "class; µs of processor time, the best of the repetitions. First: nothing of the agent's is there; again: all of it. "
            "Growth: n in time ~ size^n, between the two largest.\n\n" +
            table(["call", "of", *(f"{size:,}" for size in sizes), "growth"], rows))
