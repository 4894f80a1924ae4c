"""Everything that can happen to one job: the real machine beside an abstract process, breadth-first.

A node is a job with its process reduced to a phase, and with what the commands so far promise.
Time is reduced too: a death comes within the restart-window of what came before, or after it.
Every edge is judged by the promises, never by the table. Not a test itself: tests and the
generator of the diagram read it.
"""

from __future__ import annotations

import errno
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from jobmon.core import events
from jobmon.core.causes import Cause, Kind
from jobmon.core.events import AT_REST, LEAVING, LIVE, Action, Input, Next, State
from jobmon.core.machine import Job
from jobmon.core.spec import FdReadiness, JobSpec, JobType, Readiness, Restart

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW, PENALTY, PATIENCE, START_TIMEOUT = 5.0, 15.0, 10.0, 60.0
SOON, LATE = 0.0, WINDOW + 1
PID = 100
HELD, HELD_LONGER = ("db",), ("db", "cache")
LOST = Cause(Kind.REQUIREMENT, "failed", ("db",))
READY = FdReadiness(3)
UNDECIDED = frozenset((State.STARTING, State.RUNNING))
ENDED = frozenset((State.EXITED, State.FAILED))


class Violation(AssertionError):  # noqa: N818 - what the exploration finds is no error of its own
    """A promise was broken on the way to, or in, a node."""


class Phase(Enum):
    """The process of the current run."""

    NONE = "none"
    ORDERED = "ordered"  # its start is asked for, nothing is there yet
    CHILD = "child"  # it exists, its program does not run yet
    UP = "up"
    LEADERLESS = "leaderless"  # the first process is dead, others live


class Wish(Enum):
    """What the commands so far promise."""

    DOWN = "down"  # nothing starts it but a command
    UP = "up"  # policy decides about each death
    AGAIN = "again"  # as soon as this run is gone there will be another
    GONE = "gone"  # as soon as this run is gone the job is forgotten


class Case(NamedTuple):
    """One configuration that is explored."""

    policy: Restart
    ready: Readiness | None = None
    start_timeout: float | None = None
    max_restarts: int | None = None
    type: JobType = JobType.SERVICE

    def specs(self) -> tuple[JobSpec, JobSpec]:
        """The job as configured, and what a reload may make of it (and back): another readiness or type."""
        plain = self.ready is not None or self.type is JobType.ONESHOT
        first = JobSpec(
            name="job",
            command="true",
            restart=self.policy,
            ready=self.ready,
            start_timeout=self.start_timeout,
            max_restarts=self.max_restarts,
            type=self.type,
        )
        return first, first.replace(
            type=JobType.SERVICE,
            ready=None if plain else READY,
            start_timeout=None if plain else START_TIMEOUT,
            signal="SIGINT",
        )


# Of what a reload changes here, the keys that count for the next run.

READINESS: tuple[tuple[Readiness | None, float | None], ...] = (
    (None, None),
    (READY, START_TIMEOUT),
    (READY, None),
)
ONESHOTS = tuple(Case(policy, type=JobType.ONESHOT) for policy in Restart)
CASES = (*(Case(policy, *kind) for policy in Restart for kind in READINESS), *ONESHOTS)
LIMITED = tuple(Case(policy, max_restarts=1) for policy in Restart)


class World(NamedTuple):
    """What stands beside the job."""

    phase: Phase = Phase.NONE
    wish: Wish = Wish.DOWN
    launched: int = 0  # the spec that the run was launched with
    fate: bool | None = None  # how the run ended that is being brought down
    removed: bool = False
    by_itself: bool = False  # policy has decided on the run that is on its way, and it is no process yet


class Node(NamedTuple):
    """A job and its world."""

    job: Job
    world: World
    specs: tuple[JobSpec, JobSpec]

    def key(self) -> tuple[object, ...]:
        """What distinguishes nodes; runs, tokens and times do not."""
        job, past = self.job, self.job.past
        armed = None if job.armed is None else job.armed > 0
        marks = (past.last_death is None, past.penalty_end is None, past.failures)
        rest = (job.pid, job.leader, job.stale, job.spec.signal, bool(job.spawn_error), bool(job.held))
        told = (job._reports_ready, job._restarts_itself)
        return (self.world, job.state, job.next, armed, marks, rest, told, repr(job._kept))


class Move(NamedTuple):
    """Something that can happen now. `phase` is what it makes of the process."""

    what: Input
    at: float
    phase: Phase
    allowed: bool = True  # else the machine must call it impossible

    def label(self) -> str:
        """The move in the words of the table."""
        if isinstance(self.what, events.Stop) and self.what.now:
            return "stop now"
        return WORDS[type(self.what)]


WORDS: dict[type[Input], str] = {
    events.Start: "start",
    events.Stop: "stop",
    events.RestartJob: "restart",
    events.SpecChanged: "spec changed",
    events.Remove: "remove",
    events.Shutdown: "shutdown",
    events.Hold: "hold",
    events.Release: "release",
    events.RequirementLost: "requirement lost",
    events.Launched: "launched",
    events.Spawned: "spawned",
    events.Ready: "ready",
    events.SpawnFailed: "spawn failed",
    events.LeaderDied: "leader died",
    events.Exited: "exited",
    events.WatchdogExpired: "watchdog ran out",
    events.Timer: "timer",
}


# ---- what can happen --------------------------------------------------------------------------


def moves(node: Node) -> Iterator[Move]:
    """Everything that can happen in a node, and what can not but might be said."""
    if node.world.removed:
        return
    phase = node.world.phase
    for command in _commands(node):
        yield Move(command, SOON, phase)
    yield from _process_moves(node)
    if node.job.armed is not None:
        yield Move(events.Timer(node.job.token), node.job.armed, phase)
    for nonsense in _nonsense(node):
        yield Move(nonsense, SOON, phase, allowed=False)


def _commands(node: Node) -> Iterator[Input]:
    other = node.specs[node.job.spec is node.specs[0]]
    yield from (events.Start(), events.Stop(), events.Stop(now=True), events.RestartJob())
    yield from (events.SpecChanged(other), events.Remove(), events.Shutdown())
    yield from (events.Hold(HELD_LONGER if node.job.held == HELD else HELD), events.Release())
    if node.job.state is State.WAITING:
        yield events.RequirementLost(LOST)


def _process_moves(node: Node) -> Iterator[Move]:
    run, phase = node.job.run, node.world.phase
    if phase is Phase.ORDERED:
        yield Move(events.Launched(run, PID), SOON, Phase.CHILD)
        yield Move(events.SpawnFailed(run, "fork", errno.EMFILE, "no descriptors"), SOON, Phase.NONE)
    if phase in (Phase.ORDERED, Phase.CHILD):
        yield Move(events.SpawnFailed(run, "exec", errno.ENOENT, "no such file"), SOON, Phase.NONE)
    if phase is Phase.CHILD:
        yield Move(events.Spawned(run), SOON, Phase.UP)
        yield Move(events.Exited(run, "SIGKILL"), LATE, Phase.NONE)
    if phase in (Phase.UP, Phase.LEADERLESS):
        yield from _life(node)


def _life(node: Node) -> Iterator[Move]:
    run, phase = node.job.run, node.world.phase
    if node.specs[node.world.launched].ready is not None:
        yield Move(events.Ready(run), SOON, phase)
    if node.job.state is not State.STARTING:
        yield Move(events.WatchdogExpired(run), SOON, phase)
    for status in (0, 1):
        if phase is Phase.UP:
            yield Move(events.LeaderDied(run, status), SOON, Phase.LEADERLESS)
        yield Move(events.Exited(run, status), SOON, Phase.NONE)
        yield Move(events.Exited(run, status), LATE, Phase.NONE)


def _nonsense(node: Node) -> Iterator[Input]:
    """What cannot come from a process that is not there, or not there yet, and from a timer not armed."""
    job = node.job
    if job.state in AT_REST or job.state in (State.RUNNING, State.WAITING):
        yield events.Timer(job.token)
    if job.state is not State.WAITING:
        yield events.RequirementLost(LOST)
    if job.state not in LIVE:
        yield from (events.Ready(job.run), events.LeaderDied(job.run, 1), events.Exited(job.run, 1))
    if job.state not in LIVE or job.state is State.STARTING:
        yield events.WatchdogExpired(job.run)
    if job.state not in LIVE or job.state is State.RUNNING:
        yield from (events.Launched(job.run, PID), events.Spawned(job.run))
        yield events.SpawnFailed(job.run, "exec", errno.ENOENT, "no such file")


# ---- one edge ---------------------------------------------------------------------------------


def begin(case: Case) -> Node:
    """The job as the daemon makes it."""
    specs = case.specs()
    return Node(Job(specs[0]), World(), specs)


def follow(node: Node, move: Move) -> Node:
    """Make a move.

    Raises:
        Violation: a promise was broken.
    """
    job = clone(node.job)
    actions = job.step(move.what, move.at)
    try:
        return _judge(node, move, job, actions)
    except Violation as violation:
        way = f"{node.job.state.value} --{move.what!r}--> {job.state.value}"
        raise Violation(f"{violation}: {way}, {node.world}, {actions}") from None


def _judge(node: Node, move: Move, job: Job, actions: list[Action]) -> Node:
    if not move.allowed:
        kinds = [type(action) for action in actions]
        _claim(kinds == [events.Impossible], "what cannot be is reported")
        _claim(_frozen(job) == _frozen(node.job), "what cannot be changes nothing")
        return node
    after = Node(job, _world_after(node, move, job, actions), node.specs)
    _judge_actions(node, move, job, actions)
    _judge_counts(node.job, move, job, actions)
    _judge_move(node, move, after, actions)
    _judge_node(after)
    _rebase(job, move.at)
    return after


def clone(job: Job) -> Job:
    """A copy to be changed."""
    copy = Job.__new__(Job)
    for slot in Job.__slots__:
        setattr(copy, slot, getattr(job, slot))
    return copy


def _frozen(job: Job) -> tuple[object, ...]:
    return tuple(getattr(job, slot) for slot in Job.__slots__ if slot != "_actions")


def _rebase(job: Job, now: float) -> None:
    """Make `now` the zero of time, and forget what will never matter again."""
    past = job.past
    fresh = [None if t is None or now - t > WINDOW else 0.0 for t in (past.last_death, past.penalty_end)]
    failures = 0 if job.spec.max_restarts is None else past.failures
    counts = {"failures": failures, "ends": 0, "alike": 0, "cause": None}  # the rest of them only tell
    job.past = past.replace(last_death=fresh[0], penalty_end=fresh[1], **counts)
    job.armed = None if job.armed is None else job.armed - job.since
    job.since = 0.0
    job.run, job.token, job.restarts, job._interval = 1, 1, 0, PATIENCE
    job._last = (1, job._last[1])
    job.launches = job.deaths = job.endings = 0


def _claim(holds: object, promise: str) -> None:
    if not holds:
        raise Violation(promise)


def _world_after(node: Node, move: Move, job: Job, actions: list[Action]) -> World:
    world, kinds = node.world, [type(action) for action in actions]
    launched, phase, fate = world.launched, move.phase, world.fate
    if events.Spawn in kinds:
        _claim(phase is Phase.NONE, "never two processes")
        launched, phase = int(job.spec is node.specs[1]), Phase.ORDERED
    wish = _wish_after(node, move)
    if events.Spawn in kinds:
        _claim(wish in (Wish.UP, Wish.AGAIN), "what is not wanted does not start by itself")
        wish = Wish.UP
    elif job.state is State.WAITING:
        _claim(wish in (Wish.UP, Wish.AGAIN), "what is not wanted does not wait for its turn")
        wish = Wish.UP
    elif job.state in AT_REST:
        wish = Wish.DOWN
    if node.job.state in UNDECIDED and isinstance(move.what, events.LeaderDied):
        fate = move.what.status == 0
    elif node.job.state in UNDECIDED and isinstance(move.what, (events.Timer, events.WatchdogExpired)):
        fate = False
    if job.state not in LEAVING or wish is not Wish.UP:
        fate = None
    return World(phase, wish, launched, fate, events.Removed in kinds, _by_itself(node, move, job))


def _by_itself(node: Node, move: Move, job: Job) -> bool:
    """Whether what is on its way, and no process yet, is what policy has decided on."""
    if job.state in AT_REST or isinstance(move.what, events.Launched):
        return False
    if node.job.state is State.BACKOFF:
        return isinstance(move.what, events.Timer)
    return node.world.by_itself and not isinstance(move.what, (events.SpawnFailed, events.Exited))


def _wish_after(node: Node, move: Move) -> Wish:
    wish, what = node.world.wish, move.what
    if isinstance(what, events.Remove):
        return Wish.GONE
    if wish is Wish.GONE:
        return Wish.DOWN if isinstance(what, events.SpecChanged) else Wish.GONE
    if isinstance(what, (events.Stop, events.Shutdown)):
        return Wish.DOWN
    if isinstance(what, events.RestartJob):
        return Wish.AGAIN
    if isinstance(what, events.Start):
        return wish if node.job.state in (*UNDECIDED, State.WAITING) else Wish.AGAIN
    return wish


# ---- the promises -----------------------------------------------------------------------------


def _judge_node(node: Node) -> None:
    """What holds in every node."""
    job, world = node.job, node.world
    state, phase, wish = job.state, world.phase, world.wish
    _claim((phase is not Phase.NONE) == (state in LIVE), "alive <=> live state")
    _claim((job.next is not None) == (state in LEAVING), "next set <=> leaving")
    _claim((job.pid is not None) == (phase in _WITH_PID), "a pid <=> a process")
    _claim((job.leader is not None) == (phase in (Phase.CHILD, Phase.UP)), "a leader <=> it lives")
    _claim(
        (job.armed is not None) == _needs_timer(node), "a timer armed where one is needed, and nowhere else"
    )
    _claim(not job.stale or state in LIVE, "stale is about a live process")
    _claim(wish is not Wish.DOWN or state in AT_REST or job.next is Next.STOP, "stopped, or about to be")
    _claim(wish is not Wish.AGAIN or job.next is Next.RESTART, "a start that was promised is not lost")
    _claim(wish is not Wish.GONE or job.next is Next.REMOVE or world.removed, "removed, or about to be")
    _claim(wish is not Wish.UP or job.next in (None, Next.DECIDE), "policy decides what nobody else does")
    _claim(state is not State.WAITING or job.held, "what waits knows for what")
    _claim(not world.removed or (phase is Phase.NONE and job.armed is None), "never forgotten while alive")


_WITH_PID = (Phase.CHILD, Phase.UP, Phase.LEADERLESS)


def _needs_timer(node: Node) -> bool:
    if node.job.state is State.STARTING:
        return node.specs[node.world.launched].start_timeout is not None
    return node.job.state in LEAVING or node.job.state is State.BACKOFF


def _judge_actions(node: Node, move: Move, job: Job, actions: list[Action]) -> None:
    """What holds for what is to be done, in its order."""
    was = node.job
    armed = was.armed if not isinstance(move.what, events.Timer) else None
    state, pid = was.state, was.pid
    for action in actions:
        if isinstance(action, events.Arm):
            _claim(action.at >= move.at, "nothing is armed in the past")
            armed = action.at if action.token == job.token else None
        elif isinstance(action, events.Disarm):
            armed = None
        elif isinstance(action, events.Changed):
            _claim(action.before is state is not action.after, "the log tells of every step, once")
            _claim(action.pid == was.pid or move.phase is not Phase.NONE, "the log names what died")
            state = action.after
        elif isinstance(action, events.Happened):
            pid = _judge_event(was, move, action, pid)
        elif isinstance(action, (events.SendSignal, events.Kill)):
            _claim(action.run == was.run and move.phase is not Phase.NONE, "signals go to what is there")
        elif isinstance(action, events.Removed):
            _claim(_wish_after(node, move) is Wish.GONE, "only what is to be removed is forgotten")
        elif isinstance(action, events.Spawn):
            _claim(action.run == was.run + 1 == job.run and action.spec is job.spec, "a new run each time")
            _claim(not job.held, "what is held is not launched")
        _claim(not isinstance(action, events.Impossible), "what can be is not called impossible")
    _claim(armed == job.armed, "the one timer is armed as the job believes")
    _claim(state is job.state, "the log tells of the last step")
    _claim(pid == job.pid, "listeners know of every process")


def _judge_event(was: Job, move: Move, event: events.Happened, pid: int | None) -> int | None:
    _claim(event.kind != "state" or event.state is not State.STARTING, "a start is told as launched")
    if event.kind == "launched":
        _claim(pid is None, "launched once")
        return event.pid
    if event.kind == "died":
        _claim(pid is not None and move.phase is Phase.NONE, "died once, and only when gone")
        _claim((event.run, event.pid) == (was.run, pid), "a death is told of what died")
        return None
    return pid


def _judge_counts(was: Job, move: Move, job: Job, actions: list[Action]) -> None:
    """The counters count what is told, and a restart is told right before its launch."""
    told = [action.kind for action in actions if isinstance(action, events.Happened)]
    _claim(job.launches - was.launches == told.count("launched"), "launches are counted")
    _claim(job.deaths - was.deaths == told.count("died"), "deaths are counted")
    ended = was.state not in ENDED and job.state in ENDED
    _claim(job.endings - was.endings == ended, "endings are counted")
    if isinstance(move.what, events.Exited):
        _claim(job.status == move.what.status, "it is known how it ended")


def _judge_launch(node: Node, actions: list[Action]) -> None:
    told = [action.kind for action in actions if isinstance(action, events.Happened)]
    expected = ["restarting", "launched"] if node.world.by_itself else ["launched"]
    _claim(told == expected, "a restart by itself is told as one, and no other launch is")


def _judge_move(node: Node, move: Move, after: Node, actions: list[Action]) -> None:
    kinds = [type(action) for action in actions]
    if not isinstance(move.what, (events.Hold, events.Release)):
        _claim(after.job.held == node.job.held, "nothing else holds or releases")
    if isinstance(move.what, events.Launched):
        _judge_launch(node, actions)
    else:
        told = [action.kind for action in actions if isinstance(action, events.Happened)]
        _claim("restarting" not in told, "no restart is told without a launch")
    {
        events.Start: _after_start,
        events.RestartJob: _after_restart,
        events.Stop: _after_stop,
        events.Shutdown: _after_stop,
        events.Remove: _after_remove,
        events.SpecChanged: _after_spec,
        events.Timer: _after_timer,
        events.Hold: _after_hold,
        events.Release: _after_release,
        events.RequirementLost: _after_loss,
        events.SpawnFailed: _after_end,
        events.Exited: _after_end,
    }.get(type(move.what), _after_news)(node, move, after, kinds)


Kinds = list[type[Action]]


def _after_start(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    was, job = node.job, after.job
    if was.state in UNDECIDED or was.state is State.WAITING:
        _claim(not kinds and job.state is was.state, "start of what is up, or will be, does nothing")
        return
    _claim(job.past.failures == 0, "an operator's start begins anew")
    _after_queue(node, after, kinds)


def _after_restart(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    if node.job.state is State.WAITING:
        _claim(not kinds and after.job.state is State.WAITING, "a new run is what it waits for")
        return
    _claim(after.job.past.failures == 0, "an operator's start begins anew")
    if node.job.state in UNDECIDED:
        _claim(after.job.state is State.STOPPING, "restart stops first")
        _claim(events.SendSignal in kinds, "restart stops first")
    else:
        _after_queue(node, after, kinds)


def _after_queue(node: Node, after: Node, kinds: Kinds) -> None:
    if node.job.state in LEAVING:
        _claim(not kinds and after.job.state is node.job.state, "a wish waits for the end of the run")
    else:
        _claim_start(after.job, kinds, "a start starts")


def _claim_start(job: Job, kinds: Kinds, promise: str) -> None:
    """A new run begins, or it waits for its turn."""
    if job.held:
        _claim(job.state is State.WAITING and job.cause == job.waits_for, f"{promise}, in its turn")
    else:
        _claim(job.state is State.STARTING and events.Spawn in kinds, promise)


def _after_stop(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    was, state = node.job.state, after.job.state
    at_once = isinstance(move.what, events.Stop) and move.what.now
    if was not in LIVE:
        _claim(state is State.STOPPED, "stop of what is down: stopped")
    elif at_once and was is not State.KILLING:
        _claim(state is State.KILLING and events.Kill in kinds, "stop now kills")
    elif was in UNDECIDED:
        _claim(state is State.STOPPING and events.SendSignal in kinds, "stop asks first")
        _claim(after.job.armed == move.at + PATIENCE, "stop has patience for kill-timeout")
    else:
        _claim(not kinds and state is was, "a second stop neither signals nor begins the patience again")


def _after_remove(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    was = node.job.state
    if was in LEAVING:
        _claim(not kinds and after.job.state is was, "what leaves is not signalled again")
    elif was in UNDECIDED:
        _claim(after.job.state is State.STOPPING and events.SendSignal in kinds, "remove stops first")
    else:
        _claim(after.world.removed, "what is down is forgotten at once")


def _after_spec(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    assert isinstance(move.what, events.SpecChanged)
    _claim(after.job.spec is move.what.spec and not kinds, "a new spec is taken and does nothing else")
    _claim(after.job.state is node.job.state, "a new spec is taken and does nothing else")
    another = after.job.ran != after.job.spec
    _claim(bool(after.job.stale) == (node.job.state in LIVE and another), "stale: launched as another")


def _after_timer(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    was, state = node.job.state, after.job.state
    if was is State.BACKOFF:
        _claim_start(after.job, kinds, "the end of a penalty is a start")
    elif was is State.STARTING:
        _claim(state is State.STOPPING and events.SendSignal in kinds, "not ready in time: stopped")
    else:
        _claim(state is State.KILLING and events.Kill in kinds, "patience ends with SIGKILL, again and again")
        _claim(after.job.next is node.job.next, "the end of patience does not change the wish")


def _after_hold(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    assert isinstance(move.what, events.Hold)
    _claim(after.job.held == move.what.jobs, "what is held is held, for what was said last")
    _claim(not kinds and after.job.state is node.job.state, "hold touches nothing that is there")


def _after_release(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    _claim(not after.job.held, "what is released is free")
    if node.job.state is State.WAITING:
        _claim_start(after.job, kinds, "what has its turn starts")
    else:
        _claim(not kinds and after.job.state is node.job.state, "release starts nothing that does not wait")


def _after_loss(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    job = after.job
    _claim(job.state is State.FAILED, "what waits for what will not come has failed")
    _claim(job.cause == job.result == LOST and job.exit_code, "and says why")


def _after_news(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    """Launched, spawned, ready, leader died, watchdog."""
    was, state = node.job.state, after.job.state
    if was in LEAVING:
        _claim(state is was and set(kinds) <= {events.Happened}, "who leaves leaves")
    elif isinstance(move.what, (events.LeaderDied, events.WatchdogExpired)):
        _claim(state is State.STOPPING and events.SendSignal in kinds, "a half dead run is brought down")
    elif isinstance(move.what, events.Launched):
        _claim(state is was, "a process is not a program yet")
    else:
        spec = node.specs[node.world.launched]
        silent = spec.ready is None and spec.type is JobType.SERVICE
        ready = silent or isinstance(move.what, events.Ready)
        _claim(state is (State.RUNNING if ready else was), "running <=> ready as it was launched")


def _after_end(node: Node, move: Move, after: Node, kinds: Kinds) -> None:
    """Nothing is left of the run."""
    wish, state = node.world.wish, after.job.state
    if wish is Wish.AGAIN:
        _claim_start(after.job, kinds, "the promised start follows")
    elif wish is Wish.GONE:
        _claim(after.world.removed, "the promised removal follows")
    elif wish is Wish.DOWN:
        _claim(state is State.STOPPED, "stopped when gone")
    else:
        _after_death(node, move, after)


def _after_death(node: Node, move: Move, after: Node) -> None:
    spec, what, job = node.job.spec, move.what, after.job
    ok = isinstance(what, events.Exited) and what.status == 0
    if node.world.fate is not None:
        ok = node.world.fate
    unspawned = isinstance(what, events.SpawnFailed) and node.world.fate is None
    done = node.specs[node.world.launched].type is JobType.ONESHOT and ok
    wanted = (spec.restart is Restart.ALWAYS and not done) or (spec.restart is Restart.ON_FAILURE and not ok)
    wanted = wanted or (unspawned and isinstance(what, events.SpawnFailed) and what.errno == errno.EMFILE)
    if job.state is State.BACKOFF:
        _claim(wanted, "only what policy wants comes back")
        delay = None if job.armed is None else job.armed - move.at
        _claim(delay in ((PENALTY,) if unspawned else (0.0, PENALTY)), "at once, or after the penalty")
        return
    gave_up = spec.max_restarts is not None and node.job.past.failures >= spec.max_restarts
    _claim(not wanted or gave_up, "what policy wants comes back")
    _claim(job.state is (State.EXITED if ok and not wanted else State.FAILED), "a good end or a bad one")


# ---- the exploration --------------------------------------------------------------------------


class Edge(NamedTuple):
    """One move, as the diagram draws it."""

    before: State
    label: str
    after: State


class Explored(NamedTuple):
    """All nodes by key, and all edges."""

    nodes: dict[Any, Node]
    edges: set[Edge]
    moves: int


def explore(case: Case) -> Explored:
    """All that can happen to a job of this configuration.

    Raises:
        Violation: a promise was broken somewhere.
    """
    start = begin(case)
    found = Explored({start.key(): start}, set(), 0)
    return found._replace(moves=_spread(found, deque([start])))


def _spread(found: Explored, open_nodes: deque[Node]) -> int:
    count = 0
    while open_nodes:
        node = open_nodes.popleft()
        for move in moves(node):
            after = follow(node, move)
            count += 1
            if move.allowed:
                found.edges.add(Edge(node.job.state, move.label(), after.job.state))
            if after.key() not in found.nodes:
                found.nodes[after.key()] = after
                open_nodes.append(after)
    return count


def explore_again(found: Explored, kind: type[Input], state: State) -> None:
    """Explore only what may differ after TABLE[kind][state] was changed: its edges, and what they lead to.

    All other edges of the nodes already found are what they were, so this is as good as all.

    Raises:
        Violation: a promise is broken now.
    """
    fresh = Explored(dict(found.nodes), set(), 0)
    open_nodes: deque[Node] = deque()
    for node in found.nodes.values():
        if node.job.state is not state:
            continue
        for move in moves(node):
            if type(move.what) is not kind:
                continue
            after = follow(node, move)
            if after.key() not in fresh.nodes:
                fresh.nodes[after.key()] = after
                open_nodes.append(after)
    _spread(fresh, open_nodes)
