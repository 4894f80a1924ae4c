"""The state-dir: whose it may be, what is written there, and that nothing in it can end a daemon."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import tempfile
from pathlib import Path

import kit
import nasty
import pytest

from jobmon.core.spec import JobSpec
from jobmon.linux.log import Log
from jobmon.linux.processes import statedir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


def test_half_a_record_is_none(place: str, log: Log) -> None:
    """Where there is room for a part of a record only, nothing is left of it."""
    one = statedir.StateDir(place, log)
    one.begin(__file__, 6666)

    def born() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return one.born(JobSpec("web", "true"), 1, os.getpid(), "")

    assert kit.in_child(born) == "False"
    assert files(place, "run.") == []
    one.close()


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("removed", "then"), [("state", "a birth"), ("state", "a reload"), ("state/lock", "a reload")]
)
@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
def test_it_is_made_anew_where_it_was_removed(daemon: MakeDaemon, way: str, removed: str, then: str) -> None:
    """By the next birth, and by a reload: with the daemon, all its runs, and its lock."""
    up: dict[str, Any] = {"command": kit.FOR_EVER, "autostart": True, "signal": "SIGINT"}
    # the first process of this one is dead, and another lives
    rest = {
        "command": "(trap '' TERM; echo >&3; exec sleep 1000000) & exec sleep 1000000",
        "ready": {"fd": 3},
    }
    jobs = {"a": up, "b": {**up, "autostart": False}, "rest": {**rest, "kill-timeout": 60}}
    one = daemon({"supervisor": {"state-dir": "state"}, "jobs": jobs}, **nasty.options(way))
    pipe = one.pipe()
    pipe.start("rest")
    pid = pipe.get_pid("rest")
    pipe.stop("rest", wait=False)
    kit.wait_gone(pid or 0)
    before = records(one.path("state"))
    if os.path.isdir(one.path(removed)):
        shutil.rmtree(one.path(removed))
    else:
        os.unlink(one.path(removed))

    if then == "a birth":
        pipe.start("b")
    else:
        pipe.reload()
    after = records(one.path("state"))
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + (then == "a birth")
    assert "lock" in os.listdir(one.path("state"))
    assert one.log.count("state-dir was missing: created again") == 1
    second = one.run_cli("daemon", "-f", one.config)
    assert "a daemon of this configuration runs already" in second.err


def records(place: str) -> dict[str, Any]:
    """What stands in a state-dir, but for the start time of a first process that may be dead."""
    found = {}
    for name in files(place, "daemon.") + files(place, "run."):
        found[name] = json.loads(read(f"{place}/{name}"))
        if found[name].get("job") == "rest":
            found[name]["start"] = 0
    return found


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
        # that of root is gone when root logs out
        ({"XDG_RUNTIME_DIR": "OWN"}, "OWN/jobmon/" if os.geteuid() else ""),
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_user_has_it_in_the_session(place: str) -> None:
    """The directory of a user's session counts, if it is that user's own."""
    os.chmod(os.path.dirname(place), 0o755)
    os.mkdir(place)
    os.chown(place, 64998, 64998)
    environ = {"XDG_RUNTIME_DIR": place}

    def as_user(uid: int) -> str:
        def look() -> str:
            os.setresuid(uid, uid, uid)
            return statedir.default(__file__, environ)

        return kit.in_child(look)

    assert as_user(64998).startswith(f"{place}/jobmon/")
    assert as_user(64999).startswith("/tmp/jobmon-64999-")


def releases(folder: Path) -> list[Path]:
    """Two releases of a configuration; `current` leads to the first."""
    made = [folder / "releases" / name for name in "12"]
    for one in made:
        one.mkdir(parents=True)
        (one / "jobmon.json").write_text("{}")
    (folder / "current").symlink_to(made[0])
    return made


def switch(folder: Path, release: Path) -> None:
    """Let `current` lead to another release."""
    (folder / "next").symlink_to(release)
    (folder / "next").rename(folder / "current")


def test_the_state_of_a_former_release_is_taken_over(log: Log, tmp_path: Path) -> None:
    """What was left under the same name comes into the state-dir of the file that the name means by now, also
    when the move was broken off; of garbage nothing comes, and the old directory is removed."""
    first, second = releases(tmp_path)
    name, environ = f"{tmp_path}/current/./jobmon.json", {"RUNTIME_DIRECTORY": f"{tmp_path}/run"}
    os.mkdir(f"{tmp_path}/run")
    one = statedir.acquire(None, name, environ, log)
    one.begin(name, 6666)
    one.born(JobSpec("web", "true"), 1, os.getpid(), "")
    one.born(JobSpec("db", "true"), 1, os.getpid(), "")
    one.close()
    (Path(one.path) / "run.garbage").write_text("[")
    switch(tmp_path, second)
    elsewhere = statedir.acquire(None, str(second / "jobmon.json"), environ, log)
    assert elsewhere.runs == {}
    elsewhere.close()
    os.mkdir(elsewhere.path)
    shutil.copy(Path(one.path) / files(one.path, "run.")[0], elsewhere.path)

    two = statedir.acquire(None, f"{tmp_path}/current/jobmon.json", environ, log)
    assert two.path == elsewhere.path
    assert list(two.daemons) == [one.id]
    assert {run.marker.decode() for run in two.runs.values()} == {
        f"{one.id}:{job}:1" for job in ("web", "db")
    }
    assert not os.path.exists(one.path)
    for run in list(two.runs):
        two.forget(run)
    two.close()
    assert os.listdir(tmp_path / "run") == []
    assert str(first) not in two.path


def test_a_daemon_of_a_former_release_that_lives_is_in_the_way(log: Log, tmp_path: Path) -> None:
    """Under one name there is one daemon, whichever file the name means by now."""
    _, second = releases(tmp_path)
    name, environ = f"{tmp_path}/current/jobmon.json", {"RUNTIME_DIRECTORY": f"{tmp_path}/run"}
    os.mkdir(f"{tmp_path}/run")
    one = statedir.acquire(None, name, environ, log)
    one.begin(name, 6666)
    switch(tmp_path, second)

    def next_one() -> None:
        statedir.acquire(None, name, environ, log)

    assert f"runs already: pid {os.getpid()}" in kit.in_child(next_one)
    assert os.listdir(tmp_path / "run") == [os.path.basename(one.path)]
    one.close()


def test_cleaners_of_directories_leave_it_alone(place: str, log: Log) -> None:
    """systemd-tmpfiles removes nothing from a directory on which it cannot have a lock for itself."""
    one = statedir.StateDir(place, log)
    fd = os.open(place, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    one.close()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


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
