"""The last lines that a run has written to standard error, where that is a file: for messages.

Never blocks: only regular files are opened, none on a file system that may not answer, and little is
read. Only what was written since the launch is shown, and only from the very file that was opened then.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from jobmon.core.spec import JobSpec

MAX_BYTES = 4096
MAX_LINES = 5
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class LastWords:
    """Where in its file each job's present or last run has begun. `may_hang` says which paths are not to be
    touched."""

    def __init__(self, may_hang: Callable[[str], bool]) -> None:
        self._may_hang = may_hang
        self._begun: dict[str, int] = {}

    def began(self, job: str, mark: int) -> None:
        """A run has begun to write: `mark` says where, 0 where that is no file."""
        if mark:
            self._begun[job] = mark
        else:
            self._begun.pop(job, None)

    def keep(self, jobs: Container[str]) -> None:
        """Forget all others."""
        for job in [job for job in self._begun if job not in jobs]:
            del self._begun[job]

    def of(self, spec: JobSpec) -> list[str]:
        """The last lines of the run, none where there is no file of it any more."""
        mark = self._begun.get(spec.name)
        if mark is None or self._may_hang(spec.stderr) or not _is_file(spec.stderr):
            return []
        try:
            fd = os.open(spec.stderr, _FLAGS)
        except OSError:
            return []
        try:
            return _lines(fd, mark)
        except OSError:
            return []
        finally:
            os.close(fd)


def mark_of(status: os.stat_result) -> int:
    """Which file it is, and how long it is: a number, as that is what takes the least memory."""
    if not stat.S_ISREG(status.st_mode):
        return 0
    return (status.st_dev << 64 | status.st_ino) << 64 | status.st_size


def _is_file(path: str) -> bool:
    # Asked before opening: to open a FIFO would wake whoever waits at its other end.
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _lines(fd: int, mark: int) -> list[str]:
    now = mark_of(os.fstat(fd))
    if now >> 64 != mark >> 64:
        return []  # another file has that name by now
    end, start = now % (1 << 64), mark % (1 << 64)
    start = start if start <= end else 0  # it was truncated meanwhile
    place = max(start, end - MAX_BYTES)
    lines = os.pread(fd, MAX_BYTES, place).decode(errors="replace").splitlines()
    if place > start and len(lines) > 1:
        del lines[0]  # not all of it
    return [line for line in lines if line.strip()][-MAX_LINES:]
