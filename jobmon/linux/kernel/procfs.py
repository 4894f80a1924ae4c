"""Facts from /proc: who is there, and what the kernel says about it.

It only reads. A process that is gone, or that hides itself (EACCES, hidepid), gives None or nothing; it
is no error. Anything else that goes wrong (EMFILE, ENOMEM, EIO) raises OSError: "I could not look" must
never be taken for "it is gone". What a process says of itself may be as long as it likes: a beginning of
that is read, in one piece. Sources: proc(5), cgroups(7).
"""

from __future__ import annotations

import os
import sys
import time
from errno import EACCES, ENOENT, ENOTDIR, EPERM, ESRCH

from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HIDDEN = frozenset((ENOENT, ESRCH, ENOTDIR, EACCES, EPERM))
_CHUNK = 65536
_TICKS = os.sysconf("SC_CLK_TCK")
_SHOWN = 72  # characters of a command line in a message
_COMMAND_BYTES = 4096  # of a command line in a tree
_MOST_BYTES = 1 << 17  # of an environment, or of arguments: one string of execve(2) may be as long

DEAD = ("Z", "X")  # the states of what has ended: zombie, dead
HEADLESS = "H"  # ours: the first thread has ended, others live; the kernel says "Z"
_root: int | None = None
TCP_ESTABLISHED = 1
TCP_LISTEN = 10


class Stat:
    """One line of /proc/PID/stat. `starttime` is in clock ticks since boot: with the pid it names a process.

    Written out instead of a Record: a scan of a thousand processes makes a thousand of them.
    """

    __slots__ = ("comm", "pgrp", "pid", "ppid", "session", "starttime", "state")

    def __init__(
        self, pid: int, comm: str, state: str, ppid: int, pgrp: int, session: int, starttime: int
    ) -> None:
        self.pid = pid
        self.comm = comm
        self.state = state
        self.ppid = ppid
        self.pgrp = pgrp
        self.session = session
        self.starttime = starttime

    def still_lives(self, pid: int) -> bool:
        """Whether `pid` is this very process still, and no zombie."""
        now = stat(pid)
        return now is not None and now.starttime == self.starttime and now.state not in DEAD

    def __repr__(self) -> str:
        return f"Stat({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


class Mount(Record):
    """Where a hierarchy is mounted (`point`), and which part of it one sees there (`root`)."""

    point: str
    root: str


class TcpSocket(Record):
    """One line of /proc/net/tcp: `inode` 0 means that nobody holds it open, and then `uid` says nothing."""

    state: int
    uid: int
    inode: int


def pin() -> None:
    """Keep the present /proc: whatever is unmounted, or mounted over it, from now on, is not looked at. For
    the daemon, which must not take an empty /proc for one without processes."""
    global _root  # noqa: PLW0603 - of this process
    if _root is None:
        _root = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def pinned() -> tuple[int, ...]:
    """The descriptor of the kept one, for who closes all others."""
    return () if _root is None else (_root,)


def open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a file in /proc."""
    return os.open(path if _root is None else path[len("/proc/") :], flags | os.O_CLOEXEC, dir_fd=_root)


def _read(path: str) -> bytes | None:
    """All of a file in /proc that the kernel alone writes; None when the process is gone or hides it."""
    try:
        fd = open_file(path)
    except OSError as error:
        _check_gone(error)
        return None
    chunks = []
    try:
        while chunk := os.read(fd, _CHUNK):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError as error:
        _check_gone(error)
        return None
    finally:
        os.close(fd)


def _check_gone(error: OSError) -> None:
    """Raises what does not mean that there is nothing to see."""
    if error.errno not in _HIDDEN:
        raise error


# --- one process ---------------------------------------------------------------------------------


def stat(pid: int) -> Stat | None:
    """What the process is right now, zombies ("Z") included."""
    data = _head(f"/proc/{pid}/stat", 2048)  # one piece, and never this long
    return parse_stat(data) if data else None


def parse_stat(line: bytes) -> Stat:
    """The line of /proc/PID/stat. The name may hold anything, ")" too: only the last one ends it.

    A process whose first thread alone has ended looks like a zombie there, and lives: it is HEADLESS.
    """
    start, end = line.index(b"("), line.rindex(b")")
    field = line[end + 2 :].split(None, 20)
    state = field[0].decode("ascii")
    if state in DEAD and int(field[17]) > 1:
        state = HEADLESS
    return Stat(
        int(line[:start]),
        line[start + 1 : end].decode("utf-8", "replace"),
        state,
        int(field[1]),
        int(field[2]),
        int(field[3]),
        int(field[19]),
    )


def ticks() -> int:
    """The present time as start times have it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)


def users(pid: int) -> set[int]:
    """Its users: real, effective, saved and that of file systems. No user when it is gone. (The owner of
    /proc/PID is root for everybody who makes himself undumpable.)"""
    found = _head(f"/proc/{pid}/status", 4096).partition(b"\nUid:\t")[2].partition(b"\n")[0]
    return set(map(int, found.split()))


def brood(pid: int, until: float) -> list[int] | None:
    """Its children as the kernel lists them, as many as can be had until then (CLOCK_MONOTONIC); None
    where it does not list them (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for thread in _names(f"/proc/{pid}/task"):
        path = f"/proc/{pid}/task/{thread}/children"
        data = _read(path)
        if data is None and _head(f"/proc/{pid}/task/{thread}/stat", 1):
            return None
        found += map(int, (data or b"").split())
        if time.monotonic() > until:
            break
    return found


def environ(pid: int) -> bytes | None:
    """Its environment as it was at exec, NUL between the entries, or the first 128 KiB of what it claims to
    be that (PR_SET_MM_MAP, prctl(2)); b"" or None for zombies and kernel threads.

    Reading takes the memory lock of that process, so one that hangs in a page fault can make the reader wait.
    """
    return _beginning(f"/proc/{pid}/environ", _MOST_BYTES)


def cmdline(pid: int) -> list[str] | None:
    """Its arguments, as many as are in the first 128 KiB; [] for a zombie or a kernel thread. It waits as
    `environ` does."""
    data = _beginning(f"/proc/{pid}/cmdline", _MOST_BYTES)
    if data is None:
        return None
    if len(data) == _MOST_BYTES and not data.endswith(b"\0"):
        data += b"\0"  # the last one goes on
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def image(pid: int) -> tuple[bytes, ...]:
    """Where the code, the stack and the environment of its program are, which tells one execve(2) from the
    next. () as long as the kernel has not laid out all of that yet; and where there is none.

    The first of them is set last. While the environment is copied, its end is known already as its beginning.
    """
    line = _head(f"/proc/{pid}/stat", 2048)
    words = line[line.rindex(b")") :].split() if line else []
    return (words[24], words[26], words[48]) if words and words[24] != b"0" else ()


def command(fact: Stat) -> str:
    """What it runs, as a tree of processes shows it: its command line, or [NAME] for one that has none.

    In the state D, too, the name is all: a command line is read under the memory lock of its process,
    which one that hangs in the kernel may hold, and then whoever looks would hang with it.
    """
    data = b"" if fact.state == "D" else _head(f"/proc/{fact.pid}/cmdline", _COMMAND_BYTES)
    text = data.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return (text if len(data) < _COMMAND_BYTES else f"{text}...") or f"[{fact.comm}]"


def _head(path: str, size: int) -> bytes:
    """The beginning of a file in /proc; nothing when the process is gone or hides it."""
    return _beginning(path, size) or b""


def _beginning(path: str, size: int) -> bytes | None:
    """The beginning of a file in /proc, in one piece; None when the process is gone or hides it."""
    try:
        fd = open_file(path)
    except OSError as error:
        _check_gone(error)
        return None
    try:
        return os.read(fd, size)
    except OSError as error:
        _check_gone(error)
        return None
    finally:
        os.close(fd)


def describe(pid: int) -> str:
    """A process as a message names it: "pid 12 (jobmon daemon site.json)", without control characters."""
    words = cmdline(pid)
    fact = None if words else stat(pid)
    text = " ".join(words) if words else fact.comm if fact else ""
    if not text:
        return f"pid {pid}"
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return f"pid {pid} ({clean if len(clean) <= _SHOWN else clean[: _SHOWN - 3] + '...'})"


def fd_inodes(pid: int) -> dict[int, int]:
    """Its sockets and pipes: descriptor -> inode. Links are read and not followed, which could hang."""
    return {fd: inode for fd, inode in _fd_inodes(pid) if inode}


def inodes(pid: int) -> Iterator[int]:
    """The same, without the descriptors, one after the other (0 for what is neither): there may be many."""
    return (inode for _, inode in _fd_inodes(pid))


def _fd_inodes(pid: int) -> Iterator[tuple[int, int]]:
    for fd in _names(f"/proc/{pid}/fd"):
        try:
            target = _link(f"/proc/{pid}/fd/{fd}")
        except OSError as error:
            _check_gone(error)
            continue
        is_one = target.startswith(("socket:[", "pipe:["))
        yield int(fd), int(target[target.index("[") + 1 : -1]) if is_one else 0


def own_fds() -> int:
    """A descriptor of the directory that shows those of this process. Raises OSError."""
    return open_file("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)


def _link(path: str) -> str:
    return os.readlink(path if _root is None else path[len("/proc/") :], dir_fd=_root)


def _names(path: str) -> Iterator[str]:
    """What is in a directory of /proc, read as far as it is wanted: a process may have a million of them."""
    try:
        fd = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _check_gone(error)
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name
    except OSError as error:
        _check_gone(error)
    finally:
        os.close(fd)


# --- all processes -------------------------------------------------------------------------------


def pids() -> list[int]:
    """All that are visible, ascending. Who lives throughout is in it, who is born meanwhile may be.

    Raises:
        OSError: not even we are there, so this is not /proc.
    """
    found = [int(name) for name in os.listdir("/proc" if _root is None else _root) if name.isdecimal()]
    if not found:
        raise FileNotFoundError(ENOENT, "no processes, as if it were not mounted", "/proc")
    return found


def scan() -> dict[int, Stat]:
    """All processes, by pid. It is not one moment: a fork can be missed, so look until nothing is new."""
    found = {}
    for pid in pids():
        fact = stat(pid)
        if fact is not None:
            found[pid] = fact
    return found


def children(pid: int, processes: dict[int, Stat] | None = None) -> list[int]:
    """Its children, by a scan: /proc/PID/task/TID/children is optional and may miss some, proc(5)."""
    table = scan() if processes is None else processes
    return [fact.pid for fact in table.values() if fact.ppid == pid]


def holder_of(inode: int) -> int | None:
    """A process that has this socket or pipe open, as far as we may look. Slow: for start-up errors only."""
    for pid in pids():
        if inode in fd_inodes(pid).values():
            return pid
    return None


# --- the machine ---------------------------------------------------------------------------------


def boot_id() -> str | None:
    """The random name of this boot: start times of processes mean nothing without it."""
    data = _read("/proc/sys/kernel/random/boot_id")
    return None if data is None else data.decode("ascii").strip()


def pid_namespace() -> int:
    """The inode of our own PID namespace: a pid means nothing in another one. 0: it is not to be seen."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        _check_gone(error)
        return 0


def forks() -> int:
    """How many processes and threads the machine has started since it was booted; 0: it does not say."""
    for line in (_read("/proc/stat") or b"").splitlines():
        if line.startswith(b"processes "):
            return int(line.split()[1])
    return 0


def pid_max() -> int:
    """The number from which on the kernel gives out numbers of processes anew."""
    return int(_read("/proc/sys/kernel/pid_max") or b"0")


def cgroup2_mount() -> Mount | None:
    """Where the unified hierarchy is mounted for us; in hybrid mode that is beside the old ones."""
    mounts = parse_mountinfo(_read("/proc/self/mountinfo") or b"", b"cgroup2")
    return mounts[0] if mounts else None


def parse_mountinfo(text: bytes, fstype: bytes) -> list[Mount]:
    """The mounts of one file system type. The optional fields end with a lone "-", see proc(5)."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(b" ")
        if b"-" in fields[6:] and fields[fields.index(b"-", 6) + 1] == fstype:
            mounts.append(Mount(_unescape(fields[4]), _unescape(fields[3])))
    return mounts


def mounts(text: bytes) -> Iterator[tuple[str, str]]:
    """Each mount of a mountinfo: where it is, and the type of its file system."""
    for line in text.splitlines():
        fields = line.split(b" ")
        yield _unescape(fields[4]), os.fsdecode(fields[fields.index(b"-", 6) + 1])


def _unescape(path: bytes) -> str:
    r"""The kernel writes space, tab, newline and backslash as \040 \011 \012 \134."""
    first, *rest = path.split(b"\\")
    return os.fsdecode(first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest))


def cgroup2_name(pid: int) -> str:
    """What the kernel calls its unified cgroup; "" when it is gone."""
    for line in _head(f"/proc/{pid}/cgroup", _CHUNK).splitlines():
        if line.startswith(b"0::"):
            return os.fsdecode(line[3:])
    return ""


def cgroup2_path(pid: int) -> str | None:
    """The directory of its unified cgroup; None when it is gone or its cgroup lies outside our mount."""
    name = cgroup2_name(pid)
    return cgroup2_directory(name) if name.startswith("/") else None


def cgroup2_directory(name: str) -> str | None:
    """The directory of a unified cgroup that /proc calls so; None when it lies outside our mount."""
    mount = cgroup2_mount()
    return None if mount is None else _below(mount, name)


def _below(mount: Mount, path: str) -> str | None:
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(root + "/"):
        return None
    return (mount.point.rstrip("/") + path[len(root) :]).rstrip("/")


# --- TCP -----------------------------------------------------------------------------------------


def tcp_socket(local: tuple[bytes, int], remote: tuple[bytes, int]) -> TcpSocket | None:
    """The socket with just these ends, each a packed address (4 or 16 bytes) and a port."""
    table = "/proc/net/tcp" if len(local[0]) == 4 else "/proc/net/tcp6"
    text = _read(table) or b""
    start = text.find(f" {_end(*local)} {_end(*remote)} ".encode("ascii"))
    if start < 0:
        return None
    return _tcp_fields(text[text.rfind(b"\n", 0, start) + 1 : text.find(b"\n", start)].split())


def tcp_port_holder(port: int) -> TcpSocket | None:
    """Who keeps 127.0.0.1:`port`: whoever listens on it, else any socket that is bound to it."""
    found = None
    for address, entry in _tcp_on_port(port):
        if address in _LOOPBACKS and entry.state == TCP_LISTEN:
            return entry
        found = found or (entry if entry.inode and address in _LOOPBACKS else None)
    return found


def listeners(address: bytes, port: int) -> set[int]:
    """The inodes of the sockets of which one gets what connects to a packed address and a port: those that
    listen on that very address, else those that listen on all. Not slower for many connections."""
    exact, everywhere = {_hex(address).encode("ascii")}, {_ANY_V6}
    if len(address) == 4:
        exact.add(_hex(_MAPPED + address).encode("ascii"))
        everywhere.add(_ANY_V4)
    near: set[int] = set()
    far: set[int] = set()
    for where, entry in _tcp_on_port(port, listening=True):
        if entry.inode and where in exact:
            near.add(entry.inode)
        elif entry.inode and where in everywhere:
            far.add(entry.inode)
    return near or far


def _tcp_on_port(port: int, *, listening: bool = False) -> Iterator[tuple[bytes, TcpSocket]]:
    """The sockets of a port; with `listening` no others. The kernel writes those first."""
    suffix = f":{port:04X}".encode("ascii")
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(table) if listening else (_read(table) or b"").splitlines()[1:]:
            fields = line.split()
            if listening and int(fields[3], 16) != TCP_LISTEN:
                break
            if fields[1].endswith(suffix):
                yield fields[1][:-5], _tcp_fields(fields)


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a table in /proc after its heading, read as far as they are wanted."""
    try:
        with open(open_file(path), "rb") as file:
            next(file, b"")
            yield from file
    except OSError as error:
        _check_gone(error)


def _tcp_fields(fields: list[bytes]) -> TcpSocket:
    return TcpSocket(int(fields[3], 16), int(fields[7]), int(fields[9]))


def _end(address: bytes, port: int) -> str:
    return f"{_hex(address)}:{port:04X}"


def _hex(address: bytes) -> str:
    """The kernel prints each 32 bits of an address as a number of this machine's byte order."""
    words = (address[at : at + 4] for at in range(0, len(address), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


_V4, _MAPPED = b"\x7f\0\0\1", b"\0" * 10 + b"\xff\xff"
_ANY_V4, _ANY_V6 = b"0" * 8, b"0" * 32
_LOOPBACKS = frozenset(
    _hex(address).encode("ascii") for address in (_V4, b"\0" * 4, _MAPPED + _V4, b"\0" * 16)
)
