#!/usr/bin/env python3
"""DNS as programs ask for it, on the laptop: one line of JSON.

Usage: query.py names NAME [use-vc]    what glibc's getaddrinfo says: a sorted list, or the error
       query.py WAY SERVER NAME        a query for A by `udp`, `any` (sendto) or `tcp`: the answer, and who is said to have answered
"""
import json
import os
import socket
import struct
import sys


def names(name, *options):
    os.environ["RES_OPTIONS"] = " ".join(["timeout:2", "attempts:1", *options])
    try:
        return sorted({info[4][0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return error.args[1]


def query(way, server, name):
    packet = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0)
    packet += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_STREAM if way == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(3)
    told = {}
    try:
        if way == "any":
            sock.sendto(packet, (server, 53))
        else:
            sock.connect((server, 53))
            told["peer"] = sock.getpeername()[0]
            sock.send((struct.pack("!H", len(packet)) if way == "tcp" else b"") + packet)
        answer, peer = sock.recvfrom(4096)
        if way != "tcp":
            told["from"] = peer[0]
    except OSError as error:
        return {"error": type(error).__name__}
    return {"answer": socket.inet_ntoa(answer[-4:]), **told}


print(json.dumps(names(*sys.argv[2:]) if sys.argv[1] == "names" else query(*sys.argv[1:])))
