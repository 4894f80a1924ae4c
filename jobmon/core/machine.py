"""One job: its states, the TABLE, and `Job.step`. Every transition of JobMon lives here.

No I/O, no clock, no chance: `now` is an argument, what is to be done comes back as actions.
The table is data: the tests, the document and the diagram read the same TABLE.
"""

# How a job works:
#
# `step` takes one input, looks up one cell of TABLE by the input's type and the job's state, and returns
# the actions that the cell has collected. A cell is a function of a few lines; it changes the state by
# `_enter` only. The job knows nothing of other jobs: the order of jobs reaches it as Hold, Release,
# RequirementLost and commands.
#
# A *run* is one life of the job: from the Spawn action until nothing of it is left. `_spawn` gives it the
# next number, `run`; a number never comes again, so an input of a run that is over is known by its number
# and dropped. Likewise `token` numbers the armings of the job's one timer, and a Timer with an older token
# is dropped.
#
# What is set when:
#
#   state     pid, leader   next   armed until       held      what it waits for
#   stopped   -             -      -                 any       a command
#   waiting   -             -      -                 not empty Release
#   starting  from Launched -      start-timeout (*) any       Launched, Spawned, Ready
#   running   set           -      -                 any       its end
#   stopping  from Launched set    kill-timeout      any       Exited, SpawnFailed
#   killing   from Launched set    the next SIGKILL  any       Exited, SpawnFailed
#   backoff   -             -      its restart       any       Timer
#   exited    -             -      -                 any       a command
#   failed    -             -      -                 any       a command
#
# (*) If it is configured. "from Launched": the Spawn action is not carried out at once, and a stop may
# come before it, so `alive` (the state says that a process may live) is true before there is a pid. In the
# live states `held` may be out of date: ordering.py renews it before it counts.
#
# - `pid` is set while anything of the run lives, `leader` while its first process lives. They differ
#   between LeaderDied and Exited. `_last` remembers run and pid for the event "died", which is told when
#   both are gone and the next run may have begun.
# - `spec` is the configuration in force, `ran` the one that the latest run was launched with. Readiness
#   and type are those of the run (`ran`, `_reports_ready`); signal, kill-timeout, success-codes and
#   restart policy are those in force.
# - `next` says what follows once a leaving job is gone. The last command counts, but REMOVE stays until
#   the job is configured again (SpecChanged). With DECIDE nobody has asked for the stop: `_kept` is the
#   end that the policy judges then: the leader's own, or a timeout. `_enter` clears both when the job
#   leaves STOPPING and KILLING.
# - `held` names the jobs that must be ready before this one is launched. Only `_spawn` reads it: what is
#   up stays up.
# - `wanted` is the cause of the latest launch, or of the one that is queued (WAITING, or `next` is
#   RESTART); `asked` says whether an operator waits for it. Both are set by the input that asks and not by
#   the launch.
# - `cause` is why the job came into its state. Two states have a better answer than the last input: in
#   WAITING it follows `held`, and in STARTING after a stop it is `wanted`, not the end of the run before.
# - `result` is how the last run ended, or why the job was given up. It stays while the next run lives.
# - `spawn_error` is set from a SpawnFailed that nobody had asked for until the next launch.
# - `past` is what the backoff arithmetic remembers of ends (backoff.py). A start or restart forgets its
#   counts.
# - `launches`, `deaths`, `losses` and `endings` only grow. Conditions compare them with a baseline
#   (conditions.py).
#
# `_enter` makes two actions: Changed for the log, and Happened for listeners. Entering STARTING is not
# told to listeners: "launched" is, when there is a process. A death is told once, as the kind of the
# transition it leads to.

from __future__ import annotations

from jobmon.core.backoff import SHORTAGES, Death, Past, begin_anew, judge
from jobmon.core.causes import (
    AUTO_RESTART,
    KILL_TIMEOUT,
    LAUNCHED,
    PENALTY_OVER,
    READY,
    REMOVED,
    SHUTDOWN,
    START_TIMEOUT,
    WATCHDOG,
    Cause,
    Kind,
    exited,
)
from jobmon.core.events import (
    AT_REST,
    LEAVING,
    LIVE,
    Action,
    Arm,
    Changed,
    Disarm,
    Exited,
    Happened,
    Hold,
    Impossible,
    Input,
    Kill,
    Launched,
    LeaderDied,
    Next,
    ProcessInput,
    Ready,
    Release,
    Remove,
    Removed,
    RequirementLost,
    RestartJob,
    SendSignal,
    Shutdown,
    Spawn,
    Spawned,
    SpawnFailed,
    SpecChanged,
    Start,
    State,
    Status,
    Stop,
    Timer,
    Warn,
    WatchdogExpired,
)
from jobmon.core.spec import OF_A_RUN, JobSpec, JobType
from jobmon.lean.records import Record
from jobmon.limits import exec_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Cell = Callable[["Job", Any, float], None]

MAX_KILL_INTERVAL = 60.0  # seconds between SIGKILLs to a process that does not die


class Job:
    """One supervised job. `step` is the only way to change it, `_enter` the only writer of `state`."""

    __slots__ = (
        "_actions",
        "_interval",
        "_kept",
        "_last",
        "_reports_ready",
        "_restarts_itself",
        "armed",
        "asked",
        "cause",
        "deaths",
        "endings",
        "exit_code",
        "held",
        "launches",
        "leader",
        "losses",
        "next",
        "past",
        "pid",
        "ran",
        "restarts",
        "result",
        "run",
        "since",
        "spawn_error",
        "spec",
        "state",
        "status",
        "token",
        "wanted",
    )

    def __init__(self, spec: JobSpec, now: float = 0.0, run: int = 0) -> None:
        self.spec = spec
        self.ran = spec  # what the last run was launched with
        self.state = State.STOPPED
        self.next: Next | None = None
        self.run = run
        self.pid: int | None = None  # while anything of the run lives
        self.leader: int | None = None  # the same, while its first process lives
        self.token = 0
        self.armed: float | None = None
        self.past = _NO_PAST
        self.launches = 0  # processes that came to be
        self.deaths = 0  # runs of which nothing was left
        self.losses = 0  # those of them that nobody has asked for, but for the success of a oneshot
        self.endings = 0  # times that it was given up, or ended for good by itself
        self.status: Status = None  # of the last death
        self.restarts = 0
        self.result: Cause | None = None
        self.cause: Cause | None = None
        self.spawn_error = ""
        self.since = now
        self.exit_code: int | str = 0  # what its end means for the daemon's, if it is essential
        self._kept: _Kept | None = None
        self._interval = 0.0
        self._reports_ready = False
        self._restarts_itself = False
        self._last: tuple[int, int | None] = (0, None)  # run and pid of the last process
        self.held: tuple[str, ...] = ()  # the jobs that it has to wait for before it may be launched
        self.wanted: Cause | None = None  # why it was launched, or will be next
        self.asked = False  # whether that was an operator, who waits for it
        self._actions: list[Action] = []

    @property
    def alive(self) -> bool:
        """Whether a process of it may live."""
        return self.state in LIVE

    @property
    def ready(self) -> bool:
        """Whether what requires it may run: it serves, or it is a oneshot that has succeeded."""
        return self.state is (State.EXITED if self.ran.type is JobType.ONESHOT else State.RUNNING)

    @property
    def stale(self) -> tuple[str, ...]:
        """The keys of its configuration that a reload has changed since its run was launched."""
        then, now = self.ran, self.spec
        if then is now or not self.alive:
            return ()
        changed = [field for field in OF_A_RUN if getattr(then, field) != getattr(now, field)]
        return tuple(field.replace("_", "-") for field in changed)

    @property
    def waits_for(self) -> Cause:
        """The jobs that its launch has to wait for, and what has asked for it."""
        return Cause(Kind.WAITING, jobs=self.held, because=self.wanted)

    def step(self, what: Input, now: float) -> list[Action]:
        """Take one input at `now` (CLOCK_MONOTONIC seconds); return what is to be done, in order."""
        if self._is_late(what):
            return []
        actions: list[Action] = []
        self._actions = actions
        TABLE[type(what)][self.state](self, what, now)
        self._actions = _NOTHING
        return actions

    def _is_late(self, what: Input) -> bool:
        if isinstance(what, ProcessInput):
            return what.run != self.run
        return isinstance(what, Timer) and what.token != self.token

    # ---- what cells are made of -----------------------------------------------------------

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _enter(
        self, state: State, now: float, cause: Cause, kind: str = "state", arm: float | None = None
    ) -> None:
        """Go to `state`; with `arm`, be woken after so many seconds."""
        before, self.state, self.since, self.cause = self.state, state, now, cause
        if self.armed is not None and arm is None:
            self._do(Disarm(self.spec.name))
            self.armed = None
        self.token += 1
        if arm is not None:
            self._arm(arm, now)
        if state not in LEAVING:
            self.next = None
            self._kept = None
        self._do(Changed(self.spec.name, *self._whose(kind), before, state, cause))
        if kind != "state" or state is not State.STARTING:
            self._happened(kind)

    def _happened(self, kind: str) -> None:
        cause = self.cause or REMOVED  # nothing else happens to a job that was never started
        self._do(Happened(self.spec.name, kind, self.state, *self._whose(kind), cause))

    def _whose(self, kind: str) -> tuple[int, int | None]:
        """Run and pid that are spoken of: of a death the last process, even if a run follows at once."""
        return self._last if kind == "died" else (self.run, self.pid)

    def _arm(self, delay: float, now: float) -> None:
        self.token += 1
        self.armed = now + delay
        self._do(Arm(self.spec.name, self.token, self.armed))

    def _spawn(self, now: float, cause: Cause, kind: str = "state") -> None:
        self.spawn_error = ""
        if self.held:
            self._enter(State.WAITING, now, cause if kind == "died" else self.waits_for, kind)
            self.cause = self.waits_for
            return
        self.run += 1
        self.ran = self.spec
        self._reports_ready = self.spec.ready is not None or self.spec.type is JobType.ONESHOT
        self._enter(State.STARTING, now, cause, kind, self.spec.start_timeout)
        self._do(Spawn(self.spec.name, self.run, self.spec, self.asked))

    def _halt(self, following: Next, now: float, cause: Cause) -> None:
        self._enter(State.STOPPING, now, cause, arm=self.spec.kill_timeout)
        self.next = following
        self._do(SendSignal(self.spec.name, self.run, self.spec.signal))

    def _kill(self, following: Next, now: float, cause: Cause) -> None:
        self._interval = min(max(self.spec.kill_timeout, 1.0), MAX_KILL_INTERVAL)
        self._enter(State.KILLING, now, cause, arm=self._interval)
        self.next = following
        self._do(Kill(self.spec.name, self.run))

    def _gone(self) -> str:
        """The process is gone: what listeners call the transition that follows."""
        had_process, self.pid, self.leader = self.pid is not None, None, None
        self._restarts_itself = False
        self.deaths += had_process
        return "died" if had_process else "state"

    def _decide(self, death: Death, now: float, cause: Cause, kind: str, code: Status) -> None:
        spec = self.spec.replace(type=self.ran.type)
        verdict = judge(spec, death, self.past, now, cause)
        self.past = verdict.past
        self.losses += kind == "died" and not (death.ok and spec.type is JobType.ONESHOT)
        result = Cause(Kind.GAVE_UP, verdict.past.failures, because=cause) if verdict.gave_up else cause
        self.result = result
        if verdict.delay is not None:
            self._enter(State.BACKOFF, now, cause, kind, verdict.delay)
        else:
            fine = death.ok and not verdict.gave_up
            self.exit_code = 0 if fine else code or 1  # never 0 for a failure
            self.endings += 1
            self._enter(State.EXITED if fine else State.FAILED, now, result, kind)

    def _leave(self, now: float, cause: Cause) -> None:
        following, kept, kind = self.next, self._kept, self._gone()
        self.result = cause
        if following is Next.RESTART:
            self._spawn(now, cause, kind)
            self.cause = self.wanted if self.state is State.STARTING else self.cause
        elif following is Next.REMOVE:
            self._enter(State.STOPPED, now, cause, kind)
            self._removed()
        elif following is Next.DECIDE and kept is not None:  # never without
            self._decide(kept.death, now, kept.cause, kind, kept.code)
        else:
            self._enter(State.STOPPED, now, cause, kind)

    def _removed(self) -> None:
        self._happened("removed")
        self._do(Removed(self.spec.name))

    def _death(self, status: Status) -> Death:
        return Death(status in self.spec.success_codes)


class _Kept(Record):
    """What to decide on once all is gone: the leader's own death, or what was wrong with it."""

    death: Death
    cause: Cause
    code: Status


_NO_PAST = Past()
_NOTHING: list[Action] = []


# ---- the cells: one small function each, named for what it does ------------------------------


def impossible(job: Job, what: Input, now: float) -> None:
    """BUG"""
    job._do(Impossible(job.spec.name, job.state, what, ()))


def keep(job: Job, what: Input, now: float) -> None:
    """="""


def spawn(job: Job, what: Start | RestartJob, now: float) -> None:
    """spawn"""
    job.past = begin_anew(job.past)
    job._restarts_itself = False
    _want(job, what)
    job._spawn(now, what.by)


def settle(job: Job, what: Stop | Shutdown, now: float) -> None:
    """-> stopped"""
    if job.state is not State.STOPPED:
        job._enter(State.STOPPED, now, _by(what))


def hold(job: Job, what: Hold, now: float) -> None:
    """= (held)"""
    job.held = what.jobs
    if job.state is State.WAITING:
        job.cause = job.waits_for


def release(job: Job, what: Release, now: float) -> None:
    """= (free)"""
    job.held = ()


def go(job: Job, what: Release, now: float) -> None:
    """spawn"""
    job.held = ()
    job._spawn(now, Cause(Kind.RELEASED, because=job.wanted))


def lose(job: Job, what: RequirementLost, now: float) -> None:
    """failed(requirement)"""
    job.result = what.reason
    job.exit_code = 1
    job.endings += 1
    job._enter(State.FAILED, now, what.reason)


def halt_stop(job: Job, what: Stop | Shutdown, now: float) -> None:
    """halt(STOP)"""
    if isinstance(what, Stop) and what.now:
        job._kill(Next.STOP, now, what.by)
    else:
        job._halt(Next.STOP, now, _by(what))


def halt_restart(job: Job, what: RestartJob, now: float) -> None:
    """halt(RESTART)"""
    job.past = begin_anew(job.past)
    _want(job, what)
    job._halt(Next.RESTART, now, what.by)


def halt_remove(job: Job, what: Remove, now: float) -> None:
    """halt(REMOVE)"""
    if what.now:
        job._kill(Next.REMOVE, now, REMOVED)
    else:
        job._halt(Next.REMOVE, now, REMOVED)


def halt_decide(job: Job, what: LeaderDied | WatchdogExpired | Timer, now: float) -> None:
    """halt(DECIDE)"""
    if isinstance(what, LeaderDied):
        job.leader = None
        kept = _Kept(job._death(what.status), exited(what.status), what.status)
    else:
        kept = _Kept(Death(False), START_TIMEOUT if isinstance(what, Timer) else WATCHDOG, None)
    job._halt(Next.DECIDE, now, kept.cause)
    job._kept = kept


def next_stop(job: Job, what: Stop | Shutdown, now: float) -> None:
    """next=STOP"""
    _set_next(job, Next.STOP)
    if isinstance(what, Stop) and what.now and job.state is State.STOPPING:
        job._kill(job.next or Next.STOP, now, what.by)


def next_restart(job: Job, what: Start | RestartJob, now: float) -> None:
    """next=RESTART"""
    job.past = begin_anew(job.past)
    _want(job, what)
    _set_next(job, Next.RESTART)


def next_remove(job: Job, what: Remove, now: float) -> None:
    """next=REMOVE"""
    job.next = Next.REMOVE
    if what.now and job.state is State.STOPPING:
        job._kill(Next.REMOVE, now, REMOVED)


def adopt_spec(job: Job, what: SpecChanged, now: float) -> None:
    """new spec"""
    job.spec = what.spec


def adopt_spec_wanted(job: Job, what: SpecChanged, now: float) -> None:
    """new spec; REMOVE becomes STOP"""
    job.spec = what.spec
    if job.next is Next.REMOVE:
        job.next = Next.STOP


def forget(job: Job, what: Remove, now: float) -> None:
    """gone"""
    if job.state is not State.STOPPED:
        job._enter(State.STOPPED, now, REMOVED)
    job._removed()


def launched(job: Job, what: Launched, now: float) -> None:
    """= (a process exists)"""
    job.pid = job.leader = what.pid
    job._last = (job.run, job.pid)
    job.launches += 1
    if job._restarts_itself:
        job._happened("restarting")
    job._happened("launched")


def lose_leader(job: Job, what: LeaderDied, now: float) -> None:
    """= (others live)"""
    job.leader = None


def spawned(job: Job, what: Spawned, now: float) -> None:
    """ready=none: running"""
    if not job._reports_ready:
        job._enter(State.RUNNING, now, LAUNCHED)


def ready(job: Job, what: Ready, now: float) -> None:
    """running"""
    job._enter(State.RUNNING, now, READY)


def decide_spawn(job: Job, what: SpawnFailed, now: float) -> None:
    """decide (no process)"""
    death = Death(False, unspawned=True, shortage=what.errno in SHORTAGES)
    job.spawn_error = what.reason
    code = exec_failed(what.errno)
    job._decide(death, now, _spawn_failed(what), job._gone(), code)


def decide(job: Job, what: Exited, now: float) -> None:
    """decide"""
    job.status = what.status
    job._decide(job._death(what.status), now, exited(what.status), job._gone(), what.status)


def leave_spawn(job: Job, what: SpawnFailed, now: float) -> None:
    """leave (no process)"""
    job._leave(now, _spawn_failed(what))


def leave(job: Job, what: Exited, now: float) -> None:
    """leave"""
    job.status = what.status
    job._leave(now, exited(what.status))


def out_of_patience(job: Job, what: Timer, now: float) -> None:
    """kill(next)"""
    job._kill(job.next or Next.STOP, now, KILL_TIMEOUT)


def kill_again(job: Job, what: Timer, now: float) -> None:
    """SIGKILL again, log, arm x2"""
    job._interval = min(job._interval * 2, MAX_KILL_INTERVAL)
    job._do(Warn(job.spec.name, job.run, job.pid, "does not die of SIGKILL"))
    job._do(Kill(job.spec.name, job.run))
    job._arm(job._interval, now)


def retry(job: Job, what: Timer, now: float) -> None:
    """spawn (by itself)"""
    waited = job.armed is not None and job.armed > job.since
    if waited:
        job.past = job.past.replace(penalty_end=now)
    job.restarts += 1
    job._restarts_itself = True
    by = PENALTY_OVER if waited else AUTO_RESTART
    job.wanted, job.asked = by, False
    job._spawn(now, by)


def _want(job: Job, what: Start | RestartJob) -> None:
    """Remember who asked for the launch that follows."""
    job.wanted, job.asked = what.by, what.asked


def _set_next(job: Job, following: Next) -> None:
    if job.next is not Next.REMOVE:
        job.next = following


def _spawn_failed(what: SpawnFailed) -> Cause:
    return Cause(Kind.SPAWN_FAILED, what.stage, reason=what.reason)


def _by(what: Stop | Shutdown) -> Cause:
    return what.by if isinstance(what, Stop) else SHUTDOWN


def _row(**cells: Cell) -> dict[State, Cell]:
    """One row: `down` stands for the three states at rest, what is not named is impossible."""
    down = cells.pop("down", impossible)
    row = dict.fromkeys(State, impossible) | dict.fromkeys(AT_REST, down)
    return row | {State(name): cell for name, cell in cells.items()}


def _everywhere(cell: Cell) -> dict[State, Cell]:
    """A row that is the same in every state."""
    return dict.fromkeys(State, cell)


TABLE: dict[type[Input], dict[State, Cell]] = {
    Start: _row(
        down=spawn,
        waiting=keep,
        starting=keep,
        running=keep,
        stopping=next_restart,
        killing=next_restart,
        backoff=spawn,
    ),
    Stop: _row(
        down=settle,
        waiting=settle,
        starting=halt_stop,
        running=halt_stop,
        stopping=next_stop,
        killing=next_stop,
        backoff=settle,
    ),
    RestartJob: _row(
        down=spawn,
        waiting=keep,
        starting=halt_restart,
        running=halt_restart,
        stopping=next_restart,
        killing=next_restart,
        backoff=spawn,
    ),
    SpecChanged: _row(
        down=adopt_spec,
        waiting=adopt_spec,
        starting=adopt_spec,
        running=adopt_spec,
        stopping=adopt_spec_wanted,
        killing=adopt_spec_wanted,
        backoff=adopt_spec,
    ),
    Remove: _row(
        down=forget,
        waiting=forget,
        starting=halt_remove,
        running=halt_remove,
        stopping=next_remove,
        killing=next_remove,
        backoff=forget,
    ),
    Shutdown: _row(
        down=settle,
        waiting=settle,
        starting=halt_stop,
        running=halt_stop,
        stopping=next_stop,
        killing=next_stop,
        backoff=settle,
    ),
    Hold: _everywhere(hold),
    Release: _everywhere(release) | {State.WAITING: go},
    RequirementLost: _row(waiting=lose),
    Launched: _row(starting=launched, stopping=launched, killing=launched),
    Spawned: _row(starting=spawned, stopping=keep, killing=keep),
    Ready: _row(starting=ready, running=keep, stopping=keep, killing=keep),
    SpawnFailed: _row(starting=decide_spawn, stopping=leave_spawn, killing=leave_spawn),
    LeaderDied: _row(starting=halt_decide, running=halt_decide, stopping=lose_leader, killing=lose_leader),
    Exited: _row(starting=decide, running=decide, stopping=leave, killing=leave),
    WatchdogExpired: _row(running=halt_decide, stopping=keep, killing=keep),
    Timer: _row(starting=halt_decide, stopping=out_of_patience, killing=kill_again, backoff=retry),
}
