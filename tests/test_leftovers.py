"""What a killed daemon left in its cgroups is ended by the next daemon of the same configuration, and by
no other."""

from __future__ import annotations

import os
import signal

import kit
import pytest

from jobmon.linux import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeDaemon = Callable[..., kit.Daemon]


@pytest.fixture(autouse=True)
def cgroups() -> None:
    """Only where cgroups may be made does anybody know for certain what a daemon left."""
    try:
        cgroup.Hierarchy(f"test.{os.urandom(8).hex()}").close()
    except cgroup.Unavailable as error:
        pytest.skip(f"no cgroups here: {error}")


def killed(daemon: MakeDaemon, job: dict[str, object], folder: Path) -> tuple[kit.Daemon, int]:
    """A daemon that was killed, and the pid of its job, which lives."""
    folder.mkdir()
    one = daemon({"jobs": {"job": {**job, "autostart": True}}}, directory=str(folder))
    pid = one.pipe().pid("job")
    one.process.kill()
    one.process.wait()
    return one, pid


def alive(pid: int) -> bool:
    """Whether a process lives; zombies do not."""
    one = kit.process_of(pid)
    return one is not None and one.state != "Z"


def test_only_a_daemon_of_the_same_configuration_ends_it(daemon: MakeDaemon, tmp_path: Path) -> None:
    """A stranger in the same cgroup leaves the job alone; the successor gives it its own stop signal, and
    starts the next run when nothing of the last is left."""
    says = 'trap "echo INT; exit" INT; echo up; while :; do sleep 1000000 & wait; done'
    job = {"command": ["sh", "-c", says], "signal": "SIGINT", "stdout": "out"}
    job["command"] = ["python3", "-c", SPEAKER]
    dead, pid = killed(daemon, job, tmp_path / "one")
    daemon({})
    assert alive(pid)

    heir = daemon({"jobs": {"job": {**job, "autostart": True}}}, directory=dead.directory)
    assert not alive(pid)
    assert heir.pipe().pid("job") != pid
    assert f'has left job="job" signal="SIGINT" pids="{pid}"' in heir.log
    assert "killing" not in heir.log


# A job that says what it gets.
SPEAKER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
if signal.sigwait({signal.SIGINT, signal.SIGTERM}) == signal.SIGINT:
    raise SystemExit
signal.pause()
"""


def test_patience_ends(daemon: MakeDaemon, tmp_path: Path) -> None:
    """What ignores its stop signal, and all that it started, is killed when its kill-timeout is over."""
    job = {"command": kit.STUBBORN, "kill-timeout": 0.1}
    dead, pid = killed(daemon, job, tmp_path / "one")
    heir = daemon({"jobs": {"job": job}}, directory=dead.directory)

    assert not alive(pid)
    assert 'killing what a daemon that died has left job="job"' in heir.log


def test_a_job_that_is_no_more_in_the_configuration_is_ended_too(daemon: MakeDaemon, tmp_path: Path) -> None:
    """By SIGTERM, as by default."""
    dead, pid = killed(daemon, {"command": kit.FOR_EVER}, tmp_path / "one")
    heir = daemon({}, directory=dead.directory)

    assert not alive(pid)
    assert 'job="job" signal="SIGTERM"' in heir.log


def test_the_signal_to_end_goes_before_patience(daemon: MakeDaemon, tmp_path: Path) -> None:
    """A daemon that is told to end while it waits kills what is left, starts nothing and exits 0."""
    job = {"command": kit.STUBBORN, "kill-timeout": 1000, "autostart": True}
    dead, pid = killed(daemon, job, tmp_path / "one")
    heir = daemon({"jobs": {"job": job}}, directory=dead.directory, announced=False)
    heir.wait_log("stopping what a daemon that died has left")

    assert heir.stop() == 0
    assert not alive(pid)
    assert "told to end before it began" in heir.log
    assert 'to="starting"' not in heir.log


def test_what_cannot_be_heard_of_is_left_empty(daemon: MakeDaemon, tmp_path: Path) -> None:
    """The directories of dead daemons are gone when the next one has begun; those of living ones stay."""
    dead, pid = killed(daemon, {"command": kit.FOR_EVER}, tmp_path / "one")
    living = daemon({"jobs": {"job": {"command": kit.FOR_EVER, "autostart": True}}})
    folder = os.path.dirname(folder_of(pid))
    daemon({}, directory=dead.directory)

    assert not os.path.exists(folder)
    assert living.pipe().is_running("job")
    os.kill(living.pipe().pid("job"), signal.SIGKILL)


def folder_of(pid: int) -> str:
    """The directory of a process's cgroup."""
    from jobmon.linux import procfs

    folder = procfs.cgroup2_path(pid)
    assert folder is not None
    return folder
