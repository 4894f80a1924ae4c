"""Everybody who lives, without a gap: a scan of /proc that follows those who are born while it looks.

To list /proc and then to read each entry misses who forks and exits meanwhile: he is gone when his
entry is read, and his child was not there yet when the list was made. But numbers are given out in
order, so the kernel's last one says who came since. A number may be given out a moment before its
process is to be seen; its parent lives at that moment, so a scan never shows a family as dead of
which one lives. It only reads.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, EPERM, ESRCH

from jobmon.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobmon.linux.procfs import Stat

PASSES = 64  # how often in a row one look follows those who are born meanwhile
_LAST_PID = "/proc/sys/kernel/ns_last_pid"  # CONFIG_CHECKPOINT_RESTORE


class Scan:
    """The processes by pid, in `table`, zombies too.

    `complete`: nobody was born during the last pass, so nobody is missing. `certain`: the kernel says
    which number was the last, so `complete` may be believed. Raises OSError where /proc cannot be read.
    """

    __slots__ = ("_last", "_unseen", "certain", "complete", "table")

    def __init__(self) -> None:
        self.table: dict[int, Stat] = {}
        self._last = 0
        self._unseen: list[int] = []
        self._begin()
        self.extend()

    def extend(self) -> list[Stat]:
        """Look for those who were born since; returns them."""
        if not self.certain:
            return []
        again, self._unseen = self._unseen, []
        fresh = self._look_at(again, [])
        for _ in range(PASSES):
            last = last_pid()
            if last == self._last:
                self.complete = True
                return fresh
            if last is None or last < self._last:  # the numbers have begun anew
                self._begin()
                fresh = list(self.table.values())
            else:
                fresh += self._look_at(range(self._last + 1, last + 1), self._unseen)
                self._last = last
        self.complete = False
        return fresh

    def _begin(self) -> None:
        last = last_pid()
        self.certain = last is not None
        self.complete = not self.certain
        self._last = last or 0
        self._unseen = []
        self.table = {}
        for pid in procfs.pids():
            if (fact := procfs.stat(pid)) is not None:
                self.table[pid] = fact
        self._with_parents(list(self.table.values()))

    def _look_at(self, pids: Iterable[int], unseen: list[int]) -> list[Stat]:
        fresh = []
        for pid in pids:
            if pid in self.table:
                continue
            line = _line(pid)
            if not line:
                unseen.append(pid)
            elif not _is_thread(line):
                self.table[pid] = fact = procfs.parse_stat(line)
                fresh.append(fact)
        return self._with_parents(fresh)

    def _with_parents(self, fresh: list[Stat]) -> list[Stat]:
        """Who has a parent that nobody saw: either he came between, or he is gone, and there is a new one."""
        table = self.table
        pending = [fact for fact in fresh if fact.ppid not in table]
        while pending:
            fact = pending.pop()
            if fact.ppid in table or not fact.ppid:
                continue
            parent = procfs.stat(fact.ppid)
            found = parent or procfs.stat(fact.pid)
            if found is None:
                del table[fact.pid]
                continue
            table[found.pid] = found
            if parent is not None:
                fresh.append(found)
            if parent is not None or found.ppid != fact.ppid:
                pending.append(found)
        return [table[fact.pid] for fact in fresh if fact.pid in table]


def last_pid() -> int | None:
    """The number that was given out last in our PID namespace; None where the kernel does not say."""
    data = _read(_LAST_PID)
    return int(data) if data else None


def _line(pid: int) -> bytes:
    return _read(f"/proc/{pid}/stat")


def _is_thread(line: bytes) -> bool:
    """Threads have numbers, too, but no listing shows them: their exit_signal, field 38 of 52, is -1."""
    return line.rsplit(None, 15)[1] == b"-1"


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (ENOENT, ESRCH, EACCES, EPERM):
            return b""
        raise
    try:
        return os.read(fd, 2048)
    except ProcessLookupError:
        return b""
    finally:
        os.close(fd)
