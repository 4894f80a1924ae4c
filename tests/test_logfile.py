"""The daemon's log: whole lines, never forged, never waiting."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import time
import tty

import pytest
from test_clients import Raw

from jobmon.linux.log import DEBUG, ERROR, INFO, LEVELS, WARNING, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import kit

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "


@pytest.fixture
def stderr() -> Iterator[None]:
    """Standard error as it was, whatever a test makes of it."""
    kept = os.dup(2)
    yield
    os.dup2(kept, 2)
    os.close(kept)


def lines(path: Path) -> list[str]:
    return [re.sub("^" + STAMP, "", line) for line in path.read_text().splitlines()]


def fill(fd: int) -> int:
    """Write until nothing more is taken; how much that was."""
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    size, total = 4096, 0
    while size or poller.poll(50):  # a terminal makes room a moment later
        try:
            total += os.write(fd, b"x" * max(size, 1))
        except BlockingIOError:
            size //= 2
    os.set_blocking(fd, blocking)
    return total


def test_a_line_has_time_level_text_and_facts(tmp_path: Path) -> None:
    """Texts are quoted, numbers are not, what is None is left out."""
    log = Log(str(tmp_path / "log"), "INFO")
    log.write(INFO, "state changed", job="web", pid=12, run=None, **{"from": "starting"})
    log.close()

    assert re.fullmatch(
        STAMP + r'INFO state changed job="web" pid=12 from="starting"\n', (tmp_path / "log").read_text()
    )


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_is_grave_enough_is_written(level: str, tmp_path: Path) -> None:
    """A log of a level has that level and what is graver."""
    log = Log(str(tmp_path / "log"), level.lower())
    for one in LEVELS:
        log.write(one, "said")
    log.close()

    assert lines(tmp_path / "log") == [f"{one} said" for one in LEVELS if LEVELS[one] >= LEVELS[level]]


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\r\nb", 'a" pid=1 x="', "\x1b[2J", "a\u2028b\u0085c", "\udcff", "", "\\", "ÿ\x9b31m"],
)
def test_no_name_can_forge_a_line(name: str, tmp_path: Path) -> None:
    """Whatever a job is called, a line about it is one line, of printable ASCII, with the name in quotes."""
    log = Log(str(tmp_path / "log"), "INFO")
    log.write(INFO, "state changed", job=name, pid=12)
    log.close()
    written = (tmp_path / "log").read_bytes()

    assert re.fullmatch(rb"[ -~]+\n", written)
    assert re.search(rb' INFO state changed job="([^"\\]|\\.)*" pid=12\n$', written)


def test_what_was_there_stays(tmp_path: Path) -> None:
    """The log is appended to."""
    (tmp_path / "log").write_text("old\n")
    log = Log(str(tmp_path / "log"), "INFO")
    log.write(INFO, "new")
    log.close()

    assert lines(tmp_path / "log") == ["old", "INFO new"]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """After reopen lines go to the path, as log rotation wants it, and no descriptor is lost."""
    log = Log(str(tmp_path / "log"), "INFO")
    before = len(os.listdir("/proc/self/fd"))
    log.write(INFO, "first")
    (tmp_path / "log").rename(tmp_path / "old")
    log.write(INFO, "second")
    log.reopen()
    log.write(INFO, "third")

    assert lines(tmp_path / "old") == ["INFO first", "INFO second"]
    assert lines(tmp_path / "log") == ["INFO third"]
    assert len(os.listdir("/proc/self/fd")) == before
    log.close()


def test_the_old_file_is_kept_when_the_new_cannot_be_opened(tmp_path: Path) -> None:
    """A failed reopen is said in the log, which goes on where it was."""
    (tmp_path / "logs").mkdir()
    log = Log(str(tmp_path / "logs/log"), "INFO")
    (tmp_path / "logs").rename(tmp_path / "moved")
    log.reopen()
    log.write(INFO, "still here")
    log.close()

    assert lines(tmp_path / "moved/log") == [
        f'ERROR cannot reopen the log path="{tmp_path}/logs/log" error="No such file or directory"',
        "INFO still here",
    ]


def test_standard_error_follows_the_log(tmp_path: Path, stderr: None) -> None:
    """A daemon's standard error goes to its log, also after that was reopened."""
    log = Log(str(tmp_path / "log"), "INFO")
    log.take_stderr()
    os.write(2, b"from a library\n")
    (tmp_path / "log").rename(tmp_path / "old")
    log.reopen()
    os.write(2, b"another\n")
    log.close()

    assert lines(tmp_path / "old") == ["from a library"]
    assert lines(tmp_path / "log") == ["another"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal", "somebody else's pipe"])
def test_a_full_standard_error_costs_lines_and_not_time(
    kind: str, stderr: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are not taken are counted, all of them, and the count is written when there is room."""
    reader, writer = endpoints(kind)
    os.dup2(writer, 2)
    if kind.startswith("somebody"):
        monkeypatch.setattr("jobmon.linux.log.os.open", refuse)
    log = Log(None, "DEBUG")
    monkeypatch.undo()
    fill(writer)
    for number in range(100):
        log.write(WARNING, "lost", number=number)
    written = len(re.findall(rb"lost number=\d+\n", drain(reader)))  # a terminal finds room for some
    log.write(ERROR, "heard")
    told = re.sub(STAMP, "", read_until(reader, b"heard\n"))

    assert told.lstrip("\n") == f"WARNING {100 - written} lines of the log were lost\nERROR heard\n"
    assert written == 0 or kind == "terminal"
    assert os.get_blocking(2)
    log.write(DEBUG, "again")
    assert read_until(reader, b"again\n").endswith("DEBUG again\n")
    for fd in (reader, writer):
        os.close(fd)
    log.close()


def refuse(path: str, flags: int) -> int:
    raise PermissionError(13, "Permission denied", path)


def endpoints(kind: str) -> tuple[int, int]:
    if kind == "socket":
        return tuple(end.detach() for end in socket.socketpair())  # type: ignore[return-value]
    if kind == "terminal":
        reader, writer = os.openpty()
        tty.setraw(writer)
        return reader, writer
    return os.pipe()


def read_until(fd: int, end: bytes) -> str:
    data = b""
    while not data.endswith(end):
        data += os.read(fd, 4096)
    return data.decode()


def drain(fd: int) -> bytes:
    """All that is there."""
    os.set_blocking(fd, False)
    data = b""
    try:
        while more := os.read(fd, 1 << 20):
            data += more
    except BlockingIOError:
        os.set_blocking(fd, True)
    return data


def test_a_line_that_was_cut_off_does_not_swallow_the_next(stderr: None) -> None:
    """A line longer than the room is cut; the next begins on a line of its own."""
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    log = Log(None, "INFO")
    fill(writer)
    os.read(reader, 4096)
    log.write(INFO, "long", text="y" * 10_000)
    drain(reader)
    log.write(INFO, "next")
    told = re.sub(STAMP, "", os.read(reader, 4096).decode())

    assert told == "\nWARNING 1 line of the log was lost\nINFO next\n"
    log.close()
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """ENOSPC costs the line and nothing else."""
    log = Log("/dev/full", "INFO")
    for _ in range(3):
        log.write(INFO, "nobody will read this")
    log.close()


@pytest.mark.parametrize("path", ["/nonexistent/log", "/", "/proc/self/none"])
def test_a_log_that_cannot_be_written_is_an_error_at_once(path: str) -> None:
    """The one who starts the daemon is told, not the log that is not there."""
    with pytest.raises(OSError, match=r"No such|directory"):
        Log(path, "INFO")


def test_the_descriptor_is_not_for_children(tmp_path: Path, stderr: None) -> None:
    """A log is closed on exec, be it a file or standard error."""
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    for path in (str(tmp_path / "log"), None):
        log = Log(path, "INFO")
        assert not os.get_inheritable(log.fileno())
        assert log.fileno() > 2
        log.close()
    os.close(reader)
    os.close(writer)


# ---- what somebody outside can cause -----------------------------------------------------------


def test_of_lines_that_others_cause_a_few_are_written_and_the_rest_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of one kind costs twenty lines and a count; other kinds are written as ever. When the time is
    over it begins anew, and somebody is asked once to tell the count then."""
    asked: list[float] = []
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = Log(str(tmp_path / "log"), "INFO")
    log.call_later = asked.append
    for number in range(1000):
        log.limited(WARNING, "refused", uid=number)
        log.limited(DEBUG, "not wanted")
        log.write(INFO, "mine")
    log.limited(INFO, "dropped")
    written = lines(tmp_path / "log")

    assert [line for line in written if "refused" in line] == [
        f"WARNING refused uid={number}" for number in range(20)
    ]
    assert sum("INFO mine" in line for line in written) == 1000
    assert sum("dropped" in line for line in written) == 1
    assert asked == [60.0]
    now += 60.0
    log.tell_left_out(now=now)
    assert lines(tmp_path / "log")[-1].endswith("WARNING refused: 980 more like these seconds=60")
    log.limited(WARNING, "refused", uid=7)
    assert lines(tmp_path / "log")[-1].endswith("refused uid=7")
    assert asked == [60.0]
    log.close()


def test_two_kinds_are_counted_apart_and_told_each_in_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While lines of several kinds are left out, the count of each is told when its time is over, at the next
    line of the kind, or when the log is closed."""
    asked: list[float] = []
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = Log(str(tmp_path / "log"), "INFO")
    log.call_later = asked.append
    for kind in ("one", "two", "three"):
        for _ in range(25):
            log.limited(WARNING, kind)
        now += 10.0
    assert asked == [60.0]
    now = 60.0
    log.tell_left_out(now=now)
    now = 75.0
    log.limited(WARNING, "two")
    log.close()

    assert asked == [60.0, 10.0]
    told = [line.removeprefix("WARNING ") for line in lines(tmp_path / "log") if "more" in line]
    assert told == [
        "one: 5 more like these seconds=60",
        "two: 5 more like these seconds=65",
        "three: 5 more like these seconds=55",
    ]


def test_a_flood_of_refused_clients_costs_few_lines(daemon: Callable[..., kit.Daemon]) -> None:
    """A daemon that hundreds of bad clients come to writes of a few of them, and the count when it is told to
    end, if that is before the minute is over."""
    one = daemon({"supervisor": {"log-level": "INFO"}})
    for _ in range(200):
        bad = Raw(one.control)
        bad.send(b"\xff" * 8)
        assert bad.receive()["type"] == "error"
        bad.destroy()
    one.stop()
    told = [line for line in one.log.splitlines() if "client disconnected" in line]

    assert len(told) == 21
    assert "client disconnected: 180 more like these" in told[-1]


HASTY = (
    "import sys\n"
    "from jobmon.linux import log as logfile\n"
    "logfile.LIMIT_LINES, logfile.LIMIT_SECONDS = 1, 0.3\n"
    "del sys.argv[1:4]\n"  # python -m jobmon: that is us
    "from jobmon.cli.main import main\n"
    "sys.exit(main())\n"
)


def test_the_count_is_told_without_another_line(daemon: Callable[..., kit.Daemon]) -> None:
    """When the flood has ended the daemon tells by itself how many lines were left out, and once."""
    one = daemon({"supervisor": {"log-level": "INFO"}}, wrapper=[sys.executable, "-c", HASTY])
    for _ in range(2):
        os.kill(one.pid, signal.SIGSTOP)  # or it might be so slow that there is no flood
        crowd = [Raw(one.control) for _ in range(20)]
        for bad in crowd:
            bad.send(b"\xff" * 8)
        os.kill(one.pid, signal.SIGCONT)
        for bad in crowd:
            assert bad.receive()["type"] == "error"
            bad.destroy()
        one.wait_log(" more like these")
