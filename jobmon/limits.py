"""Bounds and exit codes that several layers know: each number stands here once."""

from __future__ import annotations

from errno import ENOENT, ENOTDIR

MAX_SECONDS = 10 * 365 * 86400.0  # of any duration: ten years

SOCKET_PATH_BYTES = 107  # sun_path is 108 bytes with its final NUL, unix(7)

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit codes, as a shell has them
DIED = 128  # DIED + n: killed by signal n


def exec_failed(errno: int) -> int:
    """Return the exit code for a program that could not be executed because of `errno`."""
    return NOT_FOUND if errno in (ENOENT, ENOTDIR) else NOT_EXECUTABLE
