"""Why a job is as it is: the chain of causes, in words, from what is known of it and of what it requires.

Reads the supervisor and changes nothing; what only the engine knows is given as words.
"""

from __future__ import annotations

from jobmon.events import LEAVING, LIVE, Next, State
from jobmon.machine import IMPATIENT, LATE, SILENT
from jobmon.records import Record
from jobmon.spec import Restart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jobmon.eventlog import Event
    from jobmon.machine import Job
    from jobmon.supervisor import Supervisor

MAX_JOBS = 50  # of one chain: more would explain nothing
# Of these a process dies by its own fault.
_FAULTS = frozenset("SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGSEGV SIGSYS SIGXCPU SIGXFSZ SIGPIPE".split())
_REQUIRES = "requires "  # how the cause of a stop that was passed on begins
_READY = "; its requirements are ready"


class Cause(Record):
    """One link of the chain: what is to be said of a job, and since when it is so (unix time)."""

    job: str
    text: str
    since: float | None = None


def why(supervisor: Supervisor, name: str, now: float, trouble: Callable[[str], str]) -> tuple[Cause, ...]:
    """The chain of causes for the state of a job, the nearest first; then that of what it is due to.

    `trouble` says of a job why its run is not ready, or was not.
    """
    chain: list[Cause] = []
    names = [name]
    for each in names:
        view = _View(supervisor, supervisor.jobs[each], now, trouble(each))
        chain += view.causes()
        names += [other for other in view.blames() if other not in names][: MAX_JOBS - len(names)]
    return tuple(chain)


class _View:
    """A job, and what has happened to it."""

    def __init__(self, supervisor: Supervisor, job: Job, now: float, trouble: str) -> None:
        self._supervisor = supervisor
        self._job = job
        self._now = now
        self._trouble = trouble
        self._events = supervisor.log.of(job.spec.name)

    def causes(self) -> Iterator[Cause]:
        """What is to be said of this job."""
        say = {
            State.STOPPED: self._stopped,
            State.WAITING: self._waiting,
            State.STARTING: self._starting,
            State.RUNNING: self._running,
            State.STOPPING: self._leaving,
            State.KILLING: self._leaving,
            State.BACKOFF: self._backoff,
            State.EXITED: self._ended,
            State.FAILED: self._ended,
        }[self._job.state]
        since: float | None = self._job.since + self._supervisor.wall
        for text in say():
            yield Cause(self._job.spec.name, text, since)
            since = None

    def blames(self) -> list[str]:
        """The jobs that its state is due to."""
        job, jobs = self._job, self._supervisor.jobs
        earlier = [other for other in self._supervisor.order.after.get(job.spec.name, ()) if other in jobs]
        if job.state is State.WAITING:
            return [other for other in earlier if not jobs[other].ready]
        if job.state in (State.STARTING, State.RUNNING):
            return []
        told = (job.result, job.cause, *(event[7] for event in self._last_stop()))
        return [other for other in earlier if any(t.startswith(f"{_REQUIRES}{other}, ") for t in told)]

    # ---- state by state ---------------------------------------------------------------------

    def _stopped(self) -> Iterator[str]:
        job = self._job
        leaving = self._last_stop()
        if not job.cause:
            yield "was never started"
            return
        yield f"stopped {asked(leaving[0][7] if leaving else job.cause)}"
        if any(event[7] == IMPATIENT for event in leaving):
            yield f"did not end within {_seconds(job.spec.kill_timeout)} (kill-timeout) and was killed"
        elif leaving:
            yield f"ended with {job.result}"

    def _waiting(self) -> Iterator[str]:
        yield self._job.cause
        if self._job.wanted:
            yield f"is to be started {asked(self._job.wanted)}"

    def _starting(self) -> Iterator[str]:
        job = self._job
        if job.pid is None:
            yield "is being launched"
        elif job.ran.ready is None:
            yield "has not ended yet, and is ready when it has succeeded"
        else:
            yield f"is not ready: {self._trouble}" if self._trouble else "is not ready"
        if job.armed is not None:
            yield f"is given up in {self._left()} (start-timeout)"
        yield from self._launch()

    def _running(self) -> Iterator[str]:
        yield "is ready" if self._job.ran.ready is not None else "its program runs"
        yield from self._launch()

    def _leaving(self) -> Iterator[str]:
        job, leaving = self._job, self._last_stop()
        by = leaving[0][7] if leaving else job.cause
        if job.next is Next.DECIDE:
            yield f"{self._end_of(leaving, by)}; the rest of it is being stopped"
        else:
            yield f"is to be {'restarted' if job.next is Next.RESTART else 'stopped'} {asked(by)}"
        if job.state is State.KILLING:
            yield "has got SIGKILL, and is not gone yet"
        elif job.armed is not None:
            yield f"gets SIGKILL in {self._left()} (kill-timeout)"

    def _backoff(self) -> Iterator[str]:
        job = self._job
        yield self._how_it_ended()
        if job.armed is not None and job.armed > job.since:
            yield f"{self._left()} of the penalty left"
        else:
            yield "is about to be restarted"

    def _ended(self) -> Iterator[str]:
        job = self._job
        if job.result.startswith(_REQUIRES):
            yield job.result
            return
        yield self._how_it_ended()
        _, gave_up, times = job.result.partition(", gave up after ")
        if gave_up:
            yield f"gave up after {times} (max-restarts)"
        elif job.state is State.FAILED and job.spec.restart is Restart.NEVER:
            yield "is not restarted: restart is off"

    # ---- what they are made of ----------------------------------------------------------------

    def _left(self) -> str:
        return _seconds(max(0.0, (self._job.armed or self._now) - self._now))

    def _last_stop(self) -> list[Event]:
        """How the last run was stopped, if that is the last that happened: the changes of its state."""
        events = list(self._events)
        if self._job.state not in LEAVING:
            while events and events[-1][4] not in LIVE:
                events.pop()
        found: list[Event] = []
        while events and events[-1][4] in LEAVING:
            found.insert(0, events.pop())
        return [event for event in found if event[3] == "state"]

    def _launch(self) -> Iterator[str]:
        """Who has started the present run, or what, and what it does not know of."""
        if self._job.stale:
            yield f"is stale: {', '.join(self._job.stale)} changed since it was started"
        launches = [at for at, event in enumerate(self._events) if event[3] == "launched"]
        if not launches:
            return
        before = self._events[: launches[-1]]
        deaths = [event for event in before if event[3] == "died"]
        if before and before[-1][3] == "restarting":
            yield f"restarted by itself{f' after {deaths[-1][7]}' if deaths else ''}"
        elif before and before[-1][3] == "died" and before[-1][4] is State.STARTING:
            stops = [event for event in before if event[3] == "state" and event[4] in LEAVING]
            yield f"restarted {asked(stops[0][7])}" if stops else "restarted"
        else:
            yield f"started {asked(self._events[launches[-1]][7])}"

    def _how_it_ended(self) -> str:
        """How its last run has ended, and how often in a row."""
        job = self._job
        if job.spawn_error:
            return self._often(f"could not be started: {job.spawn_error}", job.past.failures)
        cause = job.result.partition(", gave up after")[0]
        return self._often(self._end_of(self._last_stop(), cause), job.past.failures + 1)

    def _end_of(self, leaving: Sequence[Event], cause: str) -> str:
        """What a death means. `leaving` is what was done to the run before it, if anything."""
        spec = self._job.ran
        if cause == LATE:
            told = f"was not ready within {_seconds(spec.start_timeout or 0)} (start-timeout)"
            return f"{told}: {self._trouble}" if self._trouble else told
        if cause == SILENT:
            return f"said nothing for {_seconds(spec.watchdog or 0)} (watchdog)"
        if not cause.startswith("SIG"):
            return cause
        before = self._events[: self._events.index(leaving[0])] if leaving else self._events
        sent = [each for each in before[-4:] if each[3] == "signalled" and each[7].startswith(f"{cause}, ")]
        if sent:
            return f"died of {cause}, sent {asked(sent[-1][7].partition(', ')[2])}"
        if cause in _FAULTS:
            return f"died of {cause}"
        memory = ", possibly out of memory" if cause == "SIGKILL" else ""
        return f"killed by {cause} from outside{memory}"

    def _often(self, text: str, times: int) -> str:
        """The text, and how often it has come to that in a row."""
        ends = [each for each in self._events if each[4] not in LIVE and each[3] in ("died", "state")]
        causes = [each[7].partition(", gave up after")[0] for each in ends]
        same = 0
        while same < min(times, len(causes)) and causes[-1 - same] == causes[-1]:
            same += 1
        within = f"within {_seconds(self._job.spec.restart_window)}"
        if same < 2:
            return text
        return f"{text} twice {within}" if same == 2 else f"{text} {same} times, each {within}"


def asked(by: str) -> str:
    """Who or what is behind something, from the cause that the log has of it."""
    by = by.partition(_READY)[0]
    verb, found, rest = by.partition(" by uid ")
    if found:
        who, colon, reason = rest.partition(": ")
        return f"by uid {who.replace(' pid ', ', pid ')}, `jobmon {verb}`{colon}{reason}"
    if by.startswith(_REQUIRES):
        return f"because it {by}"
    if by.startswith("required by "):
        return f"because {by.removeprefix('required by ')} requires it"
    return f"by {by}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
