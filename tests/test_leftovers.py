"""What a killed daemon left in its cgroups is ended by the next daemon of the same configuration, and by
no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

import kit
import pytest

import jobmon
from jobmon.linux import cgroup, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    MakeDaemon = Callable[..., kit.Daemon]

# Ends by SIGINT, and by no SIGTERM; says so in a FIFO when that is so.
PARTICULAR = """
import signal, sys
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("up", file=open(sys.argv[1], "w"), flush=True)
while signal.sigwait(both) != signal.SIGINT:
    pass
"""


class Dead:
    """A daemon that was killed, and its one job, which lives on as `pid`."""

    def __init__(self, **job: Any) -> None:
        self.directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.job = {"autostart": True, **job}
        path = os.path.join(self.directory, "jobmon.json")
        ports = {"control-port": f"{self.directory}/control", "event-port": f"{self.directory}/event"}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"supervisor": ports, "jobs": {"job": self.job}}, file)
        self.pid = self._begin_and_kill(path)
        self.cgroup = procfs.cgroup2_path(self.pid) or ""

    def _begin_and_kill(self, path: str) -> int:
        command = [*kit.daemon_command(), path]
        environ = os.environ | {"PYTHONPATH": kit.SOURCES}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert kit.readable(process.stdout.fileno())
            with jobmon.CommandPipe(f"{self.directory}/control") as pipe:
                pid = pipe.pid("job")
            process.kill()
        for name in ("control", "event"):
            os.unlink(f"{self.directory}/{name}")
            os.unlink(f"{self.directory}/{name}.lock")
        assert isinstance(pid, int)
        return pid

    def lives(self) -> bool:
        """Whether its job does; a zombie does not."""
        one = kit.process_of(self.pid)
        return one is not None and one.state != "Z"

    def close(self) -> None:
        """Its job, if it lives still, is ended. The directory is its successor's."""
        if self.lives():
            os.kill(self.pid, signal.SIGKILL)
            kit.wait_gone(self.pid)
        # They have come to us, who are a subreaper while daemons are tested.
        for pid in kit.zombies_of(os.getpid()):
            one = kit.process_of(pid)
            if one is not None and one.session == self.pid:
                os.waitpid(pid, 0)


@pytest.fixture
def dead() -> Iterator[Callable[..., Dead]]:
    """A factory of dead daemons, with the keys of their job. Only where cgroups may be made does anybody
    know for certain what a daemon has left."""
    need_cgroups()
    made: list[Dead] = []

    def make(**job: Any) -> Dead:
        made.append(Dead(**job))
        return made[-1]

    yield make
    for one in made:
        one.close()


def need_cgroups() -> None:
    """Skip where no cgroups may be made."""
    try:
        cgroup.Hierarchy(f"test.{os.urandom(8).hex()}").close()
    except cgroup.Unavailable as error:
        pytest.skip(f"no cgroups here: {error}")


def test_only_a_daemon_of_the_same_configuration_ends_it(
    daemon: MakeDaemon, dead: Callable[..., Dead], tmp_path: Path
) -> None:
    """A stranger in the same cgroup leaves the job alone; the successor gives it its own stop signal, and
    starts the next run when nothing of the last is left."""
    fifo = kit.Fifo(str(tmp_path / "told"))
    gone = dead(command=[sys.executable, "-c", PARTICULAR, fifo.path], signal="SIGINT")
    assert fifo.line() == "up"
    daemon({})
    assert gone.lives()

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory)
    assert not gone.lives()
    assert heir.pipe().pid("job") not in (None, gone.pid)
    assert f'has left job="job" signal="SIGINT" pids="{gone.pid}"' in heir.log
    assert "killing" not in heir.log
    assert fifo.line() == "up"
    fifo.destroy()


def test_patience_ends(daemon: MakeDaemon, dead: Callable[..., Dead]) -> None:
    """What ignores its stop signal is killed, with all that it started, when its kill-timeout is over."""
    gone = dead(**{"command": kit.STUBBORN, "kill-timeout": 0.1})
    heir = daemon({"jobs": {"job": {**gone.job, "autostart": False}}}, directory=gone.directory)

    assert not gone.lives()
    assert not os.path.exists(os.path.dirname(gone.cgroup))
    assert 'killing what a daemon that died has left job="job"' in heir.log


def test_a_job_that_is_no_more_in_the_configuration_is_ended_too(
    daemon: MakeDaemon, dead: Callable[..., Dead]
) -> None:
    """By SIGTERM, as by default."""
    gone = dead(command=kit.FOR_EVER)
    heir = daemon({}, directory=gone.directory)

    assert not gone.lives()
    assert 'job="job" signal="SIGTERM"' in heir.log


def test_a_signal_to_end_ends_the_patience(daemon: MakeDaemon, dead: Callable[..., Dead]) -> None:
    """A daemon that is told to end while it waits kills what is left, starts nothing and exits 0."""
    gone = dead(**{"command": kit.STUBBORN, "kill-timeout": 1000})
    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, announced=False)
    heir.wait_log("stopping what a daemon that died has left")

    assert heir.stop() == 0
    assert not gone.lives()
    assert "told to end before it began" in heir.log
    assert 'to="starting"' not in heir.log


def test_the_living_are_not_taken_for_dead(daemon: MakeDaemon, dead: Callable[..., Dead]) -> None:
    """The directory of a dead daemon goes when the next of any configuration finds it empty; that of a
    living one stays, with all that is in it."""
    gone = dead(command=kit.FOR_EVER)
    living = daemon({"jobs": {"job": gone.job}})
    os.kill(gone.pid, signal.SIGKILL)
    kit.wait_gone(gone.pid)
    daemon({}, directory=gone.directory)

    assert not os.path.exists(os.path.dirname(gone.cgroup))
    assert living.pipe().is_running("job")
    assert living.run_cli("restart", "job").code == 0


def test_who_makes_a_directory_and_who_clears_away_do_not_meet() -> None:
    """Making a directory while others clear away what looks dead comes to a locked directory all the same."""
    need_cgroups()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for _ in range(25):
                    cgroup.Hierarchy(f"test.{os.urandom(8).hex()}").close()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)

    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
