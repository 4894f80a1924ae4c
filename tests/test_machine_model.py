"""All that can happen to one job, and proof that a table broken in any cell is seen there."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jobmodel
import pytest
from jobmodel import Case, Violation, explore, explore_again

from jobmon.core import causes, events, machine
from jobmon.core.events import State
from jobmon.core.machine import TABLE, Job
from jobmon.core.spec import JobType, Restart

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.core.events import Input

    Cell = Callable[[Job, Any, float], None]

pytestmark = pytest.mark.slow

CELLS = sorted({cell for row in TABLE.values() for cell in row.values()}, key=lambda cell: cell.__name__)
REACHED = (Case(Restart.NEVER, jobmodel.READY, jobmodel.START_TIMEOUT), Case(Restart.ON_FAILURE))
ENDS: dict[Restart, set[State]] = {
    Restart.NEVER: {State.EXITED, State.FAILED},
    Restart.ON_FAILURE: {State.EXITED},
    Restart.ALWAYS: set(),
}

# Mutants that change nothing that anybody could see: row, state, the cell put there, and why it is the same.
EQUIVALENT = {
    ("Stop", "stopped", "keep"): "stopped stays stopped",
    ("Stop", "stopped", "lose_leader"): "stopped stays stopped, and has no leader to lose",
    ("Shutdown", "stopped", "keep"): "stopped stays stopped",
    ("Shutdown", "stopped", "lose_leader"): "stopped stays stopped, and has no leader to lose",
    ("Start", "waiting", "lose_leader"): "what waits has no leader to lose",
    ("RestartJob", "waiting", "lose_leader"): "what waits has no leader to lose",
    **{
        ("SpecChanged", state.value, "adopt_spec_wanted"): "only a leaving job has a removal to take back"
        for state in set(State) - events.LEAVING
    },
    (
        "Ready",
        "running",
        "spawned",
    ): "who says ready was launched to say so, and `spawned` leaves those alone",
    (
        "Ready",
        "stopping",
        "spawned",
    ): "who says ready was launched to say so, and `spawned` leaves those alone",
    (
        "Ready",
        "killing",
        "spawned",
    ): "who says ready was launched to say so, and `spawned` leaves those alone",
}


ALWAYS_MET = set(State) - {State.EXITED, State.FAILED}


@functools.cache
def explored(case: Case) -> jobmodel.Explored:
    """An exploration is only read, so one for all tests is enough."""
    return explore(case)


@pytest.mark.parametrize("case", [*jobmodel.CASES, *jobmodel.LIMITED], ids=str)
def test_every_promise_holds_everywhere(case: Case) -> None:
    """Whatever comes in whatever order, no path of one job breaks a promise; policy says how it may end."""
    found = explored(case)
    limit = set() if case.max_restarts is None else {State.FAILED}
    done = {State.EXITED} if case.type is JobType.ONESHOT else set()
    ways = {(edge.after, edge.label) for edge in found.edges if edge.before is not edge.after}
    ends = {state for state, label in ways if state in jobmodel.ENDED and label != "requirement lost"}

    assert (State.FAILED, "requirement lost") in ways
    assert ends == ENDS[case.policy] | limit | done
    assert {node.job.state for node in found.nodes.values()} == ALWAYS_MET | ends | {State.FAILED}
    assert len(found.nodes) > 1000
    assert found.moves > 10_000


def test_every_cell_is_reached() -> None:
    """The exploration comes through every cell that is not impossible, and through every way to be so."""
    met: set[tuple[type[Input], State]] = set()
    for case in REACHED:
        for node in explored(case).nodes.values():
            met |= {(type(move.what), node.job.state) for move in jobmodel.moves(node)}

    assert met == {(kind, state) for kind, row in TABLE.items() for state in row}


def test_every_broken_cell_is_caught() -> None:
    """Each cell replaced by each other one breaks a promise, but for the listed equivalents."""
    found = [explored(case) for case in REACHED]
    survivors = set()
    for kind, row in TABLE.items():
        for state in State:
            for cell in CELLS:
                if cell is not row[state] and not _caught(found, kind, state, cell):
                    survivors.add((kind.__name__, state.value, cell.__name__))

    assert survivors == set(EQUIVALENT)


def _caught(found: list[jobmodel.Explored], kind: type[Input], state: State, cell: Cell) -> bool:
    """Whether the table with `cell` at that place is seen to be broken."""
    row = TABLE[kind]
    right, row[state] = row[state], cell
    try:
        for known in found:
            explore_again(known, kind, state)
    except (Violation, AttributeError):  # a cell may not even fit its input
        return True
    finally:
        row[state] = right
    return False


# ---- cells that are wrong in a way that no other cell is ----------------------------------------


def stop_keeps_restart(job: Job, what: events.Stop, now: float) -> None:
    """A stop that does not cancel a pending restart."""
    if job.next is not events.Next.RESTART:
        machine.next_stop(job, what, now)


def start_takes_removal_back(job: Job, what: events.Start, now: float) -> None:
    """A start that saves a job which is being removed."""
    machine.next_restart(job, what, now)
    job.next = events.Next.RESTART


def halt_without_patience(job: Job, what: events.Stop, now: float) -> None:
    """A stop after which nobody will ever send SIGKILL."""
    machine.halt_stop(job, what, now)
    job.armed = None
    job._actions[:] = [action for action in job._actions if not isinstance(action, events.Arm)]


def stop_signals_again(job: Job, what: events.Stop, now: float) -> None:
    """A second stop that signals again."""
    machine.next_stop(job, what, now)
    job._do(events.SendSignal(job.spec.name, job.run, job.spec.signal))


def kill_gives_up(job: Job, what: events.Timer, now: float) -> None:
    """A process that does not die of SIGKILL is said to be gone."""
    machine.leave(job, events.Exited(job.run, None), now)


def leave_decides_again(job: Job, what: events.Exited, now: float) -> None:
    """The status of the last process counts, not that of the leader."""
    (machine.decide if job.next is events.Next.DECIDE else machine.leave)(job, what, now)


def ready_as_configured_now(job: Job, what: events.Spawned, now: float) -> None:
    """A run is measured by a readiness that it was never told of."""
    if job.spec.ready is None:
        job._enter(State.RUNNING, now, causes.LAUNCHED)


def release_starts(job: Job, what: events.Release, now: float) -> None:
    """A release that ends a penalty."""
    machine.go(job, what, now)


def retry_though_held(job: Job, what: events.Timer, now: float) -> None:
    """A restart by policy that does not wait for its turn."""
    held, job.held = job.held, ()
    machine.retry(job, what, now)
    job.held = held


def go_and_stay_held(job: Job, what: events.Release, now: float) -> None:
    """What was released once is held for ever after."""
    held = job.held
    machine.go(job, what, now)
    job.held = held


def loss_is_a_stop(job: Job, what: events.RequirementLost, now: float) -> None:
    """What waits in vain is said to be stopped."""
    job._enter(State.STOPPED, now, what.reason)


def every_launch_is_a_restart(job: Job, what: events.Launched, now: float) -> None:
    """A start by people is told as one by policy."""
    job._restarts_itself = True
    machine.launched(job, what, now)


def no_launch_is_a_restart(job: Job, what: events.Launched, now: float) -> None:
    """A start by policy is told as one by people."""
    job._restarts_itself = False
    machine.launched(job, what, now)


def oneshot_runs_at_once(job: Job, what: events.Spawned, now: float) -> None:
    """Work that has begun is taken for done."""
    job._enter(State.RUNNING, now, causes.LAUNCHED)


WRONG: tuple[tuple[type[Input], State, Cell], ...] = (
    (events.Stop, State.STOPPING, stop_keeps_restart),
    (events.Shutdown, State.KILLING, stop_keeps_restart),
    (events.Start, State.STOPPING, start_takes_removal_back),
    (events.Stop, State.RUNNING, halt_without_patience),
    (events.Stop, State.STOPPING, stop_signals_again),
    (events.Timer, State.KILLING, kill_gives_up),
    (events.Exited, State.STOPPING, leave_decides_again),
    (events.Spawned, State.STARTING, ready_as_configured_now),
    (events.Spawned, State.STARTING, oneshot_runs_at_once),
    (events.Release, State.BACKOFF, release_starts),
    (events.Release, State.WAITING, go_and_stay_held),
    (events.Timer, State.BACKOFF, retry_though_held),
    (events.RequirementLost, State.WAITING, loss_is_a_stop),
    (events.Launched, State.STARTING, every_launch_is_a_restart),
    (events.Launched, State.STARTING, no_launch_is_a_restart),
)


@pytest.mark.parametrize(("kind", "state", "cell"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_subtly_wrong_cell_is_caught(kind: type[Input], state: State, cell: Cell) -> None:
    """Mistakes that somebody could well make in a cell break a promise."""
    assert _caught([explored(case) for case in REACHED], kind, state, cell)
