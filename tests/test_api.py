"""The Python API against the real daemon: every method, every error. Its annotations are checked by mypy."""

from __future__ import annotations

import errno
import os
import select
import signal
import time

import e2e
import inits
import kit
import pytest

import jobmon
from jobmon import client, protocol, transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}
STUBBORN = e2e.STUBBORN


# ---- as the programs of JobMon 0.7 use it -------------------------------------------------------


def test_a_program_of_07(daemon: Make) -> None:
    """What 0.7 had is imported from where it was, and does what it did."""
    one = daemon({"jobs": {"web": WEB, "db": WEB}})
    events = transport.EventStream(one.event)
    commands = transport.CommandPipe(one.control)

    assert commands.get_jobs() == {"web": False, "db": False}
    commands.start_job("web")
    assert commands.is_running("web")
    assert not commands.is_running("db")
    pid: int | None = commands.get_pid("web")
    assert pid in kit.descendants_of(one.pid)
    assert commands.get_pid("db") is None
    event = events.next_event()
    assert isinstance(event, protocol.Event)
    assert (event.job_name, event.event_code) == event == ("web", protocol.EVENT_STARTJOB)
    commands.stop_job("web")
    job_name, event_code = events.next_event()  # type: ignore[misc] # in 0.7 an event was a pair
    assert (job_name, event_code) == ("web", protocol.EVENT_STOPJOB)
    for command, error in ((commands.start_job, "nope"), (commands.stop_job, "web")):
        with pytest.raises(transport.JobError):
            command(error)
    with pytest.raises(NameError):
        commands.get_pid("nope")
    commands.terminate()
    assert events.next_event() == jobmon.Event07("", protocol.EVENT_TERMINATE)
    events.destroy()
    commands.destroy()
    assert one.wait() == 0


def test_the_numbers_of_07() -> None:
    """They are in jobmon.protocol, and mean what they always meant."""
    names = "EVENT_STARTJOB EVENT_STOPJOB EVENT_RESTARTJOB EVENT_TERMINATE".split()
    assert [getattr(protocol, name) for name in names] == [0, 1, 2, 3]
    names = "CMD_START CMD_STOP CMD_STATUS CMD_JOB_LIST CMD_QUIT".split()
    assert [getattr(protocol, name) for name in names] == [3, 4, 5, 6, 7]
    assert transport.CommandPipe is jobmon.CommandPipe
    assert transport.EventStream is jobmon.EventStream
    assert transport.JobError is jobmon.JobError


# ---- CommandPipe --------------------------------------------------------------------------------


def test_the_verbs_are_methods(daemon: Make) -> None:
    """Each does what the command line does, waits as it does, and returns what is of use."""
    one = daemon({"jobs": {"web": WEB, "db": {**WEB, "description": "all of it"}}})
    pipe = one.pipe()
    watch = one.watch(since=0)
    token: int = pipe.start("web", "db", timeout=kit.DEADLINE, reason="to try it")
    jobs: dict[str, bool] = pipe.list_jobs()
    assert (token, jobs) == (watch.next().seq - 1, {"web": True, "db": True})
    before = pipe.pid("web")
    pipe.restart("web")
    assert pipe.pid("web") not in (None, before)
    status: list[jobmon.JobStatus] = pipe.status("db", "web")
    assert [(job.job, job.state, job.alive, job.run) for job in status] == [
        ("db", "running", True, 1),
        ("web", "running", True, 2),
    ]
    assert status[0].description == "all of it"
    assert [job.job for job in pipe.status()] == ["web", "db"]
    pipe.stop("web", "db", now=True)
    assert [job.result for job in pipe.status()] == ["SIGKILL", "SIGKILL"]
    told: dict[str, Any] = pipe.info()
    about = ("pid", "version", "config", "control", "event")
    wanted = [one.pid, jobmon.__version__, one.config, one.control, one.event]
    assert [told[name] for name in about] == wanted


def test_wait_returns_at_the_change(daemon: Make) -> None:
    """A wait over one connection ends with what another one does."""
    one = daemon({"jobs": {"web": WEB}})
    waiting, acting = one.pipe(), one.pipe()
    number = waiting.submit("wait", ("web",))
    waiting.info()  # answered after the wait was taken up
    acting.start("web")

    assert waiting.collect(number)["results"] == [{"job": "web", "ok": True}]


def test_signals_by_name_and_number(daemon: Make) -> None:
    """Names with and without SIG, numbers, and the members of Python's enum are all signals."""
    one = daemon({"jobs": {"web": {**WEB, "restart": True, "restart-window": 0}}})
    pipe, watch = one.pipe(), one.watch()
    pipe.start("web")
    causes = []
    for name in ("SIGUSR1", "usr2", 1, signal.SIGKILL):
        pipe.signal(name, "web", all=True)
        causes.append(watch.until("web", "died").cause)
        watch.until("web", "running")

    assert causes == ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL"]


def test_requests_overlap(daemon: Make) -> None:
    """Several can be under way on one connection; their replies may be collected in any order."""
    one = daemon({"jobs": {"web": WEB, "stubborn": {**STUBBORN, "autostart": True}}})
    pipe = one.pipe()
    slow = pipe.submit("stop", ("stubborn",))
    quick = pipe.submit("list")
    other = pipe.submit("start", ("web",))

    assert pipe.collect(other)["results"] == [{"job": "web", "ok": True}]
    assert pipe.collect(quick)["jobs"] == {"web": False, "stubborn": True}
    pipe.stop("stubborn", now=True)
    assert pipe.collect(slow)["results"] == [{"job": "stubborn", "ok": True}]


@pytest.mark.parametrize("kind", ["int", "digits", "path", "environment"])
def test_every_kind_of_port(daemon: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port is a number, its digits, or a path; None is what JOBMON_PORT says."""
    tcp = kind in ("int", "digits")
    ports = dict(zip(("control-port", "event-port"), e2e.free_ports(2), strict=True)) if tcp else {}
    one = daemon({"supervisor": ports, "jobs": {"web": WEB}})
    control, event = one.control, one.event
    if kind == "environment":
        monkeypatch.setenv("JOBMON_PORT", f"{control},{event}")
        pipe, stream = jobmon.CommandPipe(), jobmon.EventStream()
    elif kind == "digits":
        pipe, stream = jobmon.CommandPipe(str(control)), jobmon.EventStream(str(event))
    else:
        pipe, stream = jobmon.CommandPipe(control), jobmon.EventStream(event)
    with pipe, stream:
        pipe.start("web")
        assert stream.next_event() == jobmon.Event07("web", 0)


def test_contexts_close(daemon: Make) -> None:
    """Leaving the context closes the connection, also by an exception; closing twice is no error."""
    one = daemon({"jobs": {"web": WEB}})
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(jobmon.NoSuchJobError):
        with jobmon.CommandPipe(one.control) as pipe, jobmon.EventStream(one.event, rich=True) as stream:
            pipe.start("nope")
    pipe.destroy()
    stream.destroy()

    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(jobmon.ConnectionLost):
        pipe.list_jobs()
    with pytest.raises(jobmon.ConnectionLost):
        stream.next_event()


def test_reconnecting(daemon: Make) -> None:
    """When there is another daemon the same object serves again; a request that was under way is lost."""
    one = daemon({"jobs": {"web": WEB}})
    pipe = jobmon.CommandPipe(one.control)
    number = pipe.submit("wait", ("web",))
    pipe.info()
    e2e.crash(one)
    with pytest.raises(jobmon.ConnectionLost, match="closed the connection"):
        pipe.collect(number)
    for use in (pipe.list_jobs, pipe.reconnect):
        with pytest.raises(jobmon.DaemonUnreachable):
            use()
    ports = {"control-port": one.control, "event-port": one.event}
    other = daemon({"supervisor": ports, "jobs": {"db": WEB}})

    assert pipe.list_jobs() == {"db": False}
    assert pipe.info()["pid"] == other.pid
    with pytest.raises(jobmon.ConnectionLost):
        pipe.collect(number)
    pipe.reconnect()
    assert pipe.info()["pid"] == other.pid
    pipe.destroy()
    assert other.stop() == 0


@pytest.mark.parametrize("tcp", [False, True])
def test_a_pipe_from_before_the_daemon(daemon: Make, tmp_path: Path, tcp: bool) -> None:
    """It connects when it is used, as in 0.7: nobody has to be there when it is made, nor the same later."""
    places: list[int] | list[str] = e2e.free_ports(2) if tcp else [f"{tmp_path}/c", f"{tmp_path}/e"]
    same = {"control-port": places[0], "event-port": places[1]}
    early = jobmon.CommandPipe(places[0])
    one = daemon({"supervisor": same, "jobs": {"web": WEB}})
    early.start_job("web")
    assert one.stop() == 0
    with pytest.raises(OSError, match="no daemon answers"):
        early.is_running("web")
    other = daemon({"supervisor": same, "jobs": {"web": WEB}})

    assert not early.is_running("web")
    early.start_job("web")
    assert other.pipe().is_running("web")
    assert other.stop() == 0
    early.destroy()


def test_terminate_waits_for_a_daemon_in_another_pid_namespace(daemon: Make) -> None:
    """It is pid 1 there; who is pid 1 here does not end, and to wait for that one took ten seconds."""
    inits.need_place("pid 1 of unshare")
    one = daemon({"jobs": {"web": WEB}}, wrapper=inits.PLACES["pid 1 of unshare"], announced=False)
    one.wait_log("ready for clients")
    pipe = one.pipe()
    assert pipe.info()["pid"] == 1
    start = time.monotonic()
    pipe.terminate(wait=True)
    took = time.monotonic() - start

    assert took < client.LAST_BREATH / 2
    assert one.process.wait(kit.DEADLINE) == 0


def test_terminate_can_wait(daemon: Make) -> None:
    """With wait the daemon's process is dead when the method returns."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.pipe().terminate(wait=True)

    assert kit.processes()[one.pid].state == "Z"
    assert one.wait() == 0


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["start_job", "stop_job", "is_running", "get_pid", "start", "stop", "restart", "status", "wait"]
)
def test_an_unknown_job(daemon: Make, method: str) -> None:
    """It is a NoSuchJobError, which is a JobError and a NameError, and names the job."""
    pipe = daemon({"jobs": {"web": WEB}}).pipe()
    with pytest.raises(jobmon.NoSuchJobError, match="no such job") as caught:
        getattr(pipe, method)("né\n")

    assert isinstance(caught.value, jobmon.JobError)
    assert isinstance(caught.value, NameError)
    assert caught.value.code == "no-such-job"
    assert caught.value.results == (("né\n", "no-such-job", "no such job"),)
    assert str(caught.value) == "né\n: no such job"


@pytest.mark.parametrize(
    ("method", "job", "code"),
    [
        ("start", "up", "already-started"),
        ("start_job", "up", "already-started"),
        ("stop", "down", "already-stopped"),
        ("stop_job", "down", "already-stopped"),
        ("start", "no", "could-not-start"),
        ("start_job", "no", "could-not-start"),
        ("restart", "no", "could-not-start"),
    ],
)
def test_what_is_refused(daemon: Make, method: str, job: str, code: str) -> None:
    """It is a JobError whose code is the protocol's word, and which no other error is mistaken for."""
    jobs = {"up": {**WEB, "autostart": True}, "down": WEB, "no": {"command": ["/no"]}}
    pipe = daemon({"jobs": jobs}).pipe()
    with pytest.raises(jobmon.JobError) as caught:
        getattr(pipe, method)(job)

    assert type(caught.value) is jobmon.JobError
    assert caught.value.code == code


def test_results_of_several(daemon: Make) -> None:
    """Each job has its result, and the error has the code of the worst."""
    pipe = daemon(
        {"jobs": {"up": {**WEB, "autostart": True}, "down": WEB, "no": {"command": ["/no"]}}}
    ).pipe()
    with pytest.raises(jobmon.JobError) as caught:
        pipe.start("up", "down", "no")

    assert caught.value.code == "could-not-start"
    assert sorted(result[:2] for result in caught.value.results) == [
        ("down", ""),
        ("no", "could-not-start"),
        ("up", "already-started"),
    ]
    assert pipe.is_running("down")


@pytest.mark.parametrize("method", ["stop", "restart", "wait"])
def test_timeouts(daemon: Make, method: str) -> None:
    """A WaitTimeout comes when the daemon says so, and the connection is still of use."""
    pipe = daemon({"jobs": {"job": {**STUBBORN, "autostart": True}}}).pipe()
    with pytest.raises(jobmon.WaitTimeout, match="timed out"):
        getattr(pipe, method)("job", timeout=0.01)

    pipe.stop("job", now=True)
    assert pipe.get_pid("job") is None


def test_nonsense_is_refused(daemon: Make) -> None:
    """No job at all, a signal that there is not, a request that there is not: each an error of its own."""
    pipe = daemon({"jobs": {"web": {**WEB, "autostart": True}}}).pipe()
    with pytest.raises(TypeError, match="start needs the name of a job"):
        pipe.start()
    with pytest.raises(jobmon.JobError, match="unknown signal") as caught:
        pipe.signal("FOO", "web")
    assert caught.value.code == "bad-request"
    with pytest.raises(jobmon.JobError) as caught:
        pipe.request("frobnicate")
    assert caught.value.code == "unknown-command"
    with pytest.raises(jobmon.ProtocolError):
        pipe.start("\ud800")
    assert pipe.get_jobs() == {"web": True}


def test_no_daemon_there(tmp_path: Path) -> None:
    """It is a DaemonUnreachable, an OSError with its number, that says where it was looked for."""
    (port,) = e2e.free_ports(1)
    path = f"{tmp_path}/none"
    uses: tuple[Callable[[int | str], object], ...] = (
        jobmon.EventStream,
        lambda where: jobmon.CommandPipe(where).get_jobs(),
        lambda where: jobmon.CommandPipe(where).terminate(),
    )
    for use in uses:
        with pytest.raises(jobmon.DaemonUnreachable, match=f"127.0.0.1:{port}") as refused:
            use(port)
        with pytest.raises(OSError, match=path) as missing:
            use(path)
        assert (refused.value.errno, missing.value.errno) == (errno.ECONNREFUSED, errno.ENOENT)
        assert isinstance(missing.value, jobmon.DaemonUnreachable)


@pytest.mark.parametrize("port", [0, -1, 65536, "", "a\0b", "a,b", "0", "x" * 200])
def test_what_is_no_port(port: int | str) -> None:
    """It is refused as a ValueError before anything is tried."""
    for kind in (jobmon.CommandPipe, jobmon.EventStream):
        with pytest.raises(ValueError, match=r"port|socket"):
            kind(port)


def test_an_error_of_jobmon_is_known_as_one() -> None:
    """Whatever the API raises of its own is a JobMonError."""
    kinds = [getattr(jobmon, name) for name in jobmon.__all__ if name.endswith(("Error", "Timeout", "Lost"))]

    assert len(kinds) >= 8
    assert all(issubclass(kind, jobmon.JobMonError) for kind in (*kinds, jobmon.DaemonUnreachable))


# ---- EventStream --------------------------------------------------------------------------------


def test_iterating_ends_with_the_daemon(daemon: Make) -> None:
    """A for loop over the events ends by itself after the last of all."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    old, rich = one.events(), one.events(rich=True)
    one.pipe().terminate()

    assert list(old) == [jobmon.Event07("web", 1), jobmon.Event07("", 3)]
    assert [event.event for event in rich if isinstance(event, jobmon.EventMessage)] == [
        "state",
        "died",
        "terminated",
    ]


def test_a_stream_can_be_selected(daemon: Make) -> None:
    """Its fileno is readable just when an event is there: none is hidden in a buffer."""
    one = daemon({"jobs": {"web": WEB}})
    stream = one.events()
    assert select.select([stream], [], [], 0)[0] == []
    one.pipe().start("web")
    one.pipe().stop("web")

    codes: list[int] = []
    while len(codes) < 2:  # they may well come together
        assert select.select([stream], [], [], kit.DEADLINE)[0] == [stream]
        event = stream.next_event()
        assert isinstance(event, jobmon.Event07)
        codes.append(event.event_code)
    assert codes == [0, 1]
    assert select.select([stream], [], [], 0)[0] == []


def test_a_lost_daemon_is_no_end(daemon: Make) -> None:
    """A stream that breaks off without its last event raises ConnectionLost, also out of a loop."""
    one = daemon({"jobs": {"web": WEB}})
    first, second = one.events(), one.events(rich=True)
    e2e.crash(one)

    with pytest.raises(jobmon.ConnectionLost):
        first.next_event()
    with pytest.raises(jobmon.ConnectionLost):
        list(second)


def test_since_and_jobs(daemon: Make) -> None:
    """With since or jobs the events are rich, after that number, of those jobs."""
    one = daemon({"jobs": {"a": WEB, "b": WEB}})
    pipe = one.pipe()
    pipe.start("a")
    token = pipe.start("b")
    snapshot = one.events(jobs=("b",)).snapshot
    stream = one.events(since=token, jobs=("b",))
    first, second = stream.next_event(), stream.next_event()

    assert snapshot is not None
    assert [(job.job, job.state) for job in snapshot.jobs or ()] == [("b", "running")]
    assert isinstance(first, jobmon.EventMessage)
    assert isinstance(second, jobmon.EventMessage)
    assert [(event.seq, event.job, event.event) for event in (first, second)] == [
        (token + 1, "b", "launched"),
        (token + 2, "b", "state"),
    ]
