#!/usr/bin/env python3
"""Fails, and says where, if what it reads is not to be shown on a terminal: it is UTF-8, and nothing in it but what is seen.

Usage: printable.py text       and the ends of lines
       printable.py json       one value a line; their strings are looked at as a program has them that has read them
       printable.py journal    of journalctl --output=json: the messages, which journald keeps as bytes where they are no text
"""
import json
import sys


def strings(value):
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else [value] if isinstance(value, str) else []


def message(entry):
    assert isinstance(entry["MESSAGE"], str), bytes(entry["MESSAGE"])
    return entry["MESSAGE"]


LOOKS = {"text": lambda line: [line], "json": lambda line: [line] + strings(json.loads(line)), "journal": lambda line: [message(json.loads(line))]}
lines = sys.stdin.buffer.read().decode().removesuffix("\n").split("\n")
assert any(lines), "nothing to look at"
for line in lines:
    for text in LOOKS[sys.argv[1]](line):
        assert text.isprintable(), ascii(text)
