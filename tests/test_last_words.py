"""What a failure is told with: the last lines of the run's standard error, and what was stopped first."""

from __future__ import annotations

import os
import sys

import kit
import pytest

from jobmon import JobError
from jobmon.core.spec import JobSpec
from jobmon.linux.processes.stderrtail import MAX_BYTES, LastWords, mark_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}


class File:
    """A file of standard error, and what is kept of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = JobSpec("job", "true", stderr=str(path))
        self.words = LastWords(lambda _: False)

    def begin(self) -> None:
        """A run begins, and appends to it."""
        self.path.touch()
        self.words.began("job", mark_of(os.stat(self.path)))

    def write(self, text: str | bytes) -> None:
        """The run writes."""
        with open(self.path, "ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)

    @property
    def told(self) -> list[str]:
        """What a message would tell."""
        return self.words.of(self.spec)


@pytest.fixture
def file(tmp_path: Path) -> File:
    """A file that an earlier run has written to."""
    made = File(tmp_path / "errors")
    made.write("of an earlier run\n")
    made.begin()
    return made


def test_only_this_run_counts(file: File) -> None:
    """What an earlier run has written is not told."""
    assert file.told == []
    file.write("one\n\ntwo\nhalf")
    assert file.told == ["one", "two", "half"]


def test_the_last_five_lines(file: File) -> None:
    """However much there is, five lines are told."""
    file.write("".join(f"{number}\n" for number in range(100_000)))

    assert file.told == ["99995", "99996", "99997", "99998", "99999"]


def test_little_is_read(file: File) -> None:
    """A line without an end is cut, a line that began before what is read is left out."""
    file.write("x" * MAX_BYTES * 3)
    assert file.told == ["x" * MAX_BYTES]
    file.write("\nlast\n")
    assert file.told == ["last"]


def test_any_bytes_can_be_told(file: File) -> None:
    """What is not UTF-8 becomes something that is."""
    file.write(b"caf\xe9\n")

    assert file.told == ["caf\ufffd"]


def test_a_truncated_file_is_read_from_its_beginning(file: File) -> None:
    """Log rotation by copying and truncating leaves the file and takes its length."""
    os.truncate(file.path, 0)
    file.write("new\n")

    assert file.told == ["new"]


@pytest.mark.parametrize("link", [False, True])
def test_another_file_of_the_same_name_is_not_read(file: File, tmp_path: Path, link: bool) -> None:
    """Whoever may replace the file, by a link even, does not get to read others through the daemon."""
    other = tmp_path / "secret"
    other.write_text("secret\n" * 10)
    file.path.unlink()
    if link:
        file.path.symlink_to(other)
    else:
        other.rename(file.path)

    assert file.told == []


def test_what_is_no_file_is_not_opened(file: File) -> None:
    """Nobody who waits at a FIFO is woken, and nothing blocks."""
    file.path.unlink()
    assert file.told == []
    os.mkfifo(file.path)
    assert file.told == []
    assert mark_of(os.stat(file.path)) == 0
    file.words.began("job", 0)
    assert file.told == []


# ---- through the daemon ------------------------------------------------------------------------


def test_a_failed_start_is_told_with_its_last_words(daemon: Make) -> None:
    """The message says how it ended, and below that what it wrote last; control characters are escaped."""
    script = "echo starting; printf 'no such\\033 key\\n' >&2; sleep 0.05; exit 3"
    one = daemon({"jobs": {"web": {"command": script, "stderr": "errors"}}})
    for _ in range(2):  # the second run's are its own
        done = one.run_cli("start", "web", "--wait", "stable:1h")
        assert (done.code, done.out) == (1, "")
        told = "jobmon: web: has died meanwhile (exit 3); last lines of stderr:"
        assert done.err == f"{told}\n  | no such\\x1b key\n"


def test_a_start_that_times_out_too(daemon: Make) -> None:
    """What it waits for is often said there."""
    command = "echo 'waiting for the database' >&2; echo >told; exec sleep 1000000"
    job = {"command": command, "stderr": "errors", "ready": {"fd": 3}}
    one = daemon({"jobs": {"web": job}})
    told = one.fifo("told")
    one.pipe().start("web", wait=False)
    told.line()
    done = one.run_cli("restart", "web", "--timeout", "1s")

    assert done.code == 124
    assert done.err.startswith("jobmon: web: timed out: it is starting (pid ")
    assert done.err.endswith("; last lines of stderr:\n  | waiting for the database\n")


def test_what_was_not_launched_has_no_last_words(daemon: Make) -> None:
    """The words of an earlier run would mislead."""
    one = daemon({"jobs": {"web": {"command": "echo old >&2; exit 3", "stderr": "errors"}}})
    watch = one.watch()
    one.pipe().start("web", wait=False)
    watch.until("web", "died")

    assert one.run_cli("signal", "HUP", "web").err == "jobmon: web: is not running\n"
    assert one.run_cli("wait", "web", "--for", "ready").err == "jobmon: web: is failed: exit 3\n"


def test_the_api_has_them_too(daemon: Make) -> None:
    """They are an attribute of the exception."""
    one = daemon({"jobs": {"web": {"command": "echo why >&2; exit 3", "stderr": "errors"}}})
    with pytest.raises(JobError) as caught:
        one.pipe().start("web", condition="stable", duration=3600)

    assert caught.value.stderr == {"web": ("why",)}


def test_stop_says_what_goes_first(daemon: Make) -> None:
    """What requires the job, however indirectly, is stopped before it and named; the output stays clean."""
    jobs = {"db": WEB, "web": {**WEB, "requires": ["db"]}, "lb": {**WEB, "requires": ["web"]}, "x": WEB}
    one = daemon({"jobs": jobs})
    one.pipe().start("lb", "x")
    watch = one.watch()
    done = one.run_cli("stop", "db")

    assert tuple(done) == (0, "", "jobmon: db: stopped first: lb, web, which require it\n")
    watch.until("db", "died")
    assert [event.job for event in watch.seen if event.event == "died"] == ["lb", "web", "db"]
    assert one.pipe().status("x")[0].alive


def test_restart_says_what_goes_along(daemon: Make) -> None:
    """What a restart takes down and brings back is named; what was asked for by name is not."""
    jobs = {"db": WEB, "web": {**WEB, "requires": ["db"]}}
    one = daemon({"jobs": jobs})
    one.pipe().start("web")

    assert tuple(one.run_cli("restart", "db")) == (
        0,
        "",
        "jobmon: db: restarted with it: web, which requires it\n",
    )
    one.watch(since=0).find(lambda event: (event.job, event.state, event.run) == ("web", "running", 2))
    assert one.run_cli("stop", "db", "web").err == ""


def test_what_a_job_says_of_itself_is_shown(daemon: Make) -> None:
    """STATUS= of sd_notify(3) stands at the end of its line, and in JSON under `says`."""
    say = (
        "import os, socket, signal\n"
        "to = os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1)\n"
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=3 of 9\\nREADY=1', to)\n"
        "signal.pause()\n"
    )
    one = daemon({"jobs": {"web": {"command": [sys.executable, "-c", say], "ready": {"notify": True}}}})
    one.pipe().start("web")

    assert one.run_cli("status", "web").out.endswith(', "3 of 9"\n')
    assert one.pipe().status("web")[0].says == "3 of 9"
