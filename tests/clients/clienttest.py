"""What the stories of real VPN and DHCP clients share: one check that holds after every step of any of them."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "netns"))
from labtest import LabTest, MEMBER_ECHO, SITES, VPN_SEEN, the_lab  # noqa: E402, F401

FAMILIES = {4: "ipv4", 6: "ipv6"}
NOT_TAKEN = {4: None, 6: None}
NUMBER, TEXT = int, str
# DESIGN section 3: these names and types are for other people's scripts. None: may be null.
STATUS = {"version": TEXT, "summary": TEXT, "health": TEXT, "site": (TEXT, None), "families": dict, "classes": list,
          "repairs": NUMBER, "last_reaction_us": (NUMBER, None), "warnings": list}
UPLINK = {"link": TEXT, "ifindex": NUMBER, "gateway": (TEXT, None), "source": (TEXT, None), "from": TEXT, "reason": TEXT}
FROM = ("main", "table", "host_route", "networkd", "networkmanager", "lease", "ra", "memory")
TAKEOVER = {"shape": TEXT, "link": (TEXT, None), "table": (NUMBER, None), "preference": (NUMBER, None)}
CLASS = {"name": TEXT, "table": NUMBER, "mark": NUMBER, "mask": NUMBER, "preference": NUMBER, "state": TEXT, "backend": list,
         "members": list, "packets": dict}
MEMBER = {"cgroup": TEXT, "selector": TEXT, "processes": NUMBER, "old_sockets": NUMBER}
PACKETS = {"marked": NUMBER, "masqueraded": NUMBER, "dropped": NUMBER}
WARNING = {"code": TEXT, "text": TEXT}


def shapes(status):
    return {number: [(t["shape"], t["link"]) for t in status["families"][family]["takeovers"]] for number, family in FAMILIES.items()}


class ClientTest(LabTest):
    def setUp(self):
        super().setUp()
        # What the laptop reaches without any router: a VPN that swallows it has gone too far, and so has a bypass.
        for site in SITES.values():
            echo = self.lab.spawn(the_lab.PYTHON, self.lab.directory / "echo.py", site.gateway, f"{site.net6}:1", namespace=site.router)
            the_lab.read_line(echo)
        # The VPN host cannot count what is lost on the way while a tunnel is stalled; this sees each link of the laptop.
        self.sniffer = self.lab.sniff(*MEMBER_ECHO.values())

    # ---- the check after each step

    def assert_right(self, site, taken=NOT_TAKEN, tunnel="tun0", link="wlan0", families=(4, 6)):
        """Status tells what is so; members leave by the uplink, from its own address; ordinary processes leave where the VPN
        sends them, and nowhere else. taken: the takeover's shape in each family. families: those that the site has."""
        want = {family: [(shape, tunnel)] if shape else [] for family, shape in taken.items()}
        status = self.wait_for_uplinks(site, link, families, lambda s: shapes(s) == want and s["health"] == "ok", f"takeovers {want}")
        self.assert_status_is_whole(status, link, families)
        before = self.lab.uplink_packets()
        self.assert_members_seen_at(site, families, link)
        for family in families:
            self.assert_others_seen_as(VPN_SEEN[family] if taken[family] else self.lab.site_address(site, family, link), family)
        self.assert_neighbours_reached(site, families, link)
        after = self.lab.uplink_packets()
        for family in families:
            outside = after[f"ordinary{family}"] - before[f"ordinary{family}"]
            if taken[family]:
                self.assert_same(outside, 0, f"ordinary packets over IPv{family} that the tunnel should have carried")
            else:
                # The same counter does see them where they belong.
                self.assertGreater(outside, 0, f"ordinary packets over IPv{family} at the site's router")
        self.assert_same(after["wrong_source"], 0, "members' packets from another address than the uplink's")
        self.assert_nothing_leaked()
        self.assert_same(self.lab.novpn("plan").stdout, "nothing to change\n", "what the agent would still change")
        return status

    def wait_for_uplinks(self, site, link="wlan0", families=(4, 6), claim=lambda status: True, what="", timeout=10):
        """The uplinks of these families are the site's; the other families have none."""
        def holds(status):
            uplinks = {family: status["families"][name]["uplink"] for family, name in FAMILIES.items()}
            links = {family: uplink and uplink["link"] for family, uplink in uplinks.items()}
            if links != {family: link if family in families else None for family in FAMILIES}:
                return False
            return (4 not in families or uplinks[4]["gateway"] == SITES[site].gateway) and claim(status)
        return self.agent.wait_for(holds, f"uplinks of site {site} on {link} {what}", timeout)

    def assert_nothing_leaked(self):
        super().assert_nothing_leaked()
        links = {line.split()[0] for line in self.sniffer.packets()}
        self.assert_same(links - {"lo", *self.lab.links}, set(), "other links than uplinks that members' packets passed")

    def assert_neighbours_reached(self, site, families=(4, 6), link="wlan0"):
        for family in families:
            neighbour = SITES[site].gateway if family == 4 else f"{SITES[site].net6}:1"
            for member in (False, True):
                seen = self.lab.probe("tcp", neighbour, member=member, check=False)
                self.assert_same(seen, self.lab.laptop_address(family, link), f"{'a member' if member else 'another process'} seen by {neighbour}")

    # ---- status

    def assert_status_is_whole(self, status, link, families):
        self.assert_fields(status, STATUS, "status")
        self.assertEqual((status["health"], status["warnings"]), ("ok", []), self.agent.explain())
        self.assertIn(link, status["summary"])
        self.assertEqual(set(status["families"]), set(FAMILIES.values()))
        for name, family in status["families"].items():
            if family["uplink"]:
                self.assert_fields(family["uplink"], UPLINK, f"{name} uplink")
                self.assertIn(family["uplink"]["from"], FROM)
                self.assert_same(family["uplink"]["ifindex"], self.lab.ifindex(link), f"index of {link}")
            for takeover in family["takeovers"]:
                self.assert_fields(takeover, TAKEOVER, f"{name} takeover")
        if 4 in families:
            # Null where the default in main names none: the kernel chooses then, and the site's router saw what.
            self.assertIn(status["families"]["ipv4"]["uplink"]["source"], (None, self.lab.laptop_address(4, link)))
        self.assert_same([(c["name"], c["state"]) for c in status["classes"]], [("novpn", "steering")], "classes")
        for each in status["classes"]:
            self.assert_fields(each, CLASS, "class")
            self.assert_fields(each["packets"], PACKETS, "packets")
            for member in each["members"]:
                self.assert_fields(member, MEMBER, "member")

    def assert_fields(self, value, fields, what):
        for name, kinds in fields.items():
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if name not in value or not any(value[name] is None if kind is None else isinstance(value[name], kind) for kind in kinds):
                self.fail(f"{what}: {name!r} is not what DESIGN section 3 says: {value}")

    # ---- the end of a story

    def stop_agent(self):
        """The agent ends; what it leaves is compared by the caller."""
        self.assert_nothing_leaked()
        # The sniffer was awake all the time.
        self.assertTrue(any(line.split()[0] in self.lab.links for line in self.sniffer.packets()))
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.agent = None

    def check_started_under(self, site, taken, tunnel="tun0", link="wlan0"):
        """An agent that starts under a takeover, and ends under it, leaves the kernel as it was without it."""
        before = self.lab.snapshot()
        self.agent = self.lab.start_agent()
        self.assert_right(site, taken, tunnel, link)
        self.stop_agent()
        self.assert_state_is(before)
