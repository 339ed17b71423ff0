"""The rules and tables of clients that are not packaged, made by script around a real tunnel."""
import unittest

from clienttest import ClientTest, SITES, VPN_SEEN


class Layouts(ClientTest):
    def check(self, shape, up, down):
        """up, down: shell with $ip (`ip -4`, `ip -6`), run once a family; the tunnel is an OpenVPN that sets no route."""
        def run(script):
            self.lab.shell("".join(f"ip='ip -{family}'\n{script}\n" for family in (4, 6)))
        gateway = SITES["a"].gateway
        taken = {4: shape, 6: shape}
        self.lab.vpn_up("no-routes")
        self.lab.shell(f"ip route add {VPN_SEEN[4]} via {gateway} dev wlan0")
        before = self.lab.snapshot()
        self.start_agent()
        self.assert_right("a")
        for _ in range(3):
            run(up)
            self.assert_right("a", taken)
            run(down)
            self.assert_right("a")
        self.stop_agent()
        self.assert_state_is(before)
        run(up)
        self.check_started_under("a", taken)

    def test_tailscale(self):
        # Rules 5210 to 5270 let its own marked packets pass; table 52 throws the LAN and the way to its peer back to main.
        lan = f"""
            case $ip in *4) throw='{SITES['a'].net4}.0/24 {VPN_SEEN[4]}';; *) throw='{SITES['a'].net6}:/64 fe80::/64';; esac"""
        self.check("catch_all_rule", lan + """
            for to in $throw; do $ip route add throw $to table 52; done
            $ip route add default dev tun0 table 52
            $ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
            $ip rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
            $ip rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
            $ip rule add pref 5270 lookup 52""", """
            for pref in 5210 5230 5250 5270; do $ip rule del pref $pref; done
            $ip route flush table 52""")

    def test_netbird(self):
        self.check("inverted_mark_rule", """
            $ip route add default dev tun0 table 7120
            $ip rule add pref 105 lookup main suppress_prefixlength 0
            $ip rule add pref 110 not fwmark 0x1bd00 lookup 7120""", """
            $ip rule del pref 105; $ip rule del pref 110
            $ip route flush table 7120""")

    def test_network_managers_wireguard(self):
        # Its rules carry preferences of their own; these stand before our base, so that ours have to move below them.
        self.check("inverted_mark_rule", """
            $ip route add default dev tun0 proto static table 52103 metric 50
            $ip rule add pref 30 lookup main suppress_prefixlength 0 protocol static
            $ip rule add pref 31 not fwmark 0xcb87 lookup 52103 protocol static""", """
            $ip rule del pref 30; $ip rule del pref 31
            $ip route flush table 52103""")


if __name__ == "__main__":
    unittest.main(verbosity=2)
