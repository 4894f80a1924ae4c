"""Nobody's requests, however many or large, hold up another client, a signal or a death.

The order is what is tested, not the time: the daemon is stopped until all is sent, so that it finds it
at once; the tokens of its answers tell what had happened before each.
"""

from __future__ import annotations

import os
import signal
from typing import cast

import kit
import nasty
import pytest
from test_clients import Raw, frame
from test_quotas import as_root

from jobmon import protocol
from jobmon.core import causes
from jobmon.core.events import Launched, Reply, Spawned, State
from jobmon.core.spec import JobSpec
from jobmon.core.supervisor import Supervisor
from jobmon.linux.control import server
from jobmon.linux.kernel import sockets
from jobmon.linux.kernel.loop import Loop
from jobmon.linux.kernel.peers import Access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from jobmon.linux.control.port import Daemon

MANY = 3000
SOME = 40
CROWD = 40
STRANGER = 20_001
LISTENERS = 20
PIPELINED = 600  # their answers fit into what a socket takes: nothing else interrupts them


@pytest.fixture
def held(daemon: Callable[..., kit.Daemon]) -> Iterator[Callable[..., kit.Daemon]]:
    """A factory of daemons that are stopped until somebody has sent something."""
    made: list[kit.Daemon] = []

    def make(jobs: dict[str, Any], *, allow: Sequence[int] = ()) -> kit.Daemon:
        made.append(daemon({"supervisor": {"allow-users": list(allow)}, "jobs": jobs}))
        return made[-1]

    yield make
    for one in made:
        os.kill(one.pid, signal.SIGCONT)


@pytest.fixture
def connect() -> Iterator[Callable[[kit.Daemon], Raw]]:
    """A factory of clients that the daemon has accepted."""
    made: list[Raw] = []

    def make(one: kit.Daemon) -> Raw:
        made.append(Raw(one.control))
        made[-1].send(request("list"))
        assert made[-1].receive()["ok"]
        return made[-1]

    yield make
    for one in made:
        one.destroy()


def request(command: str, number: int = 0, **arguments: Any) -> bytes:
    return frame({"type": "request", "id": number, "command": command, **arguments})


def test_pipelined_requests_hold_up_nobody(
    held: Callable[..., kit.Daemon], connect: Callable[[kit.Daemon], Raw]
) -> None:
    """Two clients send hundreds of requests in one write each; the one of a third is done, and the death that
    it leads to is seen, before either of them has all answers."""
    one = held({"web": {"command": kit.FOR_EVER, "autostart": True}})
    greedy, operator = [connect(one), connect(one)], connect(one)
    watch = one.watch()
    os.kill(one.pid, signal.SIGSTOP)
    for client in greedy:
        client.send(b"".join(request("status", number, jobs=["web"]) for number in range(PIPELINED)))
    operator.send(request("signal", jobs=["web"], signal="KILL"))
    os.kill(one.pid, signal.SIGCONT)
    died = watch.until("web", "died").seq

    assert operator.receive()["ok"]
    for client in greedy:
        told = [client.receive() for _ in range(PIPELINED)]
        assert [each["id"] for each in told] == list(range(PIPELINED))
        assert told[-1]["token"] >= died


@as_root
def test_many_connections_of_a_user_hold_up_no_other(
    held: Callable[..., kit.Daemon], connect: Callable[[kit.Daemon], Raw]
) -> None:
    """Users have their turns, not connections: however many one has, another waits for a slice of one of them
    and not for one of each."""
    one = held({"web": {"command": kit.FOR_EVER}}, allow=[STRANGER])
    os.chmod(one.directory, 0o711)
    os.seteuid(STRANGER)
    try:
        greedy = [connect(one) for _ in range(CROWD)]
    finally:
        os.seteuid(0)
    operator = connect(one)
    os.kill(one.pid, signal.SIGSTOP)
    for client in greedy:
        client.send(b"".join(request("status", number, jobs=["web"]) for number in range(PIPELINED)))
    operator.send(request("start", jobs=["web"]))
    os.kill(one.pid, signal.SIGCONT)
    started = operator.receive()
    first = [client.receive() for client in greedy]

    assert started["ok"]
    assert sum(told["token"] <= started["token"] for told in first) < CROWD / 2


class Bench:
    """Sessions with a port, and as much of the daemon as they need: its loop turns when it is told to."""

    def __init__(self, path: str, role: str) -> None:
        self.supervisor = Supervisor([JobSpec("web", "true")])
        self.failed: list[Exception] = []
        self.loop = Loop(lambda _source, error: self.failed.append(error))
        self.sessions = server.Sessions(cast("Daemon", self), Access(os.geteuid()), 1)
        self.sessions.listen(sockets.listen(path, public=False), role)
        self.sessions.open()

    def act(self) -> None:
        """Hand out the answers of the supervisor."""
        for action in self.supervisor.take():
            if isinstance(action, Reply):
                self.sessions.reply(action)

    def served(self, clients: list[Raw]) -> list[int]:
        """Turn until all clients have something to read; how many had not before each turn."""
        left = []
        while waiting := [one for one in clients if not kit.readable(one.socket.fileno(), 0)]:
            left.append(len(waiting))
            self.turn()
        return left

    def turn(self) -> None:
        self.loop.run_once(block=True)
        assert self.failed == []

    def close(self) -> None:
        self.sessions.close()
        self.loop.close()


def test_listeners_are_told_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a turn has no time for more, each of many listeners hears of an event in a turn of its own, and
    none is left out."""
    monkeypatch.setattr(server, "TURN_SECONDS", 0.0)
    bench = Bench(str(tmp_path / "event"), protocol.EVENTS)
    listeners = [Raw(str(tmp_path / "event")) for _ in range(LISTENERS)]
    while len(bench.sessions) < LISTENERS:
        bench.turn()
    bench.supervisor.log.add(0.0, "web", "launched", State.STARTING, 1, 4711, causes.START)
    bench.sessions.publish()

    assert bench.served(listeners) == list(range(LISTENERS, 0, -1))
    for one in listeners:
        assert one.receive() == {"type": 0, "job": "web", "event": 0}
        one.destroy()
    bench.close()


def test_answers_are_sent_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many wait for the same: it is decided at once for all, and each is told in a turn of its own."""
    monkeypatch.setattr(server, "TURN_SECONDS", 0.0)
    bench = Bench(str(tmp_path / "control"), protocol.CONTROL)
    clients = [Raw(str(tmp_path / "control")) for _ in range(LISTENERS)]
    for number, client in enumerate(clients):
        client.send(request("wait", number, jobs=["web"], **{"for": "running"}, acts=True))
    while len(bench.supervisor.waiters) < LISTENERS:
        bench.turn()
    bench.supervisor.start(["web"], None, 0.0)
    bench.supervisor.feed("web", Launched(1, 4711), 0.0)
    bench.supervisor.feed("web", Spawned(1), 0.0)
    assert len(bench.supervisor.waiters) == 0
    bench.act()

    assert bench.served(clients) == list(range(LISTENERS, 0, -1))
    for number, client in enumerate(clients):
        told = client.receive()
        assert (told["id"], told["ok"]) == (number, True)
        client.destroy()
    bench.close()


# In a daemon: one action a turn, and of each SIGKILL the turn of the loop in which it was sent.
ONE_BY_ONE = """
from jobmon.linux.daemon import engine
from jobmon.linux.processes.children import Children
engine.ACT_SECONDS = 0.0
known = Children.kill
def kill(self, job, run):
    with open({path!r}, "a") as file:
        file.write(f"{{self._loop.turns}}\\n")
    known(self, job, run)
Children.kill = kill
"""


def test_a_command_about_many_jobs_holds_up_nobody(daemon: Callable[..., kit.Daemon], tmp_path: Path) -> None:
    """What a stop of many jobs asks for is carried out as far as the time of a turn goes, the rest in the
    next ones, so that clients, deaths and signals come between; and in the end all is as ordered."""
    turns = tmp_path / "turns"
    slow = nasty.broken(str(tmp_path), ONE_BY_ONE.format(path=str(turns)))
    names = [f"job{number}" for number in range(SOME)]
    one = daemon({"jobs": {name: {"command": kit.FOR_EVER, "restart": True} for name in names}}, environ=slow)
    pipe = one.pipe()
    pipe.start(*names)
    pipe.stop(*names, now=True)
    seen = [int(line) for line in turns.read_text().split()]

    assert len(set(seen)) == len(seen) == SOME
    assert not any(pipe.list_jobs().values())
    pipe.restart(*names)
    assert all(pipe.list_jobs().values())
    assert one.stop() == 0


def test_a_large_request_holds_up_nobody(
    held: Callable[..., kit.Daemon], connect: Callable[[kit.Daemon], Raw]
) -> None:
    """A question about thousands of jobs is answered step by step; the start of another client comes between,
    and what is said of all jobs is true of one moment all the same."""
    names = [f"job{number}" for number in range(MANY)]
    one = held({name: {"command": kit.FOR_EVER} for name in names})
    greedy, curious, operator = connect(one), connect(one), connect(one)
    os.kill(one.pid, signal.SIGSTOP)
    greedy.send(request("status"))
    curious.send(request("why", jobs=names[::-1]))
    operator.send(request("start", jobs=[names[0]]))
    os.kill(one.pid, signal.SIGCONT)
    started, status, why = operator.receive(), greedy.receive(), curious.receive()

    assert started["ok"]
    assert status["token"] > started["token"]
    states = {each["job"]: (each["state"], each["run"]) for each in status["jobs"]}
    assert list(states) == names
    assert states.pop(names[0]) == ("running", 1)
    assert set(states.values()) == {("stopped", 0)}
    assert [each["job"] for each in why["jobs"]] == names[::-1]
    assert why["jobs"][-1]["events"]  # it was started while the others were explained


def test_a_snapshot_is_of_one_moment(
    held: Callable[..., kit.Daemon], connect: Callable[[kit.Daemon], Raw]
) -> None:
    """A subscription to thousands of jobs gives way to others too; what happens meanwhile is in the snapshot
    or in the events that follow, and in one of them alone."""
    names = [f"job{number}" for number in range(MANY)]
    one = held({name: {"command": kit.FOR_EVER} for name in names})
    operator, listener = connect(one), Raw(one.event)
    os.kill(one.pid, signal.SIGSTOP)
    listener.send(frame({"type": "subscribe"}))
    operator.send(request("start", jobs=[names[0]]))
    os.kill(one.pid, signal.SIGCONT)
    snapshot, started = listener.receive(), operator.receive()
    operator.send(request("stop", jobs=[names[0]]))

    state = next(each["state"] for each in snapshot["jobs"] if each["job"] == names[0])
    assert (state == "stopped") == (snapshot["seq"] == started["token"])
    seen = [listener.receive() for _ in range(2)]
    assert [each["seq"] for each in seen] == [snapshot["seq"] + 1, snapshot["seq"] + 2]
    assert operator.receive()["ok"]
    listener.destroy()
