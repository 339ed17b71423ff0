"""A laptop that is left up, as `packaging/demo --keep` leaves it, goes by the script that says so."""
import subprocess
import unittest

from labtest import the_lab


class Keep(unittest.TestCase):
    def test_a_laptop_that_is_left_up_can_be_entered_and_removed(self):
        with the_lab.Lab() as lab:
            enter, gone = the_lab.keep(lab)
        self.addCleanup(lambda: lab.directory.exists() and the_lab.remove(lab.directory))
        entered = subprocess.run([enter, "ip", "-br", "link", "show", "wlan0"], text=True, capture_output=True, timeout=30)
        self.assertIn("wlan0", entered.stdout, entered.stderr)
        removed = subprocess.run([gone], text=True, capture_output=True, timeout=60, cwd="/")
        self.assertEqual(removed.returncode, 0, removed.stderr)
        self.assertFalse(lab.directory.exists())
        names = subprocess.run(["ip", "netns", "list"], text=True, capture_output=True).stdout
        self.assertNotIn(f"{lab.prefix}-", names)


if __name__ == "__main__":
    unittest.main()
