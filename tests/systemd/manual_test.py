"""What the README, the manual and CONTRIBUTING print is run: their blocks of commands on a laptop with the package installed
and an OpenVPN up, in a real systemd; their blocks of YAML are read by `novpn check`.

A block of `sh` that is not run says why after "norun:". One of `console` has the output too, after lines that begin with "# ".
Programs with windows are stood in for by one that asks the internet host which address it sees: it has to be the uplink's.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

import jsonschema

import machine
from machine import the_lab

SOURCE = machine.SOURCE
PAGES = [SOURCE / "README.md", *sorted((SOURCE / "docs/manual").glob("*.md"))]
OTHER_PAGES = [SOURCE / "CONTRIBUTING.md", SOURCE / "SECURITY.md", *sorted((SOURCE / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Of everything that a page may ask for and a machine without a screen does not have.
STAND_INS = {
    "firefox": f"python3 /root/probe.py tcp {the_lab.MEMBER_ECHO[4]} | tee -a /root/seen",
    "sudo": 'exec "$@"',
}
SPOTIFY_ENTRY = "[Desktop Entry]\nType=Application\nName=Spotify\nExec=spotify %U\n"


def blocks_of(page):
    return BLOCK.findall(page.read_text())


class Form(unittest.TestCase):
    def test_each_block_says_what_it_is(self):
        for page in PAGES + OTHER_PAGES:
            for kind, body in blocks_of(page):
                with self.subTest(page.name, body=body[:60]):
                    self.assertRegex(kind, r"^(sh|console|yaml|text)$|^(sh|console) norun: \S.{10,}")

    def test_links_lead_somewhere(self):
        for page in PAGES + OTHER_PAGES:
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")


class Manual(machine.MachineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, body in STAND_INS.items():
            cls.put(f"/usr/local/bin/{name}", f"#!/bin/sh\n{body}\n", "755")
        cls.put("/usr/share/applications/spotify.desktop", SPOTIFY_ENTRY)
        # One that runs already.
        cls.machine.run("systemd-run", "--quiet", "bash", "-c", "exec -a spotify sleep infinity")
        cls.machine.run("useradd", "kiosk")
        cls.lab.vpn_up("def1")

    @classmethod
    def put(cls, path, text, mode="644"):
        cls.machine.run("sh", "-ec", f'mkdir -p "${{1%/*}}"; printf %s "$2" > "$1"; chmod {mode} "$1"', "sh", path, text)

    def setUp(self):
        self.machine.run("sh", "-c", "rm -f /etc/novpn/conf.d/* /root/seen; systemctl restart novpnd")
        self.wait_for_uplink()
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)

    def shell(self, script):
        """As root, in a unit of the machine's own systemd, which would take `$$` in its arguments for its own."""
        self.put("/root/block.sh", script)
        return subprocess.run(self.machine.service("--setenv=HOME=/root", "--setenv=LAB=/root", "--working-directory=/root", "--setenv=SHELL=/bin/sh",
                                                   "sh", "/root/block.sh"), text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)

    def check_config(self, page, text):
        self.put("/root/block.yaml", text)
        checked = self.machine.run("novpn", "check", "/root/block.yaml", check=False)
        self.assertEqual(checked.returncode, 0, f"{page}:\n{text}\n{checked.stderr}")

    def run_session(self, page, text):
        """Each command's output is what stands below it; addresses that a DHCP server chose are as good as another."""
        expected, command = "", None
        for line in text.splitlines() + ["# "]:
            if not line.startswith("# "):
                expected += line + "\n"
                continue
            if command:
                result = self.shell(command)
                self.assertEqual(result.returncode, 0, f"{page}: {command}\n{result.stdout}{result.stderr}")
                alike = [re.sub(r"192\.168\.10\.1\d\d\b", "192.168.10.1xx", re.sub(r" +$", "", said, flags=re.M)) for said in (result.stdout, expected)]
                self.assertEqual(alike[0], alike[1], f"{page}: {command}")
            command, expected = line[2:].split("  #")[0], ""

    def test_every_block_does_what_it_says(self):
        ran = 0
        for page in PAGES:
            for kind, body in blocks_of(page):
                if "norun:" in kind or kind == "text":
                    continue
                with self.subTest(page.name, block=body[:70]):
                    if kind == "yaml":
                        self.check_config(page.name, body)
                    elif kind == "console":
                        self.run_session(page.name, body)
                    else:
                        result = self.shell("set -e\n" + body)
                        self.assertEqual(result.returncode, 0, f"{page.name}:\n{body}\n{result.stdout}{result.stderr}\n{self.machine.journal()}")
                    ran += 1
        self.assertGreater(ran, 25)
        seen = self.machine.run("cat", "/root/seen").stdout.split()
        self.assertEqual(set(seen), {the_lab.SITES["a"].seen4}, "what `novpn run firefox` was seen as")


def strict(schema):
    """The shipped schemas let fields come; the test wants them written down."""
    if isinstance(schema, dict):
        closed = {name: strict(inner) for name, inner in schema.items()}
        return dict(closed, additionalProperties=False) if "properties" in closed and "required" in closed else closed
    return [strict(inner) for inner in schema] if isinstance(schema, list) else schema


class Json(machine.MachineTest):
    def test_the_package_has_them_and_the_manual(self):
        there = subprocess.run(["dpkg-deb", "--contents", self.package], text=True, stdout=subprocess.PIPE, check=True).stdout
        for page in (*(SOURCE / "docs/json").iterdir(), *(SOURCE / "docs/manual").iterdir(), SOURCE / "docs/now.svg"):
            self.assertRegex(there, rf"/usr/share/doc/novpn/.*{re.escape(page.name)}", page.name)

    def schema(self, name):
        shipped = json.loads((SOURCE / f"docs/json/{name}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(shipped)
        return jsonschema.Draft202012Validator(strict(shipped))

    def check(self, name, *command, statuses=(0,)):
        result = self.machine.run("novpn", *command, check=False)
        self.assertIn(result.returncode, statuses, result.stderr)
        for line in result.stdout.splitlines():
            self.schema(name).validate(json.loads(line))
        return json.loads(result.stdout.splitlines()[-1])

    def test_what_is_printed_is_as_the_schemas_say(self):
        self.put_config("classes: {novpn: {apps: [spotify], destinations: [203.0.113.99], users: [daemon]},"
                        " other: {dns: uplink, table: 7999, mark: 0x20000000/0xff000000, preference: 90}}\n"
                        "sites: [{name: office, match: {network: 10.20.0.0/16}, classes: {novpn: off}}]\n")
        self.wait_for_uplink()
        watch = subprocess.Popen(self.machine.command("timeout", "60", "novpn", "watch", "--json"), stdout=subprocess.PIPE, text=True)
        self.addCleanup(watch.wait)
        self.addCleanup(watch.stdout.close)
        events = [json.loads(watch.stdout.readline())]
        self.lab.vpn_up("def1")
        self.addCleanup(self.lab.vpn_down)
        the_lab.wait_until(lambda: self.status()["families"]["ipv4"]["takeovers"], 20, "a takeover", self.machine.journal)
        while not any("takeover" in decision for decision in events[-1]["decisions"]):
            events.append(json.loads(watch.stdout.readline()))
        self.assertEqual(events[0]["cause"], "now")
        for event in events:
            self.schema("watch").validate(event)
        watch.terminate()
        status = self.check("status", "status", "--json")
        self.assertEqual([len(status["classes"]), len(status["sites"])], [2, 1])
        self.check("explain", "explain", "--json", "192.0.2.1")
        self.check("explain", "explain", "--json", "--pid", "1", "2001:db8::1")
        self.check("plan", "plan", "--json")
        self.check("doctor", "doctor", "--json", statuses=(0, 1))
        self.check("apps", "apps", "--json")
        self.machine.run("systemctl", "stop", "novpnd")
        self.check("plan", "plan", "--json")
        self.check("explain", "explain", "--json", "192.0.2.1")
        self.assertFalse(self.check("doctor", "doctor", "--json", statuses=(1,))["ok"])

    def put_config(self, text):
        self.machine.run("sh", "-ec", 'printf %s "$1" > /etc/novpn/conf.d/50-test.yaml; novpn reload', "sh", text)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("manual_test.py: makes network namespaces and boots systemd: run it as root")
    unittest.main(verbosity=2)
