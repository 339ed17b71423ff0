"""A real systemd-resolved on the laptop: its stubs, its settings of links as NetworkManager and VPN clients make them, and
members with `dns: uplink` beside it.

By hand: Debian's package makes /etc/resolv.conf of the machine its own, so that no list of test packages has it. Unpacked
somewhere (apt-get download systemd-resolved; dpkg -x …), NOVPN_RESOLVED_DIR names that directory."""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "netns"))
from dns_test import CONFIG, DnsTest  # noqa: E402
from labtest import SITES, the_lab  # noqa: E402
from lab import VPN_DNS, WHO  # noqa: E402
from clients import start_bus  # noqa: E402

ROOT = os.environ.get("NOVPN_RESOLVED_DIR", "")
USER = "systemd-resolve:x:997:997::/:/usr/sbin/nologin\n"


class Resolved(DnsTest):
    def setUp(self):
        super().setUp()
        (self.lab.directory / "passwd").write_text(pathlib.Path("/etc/passwd").read_text() + USER)
        self.lab.shell("mount --bind $LAB/passwd /etc/passwd; mkdir -p /run/systemd")
        start_bus(self.lab)
        log = self.lab.directory / "resolved.log"
        self.lab.spawn(f"{ROOT}/lib/systemd/systemd-resolved", output=log)
        the_lab.wait_until(lambda: self.resolvectl("status", check=False).returncode == 0, 15, "systemd-resolved", log.read_text)
        self.resolv_conf("127.0.0.53")

    def resolvectl(self, *words, check=True):
        return self.lab.run(f"{ROOT}/usr/bin/resolvectl", *words, check=check)

    def set_link(self, site):
        """As NetworkManager does with a lease."""
        self.resolvectl("dns", "wlan0", SITES[site].gateway, f"{SITES[site].net6}:1")

    def test_its_stubs_and_its_links(self):
        self.set_link("a")
        self.start_agent(CONFIG)
        self.assert_same(self.wait_for_dns(by="uplink")["from"], "resolved", "the source")
        self.vpn_up("def1")
        # As a VPN client does that takes all names.
        self.resolvectl("dns", "tun0", VPN_DNS)
        self.resolvectl("domain", "tun0", "~.")
        self.resolvectl("default-route", "wlan0", "no")
        self.wait_for_dns("127.0.0.53", VPN_DNS, by="uplink")
        self.assert_resolved_by("vpn", member=False)
        self.assert_resolved_by("a")
        for stub in ("127.0.0.53", "127.0.0.54"):
            for options in ((), ("+tcp",)):
                self.assert_same(self.dig(stub, *options), WHO["a"][0], f"dig {options} {stub} of a member")
                self.assert_same(self.dig(stub, *options, member=False), WHO["vpn"][0], f"dig {options} {stub}")
        self.lab.roam("b")
        self.resolv_conf("127.0.0.53")
        self.set_link("b")
        self.wait_for_gateway(SITES["b"].gateway)
        self.wait_for_dns(by="uplink", servers=[SITES["b"].gateway, f"{SITES['b'].net6}:1"])
        self.assert_resolved_by("b")


if __name__ == "__main__":
    unittest.main()
