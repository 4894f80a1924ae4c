"""Which paths may keep whoever touches them waiting: those on a file system that somebody else serves.

A server of NFS that is gone, a FUSE program that does not answer: stat(2), open(2) and execve(2) wait there
for as long as it takes. Nothing here touches such a file system: the table of mounts is read, and symbolic
links are followed one by one as far as they are on others.
"""

from __future__ import annotations

import os
import select
import stat

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
_HEAD = 256  # bytes in which the interpreter of a script is named, execve(2)


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
        """The same for a program that is to be executed, and for the interpreter that it names."""
        for _ in range(LINKS):
            if self.may_hang(place):
                return True
            interpreter = _interpreter(place) if self._any else ""
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


def _interpreter(program: str) -> str:
    """The path that a script names in its first line, where it is one."""
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
    words = head.partition(b"\n")[0][2:].split() if head.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
