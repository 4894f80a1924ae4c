"""The state-dir: whose it may be, what is written there, and that nothing in it can end a daemon."""

from __future__ import annotations

import json
import os
import shutil
import tempfile

import kit
import pytest

from jobmon.core.spec import JobSpec
from jobmon.linux.log import Log
from jobmon.linux.processes import statedir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    MakeDaemon = Callable[..., kit.Daemon]

RUN = statedir.Run("id", "boot", 1, 'a "job"\n\u00e9', 7, 12, 345, "/c/1", "SIGINT", 0.5, "job")
DAEMON = statedir.Daemon("id", "boot", 1, 12, 345, 6789, "/a/b.json", "8:1", "/a/control")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log in a file."""
    one = Log(str(tmp_path / "log"), "INFO")
    yield one
    one.close()


@pytest.fixture
def place() -> Iterator[str]:
    """The path of a directory that is not there yet, in one that everybody can come to."""
    folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    yield f"{folder}/state"
    shutil.rmtree(folder)


@pytest.mark.parametrize("record", [RUN, DAEMON], ids=["run", "daemon"])
def test_a_record_comes_back_as_it_was(record: statedir.Run | statedir.Daemon) -> None:
    """What is written is one JSON object of version 1, and is read as what it was."""
    data = statedir.encode(record)

    assert json.loads(data)["v"] == 1
    assert statedir.decode(type(record), data) == record


def without(name: str) -> dict[str, Any]:
    """A record of a run that lacks a field."""
    return {key: value for key, value in json.loads(statedir.encode(RUN)).items() if key != name}


def changed(**fields: Any) -> dict[str, Any]:
    """A record of a run with other fields."""
    return {**json.loads(statedir.encode(RUN)), **fields}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty: its daemon died while writing it"),
        (b"\xff", "not JSON: "),
        (statedir.encode(RUN)[:-1], "not JSON: "),
        (b'{"v":1} {}', "not JSON: "),
        (b"[" * 60000, "not JSON: "),
        (b"[1]", "not a JSON object"),
        (without("v"), 'its "v" must be 1, and is null'),
        (changed(v=2), 'its "v" must be 1, and is 2'),
        (changed(v=True), 'its "v" must be 1, and is true'),
        (without("job"), 'it has no "job"'),
        (changed(job=1), 'its "job" must be a string, and is 1'),
        (changed(pid=-1), 'its "pid" must be a whole number from 0, and is -1'),
        (changed(pid=True), 'its "pid" must be a whole number from 0, and is true'),
        (changed(pid=1.0), 'its "pid" must be a whole number from 0, and is 1.0'),
        (changed(kill_timeout=-0.5), 'its "kill_timeout" must be a number with a point from 0, and is -0.5'),
        (changed(signal="SIGNONE"), 'its "signal" must be the name of a signal, and is "SIGNONE"'),
        (changed(kill_scope="all"), 'its "kill_scope" must be job, group or process, and is "all"'),
    ],
)
def test_what_is_no_record_says_why(data: bytes | dict[str, Any], why: str) -> None:
    """Whatever stands in a file is a record of a run or an error that names what is wrong."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(statedir.Garbage) as raised:
        statedir.decode(statedir.Run, text)

    assert str(raised.value).startswith(why)


def test_a_run_is_there_from_birth_to_end(place: str, log: Log) -> None:
    """Each run has a file as long as it lives, whatever its job is called; an orderly end leaves none."""
    one = statedir.StateDir(place, log, removes=True)
    one.begin(__file__, 6666)
    names = ["web", "../../x", "\n", "n" * 4096, '"\u00e9\U0001f600' * 900]
    for number, name in enumerate(names):
        one.born(JobSpec(name, "true", signal="SIGHUP", kill_timeout=3.0), number, os.getpid(), "")
    runs = [statedir.decode(statedir.Run, read(f"{place}/{name}")) for name in files(place, "run.")]

    assert sorted(run.job for run in runs) == sorted(names)
    assert {(run.pid, run.signal, run.kill_timeout) for run in runs} == {(os.getpid(), "SIGHUP", 3.0)}
    assert {os.stat(f"{place}/{name}").st_mode & 0o777 for name in os.listdir(place)} == {0o600}
    assert os.stat(place).st_mode & 0o777 == 0o700
    for number, name in enumerate(names):
        one.gone(name, number)
    assert files(place, "run.") == []
    one.close()
    assert not os.path.exists(place)


def test_what_was_left_comes_back(place: str, log: Log) -> None:
    """The next one finds the runs and their daemon, and keeps both until each run is forgotten."""
    one = statedir.StateDir(place, log)
    one.begin(__file__, 6666)
    one.born(JobSpec("web", "true"), 1, os.getpid(), "")
    one.close()
    two = statedir.StateDir(place, log)
    two.begin(__file__, 6666)
    two.close()
    three = statedir.StateDir(place, log)
    (name,) = three.runs

    assert list(three.daemons) == [one.id]
    assert three.runs[name].marker == f"{one.id}:web:1".encode()
    three.forget(name)
    three.close()
    assert os.listdir(place) == []


def test_what_was_before_the_boot_is_forgotten(place: str, log: Log) -> None:
    """Numbers of processes mean nothing after a boot."""
    os.mkdir(place, 0o700)
    for name, record in (("run.x", RUN), ("daemon.id", DAEMON)):
        with open(f"{place}/{name}", "wb") as file:
            file.write(statedir.encode(record))
    one = statedir.StateDir(place, log)

    assert (one.runs, one.daemons) == ({}, {})
    one.close()
    assert os.listdir(place) == []


def test_a_disk_that_is_full_is_said_once(place: str, log: Log, tmp_path: Path) -> None:
    """A run whose state cannot be written is a warning, and once is enough until one can."""
    one = statedir.StateDir(place, log)
    one.begin(__file__, 6666)
    os.chmod(place, 0o500)
    told = kit.in_child(lambda: _born_as_user(one, place))
    one.close()

    assert told == "None"
    text = (tmp_path / "log").read_text()
    assert text.count("no state for a run: the next daemon would not know what this one left") == 1
    assert 'error="Permission denied"' in text


def _born_as_user(one: statedir.StateDir, place: str) -> None:
    if os.geteuid() == 0:
        os.chown(place, 64998, 64998)
        os.setresuid(64998, 64998, 64998)
    for number in range(3):
        one.born(JobSpec("web", "true"), number, os.getpid(), "")


def test_a_directory_that_cannot_be_trusted_is_refused(place: str, log: Log) -> None:
    """It must be the user's own and nobody else's to write, and no link."""
    os.mkdir(place)
    os.chmod(place, 0o770)
    with pytest.raises(PermissionError, match="others may write to it"):
        statedir.StateDir(place, log)
    os.chmod(place, 0o700)
    os.symlink(place, f"{place}-link")
    with pytest.raises(NotADirectoryError):
        statedir.StateDir(f"{place}-link", log)
    os.chmod(os.path.dirname(place), 0o777)
    with pytest.raises(PermissionError, match=f"others may write to {os.path.dirname(place)}"):
        statedir.StateDir(place, log)
    os.chmod(os.path.dirname(place), 0o700)
    if os.geteuid() == 0:
        os.chown(place, 64998, 64998)
        with pytest.raises(PermissionError, match="it belongs to another user"):
            statedir.StateDir(place, log)


def test_a_child_does_not_inherit_the_lock(place: str, log: Log) -> None:
    """What a dead daemon has forked, and lives, does not make it look alive."""
    ends = os.pipe()
    told = os.pipe()
    pid = os.fork()
    if pid == 0:
        statedir.StateDir(place, log).begin(__file__, 6666)
        if os.fork() == 0:
            os.write(told[1], str(os.getpid()).encode())
            os.read(ends[0], 1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert kit.readable(told[0])
    child = int(os.read(told[0], 20))

    statedir.StateDir(place, log).close()  # it is not locked
    assert kit.process_of(child) is not None
    os.write(ends[1], b".")
    kit.wait_gone(child)
    for fd in (*ends, *told):
        os.close(fd)


def files(place: str, begin: str) -> list[str]:
    """The names of files that begin so."""
    return sorted(name for name in os.listdir(place) if name.startswith(begin))


def read(path: str) -> bytes:
    """What is in a file."""
    with open(path, "rb") as file:
        return file.read()


def test_a_configured_directory_that_cannot_be_had_is_an_error(daemon: MakeDaemon) -> None:
    """What is configured is meant: the daemon says what is wrong, and does not start."""
    one = daemon({"supervisor": {"state-dir": "/proc/none"}}, announced=False)

    assert one.wait() == 1
    assert one.log.startswith("jobmon: state-dir /proc/none: ")


def test_a_configured_directory_is_used_and_kept(daemon: MakeDaemon) -> None:
    """It is made where it is missing, and not removed at the end."""
    one = daemon({"supervisor": {"state-dir": "state"}})
    assert len(files(one.path("state"), "daemon.")) == 1
    assert one.stop() == 0
    assert os.listdir(one.path("state")) == []


def test_without_a_directory_it_runs_and_warns(daemon: MakeDaemon) -> None:
    """Where no directory is to be had the daemon runs without, and says what that means."""
    one = daemon({}, environ={"RUNTIME_DIRECTORY": "/proc/none"})

    assert "WARNING no state is kept: " in one.log
    assert one.stop() == 0


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({"RUNTIME_DIRECTORY": "/a/b:/c", "XDG_RUNTIME_DIR": "/own"}, "/a/b/"),
        ({"XDG_RUNTIME_DIR": "OWN"}, "OWN/jobmon/"),
        ({"XDG_RUNTIME_DIR": "/nonexistent"}, ""),
        ({}, ""),
    ],
)
def test_where_it_is_by_default(environ: dict[str, str], base: str, tmp_path: Path) -> None:
    """The first that is there of the service's, the session's and the machine's; links do not count."""
    own = {name: value.replace("OWN", str(tmp_path)) for name, value in environ.items()}
    me = os.geteuid()
    is_ours = os.stat("/run/jobmon").st_uid == me if os.path.isdir("/run/jobmon") else me == 0
    fallback = "/run/jobmon/" if is_ours else f"/tmp/jobmon-{me}-"
    begin = base.replace("OWN", str(tmp_path)) or fallback
    os.symlink(__file__, tmp_path / "link.json")
    path = statedir.default(__file__, own)

    assert path.startswith(begin)
    assert len(path) == len(begin) + 16
    assert statedir.default(str(tmp_path / "link.json"), own) == path


def test_the_second_gets_an_error_that_names_the_first(place: str, log: Log) -> None:
    """The lock belongs to the process, and ends with it."""
    told = kit.in_child(lambda: statedir.StateDir(place, log).begin(__file__, 6666))
    one = statedir.StateDir(place, log)
    assert told == "None"
    one.begin(__file__, 6666)

    def second() -> None:
        statedir.StateDir(place, log)

    assert "runs already: pid" in kit.in_child(second)
    one.close()
