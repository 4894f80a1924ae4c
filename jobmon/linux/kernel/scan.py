"""Everybody who lives, without a gap: a scan of /proc that follows those who are born while it looks.

To list /proc and then to read each entry misses who forks and exits meanwhile: he is gone when his
entry is read, and his child was not there yet when the list was made. But numbers are given out in
order, so the kernel's last one says who came since. A number may be given out a moment before its
process is to be seen; its parent lives at that moment, so a scan never shows a family as dead of
which one lives. What takes longer than a moment goes on in the next turn of the loop. It only reads.
"""

from __future__ import annotations

import os
import time
from errno import EACCES, ENOENT, EPERM, ESRCH

from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobmon.linux.kernel.procfs import Stat

MOST_SECONDS = 0.1  # what one turn may take of a scan: some 5,000 processes
FOLLOW_SECONDS = 0.01  # how long a turn follows those who are born meanwhile
FOLLOWS = 20  # turns in which they are followed, before a new scan is better
AT_A_TIME = 100  # numbers between two looks at the clock
_LAST_PID = "/proc/sys/kernel/ns_last_pid"  # CONFIG_CHECKPOINT_RESTORE


class Scan:
    """The processes by pid, in `table`, zombies too; or nobody yet, if it is not `of_all`.

    `listed`: all were looked at that lived when it began (at `begin`, in clock ticks). `complete`: nobody
    was born during the last pass either, so nobody is missing. `certain`: the kernel says which number was
    the last, so `complete` may be believed. `over`: to go on with it adds nothing. Raises OSError where
    /proc cannot be read.
    """

    __slots__ = ("_follows", "_last", "_pending", "begin", "certain", "complete", "listed", "over", "table")

    def __init__(self, *, of_all: bool = True) -> None:
        self.table: dict[int, Stat] = {}
        self.begin = procfs.ticks()
        last = last_pid()
        self._last = last or 0
        self._follows = 0
        self._pending = iter(procfs.pids() if of_all else ())
        self.certain = last is not None
        self.listed = self.complete = False
        self.over = not of_all
        self.go_on()

    def go_on(self) -> None:
        """Look on for a moment."""
        if self.over:
            return
        if self.listed:
            self._mind_parents(list(self.table.values()))  # some may have died since the last turn
        self.listed = self.listed or self._list()
        if self.listed:
            self._follows += 1
            self.complete = not self.certain or self._follow()
            if self.complete or self._follows >= FOLLOWS:
                self.over = True

    def _list(self) -> bool:
        """Look at all there are; whether there was time for it."""
        until = time.monotonic() + MOST_SECONDS
        for pid in self._pending:
            fact = procfs.stat(pid)
            if fact is not None:
                self.table[pid] = fact
            if time.monotonic() > until:
                return False
        self._mind_parents(list(self.table.values()))
        return True

    def _follow(self) -> bool:
        """Look for those who were born meanwhile, and for those who were then, until there are none."""
        until = time.monotonic() + FOLLOW_SECONDS
        while time.monotonic() < until:
            last = last_pid()
            if last == self._last:
                return True
            if last is None or last < self._last:
                self.over = True  # the numbers have begun anew
                return False
            last = min(last, self._last + AT_A_TIME)
            self._look_at(range(self._last + 1, last + 1))
            self._last = last
        return False

    def _look_at(self, pids: Iterable[int]) -> None:
        fresh = []
        for pid in pids:
            line = b"" if pid in self.table else _read(f"/proc/{pid}/stat")
            if line and not _is_thread(line):
                self.table[pid] = fact = procfs.parse_stat(line)
                fresh.append(fact)
        self._mind_parents(fresh)

    def _mind_parents(self, fresh: list[Stat]) -> None:
        """Who has a parent that nobody saw: either that one came between, or it is gone, and there is a
        new one."""
        table = self.table
        pending = [fact for fact in fresh if fact.ppid not in table]
        while pending:
            fact = pending.pop()
            if fact.ppid in table or not fact.ppid:
                continue
            parent = procfs.stat(fact.ppid)
            found = parent or procfs.stat(fact.pid)
            if found is None:
                table.pop(fact.pid, None)
                continue
            table[found.pid] = found
            if parent is not None or found.ppid != fact.ppid:
                pending.append(found)


def last_pid() -> int | None:
    """The number that was given out last in our PID namespace; None where the kernel does not say."""
    data = _read(_LAST_PID)
    return int(data) if data else None


def _is_thread(line: bytes) -> bool:
    """Threads have numbers, too, but no listing shows them: their exit_signal, field 38 of 52, is -1."""
    return line.rsplit(None, 15)[1] == b"-1"


def _read(path: str) -> bytes:
    try:
        fd = procfs.open_file(path)
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
