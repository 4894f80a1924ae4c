"""Words for people: escaped names, durations, how a job is. Pure."""

from __future__ import annotations

from jobmon.cli.commands import UsageError
from jobmon.limits import MAX_SECONDS
from jobmon.protocol import CONDITIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobmon.protocol import JobStatus

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNITS = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
NAMED = 10  # processes named on one line


def escape(text: str) -> str:
    """`text` on one line, unmistakable: what does not print is escaped, and so is a backslash."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def seconds(text: str) -> float:
    """The seconds of a duration: 500ms, 20s, 2m, 1h, or bare seconds.

    Raises:
        UsageError: `text` is not one.
    """
    number, factor = text, 1.0
    for unit, worth in _UNITS:
        if text.endswith(unit):
            number, factor = text[: -len(unit)], worth
            break
    if not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise UsageError(f"invalid duration {text!r} (examples: 500ms, 20s, 2m, 1h)")
    value = float(number) * factor
    if value > MAX_SECONDS:
        raise UsageError(f"duration {text!r} is more than ten years")
    return value


def condition(text: str) -> tuple[str, float]:
    """The name and the seconds of a condition: ready, stable:20s.

    Raises:
        UsageError: `text` is not one.
    """
    name, colon, duration = text.partition(":")
    if name in CONDITIONS and bool(colon) == (name == "stable"):
        return name, seconds(duration) if colon else 0.0
    known = ", ".join("stable:DUR" if one == "stable" else one for one in CONDITIONS)
    raise UsageError(f"unknown condition {text!r} (expected one of: {known})")


def count(text: str, what: str) -> int:
    """The whole number that `text` is, which may be below zero.

    Raises:
        UsageError: `text` is not one.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise UsageError(f"{what} must be a number, not {text!r}")
    return int(text)


def span(duration: float) -> str:
    """A duration in its two largest units: 3 s, 5 min 10 s, 2 h 3 min, 4 d 1 h."""
    left = max(0, int(duration))
    parts = []
    for worth, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, left = divmod(left, worth)
        parts.append(f"{amount} {unit}" if amount else "")
    first = next((index for index, part in enumerate(parts) if part), 3)
    return " ".join(part for part in parts[first : first + 2] if part) or "0 s"


def plural(number: int, noun: str) -> str:
    """1 restart, 2 restarts; process becomes processes."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def status_line(job: JobStatus, now: float) -> str:
    """How a job is, on one line; `now` is the UNIX time."""
    parts = [job.state]
    if job.pid is not None:
        parts.append(f"pid {job.pid}")
    if job.processes and job.state not in ("stopping", "killing"):
        parts.append(plural(job.processes, "process"))
    if job.since:
        parts.append(_how_long(job, now))
    if job.until is not None:
        parts.append(_what_comes(job, now))
    if job.restarts:
        parts.append(plural(job.restarts, "restart"))
    if job.state in ("stopping", "killing"):
        if job.next not in (None, "stop"):
            parts.append(f"then {_AFTERWARDS.get(str(job.next), job.next)}")
        if job.processes:
            parts.append(f"{plural(job.processes, 'process')} left{_names(job)}")
    if job.result:
        parts.append(_result(job))
    if job.stale:
        parts.append(_stale(job))
    if job.says:
        parts.append(f'"{escape(job.says)}"')
    return f"{escape(job.job)}: {', '.join(parts)}{about(job.description)}"


def about(description: str) -> str:
    """Return the description of a job, if it has one, as the end of a line."""
    return f" ({escape(description)})" if description else ""


def _result(job: JobStatus) -> str:
    """Say how its last run ended; name it as the last one while another run is on its way."""
    result = escape(job.result)
    return result if not result or job.state in _ENDED else f"last run: {result}"


def _stale(job: JobStatus) -> str:
    return f"stale: {', '.join(job.stale)} changed since it was started"


def _names(job: JobStatus) -> str:
    """Who is left, where the daemon says it because they do not die."""
    if job.state != "killing" or not job.tree:
        return ""
    return ": " + ", ".join(f"pid {pid} ({escape(command)})" for pid, _, command in job.tree[:NAMED])


def strays_line(pids: list[int]) -> str:
    """The line for those who live below the daemon and are no job's."""
    numbers = ", ".join(map(str, pids[:NAMED])) + (", ..." if len(pids) > NAMED else "")
    return f"unattributed processes: pid {numbers} (they are stopped when the daemon exits)"


_ENDED = ("stopped", "backoff", "exited", "failed")  # in these no later run is on its way
_AFTERWARDS = {"decide": "as its restart policy says", "remove": "removed", "restart": "started again"}


def _how_long(job: JobStatus, now: float) -> str:
    if not job.run:
        return "never started"
    lasted = span(now - job.since)
    if job.state == "running":
        return f"up {lasted}"
    return f"for {lasted}" if job.alive or job.state == "backoff" else f"{lasted} ago"


def _what_comes(job: JobStatus, now: float) -> str:
    left = span((job.until or now) - now + 0.999)
    what = {"backoff": "starts again", "starting": "given up", "stopping": "SIGKILL"}
    return f"{what.get(job.state, 'next look')} in {left}"


COLUMNS = ("JOB", "STATE", "PID", "PROCESSES", "SINCE", "RESTARTS", "RESULT")


def table(jobs: list[JobStatus], now: float) -> list[str]:
    """All jobs, a line each under a heading, in columns; one for descriptions if a job has one."""
    rows = [(*COLUMNS, "DESCRIPTION"), *((*_row(job, now), escape(job.description)) for job in jobs)]
    described = any(job.description for job in jobs)
    return list(columns(rows if described else [row[:-1] for row in rows]))


def columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Each row as a line, its cells below those of the others."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return (_aligned(row, widths) for row in rows)


def _row(job: JobStatus, now: float) -> tuple[str, ...]:
    since = f"{span(now - job.since)} ago" if job.since and job.run else "-"
    pid = "-" if job.pid is None else str(job.pid)
    processes = str(job.processes) if job.processes else "-"
    result = "; ".join(filter(None, (_result(job), _stale(job) if job.stale else "")))
    return escape(job.job), job.state, pid, processes, since, str(job.restarts), result


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (cell + " " * (room - width(cell)) for cell, room in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def width(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
