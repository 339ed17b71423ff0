"""`marking: net_cls`, with the numbers of the recipe by hand: packets, open flows, mounts, crashes and refusals."""
import pathlib
import unittest

from labtest import LabTest, SITES, VPN_SEEN
import lab as the_lab
from lab import MEMBER_ECHO, wait_until

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "packaging/examples"
BY_HAND = (EXAMPLES / "by-hand-numbers.yaml").read_text()
CLASSID = 0x100001
TABLE = 3


class NetCls(LabTest):
    def start(self, config=BY_HAND, vpn="def1-ipv6"):
        self.start_agent(config)
        if vpn:
            self.vpn_up(vpn)

    def mount(self):
        """Where the agent mounts it; what the laptop sees there."""
        return self.lab.directory / "run/net_cls"

    def own(self):
        return f"novpn-{self.lab.netns_inode()}/novpn"

    def read(self, path):
        return self.lab.shell(f"cat {path}").split()

    def mounts(self):
        return [line.split()[4] for line in self.lab.shell("cat /proc/self/mountinfo").splitlines()
                if " - cgroup " in line and "net_cls" in line.split()[-1].split(",")]

    def cgroups(self):
        """Those of this laptop in the hierarchy, wherever that is mounted."""
        return the_lab.in_net_cls(f"find . -path './novpn-{self.lab.netns_inode()}*' -type d").split()

    def assert_gone(self):
        self.assert_same(self.cgroups(), [], "cgroups left")
        # The hierarchy is the machine's: other laptops may be in it.
        if not the_lab.in_net_cls("find . -mindepth 1 -type d").split():
            self.assert_same(self.mounts(), [], "mounts left")


class ByHand(NetCls):
    def test_the_numbers_of_the_recipe_and_the_packets(self):
        self.start()
        sniffer = self.lab.sniff(*MEMBER_ECHO.values())
        self.assert_members_seen_at("a")
        self.assert_others_seen_as(VPN_SEEN[4])
        for family in (4, 6):
            source = self.lab.laptop_address(family)
            on_uplink = [line for line in sniffer.packets("wlan0") if MEMBER_ECHO[family] in line]
            self.assertTrue(on_uplink)
            self.assertEqual([line for line in on_uplink if source not in line], [])
        self.assertEqual(sniffer.packets("tun0"), [])
        self.assert_nothing_leaked()

        self.assert_same(self.mounts(), [str(self.mount())], "mounts")
        self.assertNotIn("/sys/fs/cgroup", str(self.mount()))
        self.assertEqual(self.read(f"{self.mount()}/{self.own()}/net_cls.classid"), [str(CLASSID)])
        self.assertIn("fwmark 0x2 lookup 3", self.lab.shell("ip rule"))
        self.assertIn(f"default via {SITES['a'].gateway} dev wlan0", self.lab.shell(f"ip route show table {TABLE}"))
        self.assertIn(f"meta cgroup {CLASSID}", self.lab.shell("nft list table inet novpn"))
        of_class = self.agent.status()["classes"][0]
        self.assertEqual((of_class["backend"], of_class["table"], of_class["mark"], of_class["mask"]),
                         (["nft", "net_cls"], TABLE, 2, 0xffffffff))
        self.assertTrue(self.lab.novpn("doctor").stdout.startswith("Nothing is wrong."))

        self.lab.roam("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.assert_members_seen_at("b")
        self.assert_nothing_leaked()
        self.assertEqual(self.agent.stop(), 0)
        self.assert_gone()

    def test_a_member_stays_where_it_is_in_cgroup_v2(self):
        self.start(vpn=None)
        flow = self.lab.flow()
        mine = pathlib.Path("/proc/self/cgroup").read_text().splitlines()[-1]
        groups = self.lab.shell(f"cat /proc/{flow.process.pid}/cgroup").splitlines()
        self.assertIn(mine, groups)
        self.assertTrue(any("net_cls" in line and line.endswith("/" + self.own()) for line in groups), groups)
        member = self.agent.status()["classes"][0]["members"][0]
        self.assertEqual((member["cgroup"], member["selector"], member["processes"]), (f"{self.mount()}/{self.own()}", "run", 1))


class Flows(NetCls):
    def test_one_that_joins_keeps_its_path_and_its_new_sockets_do_not(self):
        self.start()
        flow = self.lab.flow(member=False)
        member = self.lab.member(member=False)
        self.assert_same(flow.seen, VPN_SEEN[4], "the flow at its start")
        self.assertIn("1 of its open sockets", self.lab.novpn("add", flow.process.pid).stdout)
        self.assertNotIn("open socket", self.lab.novpn("add", flow.process.pid).stdout, "a second time")
        self.assert_same(flow.ask(), VPN_SEEN[4], "the flow of a process that joined")
        self.lab.novpn("add", member.process.pid)
        member.new("s", "tcp")
        member.connect("s", MEMBER_ECHO[4])
        self.assert_same(member.ask("s")["seen"], SITES["a"].seen4, "a new socket")
        self.assertIn("1 open socket was ended", self.lab.novpn("remove", member.process.pid).stdout)
        self.assertIn("error", member.ask("s"))
        self.assert_same(self.agent.status()["classes"][0]["members"][0]["processes"], 1, "members left")
        self.assert_nothing_leaked()

    def test_off_ends_them_and_on_takes_new_ones(self):
        self.start()
        flow, bystander = self.lab.flow(), self.lab.flow(member=False)
        self.lab.novpn("off")
        self.assertIn("no answer", flow.ask())
        self.assert_same(bystander.ask(), VPN_SEEN[4], "an ordinary flow")
        self.lab.novpn("on")
        self.assert_members_seen_at("a")
        self.assert_nothing_leaked()

    def test_a_reload_from_and_to_another_marking_loses_no_member_of_cgroup_v2(self):
        self.start("marking: net_cls\n")  # Whoever starts otherwise gives up the right to mount.
        (self.lab.directory / "novpn.yaml").write_text("marking: auto\n")
        self.lab.novpn("reload")
        flow = self.lab.flow()
        (self.lab.directory / "novpn.yaml").write_text("marking: net_cls\n")
        self.lab.novpn("reload")
        self.assert_same(flow.ask(), SITES["a"].seen4, "a flow from before")
        self.assert_members_seen_at("a")
        self.assert_same([m["processes"] for m in self.agent.status()["classes"][0]["members"]], [0, 1], "members of both kinds")
        tagged = self.lab.flow()
        (self.lab.directory / "novpn.yaml").write_text("marking: auto\n")
        self.lab.novpn("reload")
        self.assertIn("no answer", tagged.ask(), "nothing marks that process any more")
        self.assert_same(flow.ask(), SITES["a"].seen4, "a flow from before")
        self.assert_gone()
        self.assert_nothing_leaked()


class Mounts(NetCls):
    def test_one_that_is_there_is_used_and_left_alone(self):
        theirs = self.lab.directory / "theirs"
        self.lab.shell(f"mkdir {theirs}; mount -t cgroup -o net_cls theirs {theirs}; mkdir -p {theirs}/theirs")
        self.addCleanup(the_lab.in_net_cls, "rmdir theirs")
        self.start()
        self.assert_members_seen_at("a")
        self.assert_same(self.mounts(), [str(theirs)], "mounts")
        self.agent.stop()
        self.assert_same(self.mounts(), [str(theirs)], "mounts after the agent")
        self.assert_same(self.cgroups(), [], "cgroups left")

    def test_a_class_id_of_somebody_elses_is_refused(self):
        theirs = self.lab.directory / "theirs"
        name = f"theirs-{self.lab.netns_inode()}"
        self.lab.shell(f"mkdir {theirs}; mount -t cgroup -o net_cls theirs {theirs}; mkdir {theirs}/{name}; echo 77 > {theirs}/{name}/net_cls.classid")
        self.addCleanup(the_lab.in_net_cls, f"rmdir {name}")
        (self.lab.directory / "novpn.yaml").write_text("classes: {novpn: {classid: 77}}\nmarking: net_cls\n")
        result = self.lab.run(self.lab.directory / "bin/novpnd", "--runtime-dir", self.lab.directory / "run", "--config",
                              self.lab.directory / "novpn.yaml", check=False)
        self.assert_refused(result, "classid 0x4d", f"{theirs}/{name}")

    def test_without_the_right_to_mount_it_says_what_to_do(self):
        (self.lab.directory / "novpn.yaml").write_text(BY_HAND)
        before = self.lab.snapshot()
        result = self.lab.run("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", self.lab.directory / "bin/novpnd",
                              "--runtime-dir", self.lab.directory / "run", "--config", self.lab.directory / "novpn.yaml", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("CAP_SYS_ADMIN", result.stderr.splitlines()[-1])
        self.assertIn("novpnd(8)", result.stderr.splitlines()[-1])
        self.assert_state_is(before)


    def test_an_agent_that_gave_up_the_right_to_mount_refuses_the_reload(self):
        self.start("marking: auto\n")
        before = self.lab.snapshot()
        (self.lab.directory / "novpn.yaml").write_text("marking: net_cls\n")
        result = self.lab.novpn("reload", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("CAP_SYS_ADMIN", result.stderr)
        self.assertIn("restart", result.stderr)
        self.assert_state_is(before)
        self.assert_members_seen_at("a")


class Crashes(NetCls):
    def test_a_new_agent_adopts_it_without_a_write(self):
        self.start()
        flow = self.lab.flow()
        self.agent.kill9()
        before, monitor = self.lab.snapshot(), self.lab.monitor()
        self.start_agent(BY_HAND)
        self.assertEqual(monitor.changes(), [])
        self.assert_state_is(before)
        self.assert_same(flow.ask(), SITES["a"].seen4, "a member's flow")
        self.assert_same(self.agent.status()["classes"][0]["members"][0]["processes"], 1, "members")
        self.assertIn("1 open socket was ended", self.lab.novpn("remove", flow.process.pid).stdout)

    def test_down_force_takes_all_of_it_away(self):
        self.start()
        flow = self.lab.flow()
        self.agent.kill9()
        self.lab.novpn("down", "--force")
        self.assert_gone()
        self.assertIsNone(flow.process.poll())
        self.assertNotIn("table inet novpn", self.lab.shell("nft list tables"))

    def test_what_somebody_removes_is_put_back(self):
        self.start()
        before = self.lab.snapshot()
        for removal in (f"rmdir {self.mount()}/{self.own()}", f"echo 5 > {self.mount()}/{self.own()}/net_cls.classid"):
            with self.subTest(removal):
                repairs = self.agent.status()["repairs"]
                self.lab.shell(removal)
                wait_until(lambda: self.agent.status()["repairs"] > repairs, 10, "the repair", self.agent.explain)
                wait_until(lambda: self.lab.snapshot() == before, 10, "the repair", self.agent.explain)
                self.assertEqual(self.read(f"{self.mount()}/{self.own()}/net_cls.classid"), [str(CLASSID)])
                self.assert_members_seen_at("a")


if __name__ == "__main__":
    unittest.main(verbosity=2)
