"""All jobs: commands and their answers, order, the event log, shutdown. No I/O, no clock.

Inputs come by the methods, each with `now` (CLOCK_MONOTONIC seconds); what is to be done
collects in order and is fetched by `take`.
"""

from __future__ import annotations

from jobmon.core import causes, conditions
from jobmon.core.causes import Cause, Kind
from jobmon.core.conditions import ENDED, Quorum
from jobmon.core.eventlog import EventLog
from jobmon.core.events import (
    AT_REST,
    AllReady,
    Announce,
    Deliver,
    Finish,
    Happened,
    Impossible,
    JobResult,
    Next,
    Publish,
    Removed,
    Reply,
    SpecChanged,
    State,
    Stop,
    Timer,
)
from jobmon.core.machine import Job
from jobmon.core.ordering import Turns
from jobmon.core.spec import Essential, JobType
from jobmon.core.waiters import Waiters
from jobmon.lean.cpython import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from typing import Any

    from jobmon.core.conditions import Condition, Waiter
    from jobmon.core.events import Action, Input
    from jobmon.core.graph import Order
    from jobmon.core.ordering import PendingStop
    from jobmon.core.plan import Plan
    from jobmon.core.spec import JobSpec

TOLD_OF_A_BUG = 20  # events of a job that go with the report of a contradiction


class Supervisor:
    """The set of jobs. `wall` is what to add to `now` for unix time; the engine keeps it right. Events
    have numbers beyond `begin`."""

    def __init__(self, specs: Iterable[JobSpec], now: float = 0.0, wall: float = 0.0, begin: int = 0) -> None:
        self.jobs: dict[str, Job] = {}
        self._past_runs = 0  # of jobs that were removed: the number of a run never comes again
        for spec in specs:
            self._know(spec, now)
        self.log = EventLog(self.jobs, begin)
        self.wall = wall
        self.waiters = Waiters(self.jobs, self._do, lambda name: self.turns.follows(name) is Next.RESTART)
        self.turns = Turns(self.jobs, self.feed, self.waiters.give_up)
        self._actions: list[Action] = []
        self._published = begin
        self._live = 0
        self._all_told = False
        self._finished = False
        self._ended_by = causes.SHUTDOWN
        self._exit_code: int | str = 0
        self._unannounced: set[str] | None = None
        self._unready: set[str] | None = None
        self._changed: deque[tuple[Job, State]] = deque()  # what others do not know yet
        self._passing_on = False

    @property
    def order(self) -> Order:
        """Which job comes before which."""
        return self.turns.order

    @property
    def terminating(self) -> bool:
        """Whether the end has begun."""
        return self.turns.ending

    def going(self, name: str) -> PendingStop | None:
        """How a job is to go once nothing that needs it lives; None where nothing waits for that."""
        return self.turns.leaving.get(name)

    def stale(self) -> list[str]:
        """The jobs that run on as they were started, though their configuration has changed since."""
        return [name for name, job in self.jobs.items() if job.stale and self.turns.stays(name)]

    def take(self) -> list[Action]:
        """What is to be done, in order; each action is handed out once."""
        actions, self._actions = self._actions, []
        if self._published != self.log.last:
            self._published = self.log.last
            actions.append(Publish())
        return actions

    # ---- what happens ---------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Start the autostart jobs and what they require. Announce follows when each is launched,
        waiting or given up; AllReady when each is ready, or has failed once: that may go on for ever."""
        self.turns.rearrange((), now)
        names = [name for name, job in self.jobs.items() if job.spec.autostart]
        self._unannounced = set(names)
        self._unready = {*names, *self.order.needs(*names)}
        self.turns.start(names, causes.AUTOSTART, now)
        self._announce()

    def feed(self, name: str, what: Input, now: float) -> None:
        """Something happened to a job."""
        job = self.jobs.get(name)
        if job is None:
            return
        was_alive, before, following = job.alive, job.state, job.next
        actions = job.step(what, now)
        self._live += job.alive - was_alive
        for action in actions:
            if type(action) is Happened:
                self._record(action, now)
            elif type(action) is Removed:
                self._forget(job, now)
            elif type(action) is Impossible:
                self._actions.append(action.replace(history=self.log.history(name, TOLD_OF_A_BUG)))
            else:
                self._actions.append(action)
        if actions or job.next is not following:
            self._look(job, now)  # before its end becomes everybody's: who waits hears how it ended
            if job.state is not before or job.next is not following or name not in self.jobs:
                self._changed.append((job, job.state))
                self._pass_all_on(now)

    def timer(self, key: object, token: int, now: float) -> None:
        """What was armed for `key` fired."""
        if isinstance(key, str):
            self.feed(key, Timer(token), now)
        else:
            self.waiters.timer(key, now)

    def drop(self, to: Hashable) -> None:
        """Whoever `to` is has gone: nobody waits there any more."""
        self.waiters.drop(to)

    # ---- commands: each is answered exactly once ------------------------------------------

    def start(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        again: bool = False,
        wait: bool = False,
        until: tuple[str, Condition] | None = None,
        timeout: float | None = None,
        by: Cause = causes.START,
    ) -> None:
        """Start jobs, after what they require; `again`: also those that are up. Answered when they are
        launched (or queued), with `wait` when they are ready, with `until` when that condition holds."""
        if self._unknown(names, to):
            return
        waiter = self._waiter(to, until, (conditions.START, conditions.up if wait else conditions.launched))
        wanted = []
        for name in self.order.sort(names):
            refused = self._refuse_up(self.jobs[name]) or (None if again else _refuse_start(self.jobs[name]))
            self._expect(waiter, name, refused, conditions.START)
            if refused is None or refused.code == "already-started":  # the table knows what that comes to
                wanted.append(name)
        self.waiters.register(waiter, timeout, now)
        (self.turns.restart if again else self.turns.start)(wanted, by, now, asked=True)
        if not wait and until is None:
            queued = [name for name in waiter.marks if name in self.turns.leaving]
            waiter.settle(map(JobResult, queued))  # it waits for its turn: queued too
        self._see(waiter, now)

    def restart(
        self, names: Sequence[str], to: Hashable, now: float, *, by: Cause = causes.RESTART, **how: Any
    ) -> None:
        """Give jobs a new run, and what requires them too; asked for and answered as `start` is."""
        self.start(names, to, now, again=True, by=by, **how)

    def stop(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        until: tuple[str, Condition] | None = None,
        timeout: float | None = None,
        at_once: bool = False,
        by: Cause = causes.STOP,
    ) -> None:
        """Stop jobs, after what requires them. Answered when the signal is sent (or queued), with
        `wait` when nothing of the run is left, with `until` when that condition holds."""
        if self._unknown(names, to):
            return
        waiter = self._waiter(to, until, (conditions.STOP, conditions.gone if wait else conditions.at_once))
        wanted = []
        for name in dict.fromkeys(names):
            refused = _refuse_stop(self.jobs[name])
            self._expect(waiter, name, refused, conditions.STOP)
            if refused is None:
                wanted.append(name)
        self.waiters.register(waiter, timeout, now)
        self.turns.stop(wanted, by, now, at_once=at_once)
        for name in waiter.results:
            self.feed(name, Stop(at_once, by), now)  # what has ended is stopped from now on
        self._see(waiter, now)

    def wait(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        until: tuple[str, Condition] = ("changed", conditions.changed),
        any_of: bool = False,
        since: int | None = None,
        fresh: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Answer when a condition holds for all jobs at the same moment, or for one with `any_of`.

        Edges count from now, or from the event number `since`. `fresh`: the client starts nothing
        after this that could bring up what is down now.
        """
        if self._unknown(names, to):
            return
        if since is not None and not self.log.holds(since):
            why = "is not known any more" if since < self.log.last else "has not happened yet"
            message = f"event {since} {why}"
            self._actions.append(Reply(to, False, (), "bad-request", message, self.log.last))
            return
        waiter = self.waiters.new(to, *until, Quorum.ANY if any_of else Quorum.ALL, self.log.last)
        waiter.marks = self._marks(names, now, since, fresh=fresh and since is None)
        self.waiters.register(waiter, timeout, now)
        self._see(waiter, now)
        for name in waiter.watched if self.terminating else ():
            self._fail_at_the_end(name)

    def reload(
        self, plan: Plan, to: Hashable, now: float, *, restart: bool = False, by: Cause = causes.RELOAD
    ) -> None:
        """Go by another configuration. What is removed is stopped and forgotten, what is added is started
        if it starts by itself, all else runs on. Answered when that is ordered; with `restart`, which gives
        a new run to what is stale, when that is ready."""
        if self.terminating:
            message = "the supervisor is terminating"
            self._actions.append(Reply(to, False, (), "terminating", message, self.log.last))
            return
        for spec in (*plan.added, *(change.spec for change in plan.changed)):
            self._adopt(spec, now)
        hopeless = (*conditions.FAIL_AT_THE_END, conditions.START)
        for name in plan.removed:
            self.waiters.give_up(name, "failed", "was removed", lambda waiter: waiter.name in hopeless)
        self.turns.rearrange(plan.removed, now)
        self.turns.start([spec.name for spec in plan.added if spec.autostart], by, now)
        stale = self.stale()
        if restart and stale:
            all_of_them = self.order.with_dependents(stale, lambda name: name in self.jobs)
            names = [name for name in all_of_them if self.turns.stays(name)]
            self.restart(names, to, now, wait=True, by=by.replace(kind=Kind.RELOAD_RESTART))
        else:
            self.waiters.reply(to, (), self.log.last)

    def signal(
        self,
        names: Sequence[str],
        signal: str,
        to: Hashable,
        now: float = 0.0,
        *,
        every: bool = False,
        by: Cause = causes.SIGNAL,
    ) -> None:
        """Send a signal to the leaders of jobs, or to every process of theirs."""
        if self._unknown(names, to):
            return
        token, results, cause = self.log.last, [], by.replace(subject=signal)
        for name in dict.fromkeys(names):
            job = self.jobs[name]
            if (job.pid if every else job.leader) is None:
                results.append(JobResult(name, "not-running", "is not running"))
            else:
                self._actions.append(Deliver(name, job.run, signal, every))
                self._record(Happened(name, "signalled", job.state, job.run, job.pid, cause), now)
                results.append(JobResult(name))
        self.waiters.reply(to, results, token)

    def terminate(self, now: float, by: Cause = causes.SHUTDOWN) -> None:
        """Stop everything, what comes after others before them, and end. A second time: without
        patience and order. The last event says who began it."""
        if self.terminating:
            self.turns.hurry(now)
            return
        self._ended_by = by
        self.turns.end(now)
        for name in self.jobs:
            self._fail_at_the_end(name)
        self._all_told = True
        self._finish(now)

    # ---- what one job's change means to others ----------------------------------------------

    def _pass_all_on(self, now: float) -> None:
        """Tell of the changes one after the other, those too that come of it: a chain may be long."""
        if self._passing_on:
            return
        self._passing_on = True
        try:
            while self._changed:
                self._pass_on(*self._changed.popleft(), now)
        finally:
            self._passing_on = False

    def _pass_on(self, job: Job, state: State, now: float) -> None:
        """A job is in another state: what this means to the daemon, and to those in order with it."""
        if state in ENDED:
            self._mind_essential(job, state, now)
        self.turns.pass_on(job, now)

    def _mind_essential(self, job: Job, state: State, now: float) -> None:
        """A job has ended by itself. If the daemon lives for it, that is the daemon's end too; not if a
        reload has removed the job and it was only waiting for its turn to be stopped."""
        essential = job.spec.essential
        failed = state is State.FAILED
        counts = essential is Essential.YES or (essential is Essential.ON_FAILURE and failed)
        if counts and not self.terminating and self.turns.follows(job.spec.name) is not Next.REMOVE:
            self._exit_code = job.exit_code
            self.terminate(now)

    # ---- inside ---------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _know(self, spec: JobSpec, now: float) -> None:
        self.jobs[spec.name] = Job(spec, now, self._past_runs)

    def _adopt(self, spec: JobSpec, now: float) -> None:
        """A job is new, or another; or one that was to be removed is wanted again."""
        if spec.name not in self.jobs:
            self._know(spec, now)
            return
        self.turns.keep(spec.name)
        self.feed(spec.name, SpecChanged(spec), now)

    def _waiter(
        self, to: Hashable, until: tuple[str, Condition] | None, usual: tuple[str, Condition]
    ) -> Waiter:
        """Who waits for a command: for each job to be as `usual`, or for `until` to hold for every one."""
        quorum = Quorum.EVERY if until else Quorum.EACH
        return self.waiters.new(to, *(until or usual), quorum, self.log.last)

    def _expect(self, waiter: Waiter, name: str, refused: JobResult | None, command: str) -> None:
        if refused is not None:
            waiter.know(refused)
        else:
            waiter.marks[name] = conditions.mark(self.jobs[name], command=command)

    def _see(self, waiter: Waiter, now: float) -> None:
        """The command is carried out: it may be answered already."""
        self.waiters.look_at(waiter, tuple(waiter.marks), now)

    def _marks(
        self, names: Iterable[str], now: float, since: int | None, *, fresh: bool
    ) -> dict[str, conditions.Mark]:
        """The marks of now, or of the event number `since`: less what has happened after it."""
        at = now if since is None else self.log.time(since) - self.wall
        marks = {name: conditions.mark(self.jobs[name], fresh=fresh, at=at) for name in names}
        if since is None:
            return marks
        for name, mark in marks.items():
            oneshot = self.jobs[name].ran.type is JobType.ONESHOT
            since_then = ((event[3], event[4]) for event in self.log.back(name, since))
            marks[name] = conditions.before(mark, since_then, oneshot=oneshot)
        return marks

    def _unknown(self, names: Sequence[str], to: Hashable) -> bool:
        unknown = [name for name in dict.fromkeys(names) if name not in self.jobs]
        if unknown:
            results = tuple(JobResult(name, "no-such-job", "no such job") for name in unknown)
            self._actions.append(Reply(to, False, results, "no-such-job", "no such job", self.log.last))
        return bool(unknown)

    def _refuse_up(self, job: Job) -> JobResult | None:
        if self.terminating:
            return JobResult(job.spec.name, "terminating", "the supervisor is terminating")
        if job.next is Next.REMOVE or self.turns.follows(job.spec.name) is Next.REMOVE:
            return JobResult(job.spec.name, "failed", "is being removed")
        return None

    def _record(self, event: Happened, now: float) -> None:
        self.log.add(now + self.wall, event.job, event.kind, event.state, event.run, event.pid, event.cause)

    def _forget(self, job: Job, now: float) -> None:
        self._look(job, now)  # its end may be what somebody waits for
        del self.jobs[job.spec.name]
        self._past_runs = max(self._past_runs, job.run)
        self.log.forget(job.spec.name)
        self.waiters.give_up(job.spec.name, "failed", "was removed", lambda w: w.name != "stopped")

    def _look(self, job: Job, now: float) -> None:
        self.waiters.look(job.spec.name, now)
        if self.terminating:
            self._fail_at_the_end(job.spec.name)
        if self._unannounced and (job.pid is not None or job.state is not State.STARTING):
            self._unannounced.discard(job.spec.name)
        if self._unready:
            self._strike_off(job.spec.name, self._unready)
        self._announce()
        if self._all_told:
            self._finish(now)

    def _fail_at_the_end(self, name: str) -> None:
        """After the shutdown has begun nothing comes up any more."""
        job = self.jobs.get(name)
        if job is None:
            return
        message = "the supervisor is terminating"
        self.waiters.give_up(name, "terminating", message, lambda w: w.name in conditions.FAIL_AT_THE_END)
        if not job.alive:
            message = f"is down, and {message}"
            self.waiters.give_up(name, "terminating", message, lambda w: w.name == "changed")

    def _strike_off(self, name: str, unready: set[str]) -> None:
        """A job is ready, or has failed once; then so has what waits for it."""
        names = [name]
        for each in names:
            job = self.jobs.get(each)
            if each not in unready or job is None:
                continue
            earlier = [self.jobs[other] for other in self.order.after.get(each, ()) if other in self.jobs]
            in_vain = any(not other.ready and other.spec.name not in unready for other in earlier)
            failed = job.state in AT_REST or job.state is State.BACKOFF
            if job.ready or failed or (job.state is State.WAITING and in_vain):
                unready.discard(each)
                if not job.ready:
                    names += self.order.before.get(each, ())

    def _announce(self) -> None:
        if self._unannounced is not None and not self._unannounced:
            self._unannounced = None
            self._actions.append(Announce())
        if self._unready is not None and not self._unready and self._unannounced is None:
            self._unready = None
            self._actions.append(AllReady())

    def _finish(self, now: float) -> None:
        if self._finished or self._live:
            return
        self._finished = True
        self.log.add(now + self.wall, "", "terminated", State.STOPPED, 0, None, self._ended_by)
        self._published = self.log.last
        self._actions += (Publish(), Finish(self._exit_code))


def _refuse_start(job: Job) -> JobResult | None:
    if job.state in (State.STARTING, State.RUNNING):
        return JobResult(job.spec.name, "already-started", "is already running")
    if job.state is State.WAITING:
        return JobResult(job.spec.name, "already-started", f"is already {Cause(Kind.WAITING, jobs=job.held)}")
    return None


def _refuse_stop(job: Job) -> JobResult | None:
    if job.state in AT_REST and not job.ready:  # a oneshot that has succeeded can be undone
        return JobResult(job.spec.name, "already-stopped", "is already stopped")
    return None
