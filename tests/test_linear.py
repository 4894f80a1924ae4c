"""No request costs more than its share: twice the names are twice the work, and no more.

Counted are the calls of functions, in Python and in C, and the comparisons of names: a tuple that is
searched calls nothing, but it compares.
"""

from __future__ import annotations

import gc
import sys

import pytest

from jobmon.core import conditions, events
from jobmon.core.causes import START, exited
from jobmon.core.eventlog import EventLog
from jobmon.core.events import State
from jobmon.core.spec import FdReadiness, JobSpec
from jobmon.core.supervisor import Supervisor
from jobmon.linux.control import replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

SMALL, LARGE = 200, 400
GROWTH = 2.3  # twice the names may cost so much more


class Name(str):
    """A name that counts how often it is compared with another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        Name.compared += 1
        return str.__ne__(self, other)

    __hash__ = str.__hash__


def cost(work: Callable[[], object]) -> int:
    """How many calls and comparisons something takes."""
    calls = 0

    def see(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    Name.compared = 0
    gc.disable()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return calls + Name.compared


class Chain:
    """A supervisor whose jobs each require the one before."""

    def __init__(self, length: int, *, up: bool) -> None:
        self.names = [Name(f"job{number}") for number in range(length)]
        specs = [
            JobSpec(name, "true", requires=tuple(self.names[place - 1 : place]), ready=FdReadiness(3))
            for place, name in enumerate(self.names)
        ]
        self.supervisor = Supervisor(specs)
        self.supervisor.start(self.names, "first", 0.0, wait=True)
        for name in self.names if up else ():
            self.supervisor.feed(name, events.Launched(1, 100), 0.0)
            self.supervisor.feed(name, events.Spawned(1), 0.0)
            self.supervisor.feed(name, events.Ready(1), 0.0)
        self.supervisor.take()

    def backwards(self) -> list[Name]:
        return self.names[::-1]


def stop(chain: Chain) -> None:
    chain.supervisor.stop(chain.backwards(), "me", 1.0)
    chain.supervisor.take()


def start(chain: Chain) -> None:
    chain.supervisor.start(chain.backwards(), "me", 1.0)
    chain.supervisor.take()


def restart(chain: Chain) -> None:
    chain.supervisor.restart(chain.backwards(), "me", 1.0)
    chain.supervisor.take()


def stop_and_start(chain: Chain) -> None:
    stop(chain)
    chain.supervisor.start(chain.backwards(), "again", 2.0)


def lose_the_first(chain: Chain) -> None:
    chain.supervisor.feed(chain.names[0], events.Exited(1, 1), 1.0)
    chain.supervisor.take()


def wait(chain: Chain) -> None:
    chain.supervisor.wait(chain.names, "me", 1.0, until=("stopped", conditions.stopped), since=0)


def explain(chain: Chain) -> None:
    for name in chain.names:
        replies.why(chain.supervisor, name, 1.0, lambda _: "")


def say_what_goes_first(chain: Chain) -> None:
    chain.supervisor.turns.going_before(chain.names[::2])


WORK = {
    work.__name__: work
    for work in (stop, start, restart, stop_and_start, lose_the_first, wait, explain, say_what_goes_first)
}


@pytest.mark.parametrize("up", [True, False], ids=["up", "waiting"])
@pytest.mark.parametrize("what", WORK)
def test_twice_the_names_are_twice_the_work(what: str, up: bool) -> None:
    """Commands and questions about a whole chain of jobs are linear, whether it runs or waits."""
    few, many = Chain(SMALL, up=up), Chain(LARGE, up=up)

    assert cost(lambda: WORK[what](many)) <= GROWTH * cost(lambda: WORK[what](few))


def test_the_cause_of_a_loss_is_bounded() -> None:
    """The loss of a requirement goes along a chain of a thousand, and no cause tells of all of them."""
    chain = Chain(1000, up=False)
    lose_the_first(chain)

    causes = [str(chain.supervisor.jobs[name].cause) for name in chain.names[1:]]
    assert causes[0] == "requires job0, which is failed: exit 1"
    assert causes[1] == "requires job1, which is failed: requires job0, which is failed: exit 1"
    assert max(map(len, causes)) < 2100
    assert causes[-1].startswith("requires job998, which is failed: requires job997, which is failed: ")
    assert causes[-1].endswith("...")


def filled(events_of_others: int) -> EventLog:
    log, other = EventLog({"web", "other"}), Name("other")
    for number in range(30):
        log.add(float(number), "web", "launched", State.RUNNING, number, 1, START)
    for number in range(events_of_others):
        log.add(30.0 + number, other, "launched", State.RUNNING, number, 1, START)
    return log


@pytest.mark.parametrize(
    "ask",
    [lambda log: log.of("web"), lambda log: log.history("web", 20), lambda log: log.time(25)],
    ids=["of", "history", "time"],
)
def test_the_events_of_a_job_are_found_without_a_scan(ask: Callable[[EventLog], object]) -> None:
    """What has happened to a job costs the same, however much happened to another after it."""
    few, many = filled(0), filled(9_000)

    assert cost(lambda: ask(few)) == cost(lambda: ask(many))


def test_a_token_costs_no_scan_of_what_others_did() -> None:
    """To count from a token on looks at the events of the jobs named alone."""

    def wait_after(others: int) -> int:
        supervisor = Supervisor([JobSpec("web", "true"), JobSpec("other", "true")])
        supervisor.log = filled(others)
        return cost(lambda: supervisor.wait(["web"], "me", 99.0, since=29))

    assert wait_after(0) == wait_after(9_000)


def test_the_events_of_a_job_are_told_back_to_a_number() -> None:
    """The log gives a job's events from the latest back to any number, and none that have left the ring."""
    log = filled(5)
    log.add(99.0, "web", "died", State.EXITED, 29, 1, exited(0))

    assert [event[0] for event in log.back("web")] == [36, *range(30, 0, -1)]
    assert [event[0] for event in log.back("web", 28)] == [36, 30, 29]
    assert list(log.back("nobody")) == []
    for number in range(10_000):
        log.add(100.0 + number, "other", "launched", State.RUNNING, number, 1, START)
    assert list(log.back("web")) == []
    assert [event[5] for event in log.of("web")] == [*range(21, 30), 29]
