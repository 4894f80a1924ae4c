"""What systemd is told and what it hands over, on real sockets of our own: sd_notify(3),
sd_listen_fds(3), the journal. The same under a real systemd is in test_systemd.py."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time

import kit
import pytest

import jobmon
from jobmon.core.events import State
from jobmon.core.spec import JobSpec
from jobmon.core.supervisor import Supervisor
from jobmon.linux.daemon.systemd import Herald, Notifier, passed_sockets, watchdog_seconds
from jobmon.linux.kernel.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    MakeDaemon = Callable[..., kit.Daemon]


class Ear:
    """The manager's end of $NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[dict[str, str]] = []

    def next(self, seconds: float = kit.DEADLINE) -> dict[str, str]:
        """The next datagram, as its assignments."""
        assert kit.readable(self.socket.fileno(), seconds), f"nothing was told; before: {self.heard}"
        lines = self.socket.recv(65536).decode().split("\n")
        self.heard.append(dict(line.split("=", 1) for line in lines))
        return self.heard[-1]

    def until(self, name: str) -> dict[str, str]:
        """Read on until a datagram has an assignment to `name`."""
        while name not in self.next():
            pass
        return self.heard[-1]

    def status(self, wanted: str) -> dict[str, str]:
        """Read on until the status is (or begins as) `wanted`."""
        while not self.until("STATUS")["STATUS"].startswith(wanted):
            pass
        return self.heard[-1]

    def so_far(self) -> set[str]:
        """The words that were heard by now, of all that came."""
        while kit.readable(self.socket.fileno(), 0):
            self.next()
        return {name for words in self.heard for name in words}

    def fill(self) -> int:
        """Let others' datagrams fill the queue; how many there are."""
        count = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            other.connect(self.socket.getsockname())
            try:
                while True:
                    other.send(b"FILLER=1")
                    count += 1
            except BlockingIOError:
                return count

    def close(self) -> None:
        """Nobody listens any more."""
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    """A notify socket of either kind."""
    one = Ear(str(tmp_path / "notify") if request.param == "path" else f"@jobmon-{os.urandom(8).hex()}")
    yield one
    one.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Ear]:
    """A notify socket at a path."""
    one = Ear(str(tmp_path / "notify"))
    yield one
    one.close()


# ---- the notifier -----------------------------------------------------------------------------


def test_words_arrive_as_assignments(ear: Ear) -> None:
    """One datagram per telling, a line per word, at a path and in the abstract namespace."""
    notifier = Notifier({"NOTIFY_SOCKET": ear.address})
    notifier.tell(READY=1, STATUS="all is well")

    assert notifier
    assert ear.next() == {"READY": "1", "STATUS": "all is well"}
    notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_who_was_not_asked_says_nothing(address: str) -> None:
    """Without an address that means a socket here, telling does nothing."""
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    notifier.tell(READY=1)

    assert not notifier
    assert not notifier.unsent


def test_a_full_queue_blocks_nobody_and_loses_no_ready(ear: Ear) -> None:
    """What does not fit is kept, the newest of each word, and goes when there is room; STOPPING=1 goes
    in a datagram of its own, because together with it READY=1 would not count."""
    others = ear.fill()
    notifier = Notifier({"NOTIFY_SOCKET": ear.address})
    began = time.monotonic()
    notifier.tell(STATUS="one")
    notifier.tell(READY=1, STATUS="two")
    notifier.tell(STOPPING=1)
    notifier.tell(STATUS="three")
    assert time.monotonic() - began < 1
    assert notifier.unsent is True
    room = select.poll()
    room.register(notifier.fileno(), select.POLLOUT)
    assert room.poll(0) == []

    for _ in range(others):
        assert ear.next() == {"FILLER": "1"}
    assert room.poll(0) != []
    notifier.flush()
    assert notifier._waiting == []
    assert ear.next() == {"READY": "1", "STATUS": "two"}
    assert ear.next() == {"STOPPING": "1", "STATUS": "three"}
    notifier.close()


def test_a_full_queue_keeps_reloads_apart_from_all_else(told: Ear) -> None:
    """RELOADING=1 and the READY=1 after it wait in datagrams of their own; of several reloads the last does,
    however many come."""
    others = told.fill()
    notifier = Notifier({"NOTIFY_SOCKET": told.address})
    notifier.tell(STATUS="one")
    for turn in range(100):
        notifier.tell(RELOADING=1, MONOTONIC_USEC=turn)
        notifier.tell(READY=1, STATUS=f"turn {turn}")
    notifier.tell(WATCHDOG=1)
    notifier.tell(STOPPING=1)
    for _ in range(others):
        assert told.next() == {"FILLER": "1"}
    notifier.flush()

    heard = [told.next() for _ in range(4)]
    assert heard[0] == {"STATUS": "turn 98", "READY": "1"}
    assert heard[1] == {"RELOADING": "1", "MONOTONIC_USEC": "99"}
    assert heard[2] == {"READY": "1", "STATUS": "turn 99", "WATCHDOG": "1"}
    assert heard[3] == {"STOPPING": "1"}
    assert not notifier.unsent
    notifier.close()


def test_a_manager_that_went_away_is_no_trouble_and_may_come_back(told: Ear) -> None:
    """Nobody there: the words are lost. Somebody there anew, at the same place: they are heard."""
    notifier = Notifier({"NOTIFY_SOCKET": told.address})
    notifier.tell(STATUS="one")
    told.close()
    notifier.tell(STATUS="two")
    os.unlink(told.address)
    notifier.tell(STATUS="three")
    assert not notifier.unsent

    back = Ear(told.address)
    notifier.tell(STATUS="four")
    assert back.next() == {"STATUS": "four"}
    back.close()
    notifier.close()


def test_a_failed_start_fits_into_a_datagram(told: Ear) -> None:
    """Of a long story systemd is told the beginning, in one line, and the errno."""
    notifier = Notifier({"NOTIFY_SOCKET": told.address})
    notifier.failed(OSError("a\x1b" + "b" * 5000 + "\nsecond\nthird"), errno.ENOENT)
    heard = told.next()

    assert heard["ERRNO"] == "2"
    assert heard["STATUS"].startswith("a?bbb")
    assert heard["STATUS"].endswith("bbb... (and 2 more)")
    assert len(heard["STATUS"]) < 600
    notifier.close()


# ---- the herald -------------------------------------------------------------------------------


class Stage:
    """A herald with its surroundings, and no daemon. Jobs change by hand."""

    def __init__(self, ear: Ear, *names: str, watchdog: float = 0.0) -> None:
        self.ear = ear
        self.supervisor = Supervisor([JobSpec(name, "true") for name in names])
        self.notifier = Notifier({"NOTIFY_SOCKET": ear.address})
        self.failures: list[Exception] = []
        self.loop = Loop(lambda _where, error: self.failures.append(error))
        self.herald = Herald(self.notifier, self.supervisor, self.loop, watchdog)

    def change(self, name: str, state: State, patience: float | None = None) -> None:
        """Let a job be in a state, with so many seconds until its deadline."""
        job = self.supervisor.jobs[name]
        job.state = state
        job.armed = None if patience is None else time.monotonic() + patience
        self.herald.changed()

    def fire(self) -> None:
        """Let all that is set be due, but not what is set by it."""
        self.loop.run_due(max((one.when for one in self.loop._heap if one.active), default=0.0))

    def close(self) -> None:
        """Everything is closed, and nothing failed."""
        self.herald.close()
        self.loop.close()
        assert self.failures == []


@pytest.fixture
def stage(told: Ear) -> Iterator[Callable[..., Stage]]:
    """A factory of stages, with the arguments of Stage but its ear."""
    made: list[Stage] = []

    def make(*names: str, **options: float) -> Stage:
        made.append(Stage(told, *names, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_before_it_is_ready_the_start_is_extended_by_the_jobs_deadlines(stage: Callable[..., Stage]) -> None:
    """STATUS names whom the start waits for, and systemd waits as long as the job may."""
    one = stage("a", "b")
    one.change("a", State.STARTING, patience=60)
    one.herald.turn()
    heard = one.ear.next()

    assert heard["STATUS"] == "2 jobs: 1 stopped, 1 starting; waiting for a"
    assert 60e6 < int(heard["EXTEND_TIMEOUT_USEC"]) <= 70e6


def test_a_start_without_a_deadline_is_extended_again_and_again(stage: Callable[..., Stage]) -> None:
    """A oneshot may take any time: systemd hears so before its patience ends, as long as that one starts."""
    one = stage("a", "b")
    one.change("b", State.STARTING, patience=1)
    one.herald.turn()
    assert one.ear.next()["EXTEND_TIMEOUT_USEC"]
    assert one.loop.deadlines == 0  # whoever has a deadline is told of once

    one.herald._told_at = 0.0
    one.change("a", State.STARTING)
    one.herald.turn()
    assert one.ear.next()["STATUS"].endswith("waiting for a, b")
    for _ in range(3):
        one.herald._told_at = 0.0
        one.fire()
        one.herald.turn()
        heard = one.ear.next()
        assert set(heard) == {"EXTEND_TIMEOUT_USEC"}
        assert 10e6 <= int(heard["EXTEND_TIMEOUT_USEC"]) <= 11e6

    one.change("a", State.EXITED)
    one.herald.ready()
    assert one.ear.next()["READY"] == "1"
    one.herald._told_at = 0.0
    one.fire()
    one.herald.turn()
    assert one.loop.deadlines == 0
    assert not kit.readable(one.ear.socket.fileno(), 0)


def test_before_ready_what_is_too_late_is_waited_for_until_it_is_gone(stage: Callable[..., Stage]) -> None:
    """A job that missed its start-timeout is stopped with its patience: the start takes that much longer."""
    one = stage("a")
    one.change("a", State.STOPPING, patience=30)
    one.herald.turn()
    heard = one.ear.next()

    assert heard["STATUS"] == "1 job: 1 stopping; waiting for a"
    assert 30e6 < int(heard["EXTEND_TIMEOUT_USEC"]) <= 40e6


def test_once_ready_nothing_is_extended_until_the_stop(stage: Callable[..., Stage]) -> None:
    """Between READY and STOPPING there is nothing to extend; a stop is extended up to the last deadline."""
    one = stage("a", "b", "c")
    one.herald.ready()
    assert one.ear.next()["READY"] == "1"
    one.change("a", State.STOPPING, patience=5)
    one.change("b", State.KILLING, patience=30)
    one.change("c", State.RUNNING)
    one.herald.stopping()
    heard = one.ear.next()

    assert heard["STOPPING"] == "1"
    assert heard["STATUS"].endswith("1 running, 1 stopping, 1 killing; waiting for a, b")
    assert 30e6 < int(heard["EXTEND_TIMEOUT_USEC"]) <= 40e6


def test_what_is_not_urgent_is_told_twice_a_second_at_most(stage: Callable[..., Stage]) -> None:
    """A storm of changes comes to one status, when its time has come, and to the last of them."""
    one = stage("a")
    one.herald.ready()
    one.ear.next()
    for _ in range(100):
        for state in (State.STARTING, State.RUNNING, State.BACKOFF):
            one.change("a", state)
            one.herald.turn()
    assert not kit.readable(one.ear.socket.fileno(), 0)
    assert one.loop.deadlines == 1
    one.herald._told_at -= 1
    one.fire()
    one.herald.turn()

    assert one.ear.next() == {"STATUS": "1 job: 1 backoff"}
    assert not kit.readable(one.ear.socket.fileno(), 0)
    assert one.loop.deadlines == 0


def test_after_the_end_has_begun_it_is_never_ready(stage: Callable[..., Stage]) -> None:
    """STOPPING=1 is the last word: a READY=1 that comes too late is not told."""
    one = stage("a")
    one.herald.stopping()
    one.herald.ready()

    assert one.ear.next()["STOPPING"] == "1"
    assert not kit.readable(one.ear.socket.fileno(), 0)


def test_alive_is_told_after_a_full_turn_only(stage: Callable[..., Stage]) -> None:
    """Neither the begin nor the timer says WATCHDOG=1: the end of the turn in which it fired does, once."""
    one = stage(watchdog=10.0)
    one.herald.ready()
    one.ear.next()
    one.herald.begin()
    one.herald.turn()
    assert not kit.readable(one.ear.socket.fileno(), 0)
    one.fire()
    assert not kit.readable(one.ear.socket.fileno(), 0)
    one.herald.turn()
    assert one.ear.next() == {"WATCHDOG": "1"}
    one.herald.turn()
    assert not kit.readable(one.ear.socket.fileno(), 0)


def test_room_in_the_queue_wakes_the_loop_and_then_nothing_does(stage: Callable[..., Stage]) -> None:
    """Words that wait are watched for, and only while they wait."""
    one = stage("a")
    others = one.ear.fill()
    one.herald.ready()
    assert one.notifier.unsent
    one.loop.run_once(block=False)
    assert one.notifier.unsent
    for _ in range(others):
        one.ear.next()
    one.loop.run_once(block=True)

    assert one.ear.next()["READY"] == "1"
    assert not kit.readable(one.loop._epoll.fileno(), 0)


def test_names_cannot_forge_words_or_burst_the_datagram(stage: Callable[..., Stage]) -> None:
    """A job's name is shown in one line and cut; of many jobs three are named."""
    names = ["a\nREADY=1", "b" * 4000, "c", "d", "e"]
    one = stage(*names)
    for name in names:
        one.change(name, State.STARTING, patience=1)
    one.herald.turn()
    heard = one.ear.next()

    assert set(heard) == {"STATUS", "EXTEND_TIMEOUT_USEC"}
    assert heard["STATUS"].endswith(f"waiting for a?READY=1, {'b' * 57}..., c and 2 more")


# ---- what is handed over ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(environ: dict[str, str], seconds: float) -> None:
    """$WATCHDOG_USEC counts where $WATCHDOG_PID is absent or this process."""
    assert watchdog_seconds(environ, 7) == seconds


@pytest.mark.parametrize(
    ("count", "names", "found"),
    [
        ("2", "control:event", {3: "control", 4: "event"}),
        ("2", "event:control", {3: "event", 4: "control"}),
        ("2", "jobmon.socket:jobmon.socket", {3: "control", 4: "event"}),
        ("2", "", {3: "control", 4: "event"}),
        ("1", "event", {3: "event"}),
        ("3", "other:event:control", {3: "", 4: "event", 5: "control"}),
        ("3", "control:control:event", {3: "control", 4: "", 5: "event"}),
        ("3", "", {3: "control", 4: "event", 5: ""}),
        ("0", "", {}),
        ("many", "", {}),
        ("99999999999", "", {}),
    ],
)
def test_sockets_are_told_by_their_names(count: str, names: str, found: dict[int, str]) -> None:
    """By name where one has ours; else in order; what nobody asked for is known too."""
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": count, "LISTEN_FDNAMES": names}

    assert passed_sockets(environ, 7) == found
    assert passed_sockets(environ, 8) == {}


# ---- the daemon -------------------------------------------------------------------------------

SLEEPER = {"command": kit.FOR_EVER, "autostart": True}


def test_a_daemon_tells_its_life(daemon: MakeDaemon, ear: Ear) -> None:
    """READY=1 when the sockets listen and the jobs are launched; a status when something changes;
    STOPPING=1 as soon as it is told to end, with the patience of the one who keeps it."""
    jobs = {"a": SLEEPER, "b": {"command": kit.STUBBORN, "autostart": True, "kill-timeout": 30}}
    one = daemon({"jobs": jobs}, environ={"NOTIFY_SOCKET": ear.address})
    assert ear.until("READY")
    assert one.pipe().is_running("a")
    if "2 running" not in ear.heard[-1]["STATUS"]:
        ear.status("2 jobs: 2 running")
    one.run_cli("stop", "a")
    assert ear.status("2 jobs: 1 stopped, 1 running") == {"STATUS": "2 jobs: 1 stopped, 1 running"}

    one.process.terminate()
    stopping = ear.until("STOPPING")
    assert stopping["STATUS"] == "2 jobs: 1 stopped, 1 stopping; waiting for b"
    assert 35e6 < int(stopping["EXTEND_TIMEOUT_USEC"]) <= 40e6
    one.process.terminate()  # ends its patience
    assert one.wait() == 0


ENDS = {"command": "exit 7", "ready": {"fd": 3}}
AGAIN = {"restart": True, "restart-penalty": 1000}
GATED = {"command": "read line <go; echo >&3; exec sleep 1000000", "ready": {"fd": 3}}
HOLD_BACK: dict[str, dict[str, Any]] = {
    "starting": {"a": {**GATED, "autostart": True}},
    "waiting": {"db": GATED, "a": {**SLEEPER, "requires": ["db"]}},
    "waiting, in order only": {"db": {**GATED, "autostart": True}, "a": {**SLEEPER, "after": ["db"]}},
    "a oneshot": {"a": {"command": "read line <go", "type": "oneshot", "autostart": True}},
    "waiting for a oneshot": {
        "db": {"command": "read line <go", "type": "oneshot", "start-timeout": 60},
        "a": {**SLEEPER, "requires": ["db"]},
    },
    "given up in the end": {
        "a": {"command": "read line <go; exit 1", "ready": {"fd": 3}, "autostart": True},
        "b": SLEEPER,
    },
}


@pytest.mark.parametrize("name", HOLD_BACK)
def test_ready_waits_for_the_autostart_jobs(daemon: MakeDaemon, told: Ear, name: str) -> None:
    """What is launched is not ready: until each autostart job is, or is given up, systemd hears for whom the
    start waits, and is to wait as long as that one may take."""
    jobs = HOLD_BACK[name]
    one = daemon({"jobs": jobs}, environ={"NOTIFY_SOCKET": told.address}, announced=False)
    go = one.fifo("go")
    told.status(f"{len(jobs)} job")
    one.pipe().info()
    assert "READY" not in told.so_far()
    for heard in told.heard:
        timed = name != "a oneshot"  # that one may take any time, and has to go on saying so
        extended = int(heard["EXTEND_TIMEOUT_USEC"]) / 1e6
        assert 0 < extended <= 10 or (timed and 60 < extended <= 70)
    assert extended > 60 or not timed

    os.write(go.fd, b"go\n")
    assert told.until("READY")["STATUS"].find("waiting for") < 0
    assert "starting" not in {job.state for job in one.pipe().status()}


@pytest.mark.parametrize(
    "jobs",
    [
        {"a": {**ENDS, "autostart": True}},
        {"a": {"command": ["/no/such"], "autostart": True}},
        {"a": {**ENDS, "autostart": True, **AGAIN}},
        {"a": {**SLEEPER, "ready": {"fd": 3}, "start-timeout": 0.1}},
        {"db": ENDS, "a": {**SLEEPER, "requires": ["db"]}},
        {"db": {**ENDS, **AGAIN}, "a": {**SLEEPER, "requires": ["db"]}},
    ],
    ids=[
        "ended",
        "not started",
        "in backoff",
        "too late",
        "its requirement ended",
        "its requirement in backoff",
    ],
)
def test_what_does_not_get_ready_holds_nothing_up(
    daemon: MakeDaemon, told: Ear, jobs: dict[str, Any]
) -> None:
    """A job that has failed, for good or once, is that job's failure: the others are up, and that is told."""
    daemon({"jobs": {**jobs, "b": SLEEPER}}, environ={"NOTIFY_SOCKET": told.address})

    assert "1 running" in told.until("READY")["STATUS"]


def test_a_daemon_whose_words_do_not_fit_works_all_the_same(daemon: MakeDaemon, told: Ear) -> None:
    """With the manager's queue full from the start, clients are served, and READY=1 comes with room."""
    others = told.fill()
    one = daemon({"jobs": {"a": SLEEPER}}, environ={"NOTIFY_SOCKET": told.address})
    assert one.run_cli("restart", "a").code == 0

    for _ in range(others):
        assert told.next() == {"FILLER": "1"}
    assert told.until("READY")


def test_the_watchdog_is_fed_at_half_its_time(daemon: MakeDaemon, told: Ear) -> None:
    """WATCHDOG=1 comes every WATCHDOG_USEC/2. (Half a second of real time.)"""
    daemon({}, environ={"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": "400000"})
    told.until("WATCHDOG")
    began = time.monotonic()
    told.until("WATCHDOG")
    told.until("WATCHDOG")

    assert time.monotonic() - began > 0.3


def test_a_reload_is_told_from_its_beginning_to_its_end(daemon: MakeDaemon, told: Ear) -> None:
    """SIGHUP: RELOADING=1 with its time, then READY=1; where nothing was changed, with the reason."""
    one = daemon({}, environ={"NOTIFY_SOCKET": told.address})
    told.until("READY")
    for config, status in (({"jobs": {"new": {"command": "true"}}}, "1 job: 1 stopped"), ({"jobs": 1}, "")):
        one.configure(config)
        before = time.monotonic() * 1e6
        one.process.send_signal(signal.SIGHUP)
        begins, ends = told.next(), told.next()

        assert set(begins) == {"RELOADING", "MONOTONIC_USEC"}
        assert before - 1 <= int(begins["MONOTONIC_USEC"]) <= time.monotonic() * 1e6
        assert ends["READY"] == "1"
        assert ends["STATUS"] == status or ends["STATUS"].startswith(f"cannot reload: {one.config}:1:")
    one.run_cli("reload", "--dry-run")
    assert not kit.readable(told.socket.fileno(), 0)


def test_a_reload_before_it_is_ready_is_not_told(daemon: MakeDaemon, told: Ear) -> None:
    """READY=1 would come too early: it comes once, when the jobs of the new configuration are ready."""
    slow = {"command": "read x < gate; echo >&3; exec sleep 1000000", "ready": {"fd": 3}, "autostart": True}
    one = daemon({"jobs": {"slow": slow}}, announced=False, environ={"NOTIFY_SOCKET": told.address})
    gate = one.fifo("gate")
    one.stdout.line()
    one.configure({"jobs": {"slow": slow, "new": {"command": "true"}}})
    assert one.run_cli("reload").out == "+ new\n"
    os.write(gate.fd, b"\n")
    told.until("READY")

    assert not [words for words in told.heard if "RELOADING" in words]


def test_without_a_watchdog_nothing_is_fed(daemon: MakeDaemon, told: Ear) -> None:
    """And nothing wakes the daemon for it: from READY to STOPPING no word is said."""
    one = daemon({}, environ={"NOTIFY_SOCKET": told.address})
    told.until("READY")
    one.process.terminate()

    assert "STOPPING" in told.next()


def test_jobs_inherit_nothing_of_it(daemon: MakeDaemon, told: Ear) -> None:
    """What systemd says to the daemon alone is not in the environment of its jobs."""
    private = {
        "NOTIFY_SOCKET": told.address,
        "WATCHDOG_USEC": "60000000",
        "LISTEN_FDS": "0",
        "LISTEN_FDNAMES": "x",
        "LISTEN_PID": "1",
        "FDSTORE": "1",
        "JOURNAL_STREAM": "1:1",
    }
    one = daemon({"jobs": {"a": SLEEPER}}, environ={**private, "KEPT": "1"})
    pid = one.pipe().pid("a")
    assert pid is not None
    its = kit.environ_of(pid)

    assert set(private) & set(its) == set()
    assert its["KEPT"] == "1"


@pytest.mark.parametrize(
    ("config", "number", "says"),
    [
        ("{", errno.EINVAL, "jobmon.json:1:"),
        ('{"supervisor": {"working-dir": "/nonexistent"}}', errno.ENOENT, "working-dir /nonexistent"),
        ('{"supervisor": {"log-file": "/"}}', errno.EISDIR, "log-file /"),
        ('{"supervisor": {"control-port": "/nonexistent/x"}}', errno.ENOENT, "cannot listen on /none"),
        ('{"supervisor": {"control-port": "TAKEN"}}', errno.EADDRINUSE, "cannot listen on"),
    ],
)
def test_a_failed_start_is_told_with_its_errno(
    config: str, number: int, says: str, told: Ear, tmp_path: Path
) -> None:
    """Whatever keeps the daemon from starting: STATUS says why, ERRNO is the nearest that there is."""
    path = tmp_path / "jobmon.json"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "taken"))
        taken.listen()
        path.write_text(config.replace("TAKEN", str(tmp_path / "taken")))
        done = run_jobmon("daemon", str(path), NOTIFY_SOCKET=told.address)
    heard = told.next()

    assert done.code == 1
    assert heard["ERRNO"] == str(number)
    assert says in heard["STATUS"]
    assert heard["STATUS"].partition(" (and")[0] in done.err


def run_jobmon(
    *arguments: str, wrapper: tuple[str, ...] = (), stdin: Any = subprocess.DEVNULL, **environ: str
) -> kit.Done:
    """`jobmon ARGUMENTS`, to its end, by way of a program that executes it."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "jobmon", *arguments],
        env=os.environ | {"PYTHONPATH": kit.SOURCES} | environ,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=kit.DEADLINE,
        check=False,
    )
    return kit.Done(done.returncode, done.stdout, done.stderr)


def test_in_the_background_it_leaves_the_manager_alone(told: Ear, tmp_path: Path) -> None:
    """`PORT=$(jobmon daemon --background CONFIG)` in a script that is a notify service itself: it returns
    with the address, and the script's own words are the only ones."""
    path = tmp_path / "jobmon.json"
    path.write_text('{"supervisor": {"control-port": "$HERE/c", "event-port": "$HERE/e"}}')
    done = run_jobmon("daemon", "--background", str(path), NOTIFY_SOCKET=told.address, HERE=str(tmp_path))
    assert done.out == f"{tmp_path}/c,{tmp_path}/e\n"
    ended = run_jobmon("terminate", JOBMON_PORT=done.out.strip())

    assert ended.code == 0
    assert not kit.readable(told.socket.fileno(), 0)


# ---- sockets ----------------------------------------------------------------------------------

# Hands over descriptors as systemd does, and becomes the command that follows.
HAND_OVER = """
import os, sys
names, *rest = sys.argv[1:]
fds = [os.dup(int(fd)) for fd in rest[:rest.index("--")]]
high = [os.dup2(fd, 100 + n, inheritable=True) for n, fd in enumerate(fds)]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n, inheritable=True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execvp(rest[rest.index("--") + 1], rest[rest.index("--") + 1:])
"""


class Held:
    """Sockets that somebody holds for a daemon, as socket units do."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = names
        self.sockets = {}
        for name in dict.fromkeys(names):
            self.sockets[name] = socket.socket(socket.AF_UNIX)
            self.sockets[name].bind(str(folder / name))
            self.sockets[name].listen()

    def options(self, names: str) -> dict[str, Any]:
        """How to start a daemon that gets them, called `names`."""
        fds = [str(self.sockets[name].fileno()) for name in self.names]
        wrapper = [sys.executable, "-c", HAND_OVER, names, *fds, "--"]
        return {"wrapper": wrapper, "pass_fds": [int(fd) for fd in fds]}

    def close(self) -> None:
        """Let go."""
        for one in self.sockets.values():
            one.close()


@pytest.mark.parametrize("names", ["second:first:third", ""], ids=["named", "in order"])
def test_a_daemon_serves_the_sockets_it_is_given(daemon: MakeDaemon, tmp_path: Path, names: str) -> None:
    """Taken by name, whatever the order; a third one that nobody knows is closed, with a warning; the
    files are still there when the daemon is gone, and a client who came between two daemons is served."""
    order = ("e", "c", "x") if names else ("c", "e", "x")
    held = Held(tmp_path, *order)
    passed = held.options("event:control:other" if names else "")
    config = {"jobs": {"a": SLEEPER}}
    one = daemon(config, **passed)
    assert one.announcement == f"{tmp_path}/c,{tmp_path}/e"
    with jobmon.CommandPipe(f"{tmp_path}/c") as pipe, jobmon.EventStream(f"{tmp_path}/e"):
        assert pipe.is_running("a")
    assert "neither control nor event" in one.log
    assert one.stop() == 0

    with jobmon.CommandPipe(f"{tmp_path}/c") as early:
        daemon(config, **passed)
        assert early.is_running("a")
    held.close()


def test_what_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    """A datagram socket for control is an error that names the descriptor, and no daemon runs."""
    (tmp_path / "jobmon.json").write_text("{}")
    wrapper = (sys.executable, "-c", HAND_OVER, "control", "0", "--")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        done = run_jobmon("daemon", "-f", str(tmp_path / "jobmon.json"), wrapper=wrapper, stdin=wrong)

    assert done.code == 1
    assert "descriptor 3: it is no listening TCP or UNIX socket" in done.err


# ---- the journal ------------------------------------------------------------------------------


class Journal:
    """A stream socket such as journald gives its services, and what comes out of it."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.lines = kit.Lines(ours.detach())
        found = os.fstat(self.theirs.fileno())
        self.name = f"{found.st_dev}:{found.st_ino}"

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """`jobmon daemon ARGUMENTS`, with both streams on the journal."""
        environ = {"PYTHONPATH": kit.SOURCES, "JOURNAL_STREAM": self.name, **environ}
        stream = self.theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "jobmon", "daemon", *arguments],
            env=os.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        self.theirs.close()
        return process

    def close(self) -> None:
        """Nobody reads it any more."""
        self.lines.destroy()


@pytest.fixture
def journal() -> Iterator[Journal]:
    """A journal of our own: in a test's user manager there is none."""
    one = Journal()
    yield one
    one.close()


def test_the_journal_gets_levels_and_no_times(journal: Journal, tmp_path: Path) -> None:
    """Each line begins with its level and nothing else of the daemon's; what a job with "inherit" writes
    comes along as it is."""
    path = tmp_path / "jobmon.json"
    path.write_text(
        '{"supervisor": {"control-port": "$HERE/c", "event-port": "$HERE/e", "log-level": "INFO",'
        ' "include-dirs": ["none/*"]}, "jobs": {"a": {"command": "echo out; echo err >&2; sleep 1000000",'
        ' "autostart": true, "stdout": "inherit", "stderr": "inherit"},'
        ' "b": {"command": ["/nonexistent"], "autostart": true}}}'
    )
    process = journal.start("-f", str(path), HERE=str(tmp_path))
    for line in ("out\n", "err\n", 'to="failed"'):
        journal.lines.until(line)
    process.terminate()
    assert process.wait(kit.DEADLINE) == 0
    lines = journal.lines.drain().splitlines()

    assert {line for line in lines if line[:1] != "<"} == {"out", "err"}
    assert any(line.startswith("<4>jobmon: ") and "none/*" in line for line in lines)
    assert any(line.startswith('<6>state changed job="a" run=1') for line in lines)
    assert any(line.startswith('<3>state changed job="b"') for line in lines)
    assert any(line.startswith("<6>shutdown by=") for line in lines)


def test_the_journal_gets_a_failed_start_as_an_error(journal: Journal, tmp_path: Path) -> None:
    """`journalctl -p err` shows every line of why a daemon did not start."""
    path = tmp_path / "jobmon.json"
    path.write_text('{"job": {}, "jib": {}}')
    assert journal.start("-f", str(path)).wait(kit.DEADLINE) == 1
    lines = journal.lines.drain().splitlines()

    assert len(lines) == 2
    assert all(line.startswith("<3>jobmon: ") for line in lines)


def test_what_is_not_the_journal_gets_times(daemon: MakeDaemon) -> None:
    """$JOURNAL_STREAM that names something else, as in a shell under systemd, changes nothing."""
    one = daemon({}, environ={"JOURNAL_STREAM": "1:1"})
    one.stop()

    assert one.log[:2] == "20"
