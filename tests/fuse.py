"""A file system in user space with one file, on which the close hangs.

    with fuse.hanging() as place:                       # a directory, by descriptor; its mount is gone
        fd = os.open("file", os.O_RDWR, dir_fd=place)   # in a child: to close it, or to exit, hangs

It answers what is needed to open the file, and never FLUSH. With `writes_back` it answers FLUSH, but never
WRITE: what was changed by mmap(2) stays dirty, and the last close of the file waits for it where no signal
ends that. When the context is left its server is killed, which ends all of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOKUP, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _FLUSH, _INIT = 1, 3, 4, 14, 15, 16, 25, 26
_NO_ANSWER = (2, 18, 20, 36, 42)  # FORGET, RELEASE, FSYNC, INTERRUPT, BATCH_FORGET
_WRITEBACK_CACHE = 1 << 16
_ENOSYS = 38
_MNT_DETACH = 2
_HEAD = struct.Struct("=IIQQIIII")


def _attributes(node: int) -> bytes:
    mode = 0o40777 if node == 1 else 0o100666
    return struct.pack("=QQQQQQIIIIIIIIII", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, flags: int) -> bytes | None:
    """The body of an answer; None: there is no such function."""
    if opcode == _INIT:
        return struct.pack("=IIIIHHIIHHII24x", 7, 31, 0, flags, 16, 12, 65536, 1, 0, 0, 0, 0)
    if opcode == _LOOKUP:
        return struct.pack("=QQQQII", 2, 0, 1000, 1000, 0, 0) + _attributes(2)
    if opcode in (_GETATTR, _SETATTR):
        return struct.pack("=QII", 1000, 0, 0) + _attributes(node)
    return {_READ: bytes(4096), _OPEN: struct.pack("=QII", 1, 0, 0), _FLUSH: b""}.get(opcode)


def _serve(device: int, writes_back: bool) -> None:
    silent = (*_NO_ANSWER, _WRITE if writes_back else _FLUSH)
    while True:
        _, opcode, unique, node, *_ = _HEAD.unpack_from(os.read(device, 1 << 18))
        if opcode not in silent:
            body = _answer(opcode, node, _WRITEBACK_CACHE if writes_back else 0)
            error = -_ENOSYS if body is None else 0
            body = body or b""
            os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


@contextlib.contextmanager
def hanging(*, writes_back: bool = False) -> Iterator[int]:
    """The directory of such a file. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory() as place:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"hanging", place.encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        server = os.fork()
        if server == 0:
            try:
                _serve(device, writes_back)
            finally:
                os._exit(0)
        os.close(device)  # so that the server's end is the end of the file system
        try:
            directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            libc.umount2(place.encode(), _MNT_DETACH)
            yield directory
            os.close(directory)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
