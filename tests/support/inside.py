"""Work inside a lab's network namespaces without a process for each thing: sockets and TUN links made there by a thread of
this process, and a shell that stays. Thousands of steps become affordable by this.
"""
import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
import time

CLONE_NEWNET = 0x40000000  # linux/sched.h
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
ARPHRD_NONE = 65534
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
ALL_NODES = "ff02::1"
libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace_path, function):
    """function() as called in that namespace: what it opens belongs there for ever."""
    result = {}

    def work():
        try:
            with open(namespace_path) as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:  # of this thread only; os.setns is Python 3.12's
                    raise OSError(ctypes.get_errno(), f"entering {namespace_path}")
            result["value"] = function()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in result:
        raise result["error"]
    return result["value"]


class Shell:
    """One `sh` in a namespace of the lab for many scripts."""

    def __init__(self, lab, namespace):
        self.process = lab.spawn("sh", namespace=namespace)
        self.pending = b""

    def run(self, script, check=True, timeout=20):
        """What the script printed. It ends at its first failure, which is an error unless told otherwise."""
        self.process.stdin.write(f"(set -e\n{script}\n) 2>&1 </dev/null; echo; echo @@ended $?\n".encode())
        end = time.monotonic() + timeout
        while True:
            text, found, rest = self.pending.partition(b"\n@@ended ")
            if found and b"\n" in rest:
                break
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"{script}: not done within {timeout} s: {self.pending!r}")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise AssertionError(f"{script}: the shell ended after {self.pending!r}")
            self.pending += more
        status, self.pending = rest.split(b"\n", 1)
        if check and int(status) != 0:
            raise AssertionError(f"{script}: exit {int(status)}\n{text.decode()}")
        return text.decode()


class Packets:
    """IP packets as they pass the links of a namespace; one that leaves is seen after netfilter."""

    def __init__(self, namespace_path):
        self.socket = inside(namespace_path, self._open)

    @staticmethod
    def _open():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.setblocking(False)
        return sock

    def take(self):
        """(link, is it a tunnel, source, destination, what) of each since the last call."""
        taken = []
        while True:
            try:
                packet, (link, protocol, _direction, hardware, _address) = self.socket.recvfrom(128)
            except BlockingIOError:
                return taken
            if protocol == ETH_P_IP and len(packet) >= 20:
                pair = (socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20]))
                what = self._what(packet[9], packet[4 * (packet[0] & 15):])
            elif protocol == ETH_P_IPV6 and len(packet) >= 40:
                pair = (socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40]))
                what = self._what(packet[6], packet[40:])
            else:
                continue
            # By its kind: the link may be gone by now, and its name with it.
            taken.append((link, hardware == ARPHRD_NONE, *pair, what))

    @staticmethod
    def _what(protocol, payload):
        """"udp", "tcp SYN ACK", for the message of a failure."""
        if protocol != socket.IPPROTO_TCP or len(payload) < 14:
            return {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}.get(protocol, f"protocol {protocol}")
        flags = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
        return " ".join(["tcp"] + [flag for bit, flag in enumerate(flags) if payload[13] & 1 << bit])


class Cables:
    """TUN links of the laptop whose other end is a TUN link of the VPN host: a VPN without a client. Both ends have a
    reader, so that they have carrier, and no packet is lost between them."""

    def __init__(self, near_path, far_path):
        self.paths = (near_path, far_path)
        self.ends = {}  # name: (near, far)
        self.lock = threading.Lock()
        self.wake_reader, self.wake = os.pipe()
        threading.Thread(target=self._relay, daemon=True).start()

    def open(self, name):
        with self.lock:
            self.ends[name] = tuple(inside(path, lambda: self._open(name)) for path in self.paths)
        os.write(self.wake, b".")

    @staticmethod
    def _open(name):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        return fd

    def close(self, name):
        """Both links go, as with a client that is killed."""
        with self.lock:
            for fd in self.ends.pop(name):
                os.close(fd)
        os.write(self.wake, b".")

    def _relay(self):
        while True:
            with self.lock:
                other_end = {a: b for near, far in self.ends.values() for a, b in ((near, far), (far, near))}
            try:
                ready = select.select([self.wake_reader, *other_end], [], [])[0]
            except OSError:  # One was closed since.
                continue
            with self.lock:
                open_now = {fd for pair in self.ends.values() for fd in pair}
                for fd in ready:
                    try:
                        if fd == self.wake_reader:
                            os.read(fd, 4096)
                        elif fd in open_now:
                            os.write(other_end[fd], os.read(fd, 65536))
                    except OSError:
                        pass  # An end that is down takes nothing.


class Router:
    """Router advertisements when they are wanted, from the address of the site's own router (RFC 4861 4.2)."""

    def __init__(self, namespace_path, link, prefix):
        self.prefix = socket.inet_pton(socket.AF_INET6, prefix)
        self.socket, self.index = inside(namespace_path, lambda: self._open(link))

    @staticmethod
    def _open(link):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(link))
        return sock, socket.if_nametoindex(link)

    def advertise(self, lifetime=1800):
        """A lifetime of 0: goodbye."""
        header = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0)
        # 4.6.2: a prefix for autonomous configuration, on-link, for an hour.
        prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + self.prefix
        self.socket.sendto(header + prefix, (ALL_NODES, 0, 0, self.index))
