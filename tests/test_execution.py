"""What a child does before its program runs: the descriptors that it closes, the program that it finds."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from jobmon import limits
from jobmon.linux.kernel.execution import keep_only, try_places

REASONS = [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP]


def descriptors_after(*keep: int) -> list[int]:
    """The descriptors that a child of ours has after `keep_only`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (16, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            keep_only(writer, *keep)
            os.write(writer, " ".join(os.listdir("/proc/self/fd")).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as pipe:
        seen = {int(word) for word in pipe.read().split()}
    assert os.waitpid(pid, 0)[1] == 0
    return sorted(seen - {writer})


def test_only_what_is_named_stays_open() -> None:
    """All other descriptors are closed, one above the limit of open files too."""
    low, high = os.open(os.devnull, os.O_RDONLY), 90
    os.dup2(low, high)
    try:
        left = descriptors_after(0, low)
    finally:
        os.close(low)
        os.close(high)

    listing = min({1, 2, 3} - {low})  # listdir's own descriptor takes the lowest number
    assert left == sorted({0, low, listing})


@pytest.mark.parametrize("first", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize("second", REASONS, ids=errno.errorcode.get)
def test_the_reason_that_says_most(first: int, second: int) -> None:
    """Another reason than "not there" and "not permitted" ends the search; EACCES beats the former."""
    tried = []

    def execute(place: str) -> None:
        tried.append(place)
        number = {"a": first, "b": second}[place]
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r".") as caught:
        try_places(("a", "b"), execute)

    fatal = first == errno.ELOOP
    assert tried == (["a"] if fatal else ["a", "b"])
    hides = first == errno.EACCES and second != errno.ELOOP
    assert caught.value.errno == (first if fatal or hides else second)


def test_the_first_that_works_is_taken() -> None:
    """No place is tried behind it, and its result is returned; without places nothing is found."""

    def execute(place: str) -> str:
        if place == "a":
            raise FileNotFoundError(errno.ENOENT, "")
        return place

    assert try_places(iter("abc"), execute) == "b"
    with pytest.raises(FileNotFoundError):
        try_places((), execute)


@pytest.mark.parametrize("make", ["missing", "beneath a file", "not executable"])
def test_the_exit_code_is_the_shells(make: str, tmp_path: Path) -> None:
    """127 for a program that is not there, 126 for one that cannot be executed: as sh(1) says."""
    place = tmp_path / "program"
    if make != "missing":
        place.write_text("")
    asked = f"{place}/x" if make == "beneath a file" else str(place)
    with pytest.raises(OSError, match=r".") as caught:
        try_places((asked,), lambda path: os.execve(path, (path,), {}))

    shell = os.waitstatus_to_exitcode(os.system(f"exec 2>&-; {asked}"))
    assert limits.exec_failed(caught.value.errno or 0) == shell
