"""Who waits for what. A condition looks at one job and at the mark taken when the waiter came: it
holds, it can hold no more, it may hold at a later time, or (None) nothing is to be said yet.
Decided in the daemon, in the turn in which the waiter comes and at every change of a job after it,
so nothing can be missed and nobody polls.
"""

# How conditions are decided:
#
# A condition is asked when a waiter comes and after each change of a job, so it sees states, and a state
# alone does not say what happened between two looks: a job that is running was, perhaps, running before it
# was restarted. So a Mark keeps the counters of the job at the *baseline*, the moment from which the
# waiter counts, and a condition compares: more `launches` than then means a new run, more `deaths` an end.
#
# The counters (machine.py): `launches` counts processes that came to be, `deaths` runs of which nothing is
# left, `losses` the deaths that nobody asked for, `endings` how often the job came to rest by itself
# (exited, failed). A oneshot that succeeds dies, but is not lost: it is ready by its end.
#
#   losses <= deaths       the difference: stops and restarts by command, and successes of oneshots
#   deaths <= launches     a difference of one while a process lives
#
# Where the baseline is:
#
# - of a command (`command` is set): the moment before it is carried out. Its own doing comes after the
#   baseline.
# - of a plain `wait`: now, and nothing was done before (`fresh`). A job that is down now is an answer.
# - of a `wait` whose client will act, or acts already: now, but not `fresh`: that a job is down may be
#   about to change.
# - of a token: the event with that number. The counters of then are not kept. They are today's, less what
#   the events since have counted (`before`): "launched" has counted a launch; "died" a death, and a
#   loss if the state that followed was backoff, failed, or exited of a service; "died" and "state" an
#   ending if they led to exited or failed. The number of the run then is not known; it becomes 0, because
#   the launches distinguish the runs.
#
# With a start or restart two things must not be taken for its success or failure:
#
# - The run that is still up. `first_run` says from which run on a state counts: the one after the
#   baseline's.
# - The end of that run, which the command asks for. `pardoned` is the number of such ends, 0 or 1: 1 if a
#   process was there when the command came. After a token, or with a client that acts, nobody knows what
#   was asked for, so one is pardoned too.
#
# `stable` puts it together. Deaths since the baseline are of three kinds, and the middle one is found as
# the rest:
#
#   deaths since  =  losses since  +  asked for  +  its own end, if it is a oneshot that is ready by that
#
# It fails if there is any loss, or more was asked for than is pardoned. The time counts from when the job
# came into its state; if the baseline is that of a command or a token, not before the baseline either.
#
# Answers: a JobResult with an empty code (it holds), one with a code (it can hold no more), a time (it
# will hold then if nothing happens), or None. A waiter asks again at every change of the job and at that
# time.

from __future__ import annotations

from jobmon.core.events import AT_REST, LEAVING, JobResult, Next, State
from jobmon.core.machine import Job
from jobmon.lean.enums import Enum
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    Condition = Callable[[Job, "Mark", float], "JobResult | float | None"]

ENDED = frozenset((State.EXITED, State.FAILED))
SETTLED = AT_REST | {State.RUNNING}
STABLE = "stable"
START, STOP = "start", "stop"


class Mark(Record):
    """What a job was at the baseline. `command` ("start" or "stop") came with it. `pardoned` deaths are what
    it asks for, or may be what the client asks for who waits with a token or a command of its own.
    `fresh`: no command and no token came before, so what is down now is an answer."""

    run: int
    launches: int
    deaths: int
    losses: int
    endings: int
    command: str = ""
    pardoned: int = 0
    fresh: bool = False
    at: float = 0.0  # when that was, CLOCK_MONOTONIC seconds

    @property
    def first_run(self) -> int:
        """Runs before this one count for nothing: a start has asked for a later one."""
        return self.run + 1 if self.command == START else 0


def mark(job: Job, *, command: str = "", fresh: bool = False, at: float = 0.0) -> Mark:
    """The mark of this moment; `command`: what is about to be done."""
    replaces = (command == START and job.pid is not None) or not (command or fresh)
    counts = (job.run, job.launches, job.deaths, job.losses, job.endings)
    return Mark(*counts, command, int(replaces), fresh, at)


def before(mark: Mark, events: Iterable[tuple[str, State]], *, oneshot: bool) -> Mark:
    """The mark before some events, each a kind and the state that it led to: what they have counted is
    taken back. The launches tell the runs apart."""
    launches, deaths, losses, endings = mark.launches, mark.deaths, mark.losses, mark.endings
    for kind, state in events:
        died = kind == "died"
        launches -= kind == "launched"
        deaths -= died
        losses -= died and (state in (State.BACKOFF, State.FAILED) or (state is State.EXITED and not oneshot))
        endings -= state in ENDED and (died or kind == "state")
    return mark.replace(run=0, launches=launches, deaths=deaths, losses=losses, endings=endings)


# ---- the answers of commands ----------------------------------------------------------------


def at_once(job: Job, _since: Mark, _now: float) -> JobResult | None:
    """The command itself is all."""
    return _holds(job)


def launched(job: Job, since: Mark, _now: float) -> JobResult | None:
    """A new process exists, or the wish for one is queued: behind a stop, or for requirements."""
    if job.state is State.WAITING or (job.state in LEAVING and job.next is Next.RESTART):
        return _holds(job)
    if job.run < since.first_run:
        return None if job.state in LEAVING else _ended(job)
    return _holds(job) if job.pid is not None else _ended(job)


def up(job: Job, since: Mark, _now: float) -> JobResult | None:
    """The run that was asked for is ready."""
    if job.run >= since.first_run and job.ready:
        return _holds(job)
    if job.state in LEAVING and job.next in (Next.STOP, Next.REMOVE):
        return _fails(job, f"was stopped meanwhile ({job.cause})")
    return _ended(job)


def gone(job: Job, since: Mark, _now: float) -> JobResult | None:
    """The run of the baseline is gone."""
    return _holds(job) if job.run > since.run or not job.alive else None


# ---- the conditions of `wait`: design.md, section 8 -------------------------------------------


def changed(job: Job, since: Mark, _now: float) -> JobResult | None:
    """It went from RUNNING to STOPPED or back."""
    moved = job.launches != since.launches or job.deaths != since.deaths
    return _holds(job) if moved else _in_vain(job, since)


def running(job: Job, since: Mark, _now: float) -> JobResult | None:
    """A process is up."""
    if job.leader is not None and job.run >= since.first_run and job.state not in LEAVING:
        return _holds(job)
    return _given_up(job, since)


def ready(job: Job, since: Mark, _now: float) -> JobResult | None:
    """It is ready."""
    if job.ready and job.run >= since.first_run:
        return _holds(job)
    return _given_up(job, since)


def restarted(job: Job, since: Mark, _now: float) -> JobResult | None:
    """A run later than the baseline's is ready."""
    if job.ready and job.launches > since.launches and job.run > since.run:
        return _holds(job)
    return _ended_since(job, since)


def stable(seconds: float) -> Condition:
    """It is ready, and has been for so long in one run. Any death is its end. A command or a token before it
    may have asked for a new run: one such death does not count, nor does the time before."""

    def condition(job: Job, since: Mark, now: float) -> JobResult | float | None:
        its_end = job.ready and not job.alive  # a oneshot is ready by that
        lost = job.losses - since.losses
        asked_for = job.deaths - its_end - since.deaths - lost
        if lost > 0 or asked_for > since.pardoned:
            return _fails(job, f"has died meanwhile ({job.result or job.cause})")
        if not job.ready or job.run < since.first_run:
            return _given_up(job, since)
        until = (job.since if since.fresh else max(job.since, since.at)) + seconds
        return _holds(job) if now >= until else until

    return condition


def stopped(job: Job, _since: Mark, _now: float) -> JobResult | None:
    """It is gone, and does not come back by itself."""
    return _holds(job) if job.state in AT_REST else None


def exited(job: Job, since: Mark, _now: float) -> JobResult | None:
    """The run of the baseline has ended, or no run lives."""
    ended = JobResult(job.spec.name, status=job.status, ended=True)
    if job.deaths > since.deaths + (since.pardoned if since.command else 0):
        return ended
    if job.alive and (job.pid is not None or job.state is State.STARTING):
        return None
    if since.command == START:
        return _ended(job)
    return ended if job.deaths else _fails(job, "has never run")


def settled(job: Job, since: Mark, _now: float) -> JobResult | None:
    """No transition is under way: none that a command has asked for either."""
    waits_for_its_turn = since.command and job.run == since.run and job.alive
    return _holds(job) if job.state in SETTLED and not waits_for_its_turn else None


CONDITIONS: Mapping[str, Condition] = {
    "changed": changed,
    "running": running,
    "ready": ready,
    "restarted": restarted,
    "stopped": stopped,
    "exited": exited,
    "settled": settled,
}
# What can hold no more once the supervisor terminates; `changed` only for what is down already.
FAIL_AT_THE_END = ("running", "ready", "restarted", STABLE)


def condition(name: str, seconds: float) -> Condition:
    """The condition of a name; `seconds` is for "stable"."""
    return stable(seconds) if name == STABLE else CONDITIONS[name]


def _holds(job: Job) -> JobResult:
    return JobResult(job.spec.name)


def _fails(job: Job, why: str) -> JobResult:
    return JobResult(job.spec.name, "failed", why)


def _given_up(job: Job, since: Mark) -> JobResult | None:
    if since.fresh and job.state in AT_REST:
        return _fails(job, _down(job))
    return _ended_since(job, since)


def _in_vain(job: Job, since: Mark) -> JobResult | None:
    """What a command has asked for is over when the job is at rest."""
    return _fails(job, _down(job)) if since.command and job.state in AT_REST else None


def _ended_since(job: Job, since: Mark) -> JobResult | None:
    if job.endings > since.endings and job.state in AT_REST:
        return _fails(job, _down(job))
    return _in_vain(job, since)


def _ended(job: Job) -> JobResult | None:
    if job.spawn_error:
        again = " (it will be tried again)" if job.state is State.BACKOFF else ""
        return JobResult(job.spec.name, "could-not-start", f"could not be started: {job.spawn_error}{again}")
    return _fails(job, _down(job)) if job.state in AT_REST else None


def _down(job: Job) -> str:
    return f"is {job.state.value}: {job.cause}" if job.cause else f"is {job.state.value}"


# ---- waiters ----------------------------------------------------------------------------------


class Quorum(Enum):
    """When a waiter for several jobs has its answer."""

    EACH = "each"  # when each job has held or failed, at whatever time
    EVERY = "every"  # when each job has held, at whatever time, or for one it can hold no more
    ALL = "all"  # when the condition holds for all at the same moment, or for one can hold no more
    ANY = "any"  # when it holds for one, or can hold for none any more


class Waiter:
    """Somebody who waits for a condition on some jobs; `to` gets one answer.

    What a condition says of a job stays so until that job changes, or until a time that it names.
    """

    __slots__ = (
        "alarm",
        "condition",
        "deadline",
        "due",
        "held",
        "hopeless",
        "key",
        "marks",
        "name",
        "quorum",
        "results",
        "to",
        "token",
        "watched",
    )

    def __init__(self, key: int, to: Hashable, name: str, condition: Condition, quorum: Quorum) -> None:
        self.key = key
        self.to = to
        self.name = name
        self.condition = condition
        self.quorum = quorum
        self.token = 0
        self.marks: dict[str, Mark] = {}  # of the jobs that may change the answer yet
        self.watched: tuple[str, ...] = ()  # all that it was registered for
        self.held: dict[str, JobResult] = {}  # with ALL: where the condition holds now
        self.results: dict[str, JobResult] = {}
        self.hopeless = False  # with EVERY: one of the results is a failure
        self.due: dict[str, float] = {}  # when the condition will hold, if nothing happens before
        self.deadline = False
        self.alarm: float | None = None  # the time for which a timer is armed, to look again

    @property
    def waits(self) -> bool:
        """Whether its answer is not known yet."""
        return bool(self.marks)

    @property
    def later(self) -> float | None:
        """When it is to be looked at again: with ALL one look, when all can hold, is enough."""
        if not self.due:
            return None
        return (max if self.quorum is Quorum.ALL else min)(self.due.values())

    def has_started(self, name: str) -> bool:
        """Whether it waits for a run that it has asked for."""
        return name in self.marks and self.marks[name].command == START

    def has_stopped(self, name: str) -> bool:
        """Whether it waits for an end that it has asked for."""
        return name in self.marks and self.marks[name].command == STOP

    def look(self, job: Job, now: float) -> JobResult | None:
        """A job has changed, or a time has come: what that means, for `settle`."""
        name = job.spec.name
        since = self.marks.get(name)
        if since is None:
            return None
        self.held.pop(name, None)
        self.due.pop(name, None)
        found = self.condition(job, since, now)
        if isinstance(found, JobResult):
            return found
        if found is not None:
            self.due[name] = found
        return None

    def know(self, result: JobResult) -> None:
        """Nothing more is waited for of this job. One that is as a command would have it is no failure."""
        self.results[result.job] = result
        self.marks.pop(result.job, None)
        self.hopeless |= result.code not in ("", "already-started", "already-stopped")

    def settle(self, results: Iterable[JobResult]) -> None:
        """What becomes of some jobs is known."""
        known = {result.job: result for result in results if result.job in self.marks}
        failed = [result for result in known.values() if result.code]
        held = [result for result in known.values() if not result.code]
        if self.quorum is Quorum.ANY and held:
            self.close(held)
        elif self.quorum is not Quorum.ALL:
            for result in known.values():
                self.know(result)
            if self.hopeless and self.quorum is Quorum.EVERY:
                self.close(())
        elif failed:
            self.close(failed)
        else:
            self.held |= known
            if len(self.held) == len(self.marks):
                self.close(self.held.values())

    def close(self, results: Iterable[JobResult]) -> None:
        """It gets these results; beside them, of EACH and EVERY, what is known of the other jobs."""
        found = {result.job: result for result in results}
        self.results = self.results | found if self.quorum in (Quorum.EACH, Quorum.EVERY) else found
        self.marks.clear()
        self.due.clear()
