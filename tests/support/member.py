#!/usr/bin/env python3
"""A program whose sockets a test holds in its hands: reads calls of the functions below as Python expressions, one a line,
and answers each with a line of JSON. What the kernel refuses is {"error": ERRNO}.

Usage: member.py          prints "ready" first
"""
import errno
import json
import os
import socket
import struct
import sys

PORT = 7000
TIMEOUT = float(os.environ.get("NOVPN_PROBE_TIMEOUT", "3"))
sockets = {}


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def facts(sock, **more):
    """Of a socket: its own address, and its mark."""
    return {"local": sock.getsockname()[0], "mark": sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK), **more}


def new(name, kind, family=4, mark=None):
    """A socket and nothing more. mark: added to what it has. `tcp`, `udp` or `ping`."""
    ipv6 = family == 6
    kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0),
             "ping": (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6 if ipv6 else socket.IPPROTO_ICMP)}
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, *kinds[kind])
    sock.settimeout(TIMEOUT)
    if mark is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) | mark)
    sockets[name] = sock
    return facts(sock)


def set_mark(name, mark):
    """In the place of what it has."""
    sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return facts(sockets[name])


def bind_to(name, link):
    sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    return facts(sockets[name])


def bind(name, host, port=0):
    sockets[name].bind((host, port))
    return facts(sockets[name])


def connect(name, host, port=PORT):
    sockets[name].connect((host, port))
    return facts(sockets[name])


def ask(name):
    """A question to the peer of a connected socket; `seen` is the address that the internet host saw."""
    sock = sockets[name]
    sock.send(b"hello\n")
    return facts(sock, seen=sock.recv(4096).split()[0].decode())


def ask_to(name, host, port=PORT):
    """The same of a socket without a peer. An answer from anybody else is none."""
    sock = sockets[name]
    sock.sendto(b"hello\n", (host, port))
    data, peer = sock.recvfrom(4096)
    if peer[0] != host:
        raise OSError(errno.EPROTO, f"answered by {peer[0]}")
    return facts(sock, seen=data.split()[0].decode())


def ping(name, host):
    """An echo request; an answer came back."""
    sock = sockets[name]
    request = 128 if ":" in host else 8
    sock.sendto(struct.pack("!BBHHH", request, 0, 0, 0, 1) + b"novpn", (host, 0))
    data, peer = sock.recvfrom(4096)
    if peer[0] != host or not data.endswith(b"novpn"):
        raise OSError(errno.EPROTO, f"answered by {peer[0]}")
    return facts(sock)


def error_of(name):
    """What has happened to a socket since it was asked last."""
    return errno.errorcode.get(sockets[name].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def listen(name, port, host=""):
    sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sockets[name].bind((host, port))
    sockets[name].listen()
    return facts(sockets[name])


def accept(name, accepted):
    sockets[accepted], peer = sockets[name].accept()
    sockets[accepted].settimeout(TIMEOUT)
    text = sockets[accepted].recv(4096)
    sockets[accepted].sendall(text)
    return facts(sockets[accepted], peer=peer[0])


def ask_dns(name, server):
    """A query for `echo.example`, by the socket's own protocol; the number of answers."""
    query = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + b"\x04echo\x07example\0" + struct.pack("!HH", 1, 1)
    sock = sockets[name]
    if sock.type == socket.SOCK_STREAM:
        sock.sendall(struct.pack("!H", len(query)) + query)
        answer = sock.recv(4096)[2:]
    elif server is None:
        sock.send(query)
        answer = sock.recv(4096)
    else:
        sock.sendto(query, (server, 53))
        answer = sock.recv(4096)
    return facts(sock, answers=struct.unpack_from("!H", answer, 6)[0])


def close(name):
    sockets.pop(name).close()
    return {}


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = eval(line)
        except TimeoutError:
            answer = {"error": "ETIMEDOUT"}
        except OSError as error:
            answer = {"error": errno.errorcode.get(error.errno, str(error))}
        print(json.dumps(answer), flush=True)


main()
