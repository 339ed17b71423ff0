"""The man pages and the completions against the programs and the schema: what they name is there, what is there they name."""
import json
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(os.environ.get("NOVPN_BIN_DIR", SOURCE / "build/dev/agent")).resolve()
MAN = SOURCE / "docs/man"
COMPLETIONS = SOURCE / "packaging/completions"


def run(*command, **options):
    return subprocess.run([str(word) for word in command], text=True, capture_output=True, timeout=60, **options)


def help_of(*arguments, program="novpn"):
    return run(BIN / program, *arguments, "--help").stdout


def commands():
    """Of `novpn --help`."""
    return set(re.findall(r"^  ([\w-]+) {2,}", help_of().split("Subcommands:\n")[1], re.MULTILINE))


def options_in(text):
    return set(re.findall(r"--[a-z][a-z-]+", text))


def plain(roff):
    return re.sub(r"\\f[A-Z]", "", roff).replace("\\-", "-").replace("\\(dq", '"').replace(".\\|.\\|.", "...")


class ManPages(unittest.TestCase):
    def page(self, name):
        return plain((MAN / name).read_text())

    def test_they_are_right_for_groff(self):
        for page in MAN.iterdir():
            with self.subTest(page.name):
                checked = run("groff", "-man", "-Tutf8", "-ww", "-z", page)
                self.assertEqual((checked.returncode, checked.stderr), (0, ""))

    def test_novpn_1_has_the_commands_and_their_options(self):
        items = re.findall(r"^\.B novpn ([\w-]+)(.*)$", self.page("novpn.1").split(".SH COMMANDS")[1].split(".SH OPTIONS")[0], re.MULTILINE)
        self.assertEqual({name for name, _ in items}, commands())
        for name, synopsis in items:
            self.assertEqual(options_in(synopsis), options_in(help_of(name).split("Options:")[1]) - {"--help"}, name)

    def test_the_options_of_both_programs_are_there(self):
        for page, program in (("novpn.1", "novpn"), ("novpnd.8", "novpnd")):
            options = options_in(self.page(page).split(".SH OPTIONS")[1].split(".SH")[0])
            self.assertEqual(options, options_in(help_of(program=program).split("Options:")[1]), page)

    def test_novpn_yaml_5_has_the_keys_of_the_schema_and_their_defaults(self):
        schema = json.loads((SOURCE / "packaging/novpn.schema.json").read_text())
        built = {}

        def collect(node, path):
            below = dict(node.get("properties", {}), **{"NAME": inner for inner in node.get("patternProperties", {}).values()})
            for name, inner in below.items():
                collect(inner, f"{path}.{name}".lstrip("."))
            if not below and node.get("$ref") != "#/$defs/notSupportedYet":
                built[path] = json.dumps(node["default"])

        collect(schema, "")
        found = re.findall(r"^\.TP\n\.B (\S+)\nDefault:\n\.BR (.+) \.$", self.page("novpn.yaml.5"), re.MULTILINE)
        self.assertEqual(dict(found), built)
        self.assertEqual(self.page("novpn.yaml.5").count(".TP\n"), len(built), "no key without a default")

    def test_each_key_of_novpn_yaml_5_has_an_example_that_is_right(self):
        """A value of its own, below the names that lead to the key."""
        for path, following in re.findall(r"^\.TP\n\.B (\S+)\nDefault:\n\.BR .+ \.\n(.+\n.+)$", self.page("novpn.yaml.5"), re.MULTILINE):
            with self.subTest(path):
                example = re.fullmatch(r'Example:\n\.BR "(.+)" \.', following)
                self.assertTrue(example, f"no example, but: {following}")
                names = path.replace("NAME", "novpn").split(".")
                self.assertTrue(example[1].startswith(names[-1] + ": "), example[1])
                text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(names[:-1])) + "  " * (len(names) - 1) + example[1] + "\n"
                if path.endswith(".classid"):
                    text += "marking: net_cls\n"  # which alone has class ids
                with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                    file.write(text)
                    file.flush()
                    checked = run(BIN / "novpn", "check", file.name)
                # On a machine that cannot do it, it is refused for that reason alone.
                if "dns: uplink" not in example[1]:
                    self.assertEqual((checked.returncode, checked.stderr), (0, ""), text)

    def test_the_example_of_novpn_yaml_5_is_right(self):
        example = self.page("novpn.yaml.5").split(".nf\n")[1].split(".fi")[0]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(example)
            file.flush()
            checked = run(BIN / "novpn", "check", file.name)
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))


class Completions(unittest.TestCase):
    """With a directory first in PATH where `novpn` is."""

    def setUp(self):
        self.environment = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", NOVPN_RUNTIME_DIR="/nowhere", TERM="dumb")

    def options_of(self, command):
        return options_in(help_of(command).split("Options:")[1]) | {"--runtime-dir"}

    def assert_complete(self, complete):
        """complete("status --") is what a shell offers after `novpn status --`."""
        self.assertEqual(complete("sta"), {"status"})
        self.assertEqual(complete(""), commands())
        for command in commands():
            self.assertEqual(complete(f"{command} --"), self.options_of(command), command)

    def test_bash(self):
        file = COMPLETIONS / "novpn.bash"
        self.assertEqual(run("bash", "-n", file).stderr, "")

        def complete(words):
            script = 'source "$1"; shift; COMP_WORDS=(novpn "$@"); COMP_CWORD=$#; _novpn; printf "%s\\n" "${COMPREPLY[@]}"'
            return set(run("bash", "-c", script, "bash", file, *re.split(" ", words), env=self.environment).stdout.split())

        self.assert_complete(complete)
        self.assertIn("true", complete("run tru"))

    def test_fish(self):
        file = COMPLETIONS / "novpn.fish"
        self.assertEqual(run("fish", "-n", file).stderr, "")

        def complete(words):
            # As in a terminal, -h too is offered after "--" only by its long name.
            lines = run("fish", "-N", "-c", f"source {file}; complete -C 'novpn {words}'", env=self.environment).stdout.splitlines()
            return {line.split("\t")[0].rstrip("=") for line in lines}

        self.assert_complete(complete)
        self.assertIn("true", complete("run tru"))

    def test_zsh(self):
        """zsh completes in its line editor only: typed into a terminal."""
        self.assertEqual(run("zsh", "-n", COMPLETIONS / "_novpn").stderr, "")
        with tempfile.TemporaryDirectory() as directory:
            shutil.copy(COMPLETIONS / "_novpn", directory)
            pid, terminal = pty.fork()
            if pid == 0:
                os.execvpe("zsh", ["zsh", "-f", "-i"], dict(self.environment, PS1="ready> ", HISTFILE=""))
            try:
                self.type(terminal, f"fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -D; setopt no_list_ambiguous; "
                                    "novpn() { print -r -- \"<$*>\" }; print set''up\n", "setup\r")
                for typed, wanted in (("novpn sta\t\n", "<status>"), ("novpn stat\t --js\t\n", "<status --json>"),
                                      ("novpn expl\t --cl\tx\n", "<explain --class=x>"), ("novpn run tru\t\n", "<run true>")):
                    with self.subTest(typed):
                        self.type(terminal, typed, wanted)
            finally:
                os.close(terminal)
                os.waitpid(pid, 0)
        text = (COMPLETIONS / "_novpn").read_text()
        self.assertEqual(set(re.findall(r"^        '([\w-]+):", text, re.MULTILINE)), commands())

    def type(self, terminal, text, wanted):
        os.write(terminal, text.encode())
        seen, end = "", time.monotonic() + 20
        while wanted not in seen:
            if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
                self.fail(f"{text!r} gave {seen!r}, not {wanted!r}")
            seen += os.read(terminal, 4096).decode(errors="replace")


class Security(unittest.TestCase):
    """SECURITY.md names no test that is not there."""

    def test_every_test_it_names_exists(self):
        tests = SOURCE / "tests"
        there = set()
        for path in tests.rglob("*.cpp"):
            there |= {".".join(names) for names in re.findall(r"^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", path.read_text(), re.MULTILINE)}
        for path in tests.rglob("*_test.py"):
            there |= {f"{path.stem}.{name}" for name in re.findall(r"def (test_\w+)", path.read_text())}
        there |= {f"fuzz.{path.name}" for path in (tests / "fuzz/corpus").iterdir()} | {"hardening"}
        there |= {f"vm: {what}" for what in re.findall(r'(?:until_true "|echo "ok: )([^"]+)"', (tests / "vm/test").read_text())}
        threats = (SOURCE / "SECURITY.md").read_text().split("\n## Threats\n")[1].split("\n## ")[0]
        rows = [line.split("|")[-2] for line in threats.splitlines() if line.startswith("| ")][1:]
        self.assertGreater(len(rows), 10)
        for row in rows:
            named = re.findall(r"`([^`]+)`", row)
            self.assertTrue(named, row)
            self.assertEqual(set(named) - there, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
