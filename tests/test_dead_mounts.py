"""A file system that does not answer keeps one job waiting, and nobody else: a real one, with FUSE."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import deadfs
import kit
import nasty
import pytest

from jobmon import JobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Factory = Callable[..., kit.Daemon]
    Make = Callable[..., "Scene"]

REST = {"command": kit.FOR_EVER}

# What of a job leads there. "{}" is the place itself, "link" a link to a directory in it.
JOBS: dict[str, dict[str, Any]] = {
    "working-dir": {"working-dir": "{}/dir"},
    "working-dir behind a link": {"working-dir": "link/below"},
    "working-dir that is the place": {"working-dir": "{}"},
    "stdin": {"stdin": "{}/in"},
    "stdout": {"stdout": "{}/out"},
    "stderr behind a link": {"stderr": "link/err"},
    "stderr that is a link": {"stderr": "file"},
    "program": {"command": ["{}/tool"]},
    "program behind a link": {"command": ["./link/tool"]},
    "PATH": {"command": ["sleep", "1000000"], "env": {"PATH": "{}:/usr/bin:/bin"}},
    "interpreter": {"command": ["./script"]},
    "loader": {"command": ["./binary", "1000000"]},
    "log of readiness": {"stdout": "{}/log", "ready": {"log": "up"}},
    "directory of a question": {"working-dir": "{}/dir", "ready": {"exec": "true"}},
}


class Scene:
    """A daemon with jobs that lead to a place that does not answer, and one that does not."""

    def __init__(self, daemon: Factory, way: str = nasty.WITH) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jobmon-", dir="/tmp"))
        self.place = f"{self.folder}/dead"
        self.fs = deadfs.DeadFs(self.place)
        self._daemon = daemon
        self._options = nasty.options(way)

    def begin(self, job: dict[str, Any]) -> None:
        """Start the daemon, with this as the job `stuck`."""
        place, options = self.place, self._options
        options["wrapper"] = [*options.get("wrapper", []), *self.fs.wrapper]
        os.symlink(f"{place}/far", self.folder / "link")
        os.symlink("link/err", self.folder / "file")
        (self.folder / "script").write_text(f"#!{place}/sh\n")
        (self.folder / "script").chmod(0o755)
        (self.folder / "binary").write_bytes(with_loader(f"{place}/l"))
        (self.folder / "binary").chmod(0o755)
        jobs = {"stuck": {**REST, **filled(job, place)}, "fine": REST}
        options |= {"directory": str(self.folder), "pass_fds": (self.fs.fd,)}
        self.daemon = self._daemon({"jobs": jobs}, **options)
        self.pipe = self.daemon.pipe()
        self.watch = self.daemon.watch()


def with_loader(path: str) -> bytes:
    """A program, sleep(1), that names another dynamic loader."""
    program = Path("/bin/sleep").read_bytes()
    found = re.search(rb"/lib[^\0]*/ld-[^\0]*\0", program)
    assert found is not None
    return program.replace(found[0], path.encode().ljust(len(found[0]), b"\0"), 1)


@pytest.fixture
def make(daemon: Factory) -> Iterator[Callable[..., Scene]]:
    """A factory of scenes."""
    made: list[Scene] = []

    def one(way: str = nasty.WITH) -> Scene:
        if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("needs root and /dev/fuse")
        made.append(Scene(daemon, way))
        return made[-1]

    yield one
    for scene in made:
        scene.fs.close()


def filled(value: Any, place: str) -> Any:
    if isinstance(value, str):
        return value.replace("{}", place)
    if isinstance(value, list):
        return [filled(one, place) for one in value]
    return {key: filled(one, place) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.mark.slow
@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
@pytest.mark.parametrize("case", JOBS)
def test_only_the_job_waits_that_leads_there(make: Make, way: str, case: str) -> None:
    """It is starting, with a process that can be stopped; another job is started and stopped meanwhile."""
    scene = make(way)
    scene.begin(JOBS[case])
    waiting = scene.pipe.submit("start", ("stuck",), wait=True)
    scene.watch.until("stuck", "launched")
    scene.pipe.start("fine")
    scene.pipe.stop("fine")
    (status,) = scene.pipe.status("stuck")
    assert (status.state, status.alive) == ("starting", True)
    scene.pipe.stop("stuck")
    with pytest.raises(JobError):
        scene.pipe.collect(waiting)

    assert scene.watch.until("stuck", "died").state == "stopped"
    assert "internal error" not in scene.daemon.log


@pytest.mark.slow
@pytest.mark.parametrize("case", ["working-dir", "stdout", "program"])
def test_start_timeout_covers_it(make: Make, case: str) -> None:
    """A job that waits there for too long is stopped like any other that is not up in time."""
    scene = make()
    scene.begin({**JOBS[case], "start-timeout": 0.2})
    with pytest.raises(JobError):
        scene.pipe.start("stuck")

    assert scene.watch.until("stuck", "stopping").cause == "start-timeout"
    assert scene.watch.until("stuck", "died").state == "failed"


LOGGED = {
    "command": "echo one; echo $JOBMON_JOB is up; exec sleep 1000000",
    "stdout": "{}/log",
    "ready": {"log": "is up", "interval": 0.05, "timeout": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["command", "working-dir", "stdin"])
def test_what_fails_where_somebody_answers_is_a_start_that_failed(make: Make, key: str) -> None:
    """A file system that may hang and does not changes nothing: no process was ever there."""
    scene = make()
    scene.begin({key: ["{}/none"] if key == "command" else "{}/none"})
    scene.fs.serve()
    with pytest.raises(JobError, match=r"/dead/none: ENOENT"):
        scene.pipe.start("stuck", wait=False)

    assert scene.watch.until("stuck", "failed").event == "state"
    assert "launched" not in [event.event for event in scene.watch.seen]


@pytest.mark.slow
def test_a_log_that_is_served_makes_a_job_ready(make: Make) -> None:
    """Readiness by a line of a file that a server keeps: only of what the run itself has written."""
    scene = make()
    scene.begin(LOGGED)
    scene.fs.serve()
    scene.pipe.start("stuck")
    assert scene.watch.until("stuck", "running").cause == "ready"
    scene.pipe.stop("stuck")
    scene.daemon.configure({"jobs": {"stuck": filled({**LOGGED, "command": kit.FOR_EVER}, scene.place)}})
    scene.pipe.reload()
    with pytest.raises(JobError):
        scene.pipe.start("stuck", timeout=1)
    (status,) = scene.pipe.status("stuck")

    assert status.state == "starting"
    assert "internal error" not in scene.daemon.log


@pytest.mark.slow
def test_a_log_whose_server_falls_silent_keeps_only_its_job_waiting(make: Make) -> None:
    """The daemon goes on, the job is stopped in time, and the reason says what came of the last try. (To
    close a file there hangs in the kernel, SIGKILL or not, until its file system is ended.)"""
    scene = make()
    command = f"echo > {scene.folder}/begun; exec sleep 1000000"
    scene.begin({**LOGGED, "command": command, "start-timeout": 1})
    scene.fs.serve()
    began = scene.daemon.fifo("begun")
    waiting = scene.pipe.submit("start", ("stuck",), wait=True)
    began.line()
    scene.fs.be_silent()
    scene.pipe.start("fine")
    scene.pipe.stop("fine")
    assert scene.watch.until("stuck", "stopping").cause == "start-timeout"
    assert re.search(r'readiness="(nothing within 0.2 s|the last look does not die)', scene.daemon.log)
    assert scene.pipe.list_jobs() == {"stuck": True, "fine": False}
    scene.fs.close()
    with pytest.raises(JobError):
        scene.pipe.collect(waiting)


@pytest.mark.slow
def test_last_words_that_are_not_served_are_left_out(make: Make) -> None:
    """A failed start is answered though its standard error leads by now where nobody answers."""
    scene = make()
    os.symlink(scene.folder, scene.folder / "now")
    command = "echo words >&2; read x < go; exit 3"
    scene.begin({"command": command, "stderr": "now/errors", "ready": {"fd": 3}})
    go = scene.daemon.fifo("go")
    waiting = scene.pipe.submit("start", ("stuck",), wait=True)
    scene.watch.until("stuck", "launched")
    os.symlink(scene.place, scene.folder / "then")
    os.rename(scene.folder / "then", scene.folder / "now")
    os.write(go.fd, b"x\n")
    with pytest.raises(JobError) as caught:
        scene.pipe.collect(waiting)

    assert caught.value.stderr == {}
    scene.pipe.start("fine")
