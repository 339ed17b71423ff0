#!/usr/bin/env python3
"""The story that packaging/demo tells: every statement is checked, and the exit status is 0 only if all of them held.

Usage: story.py --binaries DIR [--keep] [--picture FILE]
"""
import argparse
import difflib
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import lab as the_lab  # noqa: E402
from lab import ECHO, MEMBER_ECHO, SITES, VPN_DNS, VPN_NAME, VPN_SEEN, wait_until  # noqa: E402


PICTURE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs/now.svg"


class Story:
    def __init__(self):
        self.held = self.failed = 0
        self.start = time.monotonic()

    def chapter(self, title):
        print(f"\n{title}", flush=True)

    def say(self, text):
        print(f"           {text}", flush=True)

    def claim(self, text, holds, explanation=""):
        if holds:
            self.held += 1
            print(f"  ok       {text}", flush=True)
        else:
            self.failed += 1
            print(f"  FAILED   {text}\n           {explanation}", flush=True)

    def claim_seen(self, who, got, want, where):
        self.claim(f"{who} is seen as {want}, {where}", got == want, f"but the answer was: {got}")

    def end(self):
        print(f"\n{self.held} statements held, {self.failed} failed, in {time.monotonic() - self.start:.1f} s")
        return 0 if self.held and not self.failed else 1


def host_state():
    """The machine's own network configuration, without counters."""
    commands = ["ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all", "ip -o link",
                "nft -s list ruleset", "cat /etc/resolv.conf", "sysctl -a -r '^net\\.' 2>/dev/null | grep -v conntrack_count"]
    text = [f"# {command}\n" + subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True).stdout for command in commands]
    return the_lab.strip_volatile("\n".join(text))


def changed(before, after):
    """Lines that differ. A setting that only came to exist is no change: the kernel makes it as it loads conntrack."""
    lines = [line for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
             if not line.startswith(("---", "+++", "@@"))]
    return [line for line in lines if not re.match(r"\+net\.(netfilter\.|nf_conntrack_)", line)]


def wait_for_gateway(agent, gateway, tunnel=None):
    """Until the agent says that it uses this gateway, and, if one is given, that this tunnel took over."""
    def says_so(status):
        family = status["families"]["ipv4"]
        links = [takeover["link"] for takeover in family["takeovers"]]
        return (family["uplink"] or {}).get("gateway") == gateway and (tunnel is None or links == [tunnel])
    return agent.wait_for(says_so, f"the uplink by {gateway}")


def say_summary(story, status):
    story.say(f"novpn status: {status['summary']}")


def before_the_vpn(story, lab):
    story.chapter("1. At site A, without a VPN and without novpn")
    for protocol in ("tcp", "udp"):
        story.claim_seen(f"a process ({protocol})", lab.seen(protocol), SITES["a"].seen4, "site A's router")


def under_the_vpn(story, lab, agent, number, mode):
    story.chapter(f"{number}. OpenVPN with `{' '.join(the_lab.VPN_MODES[mode])[2:]}`")
    lab.vpn_up(mode)
    status = wait_for_gateway(agent, SITES["a"].gateway, "tun0")
    shapes = [takeover["shape"] for takeover in status["families"]["ipv4"]["takeovers"]]
    story.say(f"the agent saw the takeover: {', '.join(shapes)}")
    say_summary(story, status)
    for protocol in ("tcp", "udp"):
        for family in (4, 6) if mode == "def1-ipv6" else (4,):
            what = f"{protocol} over IPv{family}"
            story.claim_seen(f"an ordinary process ({what})", lab.seen(protocol, family), VPN_SEEN[family], "the VPN server")
            story.claim_seen(f"`novpn run` ({what})", lab.seen(protocol, family, member=True), lab.site_address("a", family),
                             "site A's router" if family == 4 else "the laptop's own address at site A")


def names(story, lab):
    resolver = lab.shell("cat /etc/resolv.conf").split()[-1]
    story.claim(f"resolv.conf names {VPN_DNS}, a server inside the VPN", resolver == VPN_DNS, f"but it names {resolver}")
    story.claim_seen(f"`novpn run` finds {VPN_NAME}, which only that server knows, and", lab.probe("tcp", VPN_NAME, member=True, check=False),
                     SITES["a"].seen4, "site A's router")


def open_connection(story, flow, when):
    story.claim_seen(f"the connection that `novpn run` opened before ({when})", flow.ask(), SITES["a"].seen4, "site A's router")


def no_leak(story, lab):
    counts = lab.tunnel_packets()
    story.claim(f"of {counts['tunnel']} packets that came out of the tunnel, none was for {MEMBER_ECHO[4]} or {MEMBER_ECHO[6]}, "
                "where only `novpn run` goes", counts["tunnel"] > 0 and counts["leaked"] == 0, f"but {counts['leaked']} were")


def texts_of(svg):
    """The labels of a picture: where graphviz puts them is its own business, and another release does otherwise."""
    return sorted(re.findall(r"<text [^>]*>([^<]*)</text>", svg))


def draw(story, lab, file):
    dot = lab.novpn("status", "--dot").stdout
    svg = subprocess.run(["dot", "-Tsvg"], input=dot, text=True, stdout=subprocess.PIPE, check=True).stdout
    if file:
        pathlib.Path(file).write_text(svg)
    shown = PICTURE.read_text()
    missing = set(texts_of(svg)) ^ set(texts_of(shown))
    story.claim("`novpn status --dot` draws what docs/now.svg shows", texts_of(svg) == texts_of(shown),
                f"but these differ: {missing}; draw it anew: packaging/demo --picture docs/now.svg")


def roam(story, lab, agent):
    story.chapter("6. The laptop roams to site B while the VPN is up")
    started = time.monotonic()
    lab.roam("b")
    status = wait_for_gateway(agent, SITES["b"].gateway)
    say_summary(story, status)
    story.claim_seen("`novpn run` (tcp)", lab.seen("tcp", member=True), SITES["b"].seen4, "site B's router")
    story.claim_seen("`novpn run` (udp)", lab.seen("udp", member=True), SITES["b"].seen4, "site B's router")
    reaction = status["last_reaction_us"]
    story.claim(f"the agent's last reaction took {reaction} us, from the kernel's notification to the table being right",
                reaction > 0, "but there was none")
    wait_until(lambda: lab.seen() == VPN_SEEN[4], 20, "OpenVPN finding its server from site B")
    story.say(f"(OpenVPN itself needed {time.monotonic() - started:.1f} s until ordinary processes were back in the tunnel)")
    status = wait_for_gateway(agent, SITES["b"].gateway, "tun0")
    story.claim_seen("`novpn run` (tcp), with the VPN back,", lab.seen("tcp", member=True), SITES["b"].seen4, "site B's router")


def no_uplink(story, lab, agent):
    story.chapter("7. The radio is out of reach: the tunnel's routes stay, the uplink is gone")
    sniffer = lab.sniff(*MEMBER_ECHO.values())
    lab.unplug()
    status = agent.wait_for(lambda s: s["families"]["ipv4"]["uplink"] is None, "no uplink")
    say_summary(story, status)
    # The kernel refuses a datagram to its sender; a connection attempt is repeated until its own time-out.
    answer = lab.seen("udp", member=True)
    story.claim(f"`novpn run` (udp) is refused at once: {answer}", "UNREACH" in answer)
    answer = lab.probe("tcp", MEMBER_ECHO[4], member=True, check=False, timeout=1)
    story.claim(f"`novpn run` (tcp) reaches nobody: {answer}", answer.startswith("no answer"))
    packets = sniffer.packets("tun0")
    story.claim("none of its packets went into the tunnel", not packets, f"but these did: {packets[:3]}")


def the_end(story, lab, agent, before):
    story.chapter("8. VPN off, back at site A, and the agent stops")
    lab.vpn_down()
    lab.roam("a")
    wait_for_gateway(agent, SITES["a"].gateway)
    exit_status = agent.stop()
    story.claim("the agent ended with exit status 0", exit_status == 0, f"but with {exit_status}: {agent.log.read_text()[-2000:]}")
    lines = changed(before, lab.snapshot())
    story.claim("the laptop's routes, rules, firewall, settings and cgroups are what they were before it started", not lines,
                "but:\n" + "\n".join(lines))


def tell(story, lab, keep, picture):
    before_the_vpn(story, lab)
    before = lab.snapshot()

    story.chapter("2. The agent starts, without a configuration file")
    agent = lab.start_agent()
    say_summary(story, wait_for_gateway(agent, SITES["a"].gateway))
    story.claim_seen("`novpn run` (tcp)", lab.seen("tcp", member=True), SITES["a"].seen4, "site A's router")
    flow = lab.flow()

    under_the_vpn(story, lab, agent, 3, "def1")
    names(story, lab)
    draw(story, lab, picture)
    open_connection(story, flow, "VPN up")
    lab.vpn_down()
    open_connection(story, flow, "VPN down")

    under_the_vpn(story, lab, agent, 4, "plain")
    names(story, lab)
    open_connection(story, flow, "VPN up, the physical default route deleted")
    lab.vpn_down()

    under_the_vpn(story, lab, agent, 5, "def1-ipv6")
    no_leak(story, lab)
    lab.end(flow.process)

    roam(story, lab, agent)
    no_uplink(story, lab, agent)
    no_leak(story, lab)
    the_end(story, lab, agent, before)

    if keep:
        lab.start_agent()
        lab.vpn_up("def1")
        enter, gone = the_lab.keep(lab)
        print(f"""
The laptop stays up, at site A, with the VPN and the agent. Enter it:      {enter}
There, for example:   novpn status      novpn plan      ip rule
                      {the_lab.PYTHON} $LAB/probe.py tcp {ECHO[4]}                    (seen by the VPN server)
                      novpn run {the_lab.PYTHON} $LAB/probe.py tcp {ECHO[4]}          (seen by site A's router)
Remove it:                                                                 {gone}""")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--picture")
    arguments = parser.parse_args()

    story = Story()
    print("A throw-away laptop, two sites, an internet host and a VPN server, all in network namespaces:\n\n"
          f"  laptop wlan0 ---- site A's router  seen as {SITES['a'].seen4} ---+\n"
          f"          or   ---- site B's router  seen as {SITES['b'].seen4} ---+--- internet host {ECHO[4]}: says which address it sees\n"
          f"                    VPN server       seen as {VPN_SEEN[4]} --+")
    host = host_state()
    try:
        with the_lab.Lab(bin_dir=arguments.binaries) as lab:
            tell(story, lab, arguments.keep, arguments.picture)
    except (AssertionError, OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        story.claim("the story goes on", False, str(error))

    story.chapter("And this machine?")
    lines = changed(host, host_state())
    story.claim("its own routes, rules, firewall, settings and resolv.conf are byte for byte what they were", not lines,
                "but:\n" + "\n".join(lines))
    return story.end()


sys.exit(main())
