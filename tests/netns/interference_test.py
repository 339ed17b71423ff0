"""Other programs' deletions and firewalls: what is ours is put back at once and counted, what is theirs stays theirs."""
import unittest

from labtest import LabTest, SITES, VPN_SEEN, the_lab
import bpf
from clients import start_bus
from lab import wait_until

TABLE = 7866
DELETIONS = {
    "nft flush ruleset": "nft flush ruleset",
    "the nft table": "nft delete table inet novpn",
    "our marking": "nft flush chain inet novpn output",
    "ip route flush table": f"ip route flush table {TABLE}; ip -6 route flush table {TABLE}",
    "the default alone": f"ip route del default table {TABLE}; ip -6 route del default table {TABLE}",
    # Other programs' rules go too, the kernel's own among them; who flushes puts these back.
    "ip rule flush": "ip rule flush; ip -6 rule flush; for f in -4 -6; do ip $f rule add preference 32766 lookup main; done; "
                     "ip -4 rule add preference 32767 lookup default",
}

# docker's chains, ufw's shape with its policies, and what firewalld refuses with: loaded as these programs load them.
DOCKER = """
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -P FORWARD DROP
"""
UFW = """
for f in iptables ip6tables; do
    $f -P INPUT DROP
    $f -P FORWARD DROP
    $f -N ufw-before-input
    $f -A INPUT -j ufw-before-input
    $f -A ufw-before-input -i lo -j ACCEPT
    $f -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $f -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
done
ip6tables -A ufw-before-input -p icmpv6 -j ACCEPT
iptables -A ufw-before-input -p udp --sport 67 --dport 68 -j ACCEPT
"""
NFT = """
nft -f - <<'E'
table inet firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state { established, related } accept
        ct state invalid drop
        iif lo accept
        meta l4proto ipv6-icmp accept
    }
    chain forward { type filter hook forward priority filter; policy drop; }
    chain mangle { type route hook output priority mangle - 5; meta mark set meta mark | 0x1; }
    chain output { type filter hook output priority filter; policy accept; ct state invalid drop; }
}
E
"""


def ufw_itself(*commands):
    """The real one, with a config of its own, as it is when it was installed; `commands` are given to it."""
    calls = "".join(f"ufw {command} > /mnt/log 2>&1 || {{ cat /mnt/log >&2; exit 1; }}\n" for command in ("--force enable", *commands))
    return f"""unshare --mount --propagation=private sh -ec '
        mount -t tmpfs lab-ufw /mnt
        cp -a /etc/ufw /etc/default /mnt
        mount --bind /mnt/ufw /etc/ufw
        mount --bind /mnt/default /etc/default
        {calls}'
    """


class Firewalld:
    """The real one, on a bus of the laptop's, with its default zone."""

    def __init__(self, lab):
        self.lab = lab
        start_bus(lab)
        self.start()

    def start(self):
        log = self.lab.directory / "firewalld.log"
        self.process = self.lab.spawn("unshare", "--mount", "--propagation=private", "sh", "-ec",
                                      "mount -t tmpfs -o mode=755 lab-firewalld /etc/firewalld; exec firewalld --nofork --nopid", output=log)
        wait_until(lambda: self.lab.run("firewall-cmd", "--state", check=False).returncode == 0, 20, "firewalld", log.read_text)

    def reload(self):
        self.lab.run("firewall-cmd", "--complete-reload")

    def stop(self):
        self.lab.end(self.process, 10)


class Docker:
    """The real one, with a network of its own beside the default one. No container runs: what it does to the machine's
    network it does without."""

    def __init__(self, lab):
        self.lab = lab
        self.start()
        self.command("network", "create", "--subnet", "172.30.0.0/16", "lab")

    def start(self):
        log = self.lab.directory / "dockerd.log"
        self.process = self.lab.spawn("dockerd", "--data-root", self.lab.directory / "docker", "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid",
                                      "--host", "unix:///run/docker.sock", "--storage-driver", "vfs", output=log)
        wait_until(lambda: "Daemon has completed initialization" in log.read_text(), 30, "dockerd", log.read_text)

    def command(self, *arguments):
        return self.lab.run("docker", "--host", "unix:///run/docker.sock", *arguments).stdout

    def stop(self):
        self.lab.end(self.process, 20)
        (self.lab.directory / "dockerd.log").unlink()


class Deletions(LabTest):
    def check(self, mode):
        self.start_agent()
        self.vpn_up(mode)
        self.assert_members_seen_at("a")
        stream = self.lab.flow("stream", "udp")
        before = self.lab.snapshot()
        for what, deletion in DELETIONS.items():
            with self.subTest(what):
                repairs = self.agent.status()["repairs"]
                self.lab.shell(deletion)
                wait_until(lambda: self.lab.snapshot() == before, 10, f"the repair after {what}", self.agent.explain)
                self.assertGreater(self.agent.status()["repairs"], repairs)
                self.assert_members_seen_at("a")
                self.assert_others_seen_as(VPN_SEEN[4])
        counts = stream.finish()
        self.assert_nothing_leaked()
        self.assert_same(set(counts["seen"]), {SITES["a"].seen4}, f"a member's stream over all of it ({counts})")

    def test_under_halves(self):
        self.check("def1-ipv6")

    def test_under_a_replaced_default(self):
        self.check("plain")

    def test_without_end_are_answered_calmly(self):
        """A program that deletes as fast as it can: the agent goes on answering, and is right once it has stopped."""
        self.start_agent()
        self.vpn_up("def1")
        before = self.lab.snapshot()
        rival = self.lab.spawn("sh", "-c", f"while :; do ip rule del preference 64; ip route flush table {TABLE}; nft flush ruleset; done",
                               output=self.lab.directory / "rival.log")
        wait_until(lambda: self.agent.status()["repairs"] >= 10, 20, "ten repairs", self.agent.explain)
        self.assertIsNone(self.agent.process.poll())
        self.lab.end(rival)
        wait_until(lambda: self.lab.snapshot() == before, 20, "the repair once it has stopped", self.agent.explain)
        self.assert_members_seen_at("a")


class Removals(LabTest):
    """What is in files: the kernel tells by inotify, and nothing else of it changes."""

    def check(self, what, removal):
        self.start_agent()
        self.vpn_up("def1")
        before = self.lab.snapshot()
        for _ in range(2):
            repairs = self.agent.status()["repairs"]
            self.lab.shell(removal)
            wait_until(lambda: self.agent.status()["repairs"] > repairs, 10, f"the repair of {what}", self.agent.explain)
            self.assert_same(self.lab.snapshot(), before, "the laptop")
            self.assert_members_seen_at("a")
        self.assert_nothing_leaked()
        self.assertEqual(self.agent.stop(), 0)
        self.assert_same(self.lab.pins(), [], "pins left")

    def cgroup(self):
        return f"{the_lab.cgroup_mount()}/novpn-{self.lab.netns_inode()}"

    def programs(self):
        return [name for _, name in bpf.attached(self.cgroup() + "/novpn")]

    def test_the_cgroup_of_a_class(self):
        self.check("the cgroup", f"rmdir {self.cgroup()}/novpn")

    def test_the_pin_of_a_program_tells_of_the_program_too(self):
        self.start_agent()
        self.vpn_up("def1")
        before, programs = self.lab.pins(), self.programs()
        for _ in range(2):
            repairs = self.agent.status()["repairs"]
            # Of the first no kernel tells.
            bpf.detach(self.cgroup() + "/novpn", programs[0])
            self.lab.shell(f"rm /sys/fs/bpf/novpn-{self.lab.netns_inode()}/novpn")
            wait_until(lambda: self.agent.status()["repairs"] > repairs, 10, "the repair", self.agent.explain)
            wait_until(lambda: (self.lab.pins(), self.programs()) == (before, programs), 10, "the program", self.agent.explain)
            self.assert_members_seen_at("a")

    def test_without_end_is_answered_calmly(self):
        self.start_agent()
        rival = self.lab.spawn("sh", "-c", f"while :; do rmdir {self.cgroup()}/novpn; done", output=self.lab.directory / "rival.log")
        wait_until(lambda: self.agent.status()["repairs"] >= 10, 20, "ten repairs", self.agent.explain)
        self.assertIsNone(self.agent.process.poll())
        self.lab.end(rival)
        self.vpn_up("def1")
        wait_until(lambda: self.programs(), 20, "the repair once it has stopped", self.agent.explain)
        self.assert_members_seen_at("a")


class Firewalls(LabTest):
    def check(self, rules, mode):
        self.start_agent()
        self.vpn_up(mode)
        ours = self.lab.shell("nft -s list table inet novpn")
        self.lab.shell(rules)
        theirs = self.lab.shell("nft -s list ruleset")
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.assert_members_seen_at("b")
        self.lab.roam("a")
        self.wait_for_gateway(SITES["a"].gateway)
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()
        self.assertEqual(self.lab.shell("nft -s list table inet novpn"), ours)
        self.assertEqual(self.lab.shell("nft -s list ruleset"), theirs)
        self.agent.stop()
        self.assertNotIn("table inet novpn", self.lab.shell("nft -s list ruleset"))

    def test_beside_docker_by_iptables_nft(self):
        self.check(DOCKER.replace("iptables", "iptables-nft"), "def1-ipv6")

    def test_beside_docker_by_iptables_legacy(self):
        self.check(DOCKER.replace("iptables", "iptables-legacy"), "plain")

    def test_beside_docker_itself(self):
        """Its rules, its bridges with their routes, and their end, while the agent runs."""
        self.start_agent()
        self.vpn_up("def1-ipv6")
        ours = self.lab.shell("nft -s list table inet novpn")
        docker = Docker(self.lab)
        for restarted in (False, True):
            with self.subTest(restarted=restarted):
                self.assertIn("172.30.0.0/16", self.lab.shell("iptables-save -t nat"))
                self.assert_members_seen_at("a")
                self.assert_others_seen_as(VPN_SEEN[4])
                # Members reach containers as everybody does.
                the_lab.wait_until(lambda: "172.30.0.0/16" in self.lab.shell("ip route show table 7866"), 10, "the bridge's prefix", self.agent.explain)
            if not restarted:
                docker.stop()
                docker.start()
        docker.command("network", "rm", "lab")
        docker.stop()
        self.lab.shell("ip link del docker0")
        the_lab.wait_until(lambda: self.lab.shell("nft -s list table inet novpn") == ours, 10, "the guard without bridges", self.agent.explain)
        self.assertNotIn("172.", self.lab.shell("ip route show table 7866"))
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()

    def test_beside_ufw_by_iptables_nft(self):
        self.check(UFW.replace("tables", "tables-nft"), "plain")

    def test_beside_ufw_by_iptables_legacy(self):
        self.check(UFW.replace("tables", "tables-legacy"), "def1-ipv6")

    def test_beside_ufw_itself(self):
        self.check(ufw_itself(), "def1-ipv6")
        self.assertIn("ufw-before-input", self.lab.shell("nft list ruleset"))

    def test_beside_nft_that_sets_a_bit_of_every_mark(self):
        self.check(NFT, "def1-ipv6")

    def test_beside_firewalld(self):
        """Its strict reverse path filter for IPv6 among the rest."""
        self.start_agent()
        self.vpn_up("def1-ipv6")
        firewalld = Firewalld(self.lab)
        self.assertIn("fib saddr . mark . iif oif missing drop", self.lab.shell("nft list ruleset"))
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        before = self.lab.snapshot()
        firewalld.reload()
        self.assert_members_seen_at("a")
        self.assertEqual(self.lab.snapshot(), before)
        firewalld.stop()
        firewalld.start()
        self.assert_members_seen_at("a")
        self.assertEqual(self.lab.snapshot(), before)
        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.assert_members_seen_at("b")
        self.assert_nothing_leaked()
        firewalld.stop()
        self.assert_members_seen_at("b")


if __name__ == "__main__":
    unittest.main(verbosity=2)
