"""Nobody's requests, however many or large, hold up another client, a signal or a death.

The order is what is tested, not the time: the daemon is stopped until all is sent, so that it finds it
at once; the tokens of its answers tell what had happened before each.
"""

from __future__ import annotations

import os
import signal

import kit
import pytest
from test_clients import Raw, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MANY = 3000
PIPELINED = 600  # their answers fit into what a socket takes: nothing else interrupts them


@pytest.fixture
def held(daemon: Callable[..., kit.Daemon]) -> Iterator[Callable[..., kit.Daemon]]:
    """A factory of daemons that are stopped until somebody has sent something."""
    made: list[kit.Daemon] = []

    def make(jobs: dict[str, Any]) -> kit.Daemon:
        made.append(daemon({"jobs": jobs}))
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
