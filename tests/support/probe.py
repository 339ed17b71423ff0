#!/usr/bin/env python3
"""A client of echo.py: prints the address that the internet host saw.

Usage: probe.py tcp|udp HOST            one question; prints ADDRESS, or "no answer: ERRNO" with exit status 1
       probe.py hold tcp|udp HOST       a socket that stays open: one answer a line read from stdin, the first unasked
       probe.py stream tcp|udp HOST     a line every 2 ms until stdin ends, then one line of JSON:
                                        {"sent", "answered", "retransmitted", "seen": [ADDRESS...], "errors": [ERRNO...]}
       probe.py serve                   for each line of stdin an answer on stdout, so that a question costs no process:
                                        "ask tcp|udp HOST SECONDS"   by a new socket
                                        "keep tcp|udp HOST SECONDS"  the same, and the socket stays open
                                        "again N"                    the Nth of those, counted from 0
                                        "drop"                       closes them all

Options before HOST: -6 asks for the IPv6 address of a name. NOVPN_PROBE_TIMEOUT (seconds, 3) bounds every wait.
"""
import errno
import json
import os
import select
import socket
import struct
import sys
import time

PORT = 7000
TIMEOUT = float(os.environ.get("NOVPN_PROBE_TIMEOUT", "3"))


def reason(error):
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    if isinstance(error, socket.gaierror):
        return "NAME_NOT_FOUND"
    return errno.errorcode.get(error.errno, str(error))


def connect(protocol, host, ipv6, timeout=TIMEOUT):
    family = socket.AF_INET6 if ipv6 or ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    address = socket.getaddrinfo(host, PORT, family, kind)[0][4]
    sock = socket.socket(family, kind)
    sock.settimeout(timeout)
    sock.connect(address)
    return sock


def retransmitted(sock):
    """tcpi_total_retrans of struct tcp_info (linux/tcp.h): the 4 bytes at offset 100."""
    if sock.type != socket.SOCK_STREAM:
        return 0
    return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]


def receive_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        line += part
    return line.decode()


def ask(sock, text="hello"):
    sock.send(f"{text}\n".encode())
    return receive_line(sock).split()[0]


def hold(sock):
    """Asks once, then once more for every line on stdin."""
    while True:
        try:
            print(ask(sock), flush=True)
        except OSError as error:
            print("no answer:", reason(error), flush=True)
        if not sys.stdin.readline():
            return


def stream(sock):
    print(ask(sock), flush=True)
    sock.setblocking(False)
    sent = answered = 0
    seen, errors, pending = set(), set(), b""
    stop_at = None
    next_send = time.monotonic()
    while stop_at is None or (answered < sent and time.monotonic() < stop_at):
        now = time.monotonic()
        if stop_at is None and now >= next_send:
            try:
                sock.send(f"{sent}\n".encode())
                sent += 1
            except OSError as error:
                errors.add(reason(error))
            next_send = max(next_send + 0.002, now)
        wait = 0.002 if stop_at is None else 0.05
        readable, _, _ = select.select([sock] + ([sys.stdin] if stop_at is None else []), [], [], wait)
        if sock in readable:
            try:
                data = sock.recv(65536)
                if not data:
                    errors.add("CLOSED")
                    break
                pending += data
            except OSError as error:
                errors.add(reason(error))
            lines = pending.split(b"\n")
            pending = lines.pop()
            answered += len(lines)
            seen.update(line.split()[0].decode() for line in lines)
        if sys.stdin in readable and not sys.stdin.readline():
            stop_at = time.monotonic() + TIMEOUT
    print(json.dumps({"sent": sent, "answered": answered, "retransmitted": retransmitted(sock),
                      "seen": sorted(seen), "errors": sorted(errors)}), flush=True)


def serve():
    kept = []
    for line in sys.stdin:
        word, *rest = line.split()
        try:
            print(serve_one(word, rest, kept), flush=True)
        except OSError as error:
            print("no answer:", reason(error), flush=True)


def serve_one(word, rest, kept):
    if word == "drop":
        while kept:
            kept.pop().close()
        return "dropped"
    if word == "again":
        return ask(kept[int(rest[0])])
    protocol, host, seconds = rest
    sock = connect(protocol, host, False, float(seconds))
    if protocol == "tcp":
        # Closed by a reset: nothing of it is sent later, when the way out may be another.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if word == "keep":
        kept.append(sock)
        return ask(sock)
    with sock:
        return ask(sock)


def main(arguments):
    if arguments == ["serve"]:
        serve()
        return 0
    mode = arguments.pop(0) if arguments[0] in ("hold", "stream") else "once"
    protocol = arguments.pop(0)
    ipv6 = arguments[0] == "-6"
    host = arguments[-1]
    try:
        sock = connect(protocol, host, ipv6)
        if mode == "hold":
            hold(sock)
        elif mode == "stream":
            stream(sock)
        else:
            print(ask(sock))
    except OSError as error:
        print("no answer:", reason(error))
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
