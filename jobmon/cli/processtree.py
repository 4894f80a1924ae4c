"""The processes of a job, drawn as a tree. Loaded for `status --tree` alone."""

from __future__ import annotations

import os
import sys

from jobmon.cli.formatting import escape, width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jobmon.protocol import JobStatus

    Process = tuple[int, int, str]


class Lines:
    """What a tree is drawn with."""

    __slots__ = ("below", "cut", "fork", "last")

    def __init__(self, fork: str, last: str, below: str, cut: str) -> None:
        self.fork = fork
        self.last = last
        self.below = below
        self.cut = cut


FINE = Lines("├─ ", "└─ ", "│  ", "…")
PLAIN = Lines("|- ", "`- ", "|  ", "...")
_NO_LOCALE = ("", "C", "POSIX")


def drawing() -> Lines:
    """The finest lines that standard output can show."""
    encoding = sys.stdout.encoding if sys.stdout is not None else "ascii"
    return PLAIN if _is_poor(os.environ) or not _can_write(encoding) else FINE


def _is_poor(environ: Mapping[str, str]) -> bool:
    """Whether no locale is set. Python speaks UTF-8 then all the same, and says so in LC_CTYPE (PEP 538)."""
    name = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG", "")
    coerced = name == "C.UTF-8" and not environ.get("LC_ALL") and environ.get("LANG", "") in _NO_LOCALE
    return name in _NO_LOCALE or coerced


def _can_write(encoding: str) -> bool:
    try:
        (FINE.fork + FINE.last + FINE.below + FINE.cut).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def room() -> int | None:
    """The columns of the terminal that standard output is; None where it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def branches(job: JobStatus, lines: Lines, columns: int | None) -> Iterator[str]:
    """A line for each process of a job, children below their parents, none longer than `columns`."""
    tree = job.tree or ()
    for stem, (pid, _, command) in _walk(tree, lines):
        line = f"{stem}{pid} {escape(command)}"
        yield line if columns is None else _cut(line, columns, lines.cut)
    more = (job.processes or 0) - len(tree)
    if more > 0:
        yield f"{lines.cut} and {more} more"


def _walk(tree: tuple[Process, ...], lines: Lines) -> Iterator[tuple[str, Process]]:
    """Each process once, with the lines that lead to it. Not recursive: a tree may be very deep. Read while
    it grew, it may even bite its tail."""
    below: dict[int, list[Process]] = {}
    pids = {pid for pid, _, _ in tree}
    for one in tree:
        pid, parent, _ = one
        below.setdefault(parent if parent in pids and parent != pid else 0, []).append(one)
    pending = [("", below.pop(0, []))]
    while pending or below:
        stem, brood = pending.pop() if pending else ("", below.pop(next(iter(below))))
        if brood:
            first, *rest = brood
            pending.append((stem, rest))
            yield stem + (lines.fork if rest else lines.last), first
            pending.append((stem + (lines.below if rest else "   "), below.pop(first[0], [])))


def _cut(line: str, columns: int, mark: str) -> str:
    if width(line) <= columns:
        return line
    room = columns - len(mark)
    while line and width(line) > room:
        line = line[: min(len(line) - 1, room)]
    return line + mark
