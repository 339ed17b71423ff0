"""The command line against the real agent: what it says, where it says it, its exit status, and what the kernel shows.

Membership (add, remove, off, on), `run` and the stops have tests of their own beside this one.
"""
import json
import os
import re
import signal
import socket
import unittest

from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab
from lab import ECHO, read_line, wait_until

CONFIG = "classes: {novpn: {%s}}\n"
TWO_CLASSES = """
classes:
  novpn: {}
  work: {table: 7867, mark: 0x4f000000/0xff000000, preference: 70}
"""


class CommandTest(LabTest):
    def json(self, *arguments):
        return json.loads(self.lab.novpn(*arguments, "--json").stdout)

    def write_config(self, text):
        (self.lab.directory / "novpn.yaml").write_text(text)

    def numbers(self):
        """Rules and routes of both families, as one text."""
        return self.lab.shell("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")

    def assert_said(self, result, exit_status, stdout=None, stderr=None):
        """stdout, stderr: patterns that the whole of it has to match."""
        said = f"{result.returncode}: {result.stdout!r} {result.stderr!r}"
        self.assertEqual(result.returncode, exit_status, said)
        self.assertRegex(result.stdout, re.compile(rf"\A(?:{stdout or ''})\Z", re.DOTALL), said)
        self.assertRegex(result.stderr, re.compile(rf"\A(?:{stderr or ''})\Z", re.DOTALL), said)


class Status(CommandTest):
    def test_the_first_line_is_a_sentence_and_json_has_the_promised_fields(self):
        self.start_agent()
        first, empty, *rest = self.lab.novpn("status").stdout.splitlines()
        self.assertEqual((first, empty), ("No VPN has taken over; class novpn leaves by wlan0 like everything else.", ""))
        self.assertTrue(any(line.startswith("ipv4 uplink") and SITES["a"].gateway in line for line in rest), rest)
        status = self.json("status")
        self.assertEqual((status["summary"], status["health"], status["site"]), (first, "ok", None))
        uplink = status["families"]["ipv4"]["uplink"]
        wanted = {"link": "wlan0", "ifindex": int(self.lab.shell("ip -o link show wlan0").split(":")[0]),
                  "gateway": SITES["a"].gateway, "source": self.lab.laptop_address(), "from": "main"}
        self.assertEqual({name: uplink[name] for name in wanted}, wanted)
        of_class, = status["classes"]
        self.assertEqual({name: of_class[name] for name in ("name", "table", "mark", "mask", "preference", "state", "backend")},
                         {"name": "novpn", "table": 7866, "mark": 0x4e000000, "mask": 0xff000000, "preference": 64,
                          "state": "steering", "backend": ["bpf", "nft"]})

    def test_the_sentence_names_the_vpn_and_then_the_missing_uplink(self):
        self.start_agent()
        self.vpn_up("def1")
        self.assertEqual(self.lab.novpn("status").stdout.splitlines()[0], "Class novpn leaves by wlan0, outside the VPN on tun0.")
        takeover, = self.json("status")["families"]["ipv4"]["takeovers"]
        self.assertEqual(takeover, {"shape": "split", "link": "tun0", "table": 254, "preference": None})
        self.lab.unplug("wlan0")  # else the next router advertisement would bring IPv6 back
        self.lab.forget("wlan0")
        self.agent.wait_for(lambda s: s["health"] == "blocked", "no uplink")
        self.assertRegex(self.lab.novpn("status").stdout.splitlines()[0], r"^Class novpn is blocked: .* Connect to a network\.$")

    def test_an_ordinary_user_may_ask(self):
        self.start_agent()
        self.lab.flow()
        self.assertEqual(self.json("status")["classes"][0]["members"][0]["processes"], 1)
        seen = json.loads(self.lab.novpn("status", "--json", uid=the_lab.DAEMON).stdout)
        self.assertEqual(seen["classes"][0]["members"][0]["processes"], 0, "another user's members")


class Explain(CommandTest):
    def test_without_vpn(self):
        self.start_agent()
        answer = self.json("explain", ECHO[4])
        self.assertEqual(answer["class"], "novpn")
        self.assertEqual({name: answer["ordinary"][name] for name in ("link", "table", "preference", "owner")},
                         {"link": "wlan0", "table": 254, "preference": 32766, "owner": "kernel"})
        self.assertEqual({name: answer["member"][name] for name in ("link", "table", "preference", "owner")},
                         {"link": "wlan0", "table": 7866, "preference": 64, "owner": "novpn"})
        self.assertIn("the same way", self.lab.novpn("explain", ECHO[6]).stdout.splitlines()[0])

    def test_under_a_vpn(self):
        self.start_agent()
        self.vpn_up("def1-ipv6")
        for family in (4, 6):
            text = self.lab.novpn("explain", ECHO[family]).stdout
            self.assertEqual(text.splitlines()[0],
                             f"To {ECHO[family]} an ordinary process leaves by tun0, and a member of class novpn leaves by wlan0.")
            self.assertIn("(owner: novpn)", text)
        # Names are asked for as every program asks.
        self.assertRegex(self.lab.novpn("explain", "echo.example").stdout, rf"\Aecho\.example is \S+, the first of its 2 addresses\.\nTo ")

    def test_whose_rule_it_is(self):
        self.start_agent()
        self.lab.shell("""
            ip tuntap add dev vpn7 mode tun; ip address add 10.9.0.2/24 dev vpn7; ip link set vpn7 up
            ip route add default dev vpn7 table 52; ip rule add preference 5270 lookup 52""")
        self.wait_for_takeover()
        answer = self.json("explain", ECHO[4])
        self.assertEqual({name: answer["ordinary"][name] for name in ("link", "table", "preference", "owner")},
                         {"link": "vpn7", "table": 52, "preference": 5270, "owner": "Tailscale"})
        self.assertEqual((answer["member"]["link"], answer["member"]["owner"]), ("wlan0", "novpn"))
        self.lab.shell("ip rule del preference 5270; ip rule add not fwmark 0xca6c lookup 52 preference 5270")
        self.assertEqual(self.json("explain", ECHO[4])["ordinary"]["owner"], "wg-quick")

    def test_addresses_of_this_machine(self):
        self.start_agent()
        for own in ("127.0.0.1", "::1", self.lab.laptop_address()):
            answer = self.json("explain", own)
            for who in ("ordinary", "member"):
                self.assertEqual((answer[who]["table"], answer[who]["owner"]), (255, "kernel"), answer)
            self.assertEqual(self.lab.novpn("explain", own).stdout.splitlines()[0],
                             f"{own} is an address of this machine: no packet to it leaves.")
        neighbour = self.json("explain", SITES["a"].gateway)
        self.assertEqual((neighbour["ordinary"]["link"], neighbour["member"]["link"]), ("wlan0", "wlan0"))

    def test_for_a_class_and_for_a_process(self):
        self.start_agent(TWO_CLASSES)
        self.assertEqual(self.json("explain", "--class", "work", ECHO[4])["member"]["table"], 7867)
        member, other = self.lab.flow(), self.lab.flow(member=False)
        self.assertIn("is in class novpn", self.lab.novpn("explain", "--pid", member.process.pid, ECHO[4]).stdout.splitlines()[0])
        self.assertIn("is in no class", self.lab.novpn("explain", ECHO[4], "--pid", other.process.pid).stdout.splitlines()[0])
        self.assert_said(self.lab.novpn("explain", "--class", "games", ECHO[4], check=False), 1, stderr=r"novpn: .*no class games\n")

    def test_without_an_agent_it_looks_for_itself(self):
        before = self.lab.snapshot()
        answer = self.json("explain", ECHO[4])
        self.assertEqual((answer["ordinary"]["link"], answer["member"]["table"]), ("wlan0", 254))
        self.assert_state_is(before)


class Terminal(CommandTest):
    def on_terminal(self, columns, environment=""):
        return self.lab.shell(f"env -u NO_COLOR {environment} script -qec 'stty cols {columns}; novpn status' /dev/null").replace("\r", "")

    def test_status_fits_and_has_colour_there_alone(self):
        self.start_agent()
        piped = self.lab.novpn("status").stdout
        self.assertNotIn("\033", piped)
        self.assertGreater(max(map(len, piped.splitlines())), 60)
        narrow = self.on_terminal(60, "TERM=xterm NO_COLOR=1")
        self.assertNotIn("\033", narrow)
        self.assertLessEqual(max(map(len, narrow.splitlines())), 60, narrow)
        self.assertEqual(self.on_terminal(20, "TERM=xterm NO_COLOR=1"), narrow, "60 columns are the fewest")
        self.assertEqual(narrow.split(), self.on_terminal(200, "TERM=xterm NO_COLOR=1").split(), "the same words")
        coloured = self.on_terminal(60, "TERM=xterm")
        self.assertTrue(coloured.startswith("\033[32mNo VPN has taken over"), coloured)
        self.assertEqual(re.sub(r"\033\[\d+m", "", coloured), narrow)
        self.assertEqual(self.on_terminal(60, "TERM=dumb"), narrow)


class Watch(CommandTest):
    def watch(self, *options):
        return self.lab.spawn("sh", "-c", 'exec "$@" 2>&1', "sh", *self.lab.novpn_command("watch", *options))

    def test_a_new_gateway_is_told_with_its_cause_and_operations(self):
        self.start_agent()
        as_json, as_text = self.watch("--json"), self.watch()
        self.subscribed(as_json, as_text)
        self.lab.change_gateway("a", SITES["a"].second_gateway)
        self.wait_for_gateway(SITES["a"].second_gateway)

        def next_change(process, read):
            while True:
                line = read(read_line(process))
                if line:
                    return line

        def replaced(line):
            event = json.loads(line)
            return event if any(SITES["a"].second_gateway in text for text in event["operations"]) else None

        event = next_change(as_json, replaced)
        self.assertIn("route", event["cause"])
        self.assertEqual([text for text in event["operations"] if "default" in text],
                         [f"ip route replace default via {SITES['a'].second_gateway} dev wlan0 table 7866"
                          f" proto 78 src {self.lab.laptop_address()}"])
        self.assertGreater(event["reaction_us"], 0)
        self.assertEqual([text.split(" (")[0] for text in event["decisions"]], [f"ipv4 uplink wlan0 via {SITES['a'].second_gateway}"])
        self.assertIn("class novpn leaves by wlan0", event["summary"])
        line = next_change(as_text, lambda line: line if SITES["a"].second_gateway in line else None)
        self.assertRegex(line, r"^\d\d:\d\d:\d\d  .*route.* → ipv4 uplink wlan0 via \S+ .* → ip route replace default .* → [\d.]+ (us|ms|s)$")

    def subscribed(self, *processes):
        """Each has been told of one change since it was started, so that it listens from here on."""
        def heard():
            self.lab.novpn("off")
            self.lab.novpn("on")
            return all(the_lab.select.select([process.stdout], [], [], 0)[0] for process in processes)
        wait_until(heard, what="a first event")

    def test_it_ends_with_the_agent_and_says_so(self):
        self.start_agent()
        process = self.watch()
        self.subscribed(process)
        self.agent.stop()
        self.assertEqual(process.wait(5), 1)
        self.assertEqual(process.stdout.read().decode().splitlines()[-1],
                         "novpn: watching the agent: the agent ended, or closed the connection")

    def test_a_closed_pipe_ends_it_without_noise(self):
        self.start_agent()
        reader = self.lab.spawn("sh", "-c", f"{the_lab.shlex.join(map(str, self.lab.novpn_command('watch', '--json')))} | head -n1")
        self.subscribed(reader)
        json.loads(read_line(reader))
        def ends():
            self.lab.novpn("off")
            self.lab.novpn("on")
            return reader.poll() is not None
        wait_until(ends, what="the end of watch")


class PlanAndMetrics(CommandTest):
    def test_plan_names_what_is_missing_and_does_not_mend_it(self):
        self.start_agent()
        self.assertEqual(self.lab.novpn("plan").stdout, "nothing to change\n")
        self.assertEqual(self.json("plan"), {"commands": []})
        # Stopped, the agent cannot repair: what a fresh look would do shows.
        self.agent.process.send_signal(signal.SIGSTOP)
        try:
            self.lab.shell("ip rule del preference 64 fwmark 0x4e000000/0xff000000 lookup 7866; ip -6 route flush table 7866")
            self.write_config("")
            planned = self.json("plan", "--config", self.lab.directory / "novpn.yaml")["commands"]
            self.assertIn("ip rule add preference 64 fwmark 0x4e000000/0xff000000 lookup 7866 protocol 78", planned)
            self.assertTrue(any(re.match("ip -6 route replace default via fe80::.* table 7866 ", line) for line in planned), planned)
            self.assertFalse(any(line.startswith("nft") for line in planned), "the table is as it should be")
        finally:
            self.agent.process.send_signal(signal.SIGCONT)
        wait_until(lambda: self.lab.novpn("plan").stdout == "nothing to change\n", what="the repair", detail=self.agent.explain)

    def test_plan_with_a_bad_config(self):
        (self.lab.directory / "bad.yaml").write_text("classes: {novpn: {tabel: 1}}\n")
        self.assert_said(self.lab.novpn("plan", "--config", self.lab.directory / "bad.yaml", check=False), 1,
                         stderr=r"novpn: \S*bad\.yaml:1:\d+: [^\n]*tabel[^\n]*\n")

    def metrics(self):
        """{name{labels}: value}, from text that keeps the rules of OpenMetrics."""
        text = self.lab.novpn("metrics").stdout
        self.assertTrue(text.endswith("\n# EOF\n"), text)
        values, types = {}, {}
        suffixes = {"counter": "_total", "gauge": "", "stateset": "", "info": "_info"}
        family = None
        for line in text.splitlines()[:-1]:
            if found := re.fullmatch(r"# TYPE (\w+) (\w+)", line):
                family = found[1]
                self.assertNotIn(family, types, "a family is told once, and its samples stand together")
                types[family] = found[2]
            elif not re.fullmatch(rf"# HELP {family} \S.*", line):
                sample = re.fullmatch(r'(\w+)(\{(?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+\})? (-?[0-9.e+-]+)', line)
                self.assertTrue(sample, f"{line!r} is no sample")
                self.assertEqual(sample[1], family + suffixes[types[family]], line)
                key = sample[1] + (sample[2] or "")
                self.assertNotIn(key, values, "a sample is told once")
                values[key] = float(sample[3])
        return values

    def test_metrics_move_with_packets(self):
        self.start_agent("marking: nft\n")  # which masquerades
        self.vpn_up("def1")
        marked, masqueraded = (f'novpn_class_packets_total{{class="novpn",kind="{kind}"}}' for kind in ("marked", "masqueraded"))
        before = self.metrics()
        self.assertEqual(before['novpn_class_state{class="novpn",novpn_class_state="steering"}'], 1)
        self.assertEqual(before[f'novpn_uplink_info{{family="ipv4",link="wlan0",gateway="{SITES["a"].gateway}",from="main"}}'], 1)
        self.assertEqual(before['novpn_takeover_info{family="ipv4",shape="split",link="tun0"}'], 1)
        self.assert_same(self.lab.seen(member=True), SITES["a"].seen4, "a member")
        after = self.metrics()
        self.assertEqual(after[marked], before[marked] + 1)
        self.assertEqual(after[masqueraded], before[masqueraded] + 1)
        self.assert_same(self.lab.seen(), VPN_SEEN[4], "another process")
        self.assertEqual(self.metrics()[marked], after[marked])
        self.lab.shell("ip rule del preference 64 fwmark 0x4e000000/0xff000000 lookup 7866")
        wait_until(lambda: self.metrics()["novpn_repairs_total"] == after["novpn_repairs_total"] + 1, what="a repair")
        self.assertGreater(self.metrics()["novpn_last_reaction_seconds"], 0)

    def test_the_guards_drops_are_counted(self):
        self.start_agent()
        self.vpn_up("def1")
        dropped = 'novpn_class_packets_total{class="novpn",kind="dropped"}'
        before = self.metrics()[dropped]
        # A rule before ours leads members astray, as wg-quick's would.
        self.lab.shell("ip rule add preference 2 fwmark 0x4e000000/0xff000000 lookup main")
        self.lab.probe("udp", MEMBER_ECHO[4], member=True, check=False, timeout=0.2)
        self.lab.shell("ip rule del preference 2 fwmark 0x4e000000/0xff000000 lookup main")
        self.assertGreater(self.metrics()[dropped], before)
        self.assert_nothing_leaked()


class CheckAndReload(CommandTest):
    def check(self, text):
        path = self.lab.directory / "checked.yaml"
        path.write_text(text)
        return self.lab.novpn("check", path, uid=the_lab.NOBODY, check=False)

    def test_check(self):
        self.assert_said(self.check(TWO_CLASSES), 0, stdout=r"\S+/checked\.yaml: ok\n")
        self.assert_said(self.check("classes:\n  novpn:\n    tabel: 5\n"), 1,
                         stderr=r"\S+/checked\.yaml:3:5: [^\n]*tabel[^\n]*table[^\n]*\n")
        # A doubt is no mistake.
        self.assert_said(self.check("classes: {novpn: {enabled: false}}\nsites: [{name: home, match: {ssid: x}, classes: {novpn: on}}]\n"), 0,
                         stdout=r"\S+/checked\.yaml: ok\n", stderr=r"\S+/checked\.yaml:2:9: sites\.home: warning: [^\n]*turns class novpn on[^\n]*\n")
        self.assert_said(self.lab.novpn("check", "/nowhere.yaml", check=False), 1, stderr=r"/nowhere\.yaml: [^\n]+\n")

    def test_a_bad_config_is_said_where_it_was_asked_for_and_stays_in_status(self):
        self.start_agent(CONFIG % "")
        before = self.lab.snapshot()
        self.write_config("classes:\n  novpn: {table: many}\n")
        self.assert_said(self.lab.novpn("reload", check=False), 1,
                         stderr=r"novpn: reloading the config: \S*novpn\.yaml:2:\d+: [^\n]*many[^\n]*\n")
        status = self.json("status")
        self.assertEqual(([w["code"] for w in status["warnings"]], status["health"]), (["config"], "degraded"))
        self.assertIn("novpn.yaml:2:", self.lab.novpn("status").stdout)
        self.assert_state_is(before)
        # By signal there is no caller to tell: the log and status have it.
        self.agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.agent.log.read_text().count("config not changed") == 2, what="the second refusal in the log")
        self.assert_state_is(before)
        self.write_config(CONFIG % "")
        self.assert_said(self.lab.novpn("reload"), 0, stdout="the config has been read again\n")
        self.assertEqual(self.json("status")["warnings"], [])

    def test_numbers_in_use_are_refused_with_their_owner(self):
        self.start_agent(CONFIG % "")
        self.lab.shell("ip route add 192.0.2.0/24 dev wlan0 table 7900 proto static")
        before = self.lab.snapshot()
        self.write_config(CONFIG % "table: 7900")
        self.assert_said(self.lab.novpn("reload", check=False), 1, stderr=r"novpn: reloading the config: [^\n]*table 7900[^\n]*static[^\n]*\n")
        self.assert_state_is(before)

    def test_reload_is_roots(self):
        self.start_agent(CONFIG % "")
        self.write_config(CONFIG % "table: 7900")
        self.assert_said(self.lab.novpn("reload", uid=the_lab.NOBODY, check=False), 1, stderr=r"novpn: reloading the config: [^\n]*\n")
        self.assertNotIn("7900", self.numbers())

    def check_new_numbers(self, reload):
        self.start_agent(CONFIG % "")
        self.vpn_up("def1-ipv6")
        monitor = self.lab.monitor()
        flow = self.lab.flow()
        self.write_config(CONFIG % "table: 7900, mark: 0x5e000000/0xff000000, preference: 90")
        reload()
        self.agent.wait_for(lambda s: s["classes"][0]["table"] == 7900, "the new numbers")
        self.assertNotRegex(self.numbers(), r"7866|0x4e000000")
        self.assertNotIn("0x4e000000", self.lab.shell("nft list table inet novpn"))
        self.assert_members_seen_at("a")
        # New steering first: the old rule is deleted after the new table, rules and marks are there.
        order = [line for line in monitor.changes() if re.search("lookup (7866|7900)", line) or "table 7900" in line]
        first_deleted = next(i for i, line in enumerate(order) if "Deleted" in line and "lookup 7866" in line)
        for wanted in ("unreachable default .*table 7900", f"default via {SITES['a'].gateway} .*table 7900", "fwmark 0x5e000000/0xff000000 lookup 7900"):
            self.assertTrue(any(re.search(wanted, line) for line in order[:first_deleted]), f"{wanted} not before {order[first_deleted]}: {order}")
        # With another mark the open flow is nobody's: it ends, and does not go on in the tunnel.
        self.assertIn("no answer", flow.ask())
        self.assert_nothing_leaked()

    def test_new_numbers_by_command(self):
        self.check_new_numbers(lambda: self.lab.novpn("reload"))

    def test_new_numbers_by_signal(self):
        self.check_new_numbers(lambda: self.agent.process.send_signal(signal.SIGHUP))

    def test_a_class_that_is_gone_takes_its_own_steering_only(self):
        self.start_agent(CONFIG % "")
        alone = self.lab.snapshot(sysctls=False)
        self.write_config(TWO_CLASSES)
        self.lab.novpn("reload")
        self.assertIn("7867", self.numbers())
        member = self.lab.spawn(*self.lab.novpn_command("run", "--class", "work", "--", "cat"))
        wait_until(lambda: self.json("status")["classes"][1]["members"][0]["processes"] == 1, what="a member of the second class")
        self.write_config(CONFIG % "")
        self.lab.novpn("reload")
        self.assertEqual(self.lab.snapshot(sysctls=False).splitlines(), alone.splitlines())
        self.assertIsNone(member.poll(), "a member of a class that is gone lives on")
        self.assert_said(self.lab.novpn("run", "--class", "work", "true", check=False), 125, stderr=r"novpn: [^\n]*no class work\n")


class Down(CommandTest):
    def test_down_and_no_agent_afterwards(self):
        before = self.lab.snapshot()
        self.start_agent()
        self.assert_said(self.lab.novpn("down"), 0)
        self.assert_same(self.agent.process.wait(5), 0, "exit status")
        self.assert_state_is(before)
        self.assert_said(self.lab.novpn("down", check=False), 1, stderr=r"novpn: [^\n]*no agent runs there[^\n]*\n")

    def test_by_force_only_where_no_agent_lives(self):
        before = self.lab.snapshot()
        self.start_agent(TWO_CLASSES)
        steered = self.lab.snapshot()
        # The lock is the namespace's: another runtime dir is no way around it.
        for runtime_dir in (self.lab.directory / "run", "/run/elsewhere"):
            command = [self.lab.directory / "bin/novpn", "--runtime-dir", runtime_dir, "down", "--force"]
            self.assert_said(self.lab.run(*command, check=False), 1, stderr=r"novpn: [^\n]*another novpnd runs here[^\n]*\n")
        self.assert_said(self.lab.novpn("down", "--force", uid=the_lab.NOBODY, check=False), 1, stderr=r"novpn: [^\n]*only root may[^\n]*\n")
        self.assert_state_is(steered)
        self.agent.kill9()
        # Silent: stdout is for what was asked for.
        self.assert_said(self.lab.novpn("down", "--force"), 0)
        self.assert_state_is(before)

    def test_what_force_cannot_do_is_an_error(self):
        self.start_agent()
        self.agent.kill9()
        command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", *self.lab.novpn_command("down", "--force")]
        self.assert_said(self.lab.run(*command, check=False), 1, stderr=r"novpn: [^\n]*CAP_NET_ADMIN[^\n]*\n")


class Usage(CommandTest):
    def test_global_options_on_both_sides(self):
        self.agent = self.lab.start_agent()
        program, runtime_dir = self.lab.directory / "bin/novpn", self.lab.directory / "run"
        elsewhere = {"NOVPN_RUNTIME_DIR": "/run/nowhere"}
        for command in ([program, "--runtime-dir", runtime_dir, "plan"], [program, "plan", "--runtime-dir", runtime_dir],
                        [program, f"--runtime-dir={runtime_dir}", "plan"]):
            result = self.lab.run("env", *(f"{k}={v}" for k, v in elsewhere.items()), *command)
            self.assertEqual(result.stdout, "nothing to change\n", command)
        self.assertEqual(self.lab.run("env", f"NOVPN_RUNTIME_DIR={runtime_dir}", program, "plan").stdout, "nothing to change\n")
        for command in ([program, "--version"], [program, "status", "--version"]):
            self.assert_said(self.lab.run(*command), 0, stdout=r"novpn \d+\.\d+\S*\n")
        for command in ([program, "--help"], [program, "explain", "--help"]):
            self.assert_said(self.lab.run(*command), 0, stdout=".*--runtime-dir.*|.*DEST.*")

    def test_what_follows_the_program_is_the_programs(self):
        self.start_agent()
        for arguments in (["run", "--", "echo", "--class", "x", "--help"], ["run", "echo", "--class", "x", "--help"],
                          ["run", "--class", "novpn", "echo", "--class", "x", "--help"]):
            self.assert_said(self.lab.novpn(*arguments), 0, stdout="--class x --help\n")
        self.assert_said(self.lab.novpn("run", "--", "sh", "-c", "kill -9 $$", check=False), -signal.SIGKILL)

    def test_exit_status(self):
        self.start_agent()
        for arguments, status in ((["fly"], 2), ([], 2), (["status", "--fly"], 2), (["run"], 2), (["explain"], 2), (["add", "x"], 2),
                                  (["explain", "no.such.name.example"], 1), (["add", str(2 ** 30)], 1), (["off", "games"], 1),
                                  (["run", "--class", "games", "true"], 125), (["run", "/nowhere"], 127), (["run", "/etc/passwd"], 126)):
            with self.subTest(arguments):
                self.assert_said(self.lab.novpn(*arguments, check=False), status, stderr=r"novpn: [^\n]+: [^\n]+\n")

    def test_no_agent(self):
        for arguments in (["status"], ["watch"], ["metrics"], ["reload"], ["down"], ["off"], ["on"], ["add", "1"], ["remove", "1"]):
            with self.subTest(arguments[0]):
                self.assert_said(self.lab.novpn(*arguments, check=False), 1, stderr=r"novpn: connecting to [^\n]*no agent runs there[^\n]*\n")
        self.assert_said(self.lab.novpn("run", "true", check=False), 125, stderr=r"novpn: connecting to [^\n]*no agent runs there[^\n]*\n")
        # A crash leaves the socket behind.
        self.start_agent()
        self.agent.kill9()
        self.assert_said(self.lab.novpn("status", check=False), 1, stderr=r"novpn: connecting to [^\n]*no agent runs there[^\n]*\n")

    def test_a_full_disk_is_an_error(self):
        self.start_agent()
        command = the_lab.shlex.join(map(str, self.lab.novpn_command("status", "--json")))
        self.assert_said(self.lab.run("sh", "-c", f"{command} > /dev/full", check=False), 1, stderr=r"novpn: writing to stdout: [^\n]*\n")

    def test_an_agent_that_hangs_is_not_waited_for_for_ever(self):
        self.start_agent()
        self.agent.process.send_signal(signal.SIGSTOP)
        try:
            self.assert_said(self.lab.novpn("status", check=False), 1, stderr=r"novpn: [^\n]*the agent does not answer\n")
        finally:
            self.agent.process.send_signal(signal.SIGCONT)


class Impostor(CommandTest):
    """Somebody else listens where the agent would."""

    def test_a_socket_of_another_user_is_refused(self):
        directory = self.lab.directory / "impostor"
        directory.mkdir()
        os.chown(directory, the_lab.NOBODY, the_lab.NOBODY)
        # It takes the connection and would answer with anything: nothing must be asked of it.
        listener = self.lab.spawn(the_lab.PYTHON, "-c", """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
while True:
    peer = listener.accept()[0]
    print(len(peer.recv(4096)), flush=True)
""", directory / "io.novpn.Agent", uid=the_lab.NOBODY)
        self.assertEqual(read_line(listener), "listening")
        for arguments, status in ((["status"], 1), (["watch"], 1), (["plan"], 1), (["explain", ECHO[4]], 1), (["down"], 1), (["run", "true"], 125)):
            with self.subTest(arguments[0]):
                result = self.lab.run(self.lab.directory / "bin/novpn", "--runtime-dir", directory, *arguments, check=False)
                self.assert_said(result, status, stderr=rf"novpn: [^\n]*uid {the_lab.NOBODY} listens there[^\n]*\n")
                self.assertEqual(read_line(listener), "0", "bytes that the impostor got")
        # Nor by what a caller may have left in root's environment.
        result = self.lab.run("env", f"NOVPN_RUNTIME_DIR={directory}", f"XDG_RUNTIME_DIR={directory}", f"DBUS_SYSTEM_BUS_ADDRESS=unix:path={directory}/io.novpn.Agent",
                              self.lab.directory / "bin/novpn", "run", "true", check=False)
        self.assert_said(result, 125, stderr=rf"novpn: [^\n]*uid {the_lab.NOBODY} listens there[^\n]*\n")
        self.assertEqual(read_line(listener), "0", "bytes that the impostor got")

    def test_an_answer_without_sense_is_an_error(self):
        directory = self.lab.directory / "babble"
        directory.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "io.novpn.Agent"))
            listener.listen()
            for answer in (b"hello\0", b"[]\0", b'{"parameters": 7}\0', b"", b"x" * 5_000_000):
                with self.subTest(answer[:20]):
                    process = self.lab.spawn(self.lab.directory / "bin/novpn", "--runtime-dir", directory, "status",
                                             output=self.lab.directory / "babble.log")
                    peer, _ = listener.accept()
                    with peer:
                        try:
                            peer.sendall(answer)
                        except OSError:
                            pass  # It has heard enough.
                    self.assertEqual(process.wait(10), 1)
        lines = (self.lab.directory / "babble.log").read_text().splitlines()
        self.assertEqual(len(lines), 5, lines)
        for line in lines:
            self.assertRegex(line, "^novpn: asking the agent for its status: ")


if __name__ == "__main__":
    unittest.main(verbosity=2)
