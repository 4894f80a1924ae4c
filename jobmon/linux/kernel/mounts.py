"""Which paths may keep whoever touches them waiting: those on a file system that somebody else serves.

A server of NFS that is gone, a FUSE program that does not answer: stat(2), open(2) and execve(2) wait there
for as long as it takes. Nothing here touches such a file system: the table of mounts is read, and symbolic
links are followed one by one as far as they are on others.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from struct import Struct, error

from jobmon.linux.kernel import procfs

# Here the kernel answers by itself, or from a disk. Of others (nfs, cifs, fuse, 9p, autofs) nobody knows.
LOCAL = frozenset(
    "aufs bcachefs bdev binfmt_misc bpf btrfs cgroup cgroup2 configfs cpuset cramfs debugfs devpts devtmpfs "
    "efivarfs erofs exfat ext2 ext3 ext4 f2fs fusectl hfs hfsplus hugetlbfs iso9660 jffs2 jfs minix mqueue "
    "msdos nilfs2 nsfs ntfs3 overlay proc pstore ramfs reiserfs resctrl romfs rootfs rpc_pipefs securityfs "
    "selinuxfs smackfs squashfs sysfs tmpfs tracefs ubifs udf ufs vfat xfs zfs zonefs".split()
)
LINKS = 40  # as many as the kernel follows, path_resolution(7)
_MOUNTS = "/proc/self/mountinfo"
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HEAD = 4096  # bytes in which the interpreter of a program is named, execve(2)
_IS_64 = sys.maxsize > 1 << 32
_ELF = b"\x7fELF\x02" if _IS_64 else b"\x7fELF\x01"  # a program of our own class, elf(5)
_TABLE = Struct("=32xQ14xHH" if _IS_64 else "=28xI10xHH")  # of its parts: where, how long each is, how many
_PART = Struct("=I4xQ16xQ" if _IS_64 else "=II8xI")  # what it is, where, how long
_PT_INTERP = 3


class Mounts:
    """The mounts that this process sees, as they are whenever it asks."""

    def __init__(self) -> None:
        self._fd = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        self._changes = select.poll()
        self._changes.register(self._fd, select.POLLPRI)  # it has changed, proc_pid_mountinfo(5)
        self._points: dict[str, bool] = {}  # whether what is mounted there may keep us waiting
        self._read()

    def close(self) -> None:
        """Ask no more."""
        os.close(self._fd)

    def may_hang(self, path: str) -> bool:
        """Whether the way to an absolute path touches a file system that may not answer."""
        if self._changes.poll(0):
            self._read()
        return self._any and self._leads_there(path)

    def program_may_hang(self, place: str) -> bool:
        """The same for a program that is to be executed, and for the interpreter that it names. What others
        execute (binfmt_misc) is theirs to know, so that may."""
        for _ in range(LINKS):
            if self.may_hang(place):
                return True
            interpreter = _interpreter(place) if self._any else ""
            if interpreter is None:
                return True
            if not interpreter.startswith("/"):
                return False
            place = interpreter
        return False

    def _leads_there(self, path: str) -> bool:
        here, links = "", 0
        if self._points.get("/"):
            return True
        rest = path.split("/")[::-1]
        while rest:
            name = rest.pop()
            if name == "..":
                here = here.rpartition("/")[0]
            if name in ("", ".", ".."):
                continue
            parent, here = here, f"{here}/{name}"
            if here in self._points:
                if self._points[here]:
                    return True
                continue  # nothing is mounted on a link
            try:
                target = os.readlink(here)
            except OSError:
                continue  # EINVAL: it is none. ENOENT, EACCES: the kernel comes no further either
            links += 1
            if links > LINKS:
                return False
            here = "" if target.startswith("/") else parent
            rest += target.split("/")[::-1]
        return False

    def _read(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        data = b"".join(iter(lambda: os.read(self._fd, 1 << 16), b""))
        self._points = {point: kind not in LOCAL for point, kind in procfs.mounts(data)}
        self._any = any(self._points.values())


def _interpreter(program: str) -> str | None:
    """The path that a program names: a script in its first line, others for their loader. "" where it names
    none, or is none; None where that is not ours to know."""
    try:
        if not stat.S_ISREG(os.stat(program).st_mode):
            return ""
        fd = os.open(program, _FLAGS)
        try:
            head = os.pread(fd, _HEAD, 0)
        finally:
            os.close(fd)
    except OSError:
        return ""
    if head.startswith(b"#!"):
        words = head.partition(b"\n")[0][2:].split()
        return os.fsdecode(words[0]) if words else ""
    return _loader(head) if head.startswith(_ELF) else None


def _loader(head: bytes) -> str | None:
    """The path of the dynamic loader; None where it is named elsewhere."""
    try:
        begin, size, count = _TABLE.unpack_from(head)
        for index in range(count):
            kind, at, length = _PART.unpack_from(head, begin + index * size)
            if kind == _PT_INTERP:
                return os.fsdecode(head[at : at + length].rstrip(b"\0")) if at + length <= len(head) else None
    except error:
        return None
    return ""
