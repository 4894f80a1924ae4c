"""Why a job is as it is: the chain of causes, in words, from what is known of it and of what it requires.

Reads the supervisor and changes nothing; what only the engine knows is given as words.
"""

from __future__ import annotations

from jobmon.core.causes import ENDS, RESTARTS, VERBS, Cause, Kind, text, tried
from jobmon.core.events import LEAVING, Next, State
from jobmon.core.spec import JobType, Restart
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jobmon.core.eventlog import Event
    from jobmon.core.machine import Job
    from jobmon.core.supervisor import Supervisor

MAX_JOBS = 50  # of one chain: more would explain nothing
# Of these a process dies by its own doing: a fault, a limit, an alarm that it has set.
_FAULTS = frozenset(
    "SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGSEGV SIGSYS SIGXCPU SIGXFSZ SIGPIPE "
    "SIGALRM SIGVTALRM SIGPROF SIGSTKFLT".split()
)
_AGAIN = (Kind.AUTO_RESTART, Kind.PENALTY_OVER)  # the daemon starts it again by itself


class Link(Record):
    """One link of the chain: what is to be said of a job, and since when it is so (unix time)."""

    job: str
    text: str
    since: float | None = None


def why(supervisor: Supervisor, name: str, now: float, trouble: Callable[[str], str]) -> tuple[Link, ...]:
    """The chain of causes for the state of a job, the nearest first; then that of what it is due to.

    `trouble` says of a job why its run is not ready, or was not.
    """
    chain: list[Link] = []
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

    def causes(self) -> Iterator[Link]:
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
        for words in (*say(), *self._what_comes()):
            yield Link(self._job.spec.name, words, since)
            since = None

    def blames(self) -> list[str]:
        """The jobs that its state is due to, or that are in the way of the next."""
        job, jobs = self._job, self._supervisor.jobs
        if job.state is State.WAITING:
            return [each for each in job.held if each in jobs]
        by = self._queued() if job.state in (State.STARTING, State.RUNNING) else self._order()
        due = by.jobs if by is not None and by.kind in (Kind.RESTART_OF, Kind.REQUIREMENT) else ()
        return [*(each for each in due if each in jobs), *self._in_its_way()]

    # ---- state by state ---------------------------------------------------------------------

    def _stopped(self) -> Iterator[str]:
        job, leaving, order = self._job, self._last_stop(), self._order()
        if order is None:
            yield "was never started"
        elif order.kind in ENDS:
            yield f"{self._end_of(leaving, order)}, and was stopped" if leaving else "was stopped"
        elif order.kind in RESTARTS:
            yield f"was stopped while it was being restarted {asked(order)}"
        else:
            yield f"stopped {asked(order, past=True)}"
        yield from self._haste(leaving)
        if order is None or job.result is None:
            return
        end = job.result.end
        if job.cause != job.result and end.kind in ENDS:  # it was down already when it was stopped
            yield f"its last run had ended with {end}"
        elif job.cause == job.result and order.kind not in ENDS:
            yield f"ended with {end}" if end.kind in ENDS else f"was not launched: {end}"

    def _waiting(self) -> Iterator[str]:
        yield text(Cause(Kind.WAITING, jobs=self._job.held))
        yield f"is to be {self._origin()}"

    def _starting(self) -> Iterator[str]:
        job = self._job
        if job.pid is None:
            yield "is being launched"
        elif job.ran.type is JobType.ONESHOT:
            yield "has not ended yet, and is ready when it has succeeded"
        elif job.ran.ready is None:
            yield "its program is not being executed yet"
        else:
            yield f"is not ready: {self._trouble}" if self._trouble else "is not ready"
        if job.armed is not None:
            yield f"is given up in {self._left()} (start-timeout)"
        yield self._origin()

    def _running(self) -> Iterator[str]:
        yield "is ready" if self._job.ran.ready is not None else "its program runs"
        if self._job.stale:
            yield f"is stale: {', '.join(self._job.stale)} changed since it was started"
        yield self._origin()

    def _leaving(self) -> Iterator[str]:
        job, leaving, order = self._job, self._last_stop(), self._order()
        assert order is not None  # something has told it to stop
        died, to_restart = order.kind in ENDS, order.kind in RESTARTS
        if died:
            rest = "the rest of it" if order.kind is Kind.EXITED else "it"
            yield f"{self._end_of(leaving, order)}; {rest} is being stopped"
        else:
            yield f"is being {'restarted' if to_restart else 'stopped'} {asked(order)}"
        if job.next is Next.STOP and (to_restart or died):
            yield "is to stay down"
        elif job.next is Next.RESTART and not to_restart:
            yield f"then is to be {self._origin()}"
        yield from self._haste(leaving)
        if job.state is State.KILLING:
            yield "has got SIGKILL, and is not gone yet"
        elif job.armed is not None:
            yield f"gets SIGKILL in {self._left()} (kill-timeout)"

    def _haste(self, leaving: Sequence[Event]) -> Iterator[str]:
        """Why it was not left to end by itself, once it had been told to."""
        for event in leaving[1:]:
            if event[7].kind is Kind.KILL_TIMEOUT:
                yield f"did not end within {_seconds(self._job.spec.kill_timeout)} (kill-timeout)"
            else:
                yield f"killed {asked(event[7])}"

    def _backoff(self) -> Iterator[str]:
        job = self._job
        yield self._how_it_ended()
        if job.armed is not None and job.armed > job.since:
            yield f"{self._left()} of the penalty left{self._what_for()}"
        else:
            yield "is about to be restarted"

    def _what_for(self) -> str:
        """Explain a penalty for an end that is the first since somebody started the job."""
        if self._job.past.ends > 1 or self._job.spawn_error:
            return ""
        window = _seconds(self._job.spec.restart_window)
        return f": it had ended, or been penalised, within {window} before (restart-window)"

    def _ended(self) -> Iterator[str]:
        job = self._job
        result = job.result
        assert result is not None  # it has ended
        if result.kind is Kind.REQUIREMENT:
            yield text(result)
            return
        yield self._how_it_ended()
        if result.kind is Kind.GAVE_UP:
            yield f"gave up {tried(result.subject)} (max-restarts)"
        elif job.state is State.FAILED and job.spec.restart is Restart.NEVER:
            yield "is not restarted: restart is off"

    # ---- what they are made of ----------------------------------------------------------------

    def _left(self) -> str:
        return _seconds(max(0.0, (self._job.armed or self._now) - self._now))

    def _in_its_way(self) -> list[str]:
        """What has to be gone before it is stopped, if it is to be."""
        supervisor, name = self._supervisor, self._job.spec.name
        if supervisor.going(name) is None:
            return []
        edges = supervisor.order.before if supervisor.terminating else supervisor.order.required_by
        jobs = supervisor.jobs
        return [other for other in edges.get(name, ()) if other in jobs and jobs[other].alive]

    def _last_stop(self) -> list[Event]:
        """How a run is being stopped, or was before the very last that happened: the changes of its state."""
        going = self._job.state in LEAVING
        return _stop_at_the_end_of(self._events if going else self._events[:-1])

    def _order(self) -> Cause | None:
        """By what it is, or was, on its way down. That of a death, if it went by itself."""
        leaving = self._last_stop()
        return leaving[0][7] if leaving else self._job.cause

    def _queued(self) -> Cause | None:
        """By what it is to be stopped, once it may."""
        pending = self._supervisor.going(self._job.spec.name)
        return None if pending is None else pending.by

    def _what_comes(self) -> Iterator[str]:
        """That it is to be stopped, where others have to be gone before it."""
        by, others = self._queued(), self._in_its_way()
        if by is not None and others:
            then = "restarted" if by.kind in RESTARTS else "stopped"
            yield f"is to be {then} {asked(by)}, once these are gone: {', '.join(others)}"

    def _origin(self) -> str:
        """Who or what has led to its latest launch, or to the one that is to come."""
        job = self._job
        assert job.wanted is not None  # something has led to it
        if job.wanted.kind in _AGAIN:
            return "restarted by itself" + (f" after {job.result.end}" if job.result else "")
        return f"{'restarted' if job.wanted.kind in RESTARTS else 'started'} {asked(job.wanted)}"

    def _how_it_ended(self) -> str:
        """How its last run has ended, and how often in a row."""
        job = self._job
        if job.spawn_error:
            return self._often(f"could not be started: {job.spawn_error}")
        assert job.result is not None  # it has ended
        return self._often(self._end_of(self._last_stop(), job.result.end))

    def _end_of(self, leaving: Sequence[Event], cause: Cause) -> str:
        """What a death means. `leaving` is what was done to the run before it was gone, if anything."""
        spec = self._job.ran
        if cause.kind is Kind.START_TIMEOUT:
            told = f"was not ready within {_seconds(spec.start_timeout or 0)} (start-timeout)"
            return f"{told}: {self._trouble}" if self._trouble else told
        if cause.kind is Kind.WATCHDOG:
            return f"said nothing for {_seconds(spec.watchdog or 0)} (watchdog)"
        if cause.kind is Kind.EXITED and cause.subject is None:
            return "ended, and nobody knows how"
        if cause.kind is not Kind.EXITED or isinstance(cause.subject, int):
            return text(cause)
        before = self._events[: self._events.index(leaving[0])] if leaving else self._events
        its = [each[7] for each in before if each[3] == "signalled" and each[5] == self._job.run]
        sent = [by for by in its if by.subject == cause.subject]
        if sent:
            return f"died of {cause}, sent {asked(sent[-1])}"
        if cause.subject in _FAULTS:
            return f"died of {cause}"
        memory = ", possibly out of memory" if cause.subject == "SIGKILL" else ""
        return f"killed by {cause} from outside{memory}"

    def _often(self, text: str) -> str:
        """Add to the text of its last end how many ends have come in quick succession."""
        job, past = self._job, self._job.past
        if past.ends < 2:
            return text
        window = f"in quick succession (restart-window {_seconds(job.spec.restart_window)})"
        if past.alike < past.ends:
            return f"{text}; {past.ends} ends {window}"
        often = "twice" if past.ends == 2 else f"{past.ends} times"
        return f"{text}, {often} {'in a row' if job.spawn_error else window}"


def asked(by: Cause, *, past: bool = False) -> str:
    """Who or what is behind something; `past`: what it says of the future has been since."""
    if by.kind is Kind.REQUIREMENT:
        return f"because it {text(by, past=past)}"
    if by.kind is Kind.REQUIRED:
        return f"because {by.jobs[0]} requires it"
    if by.kind is Kind.RESTART_OF:
        return f"with {by.jobs[0]}"
    if by.is_command:
        who = str(by.actor).replace(" pid ", ", pid ")
        option = " --restart" if by.kind is Kind.RELOAD_RESTART else ""
        return f"by {who}, `jobmon {VERBS[by.kind]}{option}`{': ' if by.reason else ''}{by.reason}"
    return f"by {_WORDS.get(by.kind) or text(by)}"


_WORDS = {
    Kind.SHUTDOWN: "the shutdown of the daemon",
    Kind.REMOVED: "its removal from the configuration",
}


def _stop_at_the_end_of(events: Sequence[Event]) -> list[Event]:
    """The changes of state with which a run was being stopped at last."""
    found: list[Event] = []
    for event in reversed(events):
        if event[4] not in LEAVING:
            break
        if event[3] == "state":
            found.insert(0, event)
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
