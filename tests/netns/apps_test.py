"""Programs where they already are: scopes, services and slices that others make, matched by the config. The cgroups are made by
hand below one of the test's own, which is the root of the agent's tree: it runs in a cgroup namespace with that as its root."""
import json
import os
import pathlib
import signal
import tempfile
import unittest

from labtest import LabTest, SITES, VPN_SEEN
import bpf
from lab import DAEMON, NOBODY, cgroup_mount, wait_until

UPLINK = SITES["a"].seen4
MANAGER = "user.slice/user-{0}.slice/user@{0}.service"
APPS = f"{MANAGER.format(NOBODY)}/app.slice"  # NOBODY is in group novpn.
OTHERS = f"{MANAGER.format(DAEMON)}/app.slice"
CONFIG = """
classes:
  novpn:
    apps: [spotify, "com.valvesoftware.*"]
    units: [transmission-daemon.service]
    slices: [backup.slice]
    cgroups: [jobs.slice/nightly]
"""

# The agent's tree is the test's cgroup.
WRAPPER = ["sh", "-ec", 'echo $$ > "$ROOT/cgroup.procs"; exec unshare --cgroup --mount --propagation private sh -ec '
           "'umount \"$MOUNT\"; mount -t cgroup2 lab-cgroup \"$MOUNT\"; exec \"$@\"' sh \"$@\"", "sh"]


class Apps(LabTest):
    patience = 20

    def setUp(self):
        super().setUp()
        # A name of its own: a run that was killed leaves its tree, and process ids come again.
        self.root = pathlib.Path(tempfile.mkdtemp(prefix=f"novpn-test-{self.lab.prefix}-", dir=cgroup_mount()))
        self.root.chmod(0o755)
        # Before the lab's own end the processes inside live.
        self.addCleanup(self.remove_root)
        self.make("system.slice/cron.service")
        for uid in (NOBODY, DAEMON):
            self.make_manager(uid)

    def remove_root(self):
        for process in reversed(self.lab.processes):
            if process.poll() is None and process is not self.lab.openvpn and self.is_inside(process.pid):
                self.lab.end(process)
        for path in sorted((p for p in self.root.rglob("*") if p.is_dir()), reverse=True):
            path.rmdir()
        self.root.rmdir()

    def is_inside(self, pid):
        try:
            return f"/{self.root.name}" in pathlib.Path(f"/proc/{pid}/cgroup").read_text()
        except FileNotFoundError:
            return False

    def make(self, path, uid=0):
        """mkdir -p; what is made is uid's."""
        at = self.root
        for name in path.split("/"):
            at /= name
            if not at.exists():
                at.mkdir()
                os.chown(at, uid, uid)
        return at

    def make_manager(self, uid):
        manager = MANAGER.format(uid)
        self.make(manager.rsplit("/", 1)[0])
        self.make(f"{manager}/app.slice", uid)

    def start_agent(self, config=CONFIG):
        environment = dict(self.lab.environment, ROOT=str(self.root), MOUNT=str(cgroup_mount()))
        self.agent = self.lab.start_agent(config, wrapper=WRAPPER, environment=environment)
        self.agent.wait_for(lambda s: all(f["uplink"] for f in s["families"].values()), "an uplink in both families", self.patience)
        return self.agent

    def matched(self, of_class=0):
        """selector by path, of the cgroups of others."""
        members = self.agent.status()["classes"][of_class]["members"]
        return {m["cgroup"]: m["selector"] for m in members if m.get("cgroup") and m["selector"] != "run"}

    def wait_for_members(self, want, of_class=0):
        wait_until(lambda: set(self.matched(of_class)) == set(want), self.patience, f"members {sorted(want)}", self.agent.explain)

    def seen_from(self, path):
        """The address that the internet sees of a program that starts in that cgroup."""
        command = ["sh", "-ec", f'echo $$ > "{self.root / path}/cgroup.procs"; exec "$@"', "sh",
                   "env", "NOVPN_PROBE_TIMEOUT=5", "python3", self.lab.directory / "probe.py", "tcp", "203.0.113.10"]
        return self.lab.run(*command, check=False).stdout.strip()

    def elements(self, levels=range(3, 9)):
        """The cgroups in the maps of these levels, by path below the test's; by number what is not there."""
        ids = {path.stat().st_ino: str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_dir()}
        found = set()
        for level in levels:
            listing = json.loads(self.lab.run("nft", "-j", "list", "map", "inet", "novpn", f"cgroup_level_{level}").stdout)
            for item in listing["nftables"]:
                for key, _verdict in item.get("map", {}).get("elem", []):
                    # nft writes the path that it finds below /sys/fs/cgroup, or the number.
                    text = str(key)
                    found.add(ids.get(int(text), text) if text.isdigit() else text.partition(self.root.name + "/")[2] or text)
        return found


class Match(Apps):
    def test_a_program_in_a_scope_made_after_the_agent_leaves_by_the_uplink(self):
        self.start_agent()
        self.vpn_up("def1")
        scope = f"{APPS}/app-gnome-spotify-4711.scope"
        self.make(scope, NOBODY)
        self.wait_for_members([scope])
        self.assert_same(self.matched(), {scope: "app spotify"}, "members")
        self.assert_same(self.seen_from(scope), UPLINK, "a program in the scope")
        other = f"{APPS}/app-gnome-firefox-4712.scope"
        self.make(other, NOBODY)
        self.assert_same(self.seen_from(other), VPN_SEEN[4], "a program in another scope")
        self.assert_same(self.agent.status()["classes"][0]["matched"], 1, "matched cgroups")

    def test_units_slices_and_cgroups_of_the_system(self):
        for path in ("system.slice/transmission-daemon.service", "backup.slice/backup-night.slice/nightly.service", "jobs.slice/nightly"):
            self.make(path)
        self.start_agent()
        self.vpn_up("def1")
        self.assert_same(self.matched(), {"system.slice/transmission-daemon.service": "unit transmission-daemon.service",
                                          "backup.slice": "slice backup.slice", "jobs.slice/nightly": "cgroup jobs.slice/nightly"}, "members")
        for path in ("system.slice/transmission-daemon.service", "backup.slice/backup-night.slice/nightly.service", "jobs.slice/nightly"):
            self.assert_same(self.seen_from(path), UPLINK, path)
        self.assert_same(self.seen_from("system.slice/cron.service"), VPN_SEEN[4], "another service")

    def test_names_chosen_to_get_in_do_not(self):
        self.start_agent()
        self.vpn_up("def1")
        manager = MANAGER.format(NOBODY)
        chosen = [f"{OTHERS}/app-spotify-1.scope", f"{APPS}/app-terminal-1.scope/app-spotify-1.scope", f"{manager}/app-spotify-1.scope",
                  f"{manager}/system.slice/transmission-daemon.service", f"{APPS}/transmission-daemon.service", f"{manager}/backup.slice",
                  "system.slice/docker-1.scope/system.slice/transmission-daemon.service", "system.slice/cron.service/transmission-daemon.service",
                  "machine.slice/machine-c.scope/user.slice/user-65534.slice/user@65534.service/app.slice/app-spotify-1.scope",
                  f"user.slice/user-{NOBODY}.slice/session-1.scope/app-spotify-1.scope", f"user.slice/user-{NOBODY}.slice/app-spotify-1.scope",
                  # Names that only look like it: more words, other escapes, nothing where something has to be.
                  *(f"{APPS}/{name}" for name in (
                      "app-a-b-spotify-1.scope", "app-spotify.scope", "app-gnome-spotify.scope.d", "app-gnome-SPOTIFY-1.scope",
                      "app-gnome-spotify\\x00-1.scope", "app-gnome-spotify\\x2d-1.scope", "app-gnome- spotify-1.scope", "snap.spotify.scope",
                      "app-gnome-spotify@1.service", "dbus-1.2-spotify@0.service", "spotify.service", "spotify", "app-spotify-1.slice")),
                  # A tree of one's own in what is one's own: a delegated unit, a container, a login session.
                  f"{APPS}/delegated.service/app.slice/app-spotify-1.scope", f"{APPS}/podman-1.scope/system.slice/transmission-daemon.service",
                  f"{manager}/init.scope/app.slice/app-spotify-1.scope", f"{APPS}/app-x.slice/app.slice/app-spotify-1.scope",
                  f"{APPS}/user.slice/user-0.slice/user@0.service/app.slice/app-spotify-1.scope",
                  "system.slice/container.service/backup.slice", "system.slice/backup.slice", "machine.slice/system.slice/transmission-daemon.service",
                  "lxc.payload.c/system.slice/transmission-daemon.service", "system.slice/container.service/jobs.slice/nightly",
                  f"user.slice/user-{NOBODY}.slice/user@{NOBODY}.service/jobs.slice/nightly", "docker/1/jobs.slice/nightly",
                  # Of somebody else's number, or of none.
                  f"user.slice/user-{NOBODY}.slice/user@{DAEMON}.service/app.slice/app-spotify-1.scope",
                  f"user.slice/user-{NOBODY}.slice/user@0{NOBODY}.service/app.slice/app-spotify-1.scope",
                  f"user-{NOBODY}.slice/user@{NOBODY}.service/app.slice/app-spotify-1.scope"]
        for path in chosen:
            self.make(path, NOBODY if path.startswith("user.slice") else 0)
        # The agent has seen all of them once it has seen what came later.
        last = f"{APPS}/app-spotify-2.scope"
        self.make(last, NOBODY)
        self.wait_for_members([last])
        self.assert_same(set(self.matched()), {last}, "members")
        for path in chosen:
            self.assert_same(self.seen_from(path), VPN_SEEN[4], path)

    def test_a_manager_that_comes_later_and_goes(self):
        self.start_agent()
        path = "user.slice/user-0.slice/user@0.service/app.slice/app.slice"  # No slice of its parent: nothing in there counts.
        self.make(f"{path}/app-spotify-1.scope")
        scope = "user.slice/user-0.slice/user@0.service/app.slice/app-kde.slice/app-spotify-1.scope"
        made = self.make(scope)
        self.wait_for_members([scope])
        self.assert_same(self.elements(), {scope}, "elements")
        made.rmdir()
        made.parent.rmdir()
        self.wait_for_members([])
        self.assert_same(self.elements(), set(), "elements")
        self.make(scope)
        self.wait_for_members([scope])

    def test_the_nearest_cgroup_decides_between_classes(self):
        self.start_agent("""
classes:
  novpn: {slices: [user-%d.slice]}
  work: {via: "tun*", table: 7867, mark: 0x4f000000/0xff000000, preference: 70, apps: [mail]}
""" % NOBODY)
        self.vpn_up("def1")
        mail, game = f"{APPS}/app-mail-1.scope", f"{APPS}/app-game-1.scope"
        self.make(mail, NOBODY)
        self.make(game, NOBODY)
        self.wait_for_members([mail], of_class=1)
        self.assert_same(self.seen_from(game), UPLINK, "what the slice has")
        self.assert_same(self.seen_from(mail), VPN_SEEN[4], "what the class of the app has")
        self.vpn_down()
        self.assertIn("no answer", self.seen_from(mail), "a class that is bound to a tunnel")

    def test_explain_names_the_selector_and_remove_moves_nothing(self):
        self.start_agent()
        scope = f"{APPS}/app-gnome-spotify-4711.scope"
        at = self.make(scope, NOBODY)
        self.wait_for_members([scope])
        process = self.lab.spawn("sh", "-ec", f"echo $$ > {at}/cgroup.procs; exec sleep 60")
        wait_until(lambda: str(process.pid) in (at / "cgroup.procs").read_text().split(), self.patience, "the process in its scope")
        self.assertIn("is in class novpn, by app spotify", self.lab.novpn("explain", "203.0.113.10", "--pid", process.pid).stdout)
        refused = self.lab.novpn("remove", process.pid, check=False)
        self.assert_refused(refused, "is in class novpn by 'app spotify' of the config")
        self.assertIn(str(process.pid), (at / "cgroup.procs").read_text().split())
        self.lab.end(process)

    def test_apps_says_what_to_write(self):
        for path, uid in ((f"{APPS}/app-gnome-firefox\\x2desr-1.scope", NOBODY), (f"{APPS}/app-gnome-firefox\\x2desr-2.scope", NOBODY),
                          (f"{OTHERS}/app-mail-1.scope", DAEMON), ("system.slice/app-none-1.scope", 0)):
            self.make(path, uid)
        for name in ("app-flatpak-com.spotify.Client-77.scope", "snap.vlc.vlc-b2d5f8ba-1f3d-4bb3-a3d1-8b0c6b2f1bd1.scope"):
            self.make(f"{APPS}/{name}", NOBODY)
        data = self.lab.directory / "data/applications"
        data.mkdir(parents=True)
        (data / "vlc_vlc.desktop").write_text("[Desktop Entry]\nName=VLC\nX-SnapInstanceName=vlc\n")
        # flatpak's are links out of the directory.
        flatpak = self.lab.directory / "app/com.spotify.Client/com.spotify.Client.desktop"
        flatpak.parent.mkdir(parents=True)
        flatpak.write_text("[Desktop Entry]\nName=Spotify by flatpak\nX-Flatpak=com.spotify.Client\n")
        (data / flatpak.name).symlink_to(f"../../app/com.spotify.Client/{flatpak.name}")
        (data / "firefox-esr.desktop").write_text("[Desktop Entry]\nName=Firefox ESR\n")
        (data / "spotify.desktop").write_text("[Desktop Entry]\nName=Spotify\n")
        settings = [f"ROOT={self.root}", f"MOUNT={cgroup_mount()}", f"XDG_DATA_HOME={data.parent}", f"XDG_DATA_DIRS={data.parent}"]
        found = {app["id"]: app for app in json.loads(self.lab.run("env", *settings, *WRAPPER, *self.lab.novpn_command("apps", "--json")).stdout)["apps"]}
        self.assertEqual(found["firefox-esr"], {"id": "firefox-esr", "name": "Firefox ESR", "running": 2, "installed": True})
        self.assertEqual((found["spotify"]["running"], found["mail"]["running"]), (0, 1))
        self.assertNotIn("none", found)
        for name in ("com.spotify.Client", "vlc_vlc"):
            self.assertEqual((found[name]["running"], found[name]["installed"]), (1, True), name)
        self.assertRegex(self.lab.run("env", *settings, *WRAPPER, *self.lab.novpn_command("apps")).stdout, r"firefox-esr +running +Firefox ESR\n")

    def test_a_user_sees_own_members_only(self):
        self.start_agent()
        mine, roots = f"{APPS}/app-spotify-1.scope", "user.slice/user-0.slice/user@0.service/app.slice/app-spotify-2.scope"
        self.make(mine, NOBODY)
        self.make(roots)
        self.wait_for_members([mine, roots])
        status = json.loads(self.lab.novpn("status", "--json", uid=NOBODY).stdout)["classes"][0]
        self.assertEqual([m["cgroup"] for m in status["members"] if m["selector"].startswith("app ")], [mine])


class Change(Apps):
    def test_a_reload_takes_members_in_and_lets_them_go_with_their_sockets(self):
        scope = f"{APPS}/app-gnome-spotify-4711.scope"
        at = self.make(scope, NOBODY)
        self.start_agent("classes: {novpn: {}}")
        self.vpn_up("def1")
        self.assert_same(self.seen_from(scope), VPN_SEEN[4], "before")
        config = self.lab.directory / "novpn.yaml"
        config.write_text(CONFIG)
        self.lab.novpn("reload")
        self.wait_for_members([scope])
        member = self.lab.member(cgroup=at)
        member.new("held", "tcp")
        member.connect("held", "203.0.113.11")
        self.assert_same(member.ask("held")["seen"], UPLINK, "a member's flow")
        config.write_text("classes: {novpn: {}}")
        self.lab.novpn("reload")
        self.assert_same(self.matched(), {}, "members")
        self.assertIn("error", member.ask("held"), "a flow of what has left the class")
        self.assert_same(self.seen_from(scope), VPN_SEEN[4], "after")
        self.assert_nothing_leaked()
        self.lab.end(member.process)

    def test_the_next_agent_adopts_what_it_finds_and_writes_nothing(self):
        self.start_agent()
        scope = f"{APPS}/app-gnome-spotify-4711.scope"
        self.make(scope, NOBODY)
        self.wait_for_members([scope])
        self.assert_same(self.agent.stop(signal.SIGUSR1), 0, "exit status")
        gone = f"{APPS}/app-gnome-spotify-4712.scope"
        monitor = self.lab.monitor()
        self.start_agent()
        self.assert_same(self.matched(), {scope: "app spotify"}, "members")
        self.assert_same(monitor.changes(), [], "what the next agent wrote")
        monitor.stop()
        self.assert_same(self.agent.stop(signal.SIGKILL), -signal.SIGKILL, "exit status")
        self.make(gone, NOBODY)
        (self.root / scope).rmdir()
        self.start_agent()
        self.assert_same((self.matched(), self.elements()), ({gone: "app spotify"}, {gone}), "members after a crash")

    def test_release_leaves_nothing_of_ours_on_the_cgroups_of_others(self):
        self.start_agent()
        scope = f"{APPS}/app-gnome-spotify-4711.scope"
        at = self.make(scope, NOBODY)
        self.wait_for_members([scope])
        self.assertTrue(bpf.attached(at), "a program on the scope")
        self.assert_same(self.agent.stop(), 0, "exit status")
        self.assertEqual((bpf.attached(at), at.is_dir()), ([], True))


if __name__ == "__main__":
    unittest.main(verbosity=2)
