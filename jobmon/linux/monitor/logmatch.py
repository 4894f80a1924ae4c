"""What a run writes to its files, looked through for a line that a pattern matches.

Reads only what is there. A pattern may be a bad one, and take for ever on some line: what it may
cost is bounded, in time of the processor, because the daemon does nothing else meanwhile.
"""

from __future__ import annotations

import os
import stat

from jobmon.lean.cpython import signal
from jobmon.linux.processes.stderrtail import mark_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType
    from typing import NoReturn

    # Which file, up to where, what is before that; is there more, is it read anew; what is new.
    Look = tuple[int, int, bytes, bool, bool, bytes]

CHUNK = 1 << 16  # bytes of one file that are looked at at a time
TAIL = 64  # bytes before the place we are at, by which it is known again
LONGEST_LINE = 8192  # of it, what is looked at
BUDGET = 0.02  # seconds that one look may take


class Output:
    """A file that a run appends to, from what is in it when this is made, or from a `mark` (see `lastwords`).

    It is held open, so that moving it away changes nothing. A file that shrinks, or is not what it was
    before the place we are at, is read anew. `behind`: there was more than one look takes.
    """

    behind = False

    def __init__(self, path: str, mark: int | None = None) -> None:
        self.path = path
        self._fd = -1
        self._rest = b""
        self._tail = b""
        if mark is None:
            fact = _regular(path)
            mark = mark_of(fact) if fact is not None else 0
        self.begin_at(mark)

    def begin_at(self, mark: int) -> None:
        """Begin there."""
        self._file, self._offset = mark >> 64, mark % (1 << 64)

    @property
    def is_open(self) -> bool:
        """Whether the file is held open."""
        return self._fd >= 0

    def lines(self) -> list[bytes]:
        """The lines that were finished since the last time. Raises OSError."""
        return self.take(self.look())

    def look(self) -> Look:
        """Read what is new. What it comes to is as good in another process. Raises OSError."""
        if self._fd < 0:
            self._open()
        anew, data = self._read() if self._fd >= 0 else (False, b"")
        return self._file, self._offset, self._tail, self.behind, anew, data

    def take(self, look: Look) -> list[bytes]:
        """The lines that are finished by a look."""
        self._file, self._offset, self._tail, self.behind, anew, data = look
        *lines, rest = (data if anew else self._rest + data).split(b"\n")
        self._rest = rest[:LONGEST_LINE]
        return [line[:LONGEST_LINE].rstrip(b"\r") for line in lines]

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if _regular(self.path) is None:
            return  # to open a FIFO, even for a moment, would be noticed at its other end
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        file = mark_of(os.fstat(self._fd)) >> 64
        if file != self._file:
            self._file, self._offset, self._tail = file, 0, b""  # it was made for this run
        if not self._tail:
            self._remember()

    def _read(self) -> tuple[bool, bytes]:
        """Whether it is read from its beginning, and what is new."""
        size = os.fstat(self._fd).st_size
        anew = size < self._offset or self._before() != self._tail
        if anew:
            self._offset = 0
        data = os.pread(self._fd, min(size - self._offset, CHUNK), self._offset)
        self._offset += len(data)
        self._remember()
        self.behind = self._offset < size
        return anew, data

    def _remember(self) -> None:
        self._tail = os.pread(self._fd, min(TAIL, self._offset), max(self._offset - TAIL, 0))

    def _before(self) -> bytes:
        return os.pread(self._fd, len(self._tail), self._offset - len(self._tail))


def _regular(path: str) -> os.stat_result | None:
    try:
        fact = os.stat(path)
    except OSError:
        return None
    return fact if stat.S_ISREG(fact.st_mode) else None


class _OutOfTime(Exception):
    """The budget of one look is used up."""


class Finder:
    """Looks for a line that a pattern matches. `trouble` says when the pattern is too slow."""

    def __init__(self, pattern: str) -> None:
        import re

        self._search = re.compile(pattern.encode()).search
        self._lines: list[bytes] = []
        self.trouble = ""

    def add(self, lines: Iterable[bytes]) -> None:
        """Lines to look at."""
        self._lines += lines

    @property
    def behind(self) -> bool:
        """Whether there are lines that were not looked at yet."""
        return bool(self._lines)

    def found(self) -> bool:
        """Look, as far as the budget goes, and forget what was looked at: a line is looked at once."""
        if not self._lines:
            return False
        lines, self._lines = self._lines, []
        before = signal.signal(signal.SIGVTALRM, _stop)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGVTALRM,))
        try:
            return self._look(lines)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGVTALRM, before)

    def _look(self, lines: list[bytes]) -> bool:
        """The re module looks for signals while it works, so that one can interrupt it."""
        done = 0
        try:
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, BUDGET)
                for line in lines:
                    done += 1
                    if self._search(line):
                        return True
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _OutOfTime:
            if done == 1:  # this line alone
                self.trouble = f"the pattern took more than {BUDGET * 1000:g} ms"
            self._lines = lines[done if done == 1 else done - 1 :]
        return False


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _OutOfTime
