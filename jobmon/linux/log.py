"""The daemon's log: one line per fact, never blocking, never forged.

Names and texts from outside are quoted as JSON strings, so that no job's name can begin a line.
A line that cannot be written (a full disk, a full pipe) is counted, and the count is written when
there is room again. Of lines that somebody outside can cause a few of each kind are written in a
minute; the others are counted too.
"""

from __future__ import annotations

import os
import select
import stat
import time

from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = {"DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
DEBUG, INFO, WARNING, ERROR, CRITICAL = "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"

LIMIT_LINES, LIMIT_SECONDS = 20, 60.0  # so many lines of a kind in so long, where others cause them

_PIPE_BUF = 4096  # what a pipe or socket that polls as writable takes without blocking, pipe(7)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK


class _Window:
    """The lines of a kind in a time: how many were written, and how many left out."""

    __slots__ = ("begin", "left_out", "level", "written")

    def __init__(self, begin: float, level: str) -> None:
        self.begin = begin
        self.level = level
        self.written = self.left_out = 0


class Log:
    """Where the daemon says what it does. `path` None: standard error, and if that is a `journal`,
    lines begin with their priority and leave the time to it (sd-daemon(3))."""

    def __init__(self, path: str | None, level: str, *, journal: bool = False) -> None:
        self._path = path
        self._journal = journal
        self._lost = 0
        self._torn = False  # whether the last line was written in part
        self._windows: dict[str, _Window] = {}
        self.call_later: Callable[[float], None] | None = None  # to call `tell_left_out` in so many seconds
        self._owns_stderr = False
        self.keep_to(level)
        self._fd = open_log(path)

    def fileno(self) -> int:
        """The descriptor of the log."""
        return self._fd

    def reopen(self) -> None:
        """Open the path anew, as log rotation wants it; the old file is kept if that fails."""
        try:
            fd = open_log(self._path)
        except OSError as error:
            self.write(ERROR, "cannot reopen the log", path=self._path, error=error.strerror)
        else:
            self.go_on(self._path, fd)

    def go_on(self, path: str | None, fd: int) -> None:
        """Write to another file from now on, which `open_log` has opened."""
        os.close(self._fd)
        self._path, self._fd = path, fd
        if self._owns_stderr:
            os.dup2(fd, 2)

    def keep_to(self, level: str) -> None:
        """Write what is at least as serious as this."""
        self._threshold = LEVELS[level.upper()]

    def take_stderr(self) -> None:
        """Let the process's standard error go to the log too, also after `reopen`."""
        self._owns_stderr = True
        os.dup2(self._fd, 2)

    def write(self, level: str, what: str, **facts: object) -> None:
        """Write a line: time, level, what, then key=value for the facts (None is left out)."""
        if LEVELS[level] < self._threshold:
            return
        lost = "1 line of the log was lost" if self._lost == 1 else f"{self._lost} lines of the log were lost"
        if self._lost and self._put(WARNING, lost, {}):
            self._lost = 0
        if not self._put(level, what, facts):
            self._lost += 1

    def limited(self, level: str, what: str, **facts: object) -> None:
        """Write a line that somebody outside can cause, unless there were too many with this text lately."""
        if LEVELS[level] < self._threshold:
            return
        now = time.monotonic()
        window = self._windows.get(what)
        if window is None or now - window.begin >= LIMIT_SECONDS:
            self._tell(what)
            window = self._windows[what] = _Window(now, level)
        if window.written < LIMIT_LINES:
            window.written += 1
            self.write(level, what, **facts)
            return
        if self.call_later is not None and not any(each.left_out for each in self._windows.values()):
            self.call_later(window.begin + LIMIT_SECONDS - now)
        window.left_out += 1

    def tell_left_out(self, *, now: float | None = None) -> None:
        """Say how many lines were left out of the times that are over. `now` None: of all."""
        for what, window in list(self._windows.items()):
            if now is None or now - window.begin >= LIMIT_SECONDS:
                self._tell(what)
        begins = [window.begin for window in self._windows.values() if window.left_out]
        if begins and self.call_later is not None and now is not None:
            self.call_later(min(begins) + LIMIT_SECONDS - now)

    def _tell(self, what: str) -> None:
        window = self._windows.pop(what, None)
        if window is not None and window.left_out:
            text = f"{what}: {window.left_out} more like these"
            self.write(window.level, text, seconds=round(time.monotonic() - window.begin))

    def _put(self, level: str, what: str, facts: dict[str, object]) -> bool:
        """Write a line; whether all of it was taken. It begins anew after one that was cut off."""
        words = [f"{key}={_shown(value)}" for key, value in facts.items() if value is not None]
        is_journal_line = self._journal and self._path is None
        head = (f"{journal_mark(level)}{what}",) if is_journal_line else (_stamp(time.time()), level, what)
        line = " ".join((*head, *words)) + "\n"
        data = ("\n" + line if self._torn else line).encode()
        written = _write(self._fd, data)
        if written:
            self._torn = written < len(data)
        return written == len(data)

    def close(self) -> None:
        """Close the log."""
        self.tell_left_out()
        os.close(self._fd)


def open_log(path: str | None) -> int:
    """A descriptor of a log's file, or of standard error (None). Raises OSError."""
    return _private_stderr() if path is None else os.open(path, _FLAGS, 0o666)


def _write(fd: int, data: bytes) -> int:
    """How many bytes were taken without waiting."""
    try:
        if not os.get_blocking(fd):
            return os.write(fd, data)
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        written = 0
        while written < len(data) and poller.poll(0):
            written += os.write(fd, data[written : written + _PIPE_BUF])
    except OSError:
        return 0
    return written


def journal_mark(level: str) -> str:
    """How a line begins that the journal is to give this level, sd-daemon(3)."""
    return f"<{_PRIORITIES[level]}>"


def is_journal(stream: str, fd: int = 2) -> bool:
    """Whether standard error (or another descriptor) is what $JOURNAL_STREAM names (device:inode),
    systemd.exec(5)."""
    found = os.fstat(fd)
    return stream == f"{found.st_dev}:{found.st_ino}"


def _private_stderr() -> int:
    """Standard error, not blocking us. Setting O_NONBLOCK on the descriptor itself would set it
    for everybody who shares it, so a pipe or terminal is opened anew. A socket (journald's, for
    one) and another user's pipe cannot be: they stay as they are, and `_write` asks first."""
    mode = os.fstat(2).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
    return os.dup(2)


def _stamp(now: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"


def _shown(value: object) -> str:
    return dumps(value) if isinstance(value, str) else str(value)
