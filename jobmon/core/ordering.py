"""Whose turn it is: jobs come up after what they come after, and go before what they require goes.

One place knows what is to go and has to wait for that. What a job is itself knows the job alone: it
is told to start, stop or hold like from anywhere else. No I/O, no answers.
"""

# How the order is kept:
#
# Two relations make it (graph.py). If B comes *after* A, and A is on its way to be ready, B is launched
# when A is. If B *requires* A, it comes after A in any case: A is started for it, and B is stopped when A
# goes. Going up and going down are different problems.
#
# Going up has no queue here. A job that must not be launched yet is told Hold before it is told Start, and
# waits by itself in WAITING. It is told Release when the last job that it waits for is ready. `_refresh`
# compares what `held` should be (`_waits_for`) with what it is and tells the difference. It must have been
# called for a job
#
# - before the job is told Start or RestartJob, because the answer decides between STARTING and WAITING
#   (`start`, `_start_requirement`, `_let_leave`);
# - after any change of a job that this one comes after (`_refresh_after`): of its state, of `leaving`, of
#   the order;
# - after a change of the job itself (`pass_on`), because only jobs that may be launched without a further
#   command are kept up to date (UNASKED: waiting, in backoff, or leaving). All others are refreshed when
#   they are started.
#
# A job in `leaving` is not refreshed: it is up, and is refreshed when its turn comes.
#
# Going down has two phases. First `_let_go` writes down all that must stop: the jobs named and, in front
# of them, the jobs that require them and are up or would come up. Each gets an entry in `leaving`: a
# PendingStop says what follows and why. Then `_let_leave` releases those that nothing living requires
# (`_is_needed`), and is called again by `pass_on` for what a job that has gone required. In a shutdown
# "requires" is replaced by "comes after".
#
# What stays in `leaving`: only a job that is up, or that is ready without a process (a oneshot that has
# succeeded). Any other is released at once. The entry leaves the dictionary in the moment in which it is
# told to stop; from then on the job's own `next` says what follows. So a job has at most one of the two,
# and `follows` and `next` together answer every question about it.
#
# When a second command meets an entry:
#
#   entry     STOP          STOP of a     RESTART    RESTART of a   start
#             by name       requirement   by name    requirement
#   STOP      replaced      kept (*)      replaced   kept           deleted, or RESTART (**)
#   RESTART   replaced (+)  replaced (+)  replaced   kept           kept
#   REMOVE    kept          kept          kept       kept           kept: the start is refused
#
# (*) Replaced too if the stop is `now`. (**) RESTART if a job that it requires has an entry itself. (+) The
# clients that wait for the restart are told that it has failed.
#
# `keep` deletes REMOVE when the job is configured again, `end` puts the stop of a shutdown in place of all
# but REMOVE.
#
# A lost requirement (`_take_down`) is a stop of all that requires the job, with one exception: a job that
# still waits for it, where it has ended by itself, has failed (RequirementLost) and is not stopped.
#
# `_feed` comes back into `pass_on`, through the supervisor's queue of changes. So loops here go over
# copies, and look again whether a name is still a job.

from __future__ import annotations

from jobmon.core.causes import REMOVED, SHUTDOWN, Cause, Kind
from jobmon.core.conditions import ENDED
from jobmon.core.events import (
    AT_REST,
    LEAVING,
    Hold,
    Next,
    Release,
    Remove,
    RequirementLost,
    RestartJob,
    Shutdown,
    Start,
    State,
    Stop,
)
from jobmon.core.graph import Order
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jobmon.core.conditions import Waiter
    from jobmon.core.events import Input
    from jobmon.core.machine import Job

    Feed = Callable[[str, Input, float], None]
    GiveUp = Callable[[str, str, str, Callable[[Waiter], bool]], None]

# A job in one of these may yet become ready, and what comes after it waits for that.
COMING = frozenset((State.WAITING, State.STARTING, State.BACKOFF))
# Nothing of it lives, but it would come up by itself.
PENDING = frozenset((State.WAITING, State.BACKOFF))
# It may be launched without anybody asking again, so it has to know whether it may.
UNASKED = PENDING | LEAVING


class PendingStop(Record):
    """How a job stops once nothing that requires it lives: what follows (Next.STOP, RESTART or REMOVE), why,
    with SIGKILL at once (`now`), and whether an operator waits for the run that follows (`asked`)."""

    next: Next
    by: Cause
    now: bool = False
    asked: bool = False

    def input(self) -> Input:
        """Return what the job is told when its turn comes."""
        if self.next is Next.RESTART:
            return RestartJob(self.by, self.asked)
        return Remove(self.now) if self.next is Next.REMOVE else Stop(self.now, self.by)


class Turns:
    """The order of `jobs`, which the supervisor keeps. `feed` tells a job something, `give_up` those who
    wait for what does not come any more."""

    def __init__(self, jobs: Mapping[str, Job], feed: Feed, give_up: GiveUp) -> None:
        self.order = Order(job.spec for job in jobs.values())
        self.ending = False
        self.leaving: dict[str, PendingStop] = {}  # the stops that wait for what must go first
        self._jobs = jobs
        self._feed = feed
        self._give_up = give_up

    # ---- what the supervisor wants ----------------------------------------------------------

    def start(self, names: Iterable[str], by: Cause, now: float, *, asked: bool = False) -> None:
        """Start jobs, after what they require. `asked`: by an operator."""
        for name, restarted, by_need in self._with_requirements(names):
            self._stay(name, restarted, now)
            if not by_need:
                self._refresh(name, now)
                self._feed(name, Start(by, asked), now)
            elif self._is_to_be_started(name):
                self._start_requirement(name, by_need, now, asked=asked)

    def restart(self, names: Iterable[str], by: Cause, now: float, *, asked: bool) -> None:
        """Give jobs a new run, and what requires them."""
        names, what = tuple(names), PendingStop(Next.RESTART, by, asked=asked)
        self._let_go([name for name in names if self._jobs[name].alive], what, now)
        down: list[str] = []  # in one go as far as possible: each asks for all that requires it
        for name, restarted, by_need in self._with_requirements(names):
            if by_need:
                self._stay(name, restarted, now)
                if self._is_to_be_started(name):
                    self._let_go(down, what, now)  # what it requires comes before it
                    down = []
                    self._start_requirement(name, by_need, now, asked=asked)
            elif not self._jobs[name].alive:
                down.append(name)
        self._let_go(down, what, now)

    def stop(self, names: Iterable[str], by: Cause, now: float, *, at_once: bool = False) -> None:
        """Stop jobs, after what requires them; `at_once`: with SIGKILL."""
        self._let_go(names, PendingStop(Next.STOP, by, at_once), now)

    def rearrange(self, removed: Iterable[str], now: float) -> None:
        """There are other jobs, or another order. What is removed keeps its place until it is gone."""
        self.order = Order(job.spec for job in self._jobs.values())
        self._let_go(removed, PendingStop(Next.REMOVE, REMOVED), now)
        for job in list(self._jobs.values()):
            self._refresh_unasked(job.spec.name, now)
            if job.state is State.WAITING:
                self._see_for_what(job, now)
        for name, what in list(self.leaving.items()):
            if name in self.leaving:
                self._let_go((name,), what, now)  # others may need it now

    def keep(self, name: str) -> None:
        """It was to be removed, once it may, and is configured again."""
        if self.follows(name) is Next.REMOVE:
            del self.leaving[name]

    def end(self, now: float) -> None:
        """Shut down: what comes after others goes before them, and nothing is launched any more."""
        self.ending = True
        up = [name for name, job in self._jobs.items() if _is_up(job)]
        gone = {name: what for name, what in self.leaving.items() if what.next is Next.REMOVE}
        self.leaving = {name: gone.get(name) or PendingStop(Next.STOP, SHUTDOWN) for name in up}
        for name in list(self._jobs):
            if name not in self.leaving:  # down, or going down: nothing of it is to come again
                self._feed(name, gone[name].input() if name in gone else Shutdown(), now)
        self._let_leave(up, now)

    def hurry(self, now: float) -> None:
        """Shut down without patience and order."""
        going, self.leaving = self.leaving, {}
        for name, job in list(self._jobs.items()):
            if job.alive:
                pending = going.get(name)
                removed = pending is not None and pending.next is Next.REMOVE
                self._feed(name, Remove(True) if removed else Stop(True, SHUTDOWN), now)

    def follows(self, name: str) -> Next | None:
        """Return what follows the stop that a job waits for; None where it waits for none."""
        pending = self.leaving.get(name)
        return None if pending is None else pending.next

    def stays(self, name: str) -> bool:
        """Whether a job is up, and nothing is to change that."""
        return _is_up(self._jobs[name]) and name not in self.leaving

    def going_before(self, names: Iterable[str]) -> dict[str, list[str]]:
        """What is up, or comes up by itself, and has to go before some jobs because it requires them: in
        this order, each under the nearest of the names that it requires."""
        found = self.order.with_dependents(names, self._is_wanted)
        first: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        for name, need in reversed(found.items()):
            owner[name] = name if need is None else owner[need]
            if need is not None:
                first.setdefault(owner[name], []).append(name)
        for others in first.values():
            others.reverse()
        return first

    def pass_on(self, job: Job, now: float) -> None:
        """A job is in another state: tell what comes after it, what requires it, what it requires."""
        name = job.spec.name
        self._refresh_unasked(name, now)
        if self.ending and job.state in PENDING:
            self._feed(name, Shutdown(), now)  # it ended before its turn, and will not come back
        if self.leaving and not _is_up(job):
            self._let_leave((name, *self.order.after.get(name, ())), now)
        if not self.ending:
            if job.state in AT_REST and not job.ready:
                self._take_down(job, now)
            elif job.state is State.WAITING:
                self._see_for_what(job, now)
        self._refresh_after((name,), now)

    # ---- coming up --------------------------------------------------------------------------

    def _with_requirements(self, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
        """Give names and what they require, in their order: each with what it requires and is to go, and of
        what is only required with what requires it."""
        names = tuple(names)
        needs = self.order.needs(*names)
        going: dict[str, str] = {}  # of what requires something that is to go: that
        for name in self.order.sort((*needs, *names)):
            if restarted := self._going_of(name, going):
                going[name] = restarted
            if name not in needs:
                yield name, restarted, ""
            elif name in self._jobs:
                yield name, restarted, needs[name]

    def _is_to_be_started(self, name: str) -> bool:
        """Whether a requirement is neither ready nor on its way to it."""
        return not self._jobs[name].ready and self._jobs[name].state not in COMING

    def _start_requirement(self, name: str, by_need: str, now: float, *, asked: bool) -> None:
        self._refresh(name, now)
        self._feed(name, Start(_required_by(by_need), asked), now)

    def _going_of(self, name: str, going: Mapping[str, str]) -> str:
        """What a job requires, directly or by what `going` knows, and is to go; the nearest."""
        for need in reversed(self.order.requires.get(name, ())):
            if restarted := need if need in self.leaving else going.get(need):
                return restarted
        return ""

    def _stay(self, name: str, restarted: str, now: float) -> None:
        """A stop that waits for its turn is called off: it is wanted up again."""
        if self.follows(name) is not Next.STOP:
            return
        if restarted:  # it has to go for that, and comes back with it
            self.leaving[name] = PendingStop(Next.RESTART, _restart_of(restarted))
        else:
            del self.leaving[name]
        self._give_up(name, "failed", "was started meanwhile", lambda waiter: waiter.has_stopped(name))
        self._refresh_after((name,), now)

    def _refresh(self, name: str, now: float) -> None:
        """See whether a job has to wait for what it comes after."""
        job = self._jobs.get(name)
        if job is None or self.ending:  # nothing is launched any more
            return
        jobs = self._waits_for(job)
        if jobs and jobs != job.held:
            self._feed(name, Hold(jobs), now)
        elif not jobs and job.held:
            self._feed(name, Release(), now)

    def _refresh_unasked(self, name: str, now: float) -> None:
        job = self._jobs.get(name)
        if job is not None and job.state in UNASKED and name not in self.leaving:
            self._refresh(name, now)

    def _refresh_after(self, names: Iterable[str], now: float) -> None:
        for other in dict.fromkeys(other for name in names for other in self.order.before.get(name, ())):
            self._refresh_unasked(other, now)

    def _waits_for(self, job: Job) -> tuple[str, ...]:
        """Return the jobs that must be ready before this one may be launched."""
        names = []
        for other in self.order.after.get(job.spec.name, ()):
            earlier = self._jobs.get(other)
            if earlier is None or (earlier.ready and other not in self.leaving):
                continue
            if other in job.spec.requires or earlier.state in COMING or self._is_to_return(earlier):
                names.append(other)
        return tuple(names)

    def _is_to_return(self, job: Job) -> bool:
        """Whether it goes, or will go, only to come again."""
        to_restart = self.follows(job.spec.name) is Next.RESTART
        return to_restart or job.next in (Next.RESTART, Next.DECIDE)

    def _see_for_what(self, job: Job, now: float) -> None:
        """A job begins to wait: not for what does not come. What was never started yet, as it is required
        only since a reload, is started."""
        for need in job.spec.requires:
            earlier = self._jobs.get(need)
            if earlier is None or earlier.state not in AT_REST or earlier.ready:
                continue
            if earlier.cause is None:
                self.start((need,), _required_by(job.spec.name), now)
            else:
                self._feed(job.spec.name, RequirementLost(_loss(earlier)), now)
                return

    # ---- going down -------------------------------------------------------------------------

    def _take_down(self, job: Job, now: float) -> None:
        """A requirement is stopped or given up: so is what requires it, outermost first."""
        why, others = _loss(job), []
        for name in self.order.required_by.get(job.spec.name, ()):
            if not self._is_wanted(name) or self._is_to_stay_down(name):
                continue
            if self._jobs[name].state is State.WAITING and job.state in ENDED:
                self._feed(name, RequirementLost(why), now)
            else:
                others.append(name)
        self._let_go(others, PendingStop(Next.STOP, why), now)

    def _let_go(self, names: Iterable[str], what: PendingStop, now: float) -> None:
        """Let jobs go once nothing that requires them lives; those first. With a restart they come back."""
        going = self.order.with_dependents(names, self._is_wanted)
        for name, need in going.items():
            if need is not None:
                self._let_go_first(name, need, what)
            elif self.follows(name) is not Next.REMOVE or what.next is Next.REMOVE:
                self._queue(name, what)
        self._refresh_after(going, now)
        self._let_leave(going, now)

    def _let_go_first(self, name: str, need: str, what: PendingStop) -> None:
        """A job has to go before `need` does. How it is to go already counts more than how that goes."""
        pending = self.follows(name)
        if pending is Next.REMOVE:
            self._queue(name, PendingStop(Next.REMOVE, REMOVED, what.now))
        elif what.next is Next.RESTART:
            if pending is None and _is_up(self._jobs[name]):
                self._queue(name, PendingStop(Next.RESTART, _restart_of(need), asked=what.asked))
        elif what.now or pending is not Next.STOP:
            self._queue(name, PendingStop(Next.STOP, Cause(Kind.REQUIREMENT, jobs=(need,)), what.now))

    def _queue(self, name: str, what: PendingStop) -> None:
        """A job is to go, once it may. A restart that has not had its turn by then will not have one."""
        overtaken = self.follows(name) is Next.RESTART and what.next is not Next.RESTART
        self.leaving[name] = what
        if overtaken:
            self._give_up(name, "failed", "was stopped meanwhile", lambda waiter: waiter.has_started(name))

    def _let_leave(self, names: Iterable[str], now: float) -> None:
        """Let those of them go that are to, and are needed by nothing that lives."""
        for name in names:
            if name in self.leaving and not self._is_needed(name):
                what = self.leaving.pop(name)
                if what.next is Next.RESTART:
                    self._refresh(name, now)
                self._feed(name, what.input(), now)
                self._refresh_unasked(name, now)
                self._refresh_after((name,), now)

    def _is_needed(self, name: str) -> bool:
        """Whether it is up, and something else that leaves too has to be gone before it."""
        job = self._jobs.get(name)
        if job is None or not (_is_up(job) or job.ready):
            return False
        edges = self.order.before if self.ending else self.order.required_by
        return any(other in self._jobs and self._jobs[other].alive for other in edges.get(name, ()))

    def _is_wanted(self, name: str) -> bool:
        job = self._jobs.get(name)
        return job is not None and (job.alive or job.state in PENDING)

    def _is_to_stay_down(self, name: str) -> bool:
        """Whether it goes, or will, not to come again."""
        return any(then in (Next.STOP, Next.REMOVE) for then in (self._jobs[name].next, self.follows(name)))


def _is_up(job: Job) -> bool:
    """Whether it is up and nothing has told it to go."""
    return job.alive and job.next is None


def _loss(job: Job) -> Cause:
    """Return what the end of a job is for the jobs that require it."""
    return Cause(Kind.REQUIREMENT, job.state.value, (job.spec.name,), because=job.cause)


def _required_by(name: str) -> Cause:
    return Cause(Kind.REQUIRED, jobs=(name,))


def _restart_of(name: str) -> Cause:
    return Cause(Kind.RESTART_OF, jobs=(name,))
