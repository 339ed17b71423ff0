#!/usr/bin/env python3
"""Lets nobody open a file of the given mount, as a disk does that does not answer: the kernel asks (fanotify(7)), and
is not told.

Usage: hang.py MOUNT          prints "ready", then a line for each process that hangs; ending it lets them go on
"""
import ctypes
import os
import struct
import sys

FAN_CLASS_CONTENT = 0x04
FAN_MARK_ADD, FAN_MARK_MOUNT = 0x01, 0x10
FAN_OPEN_PERM = 0x00010000
AT_FDCWD = -100


def main(mount):
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(FAN_CLASS_CONTENT, os.O_RDONLY)
    mask = ctypes.c_uint64(FAN_OPEN_PERM)
    if group < 0 or libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, mask, AT_FDCWD, mount.encode()) < 0:
        sys.exit(f"fanotify: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    while True:
        event = os.read(group, 24)  # room for one
        print("hangs", struct.unpack("=IBBHQii", event)[-1], flush=True)


main(sys.argv[1])
