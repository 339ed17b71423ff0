#!/usr/bin/env python3
"""The internet host of the lab: answers every TCP line and every UDP datagram on port 7000 with "ADDRESS TEXT", where
ADDRESS is the peer's address as it arrived here. TCP connections stay open until the peer closes them.

Usage: echo.py ADDRESS...        prints "ready" when every socket is bound
"""
import selectors
import socket
import sys
import threading

PORT = 7000


def answer(peer, text):
    return peer[0].encode() + b" " + text


def serve_line(connection, peer):
    with connection, connection.makefile("rb") as lines:
        try:
            for line in lines:
                connection.sendall(answer(peer, line))
        except OSError:
            pass  # The peer is gone: nothing is left to answer.


def main(addresses):
    selector = selectors.DefaultSelector()
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            # One socket an address, so that a UDP answer leaves with the address that was asked.
            sock = socket.socket(family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(socket.getaddrinfo(address, PORT, family)[0][4])  # with the scope of fe80::1%lan
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            selector.register(sock, selectors.EVENT_READ, kind)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            if key.data == socket.SOCK_STREAM:
                threading.Thread(target=serve_line, args=sock.accept(), daemon=True).start()
            else:
                text, peer = sock.recvfrom(65536)
                try:
                    sock.sendto(answer(peer, text), peer)
                except OSError:
                    pass  # No way back to the peer (it has roamed).


main(sys.argv[1:])
