#!/usr/bin/env python3
"""Prints messages of this machine's nl80211 as they come, one a line, "nl80211 NAME HEX": what tests/unit/nl80211_examples
has was recorded by packaging/check-vm.

Usage: record_nl80211.py dump LINK NAME     the family, the links, and the networks that LINK hears; NAME begins their names
       record_nl80211.py events             of the group mlme, until it is ended
       record_nl80211.py save DIRECTORY <CONSOLE_LOG     each message as a file
"""
import re
import socket
import struct
import sys

CTRL, GETFAMILY, GET_INTERFACE, GET_SCAN = 16, 3, 5, 32
REQUEST, DUMP, DONE, ERROR = 1, 0x300, 3, 2
FAMILY_ID, FAMILY_NAME, GROUPS, GROUP_NAME, GROUP_ID, IFINDEX = 1, 2, 7, 1, 2, 3
ADD_MEMBERSHIP, SOL_NETLINK = 1, 270


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        found[kind & 0x3fff] = data[4:length]
        data = data[(length + 3) & ~3:]
    return found


def messages(data):
    while data:
        length, kind = struct.unpack_from("IH", data)
        yield kind, data[:length]
        data = data[(length + 3) & ~3:]


def dump(sock, family, command, more=b""):
    sock.send(struct.pack("IHHII", 20 + len(more), family, REQUEST | DUMP, 1, 0) + struct.pack("BBH", command, 1, 0) + more)
    while True:
        for kind, message in messages(sock.recv(1 << 16)):
            if kind in (DONE, ERROR):
                return
            yield message


def show(name, message):
    print("nl80211", name, message.hex(), flush=True)


def save(directory, log):
    for name, message in re.findall(r"^nl80211 (\w+) ([0-9a-f]+)\r?$", log, re.MULTILINE):
        with open(f"{directory}/{name}", "wb") as file:
            file.write(bytes.fromhex(message))


def main(mode, where=None, name=""):
    if mode == "save":
        return save(where, sys.stdin.buffer.read().decode(errors="replace"))
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    sock.bind((0, 0))
    family, = (m for m in dump(sock, CTRL, GETFAMILY) if attributes(m[20:])[FAMILY_NAME] == b"nl80211\0")
    told = attributes(family[20:])
    number = struct.unpack("H", told[FAMILY_ID][:2])[0]
    if mode == "dump":
        show("family", family)
        for i, message in enumerate(dump(sock, number, GET_INTERFACE)):
            show(f"{name}_interface{i}", message)
        index = struct.pack("HHI", 8, IFINDEX, socket.if_nametoindex(where))
        for i, message in enumerate(dump(sock, number, GET_SCAN, index)):
            show(f"{name}_scan{i}", message)
        return
    groups = [attributes(group) for group in attributes(told[GROUPS]).values()]
    mlme, = (struct.unpack("I", group[GROUP_ID])[0] for group in groups if group[GROUP_NAME] == b"mlme\0")
    sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, mlme)
    count = 0
    while True:
        for _, message in messages(sock.recv(1 << 16)):
            show(f"event{count}", message)
            count += 1


main(*sys.argv[1:])
