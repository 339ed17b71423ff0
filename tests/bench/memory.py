"""What a million events leave behind in the agent."""
import itertools
import json
import statistics
import sys

from lab import APPS, end, number, run, table


def memory(lab, events, most=None):
    """most: bytes an event that it may grow by, else the bench fails."""
    wrapper = lab.with_apps()
    for family, way, metric in (("-4", "10.99.0.1", 0), ("-6", "2001:db8:99::1", 50)):
        run("ip", family, "-n", lab.name, "route", "add", "default", "via", way, "dev", "phy0", "metric", metric)
    agent = lab.start_agent(wrapper)
    samples = json.loads(run(*lab.inside(lab.bench / "events", "--pid", agent.pid, "--count", events, "--socket",
                                         lab.directory / "run/io.novpn.Agent", "--tree", lab.tree / APPS)))
    if agent.poll() is not None:
        sys.exit("bench: the agent has ended")
    end(agent)
    # The first half fills what is kept for the next time: free lists of the allocator, and of the sanitizer. A step when
    # one of them grows, which may be half a MiB at once, is no leak, which is there from most samples to the next: the
    # median of these slopes leaves the step out.
    growth = statistics.median((later[1] - sooner[1]) * 1024 / (later[0] - sooner[0])
                               for sooner, later in itertools.pairwise(samples[5:]))
    text = ("## Memory\n\nAn agent that hears of gateways, routes, links that flap and links that are new, scopes and clients (see "
            f"tests/bench/events.cpp): KiB that are its alone. {number(growth, 3)} bytes an event in the second half.\n\n" +
            table(["events", "private dirty KiB"], [[f"{count:,}", f"{kib:,}"] for count, kib in samples]))
    if most is not None and growth > most:
        sys.exit(f"{text}bench: more than {most} bytes an event")
    return text
