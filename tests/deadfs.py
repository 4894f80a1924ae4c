"""A file system that does not answer, or answers until it is told to be silent: FUSE, with a server in here.

As a program, `deadfs.py FD POINT COMMAND...` mounts it at POINT in a namespace of COMMAND's own; FD is what
/dev/fuse gave to the test. When the test closes that, who still waits is told of an error, and the mount goes
with the last process that sees it. It needs root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import sys
from struct import pack, unpack, unpack_from

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 0x40000, 2

# linux/fuse.h
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_RELEASE, _FLUSH, _INIT, _CREATE, _INTERRUPT, _BATCH_FORGET = 18, 25, 26, 35, 36, 42
_DIRECT_IO = 1
_HEADER, _REQUEST_BYTES, _ROOT = 40, 1 << 18, 1


class DeadFs:
    """One such file system, of whoever has `wrapper` before his command and inherits `fd`."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._server = 0
        os.mkdir(point)

    @property
    def wrapper(self) -> list[str]:
        """The words before a command."""
        return [sys.executable, os.path.abspath(__file__), str(self.fd), self.point]

    def serve(self) -> None:
        """Answer from now on, as it is mounted now: a directory in memory, in which files may be made."""
        self._server = os.fork()
        if self._server == 0:
            try:
                _Server(self.fd).run()
            finally:
                os._exit(0)

    def be_silent(self) -> None:
        """Answer nothing any more."""
        if self._server:
            os.kill(self._server, signal.SIGKILL)
            os.waitpid(self._server, 0)
            self._server = 0

    def close(self) -> None:
        """End it: whoever waits is told of an error."""
        self.be_silent()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Server:
    """Files in memory, by their number."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._names: dict[bytes, int] = {}
        self._files: dict[int, bytearray] = {}

    def run(self) -> None:
        """Answer until the end."""
        while True:
            request = os.read(self._fd, _REQUEST_BYTES)
            _, kind, unique, node = unpack_from("<IIQQ", request)
            if kind in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            told = self._answer(kind, node, request[_HEADER:])
            error, body = (-told, b"") if isinstance(told, int) else (0, told)
            os.write(self._fd, pack("<IiQ", 16 + len(body), error, unique) + body)

    def _answer(self, kind: int, node: int, body: bytes) -> bytes | int:
        """What is answered, or an errno."""
        if kind == _INIT:
            return pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 1 << 16, 1, 0, 0, 0, *[0] * 7)
        if kind == _LOOKUP:
            found = self._names.get(body.rstrip(b"\0"))
            return self._entry(found) if found else errno.ENOENT
        if kind == _CREATE:
            return self._entry(self._make(body[16:].rstrip(b"\0"))) + self._opened()
        if kind in (_GETATTR, _SETATTR):
            return pack("<QII", 0, 0, 0) + self._attributes(node)
        if kind == _OPEN:
            return self._opened()
        if kind == _READ:
            offset, size = unpack("<QI", body[8:20])
            return bytes(self._files[node][offset : offset + size])
        if kind == _WRITE:
            offset, size = unpack("<QI", body[8:20])
            self._files[node][offset : offset + size] = body[40 : 40 + size]
            return pack("<II", size, 0)
        return b"" if kind in (_RELEASE, _FLUSH) else errno.ENOSYS

    def _make(self, name: bytes) -> int:
        number = self._names.setdefault(name, len(self._names) + _ROOT + 1)
        self._files.setdefault(number, bytearray())
        return number

    def _entry(self, node: int) -> bytes:
        return pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _opened(self) -> bytes:
        return pack("<QII", 0, _DIRECT_IO, 0)

    def _attributes(self, node: int) -> bytes:
        size = len(self._files.get(node, b""))
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
        return pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def unshare() -> None:
    """Let what is mounted from now on be this process's own."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def mount(fd: int, point: str) -> None:
    """Mount what is served at `fd`."""
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    _call("mount", b"dead", os.fsencode(point), b"fuse", ctypes.c_ulong(0), options)


def unmount(point: str) -> None:
    """Undo it, without asking the server."""
    _call("umount2", os.fsencode(point), _MNT_DETACH)


def main(fd: int, point: str, command: list[str]) -> None:
    """Mount it and become the command."""
    unshare()
    mount(fd, point)
    os.close(fd)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
