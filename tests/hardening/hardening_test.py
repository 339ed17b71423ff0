#!/usr/bin/env python3
"""How a program was compiled and linked, as readelf(1) tells: for the release build's programs, and for a small one with
the same flags.   Usage: hardening_test.py [--soft PROGRAM_WITHOUT] PROGRAM..."""

import argparse
import platform
import re
import subprocess
import sys


def readelf(*arguments):
    return subprocess.run(["readelf", "--wide", *arguments], check=True, capture_output=True, text=True).stdout


def begins_with_endbr64(program):
    """Whether main() may be jumped to indirectly under CET. The note that says so of a whole program is missing where the C
    library's start files lack it, as Debian 12's do."""
    main_at = re.search(r"^\s*\d+: (\w+)\s+\d+ FUNC .* main$", readelf("--syms", program), re.MULTILINE)
    for _, address, offset, size in re.findall(r"\] (\.text\S*)\s+PROGBITS\s+(\w+) (\w+) (\w+)", readelf("--sections", program)):
        into = int(main_at.group(1), 16) - int(address, 16) if main_at else -1
        if 0 <= into < int(size, 16):
            with open(program, "rb") as file:
                file.seek(int(offset, 16) + into)
                return file.read(4) == b"\xf3\x0f\x1e\xfa"
    return False


def protections_of(program):
    """The protections that the program has."""
    header, segments = readelf("--file-header", program), readelf("--program-headers", program)
    dynamic, symbols = readelf("--dynamic", program), readelf("--dyn-syms", program)
    imported = set(re.findall(r" UND (\w+)", symbols))
    stack = re.search(r"GNU_STACK\s+(?:0x\w+\s+){5}(\S[\sRWE]*?)\s+0x", segments)
    found = {
        # A shared library has the same type, but no interpreter.
        "PIE": bool(re.search(r"Type:\s+DYN", header)) and "INTERP" in segments,
        "RELRO": "GNU_RELRO" in segments,
        "all symbols bound at start": bool(re.search(r"FLAGS.*\b(BIND_NOW|NOW)\b", dynamic)),
        "no executable stack": stack is not None and "E" not in stack.group(1),
        "stack protector": "__stack_chk_fail" in imported,
        "fortified calls": any(re.fullmatch(r"__\w+_chk", name) for name in imported),
    }
    if platform.machine() == "x86_64":
        found["CET"] = begins_with_endbr64(program)
    return {name for name, is_there in found.items() if is_there}, set(found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--soft", help="a program that has none of them: shows that the look can tell")
    parser.add_argument("programs", nargs="+")
    options = parser.parse_args()
    failed = False
    for program in options.programs:
        has, wanted = protections_of(program)
        for missing in sorted(wanted - has):
            print(f"{program}: no {missing}", file=sys.stderr)
        failed |= has != wanted
        print(f"{program}: {', '.join(sorted(has))}")
    if options.soft:
        has, _ = protections_of(options.soft)
        for name in sorted(has):
            print(f"{options.soft}: {name} is found where it is not", file=sys.stderr)
        failed |= bool(has)
    return failed


if __name__ == "__main__":
    sys.exit(main())
