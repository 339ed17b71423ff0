"""bpf(2) by hand, for tests: what is attached to a cgroup, and a foreign program that marks sockets too."""
import ctypes
import os
import platform
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 5, 8, 9, 13, 15, 16
PROG_TYPE_CGROUP_SOCK, CGROUP_INET_SOCK_CREATE, ALLOW_MULTI = 9, 2, 2
MARK = 16  # offset of `mark` in struct bpf_sock
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc.syscall(SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


def _address(buffer):
    return ctypes.addressof(buffer)


class _Open:
    """A directory's or program's descriptor."""

    def __init__(self, fd):
        self.fd = fd

    def __enter__(self):
        return self.fd

    def __exit__(self, *_exception):
        os.close(self.fd)


def _directory(path):
    return _Open(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def _name(program_id):
    with _Open(_bpf(PROG_GET_FD_BY_ID, struct.pack("=III", program_id, 0, 0))[0]) as fd:
        info = ctypes.create_string_buffer(128)
        _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), _address(info)))
        return info.raw[64:80].split(b"\0")[0].decode()


def attached(cgroup):
    """[(id, name)] of the sock_create programs of this very cgroup."""
    ids = ctypes.create_string_buffer(4 * 64)
    with _directory(cgroup) as fd:
        _, answer = _bpf(PROG_QUERY, struct.pack("=IIIIQI", fd, CGROUP_INET_SOCK_CREATE, 0, 0, _address(ids), 64) + bytes(20))
    count = struct.unpack_from("=I", answer, 24)[0]
    return [(number, _name(number)) for number in struct.unpack_from(f"={count}I", ids.raw)]


def attach_marking(cgroup, bits, flags=ALLOW_MULTI):
    """Another program's: sets these bits in the mark of each new socket, whatever else is there. Ends with the cgroup, or
    with detach()."""
    def insn(code, to=0, source=0, offset=0, immediate=0):
        return struct.pack("=BBhi", code, to | source << 4, offset, immediate)
    code = ctypes.create_string_buffer(b"".join([
        insn(0x61, 2, 1, MARK), insn(0x44, 2, immediate=bits), insn(0x63, 1, 2, MARK), insn(0xb7, 0, immediate=1), insn(0x95)]))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQIIQII16sII", PROG_TYPE_CGROUP_SOCK, 5, _address(code), _address(license_), 0, 0, 0, 0, 0,
                             b"foreign", 0, CGROUP_INET_SOCK_CREATE)
    program, _ = _bpf(PROG_LOAD, attributes)
    with _Open(program) as fd, _directory(cgroup) as target:
        _bpf(PROG_ATTACH, struct.pack("=IIIII", target, fd, CGROUP_INET_SOCK_CREATE, flags, 0))


# For a process where the pin is: attaches it to a cgroup. Arguments: cgroup, pin, attach type.
CGROUP_UDP4_SENDMSG = 14
ATTACH_PINNED = f"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    result = libc.syscall({SYS_BPF}, command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
path = ctypes.create_string_buffer(sys.argv[2].encode())
program = bpf(7, struct.pack("=QII", ctypes.addressof(path), 0, 0))
bpf({PROG_ATTACH}, struct.pack("=IIIII", os.open(sys.argv[1], os.O_RDONLY), program, int(sys.argv[3]), {ALLOW_MULTI}, 0))
"""


def detach(cgroup, name):
    """Takes the programs of that name off the cgroup."""
    for number, found in attached(cgroup):
        if found == name:
            with _Open(_bpf(PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))[0]) as fd, _directory(cgroup) as target:
                _bpf(PROG_DETACH, struct.pack("=IIIII", target, fd, CGROUP_INET_SOCK_CREATE, 0, 0))
