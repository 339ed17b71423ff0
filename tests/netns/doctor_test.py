"""`novpn doctor` on a laptop that is well, and on one that is not; its packets on the wire."""
import json
import unittest

from labtest import LabTest, the_lab


class Doctor(LabTest):
    def doctor(self, uid=None):
        result = self.lab.novpn("doctor", "--json", uid=uid, check=False)
        self.assertEqual(result.stderr, "")
        answer = json.loads(result.stdout)
        self.assertEqual((result.returncode, answer["ok"]), (0, True) if result.returncode == 0 else (1, False), answer)
        return answer["findings"]

    def wrong(self, findings):
        return [finding["check"] for finding in findings if finding["state"] == "wrong"]

    def packets(self, findings):
        return {finding["text"].split(":")[0]: finding for finding in findings if finding["check"] == "packets"}

    def test_without_and_with_a_vpn_it_proves_the_way_and_disturbs_nothing(self):
        self.start_agent()
        before, monitor = self.lab.snapshot(), self.lab.monitor()
        findings = self.doctor()
        self.assertEqual(self.wrong(findings), [], findings)
        self.assertEqual({family: " left by wlan0 as " in text["text"] for family, text in self.packets(findings).items()},
                         {"ipv4": True, "ipv6": True})
        self.assertEqual(monitor.changes(), [])
        self.assert_state_is(before)
        self.vpn_up("def1-ipv6")
        findings = self.doctor()
        self.assertEqual(self.wrong(findings), [], findings)
        for family, number in (("ipv4", 4), ("ipv6", 6)):
            text = self.packets(findings)[family]["text"]
            self.assertIn(f"class novpn left by wlan0 as {self.lab.laptop_address(number)}, an ordinary one left by tun0", text)
        self.assertTrue(self.lab.novpn("doctor").stdout.startswith("Nothing is wrong.\n\n"))

    def test_a_rule_that_leads_members_into_the_tunnel_is_seen_by_the_packet(self):
        self.start_agent()
        self.vpn_up("def1")
        self.lab.shell("ip rule add preference 2 to 192.0.2.1 lookup main")
        findings = self.doctor()
        self.assertIn("packets", self.wrong(findings))
        # The guard holds it back.
        self.assertIn("did not leave", self.packets(findings)["ipv4"]["text"])
        self.assertEqual(self.packets(findings)["ipv6"]["state"], "ok")

    def test_a_firewall_that_drops_is_suspected(self):
        self.start_agent()
        self.lab.shell("nft -f - <<'E'\ntable inet foreign { chain post { type filter hook postrouting priority 300; udp dport 33434 meta mark != 0 drop; }; }\nE")
        finding = self.packets(self.doctor())["ipv4"]
        self.assertEqual(finding["state"], "wrong")
        self.assertIn("firewall", finding["mend"])

    def test_no_uplink_no_packet(self):
        self.start_agent()
        self.vpn_up("def1")
        self.lab.unplug("wlan0")
        self.lab.forget("wlan0")
        self.agent.wait_for(lambda s: s["health"] == "blocked", "no uplink", timeout=15)
        findings = self.doctor()
        self.assertEqual(set(self.wrong(findings)), {"agent"}, findings)
        self.assertIn("did not leave", self.packets(findings)["ipv4"]["text"])

    def test_an_ordinary_user_is_told_what_needs_root(self):
        self.start_agent()
        findings = self.doctor(uid=the_lab.NOBODY)
        self.assertEqual([f["check"] for f in findings if f["state"] == "note"], ["kernel", "packets"], findings)

    def test_graphviz_draws_the_status(self):
        self.start_agent()
        self.vpn_up("def1")
        dot = self.lab.novpn("status", "--dot").stdout
        svg = self.lab.run("dot", "-Tsvg", input=dot)
        self.assertEqual(svg.stderr, "")
        for name in ("wlan0", "tun0", "table 7866", "class novpn", "mark 0x4e000000/0xff000000"):
            self.assertIn(name, svg.stdout.replace("&#45;", "-"))

    def test_no_agent(self):
        findings = self.doctor()
        self.assertEqual(self.wrong(findings), ["agent"], findings)
        self.assertIn("novpnd", findings[-1]["mend"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
