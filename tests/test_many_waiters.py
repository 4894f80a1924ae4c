"""Very many who wait: what a turn costs is counted in steps, not in seconds; memory is the real daemon's."""

from __future__ import annotations

import gc
import socket
import sys
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import kit
import pytest

from jobmon.core import conditions, events
from jobmon.core.spec import FdReadiness, JobSpec
from jobmon.core.supervisor import Supervisor
from jobmon.protocol import CLIENT, Connection, ReplyMessage, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from jobmon.core.conditions import Condition, Mark
    from jobmon.core.events import JobResult, Reply
    from jobmon.core.machine import Job

    Make = Callable[..., kit.Daemon]

MANY = 1000
OTHERS = 10_000
READY = FdReadiness(3)
WEB = {"command": kit.FOR_EVER}
# What a round may add: the log of events grows by some. A thousand waiters of which 100 bytes each were kept
# would add twice as much.
SLACK_KIB = 48
ROUNDS = 16
# What stays of the first thousand for the next: tables, and arenas of a MiB that were never needed before.
FIRST_KIB = 3072


# ---- the supervisor -------------------------------------------------------------------------------


def steps(work: Callable[[], object]) -> int:
    """What something costs: the number of instructions that Python executes for it."""
    count = 0

    def see(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return see

    before = sys.gettrace()
    gc.disable()  # somebody may have hooked into it, as hypothesis does
    sys.settrace(see)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


class Crowd:
    """A supervisor with two jobs, `web` and `other`, and how often anybody looks at them."""

    def __init__(self, on_web: int = 0, on_other: int = 0, until: str = "ready", **arguments: Any) -> None:
        self.supervisor = Supervisor([JobSpec(name, "true", ready=READY) for name in ("web", "other")])
        self.looks: Counter[str] = Counter()
        self.count = 0
        self.until = until, self.counted(conditions.condition(until, 5.0))
        for name, number in (("web", on_web), ("other", on_other)):
            self.supervisor.start([name], f"start {name}", 0.0)
            self.supervisor.feed(name, events.Launched(1, 100), 0.0)
            for _ in range(number):
                self.wait(name, **arguments)
        self.supervisor.take()
        self.looks.clear()

    def counted(self, condition: Condition) -> Condition:
        """The same condition, which counts."""

        def look(job: Job, since: Mark, now: float) -> JobResult | float | None:
            self.looks[job.spec.name] += 1
            return condition(job, since, now)

        return look

    def wait(self, *names: str, timeout: float | None = 3600.0) -> int:
        """One more who waits."""
        self.count += 1
        self.supervisor.wait(names, self.count, 0.0, until=self.until, timeout=timeout)
        return self.count

    def drop(self) -> None:
        """The last of them goes."""
        self.supervisor.drop(self.count)

    def get_ready(self) -> list[Reply]:
        """What all wait for: those who are told of it."""
        self.supervisor.feed("web", events.Ready(1), 1.0)
        return [action for action in self.supervisor.take() if isinstance(action, events.Reply)]

    def stop(self) -> list[events.Action]:
        """Something else."""
        self.supervisor.stop(["web"], "stop", 1.0)
        return self.supervisor.take()


def test_each_is_answered_once() -> None:
    """A thousand on one job: as many answers, each to another one, and nobody waits any more."""
    crowd = Crowd(MANY)
    told = crowd.get_ready()

    assert Counter(reply.to for reply in told) == Counter(range(1, MANY + 1))
    assert all(reply.ok for reply in told)
    assert len(crowd.supervisor.waiters) == 0
    assert crowd.get_ready() == []


def test_those_of_another_job_are_not_looked_at() -> None:
    """One look at each who waits for the job that changes, none at ten thousand others."""
    crowd = Crowd(MANY, OTHERS)
    crowd.stop()
    assert crowd.looks == {"web": MANY}

    crowd.looks.clear()
    crowd.supervisor.feed("web", events.Exited(1, "SIGTERM"), 1.0)
    assert crowd.looks == {"web": MANY}
    assert len(crowd.supervisor.waiters) == OTHERS


@pytest.mark.parametrize("timeout", [None, 3600.0])
@pytest.mark.parametrize("turn", [Crowd.get_ready, Crowd.stop])
def test_a_turn_costs_what_waits_for_its_job(turn: Callable[[Crowd], object], timeout: float | None) -> None:
    """Twice as many on the job cost twice as much, to the very step; others cost nothing at all."""
    cost = {}
    for on_web, on_other in ((0, 0), (100, 0), (200, 0), (400, 0), (100, OTHERS)):
        crowd = Crowd(on_web, on_other, timeout=timeout)
        cost[on_web, on_other] = steps(lambda crowd=crowd: turn(crowd))  # type: ignore[misc]

    assert cost[100, OTHERS] == cost[100, 0]
    assert cost[400, 0] - cost[200, 0] == 2 * (cost[200, 0] - cost[100, 0]) > 0


@pytest.mark.parametrize("work", [lambda crowd: crowd.wait("web"), Crowd.drop])
def test_to_come_and_to_go_costs_the_same_in_a_crowd(work: Callable[[Crowd], object]) -> None:
    """Whoever comes or goes is alone for it, however many are there."""
    few, many = Crowd(2, 2), Crowd(MANY, OTHERS)
    few.wait("web")
    many.wait("web")

    assert steps(lambda: work(few)) == steps(lambda: work(many))


def test_a_deadline_is_that_of_one() -> None:
    """When the time of one is up nobody is looked at, himself included: nothing has changed."""
    crowd = Crowd(MANY, OTHERS)
    crowd.wait("web", timeout=5.0)
    key = next(action.key for action in crowd.supervisor.take() if isinstance(action, events.Arm))
    crowd.looks.clear()
    crowd.supervisor.timer(key, 0, 5.0)

    assert not crowd.looks
    assert [action.to for action in crowd.supervisor.take() if isinstance(action, events.Reply)] == [
        crowd.count
    ]


# ---- the daemon -----------------------------------------------------------------------------------


class Connected:
    """Connections to a daemon with requests on each of them."""

    def __init__(self, one: kit.Daemon, connections: int, each: int, **arguments: Any) -> None:
        self.links = [(socket.socket(socket.AF_UNIX), Connection(CLIENT)) for _ in range(connections)]
        numbers = range(1, each + 1)
        self.expected = Counter((link, number) for link in range(connections) for number in numbers)
        for raw, protocol in self.links:
            raw.settimeout(kit.DEADLINE)
            raw.connect(str(one.control))
            requests = (Request(number, "wait", ("web",), **arguments) for number in numbers)
            raw.sendall(b"".join(map(protocol.send, requests)))
        assert self.said() == []

    def said(self, *, last: int = 0) -> list[tuple[int, ReplyMessage]]:
        """All that was said by now, on each link but the `last` ones: a further request marks the end."""
        found = []
        for link, (raw, protocol) in enumerate(self.links[: len(self.links) - last]):
            raw.sendall(protocol.send(Request(0, "info")))
            replies: list[Any] = []
            while not any(reply.id == 0 for reply in replies):
                data = raw.recv(1 << 16)
                assert data, "the daemon has closed the connection"
                replies += protocol.receive(data)
            found += [(link, reply) for reply in replies if reply.id]
        return found

    def close(self) -> None:
        for raw, _ in self.links:
            raw.close()


def own_memory(one: kit.Daemon) -> int:
    """The KiB that are the daemon's own (proc_pid_smaps_rollup(5)), once it has dealt with all that came."""
    one.pipe().info()
    one.pipe().info()  # a turn after the first: those who have hung up are forgotten
    with open(f"/proc/{one.pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


@pytest.mark.parametrize(
    ("connections", "each", "arguments"),
    [
        (4, 250, {}),
        (4, 250, {"condition": "running", "acts": True, "timeout": 3600.0}),
        (4, 250, {"condition": "ready", "acts": True}),
        (250, 4, {"condition": "restarted", "timeout": 3600.0}),
    ],
    ids=["changed", "running", "ready", "many connections"],
)
def test_a_thousand_are_answered_once(
    daemon: Make, connections: int, each: int, arguments: dict[str, Any]
) -> None:
    """Over few connections and over many: one event, and one answer to everybody."""
    one = daemon({"jobs": {"web": WEB, "other": WEB}})
    crowd = Connected(one, connections, each, **arguments)
    steady = Connected(one, 2, 10, condition="stable", duration=3600.0, acts=True)
    one.pipe().start("other")
    assert crowd.said() == []

    one.pipe().start("web")
    replies = crowd.said()
    assert Counter((link, reply.id) for link, reply in replies) == crowd.expected
    assert all(reply.ok for _, reply in replies)
    one.pipe().signal("KILL", "web")
    one.pipe().wait("web", condition="stopped")
    assert crowd.said() == []
    assert len(steady.said()) == 20  # their time had begun, and has ended with the job
    crowd.close()
    steady.close()


def test_one_who_does_not_listen_holds_up_nobody(daemon: Make) -> None:
    """Answers to one who was stopped wait in the kernel; all others have theirs, and so has it in the end."""
    one = daemon({"jobs": {"web": WEB}})
    crowd = Connected(one, 11, 90, condition="changed")
    one.pipe().start("web")
    assert len(crowd.said(last=1)) == 10 * 90

    one.pipe().stop("web")
    late = [(link, reply.id) for link, reply in crowd.said()]
    assert Counter(late) == Counter((10, number) for number in range(1, 91))
    crowd.close()


@pytest.mark.parametrize(
    ("connections", "answered"), [(4, True), (250, True), (250, False)], ids=["few", "many", "hung up"]
)
def test_the_memory_is_back(daemon: Make, connections: int, answered: bool) -> None:
    """When a thousand waiters are gone, answered or not, the daemon is as large as it was before them.

    As large as after the first such round, that is: it has made room for so many (a table of Python's does
    not shrink). The allocator takes a step now and then, but most rounds add nothing.
    """
    one = daemon({"jobs": {"web": WEB}})
    sizes = [own_memory(one)]

    def round_of_waiters() -> None:
        crowd = Connected(one, connections, MANY // connections, timeout=3600.0)
        if answered:
            verb = "stop" if one.pipe().is_running("web") else "start"
            getattr(one.pipe(), verb)("web")
            assert len(crowd.said()) == len(crowd.expected)
        crowd.close()
        sizes.append(own_memory(one))

    for _ in range(ROUNDS):
        round_of_waiters()
    growth = sorted(after - before for before, after in pairwise(sizes[1:]))

    assert growth[len(growth) // 2] <= SLACK_KIB, sizes
    assert sizes[-1] - sizes[0] <= FIRST_KIB, sizes
