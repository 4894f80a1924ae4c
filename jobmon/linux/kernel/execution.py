"""What a child does last before its program runs: close descriptors, find the program. Imports nothing."""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOTDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    Result = TypeVar("Result")

KEEP_LOOKING = (ENOENT, ENOTDIR, EACCES)


def keep_only(*fds: int, listing: int | str = "/proc/self/fd") -> None:
    """Close all descriptors but these, also those above today's RLIMIT_NOFILE. `listing`: the directory that
    shows them, as a descriptor where /proc may be covered by now.

    Raises:
        OSError: there is no /proc.
    """
    for name in os.listdir(listing):
        if int(name) not in fds:
            close(int(name))


def close(fd: int) -> None:
    """Close what nothing depends on any more."""
    try:
        os.close(fd)
    except OSError:
        pass  # EBADF: that of a listing. EIO: a file system could not keep what was written


def try_places(places: Iterable[str], execute: Callable[[str], Result]) -> Result:
    """Execute the first program of `places` that there is, as execvp(3) does.

    Raises:
        OSError: none could be executed, for the reason that says most: a program that may not be executed
            says more than one that is not there.
    """
    failure = ENOENT
    for place in places:
        try:
            return execute(place)
        except OSError as error:
            number = error.errno or 0
            if number not in KEEP_LOOKING:
                failure = number
                break
            if failure != EACCES:
                failure = number
    raise OSError(failure, os.strerror(failure))
