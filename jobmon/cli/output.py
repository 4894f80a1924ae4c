"""What a command prints with: lines on standard output and error, and the exit codes."""

from __future__ import annotations

import os
import sys

OK, FAILED, USAGE, NO_SUCH_JOB, NOT_PERMITTED = 0, 1, 2, 4, 5
UNREACHABLE, LOST, TIMED_OUT, INTERRUPTED, UNANSWERED = 69, 75, 124, 130, 255


def say(line: str) -> None:
    """One line on standard output. What the terminal's encoding lacks is escaped."""
    out = sys.stdout
    if out is None:
        return
    try:
        out.write(_writable(line, out.encoding) + "\n")
    except OSError as error:
        _lose(error)


def flush() -> None:
    """Have it all written. `sys.stdout` is None from when nobody takes it any more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _lose(error)


def complain(what: str) -> None:
    """One line on standard error."""
    try:  # noqa: SIM105 - contextlib is an import that every call would pay for
        print(f"jobmon: {what}", file=sys.stderr)
    except OSError:
        pass  # nobody is left to tell


_LOST: list[OSError] = []  # what kept the output from being written


def _lose(error: OSError) -> None:
    """Output ends here: whoever read it has read enough, or there is no room for it."""
    if not isinstance(error, BrokenPipeError):
        complain(f"cannot write the output: {error.strerror}")
        _LOST.append(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # there goes what Python still holds
    sys.stdout = None


def _writable(line: str, encoding: str) -> str:
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return line.encode(encoding, "backslashreplace").decode(encoding)
    return line


def output_lost() -> bool:
    """Whether output could not be written since this was asked last."""
    lost = bool(_LOST)
    _LOST.clear()
    return lost
