"""Whose turn it is: jobs come up after what they come after, and go before what they require goes.

One place knows what is to go and has to wait for that. What a job is itself knows the job alone: it
is told to start, stop or hold like from anywhere else. No I/O, no answers.
"""

from __future__ import annotations

from jobmon.core.causes import SHUTDOWN, Cause, Kind
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


class Turns:
    """The order of `jobs`, which the supervisor keeps. `feed` tells a job something, `give_up` those who
    wait for what does not come any more."""

    def __init__(self, jobs: Mapping[str, Job], feed: Feed, give_up: GiveUp) -> None:
        self.order = Order(job.spec for job in jobs.values())
        self.ending = False
        # What is to go once nothing that needs it lives, and how: Stop, RestartJob, Remove, Shutdown.
        self.leaving: dict[str, Input] = {}
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
        names, what = tuple(names), RestartJob(by, asked)
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

    def stop(self, names: Iterable[str], what: Stop | Remove, now: float) -> None:
        """Stop jobs, after what requires them."""
        self._let_go(names, what, now)

    def rearrange(self, removed: Iterable[str], now: float) -> None:
        """There are other jobs, or another order. What is removed keeps its place until it is gone."""
        self.order = Order(job.spec for job in self._jobs.values())
        self.stop(removed, Remove(), now)
        for job in list(self._jobs.values()):
            self._refresh_unasked(job.spec.name, now)
            if job.state is State.WAITING:
                self._see_for_what(job, now)
        for name, what in list(self.leaving.items()):
            if name in self.leaving:
                self._let_go((name,), what, now)  # others may need it now

    def keep(self, name: str) -> None:
        """It was to be removed, once it may, and is configured again."""
        if type(self.leaving.get(name)) is Remove:
            del self.leaving[name]

    def end(self, now: float) -> None:
        """Shut down: what comes after others goes before them, and nothing is launched any more."""
        self.ending = True
        up = [name for name, job in self._jobs.items() if _is_up(job)]
        gone = {name: what for name, what in self.leaving.items() if type(what) is Remove}
        self.leaving = {name: gone.get(name) or Shutdown() for name in up}
        for name in list(self._jobs):
            if name not in self.leaving:  # down, or going down: nothing of it is to come again
                self._feed(name, gone.get(name) or Shutdown(), now)
        self._let_leave(up, now)

    def hurry(self, now: float) -> None:
        """Shut down without patience and order."""
        going, self.leaving = self.leaving, {}
        for name, job in list(self._jobs.items()):
            if job.alive:
                removed = type(going.get(name)) is Remove
                self._feed(name, Remove(True) if removed else Stop(True, SHUTDOWN), now)

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
        if type(self.leaving.get(name)) is not Stop:
            return
        if restarted:  # it has to go for that, and comes back with it
            self.leaving[name] = RestartJob(_restart_of(restarted))
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
        to_restart = type(self.leaving.get(job.spec.name)) is RestartJob
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
        self._let_go(others, Stop(by=why), now)

    def _let_go(self, names: Iterable[str], what: Input, now: float) -> None:
        """Let jobs go once nothing that requires them lives; those first. With a restart they come back."""
        going = self.order.with_dependents(names, self._is_wanted)
        for name, need in going.items():
            if need is not None:
                self._let_go_first(name, need, what)
            elif type(self.leaving.get(name)) is not Remove:
                self._queue(name, what)
        self._refresh_after(going, now)
        self._let_leave(going, now)

    def _let_go_first(self, name: str, need: str, what: Input) -> None:
        """A job has to go before `need` does. How it is to go already counts more than how that goes."""
        pending = type(self.leaving.get(name))
        at_once = isinstance(what, (Stop, Remove)) and what.now
        if pending is Remove:
            self._queue(name, Remove(at_once))
        elif isinstance(what, RestartJob):
            if pending is type(None) and _is_up(self._jobs[name]):
                self._queue(name, RestartJob(_restart_of(need), what.asked))
        elif at_once or pending is not Stop:
            self._queue(name, Stop(at_once, Cause(Kind.REQUIREMENT, jobs=(need,))))

    def _queue(self, name: str, what: Input) -> None:
        """A job is to go, once it may. A restart that has not had its turn by then will not have one."""
        overtaken = type(self.leaving.get(name)) is RestartJob and not isinstance(what, RestartJob)
        self.leaving[name] = what
        if overtaken:
            self._give_up(name, "failed", "was stopped meanwhile", lambda waiter: waiter.has_started(name))

    def _let_leave(self, names: Iterable[str], now: float) -> None:
        """Let those of them go that are to, and are needed by nothing that lives."""
        for name in names:
            if name in self.leaving and not self._is_needed(name):
                what = self.leaving.pop(name)
                if isinstance(what, RestartJob):
                    self._refresh(name, now)
                self._feed(name, what, now)
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
        follows, queued = self._jobs[name].next, self.leaving.get(name)
        return follows in (Next.STOP, Next.REMOVE) or isinstance(queued, (Stop, Remove, Shutdown))


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
