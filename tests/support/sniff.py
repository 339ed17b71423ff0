#!/usr/bin/env python3
"""Prints one line for every packet to or from one of the given hosts, on whatever link it passes: "LINK in|out SOURCE
DESTINATION". An outgoing packet is seen after netfilter, so a line means that the packet really left by that link.
IGMP is left out: each kernel tells its groups again by itself, a while after a link came up.

Usage: sniff.py HOST...          prints "ready" first, and "told" for SIGUSR1 once all that came before it is printed
"""
import os
import select
import signal
import socket
import sys

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD


def addresses(protocol, packet):
    if protocol == ETH_P_IP and len(packet) >= 20 and packet[9] != socket.IPPROTO_IGMP:
        return socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20])
    if protocol == ETH_P_IPV6 and len(packet) >= 40:
        return socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40])
    return None


def main(hosts):
    # SOCK_DGRAM: the kernel takes the link-layer header off, so tun and veth look the same.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    print("ready", flush=True)
    while True:
        ready = select.select([sock, told], [], [])[0]
        if sock not in ready:
            os.read(told, 1)
            print("told", flush=True)
            continue
        packet, (link, protocol, direction, *_rest) = sock.recvfrom(256)
        pair = addresses(protocol, packet)
        if pair and (pair[0] in hosts or pair[1] in hosts):
            print(link, "out" if direction == socket.PACKET_OUTGOING else "in", *pair, flush=True)


main(set(sys.argv[1:]))
