"""Why a job is as it is: the chain of causes, in words, from what is known of it and of what it requires.

Reads the supervisor and changes nothing; what only the engine knows is given as words.
"""

from __future__ import annotations

from jobmon.core.events import LEAVING, Next, Remove, Shutdown, State
from jobmon.core.machine import GAVE_UP, IMPATIENT, LATE, SILENT
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
# How the causes begin that are no person's, machine.py and supervisor.py.
_REQUIRES, _REQUIRED, _WITH, _WAITS = "requires ", "required by ", "restart of ", "waiting for "
_WHICH = ", which is "
_AGAIN = ("restart", "penalty over")  # the daemon starts it again by itself


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
        for text in (*say(), *self._what_comes()):
            yield Cause(self._job.spec.name, text, since)
            since = None

    def blames(self) -> list[str]:
        """The jobs that its state is due to, or that are in the way of the next."""
        job, name, order = self._job, self._job.spec.name, self._supervisor.order
        earlier = order.after.get(name, ())
        if job.state is State.WAITING:
            return list(_named(job.held.removeprefix(_WAITS), earlier))
        up, queued = job.state in (State.STARTING, State.RUNNING), self._supervisor.going(name)
        told = str(getattr(queued, "by", "")) if up else self._order()
        due = [each for each in _blamed(told) if each in self._supervisor.jobs]
        return [*due, *self._in_its_way()]

    # ---- state by state ---------------------------------------------------------------------

    def _stopped(self) -> Iterator[str]:
        job, leaving, order = self._job, self._last_stop(), self._order()
        if not job.cause:
            yield "was never started"
        elif _is_death(order):
            yield f"{self._end_of(leaving, order)}, and was stopped" if leaving else "was stopped"
        elif _is_restart(order):
            yield f"was stopped while it was being restarted {asked(order)}"
        else:
            yield f"stopped {asked(order, past=True)}"
        yield from self._haste(leaving)
        result = job.result.partition(GAVE_UP)[0]
        if job.cause != job.result and _is_death(result):  # it was down already when it was stopped
            yield f"its last run had ended with {result}"
        elif job.cause == job.result and result and not _is_death(order):
            yield f"ended with {result}" if _is_death(result) else f"was not launched: {result}"

    def _waiting(self) -> Iterator[str]:
        yield self._job.held or self._job.cause
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
        to_restart = _is_restart(order)
        if _is_death(order):
            rest = "it" if order in (LATE, SILENT) else "the rest of it"
            yield f"{self._end_of(leaving, order)}; {rest} is being stopped"
        else:
            yield f"is being {'restarted' if to_restart else 'stopped'} {asked(order)}"
        if job.next is Next.STOP and (to_restart or _is_death(order)):
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
            if event[7] == IMPATIENT:
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
        if job.result.startswith(_REQUIRES):
            yield job.result
            return
        yield self._how_it_ended()
        _, gave_up, tried = job.result.partition(GAVE_UP)
        if gave_up:
            yield f"gave up {tried} (max-restarts)"
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

    def _order(self) -> str:
        """By what it is, or was, on its way down. That of a death, if it went by itself."""
        leaving = self._last_stop()
        return leaving[0][7] if leaving else self._job.cause

    def _what_comes(self) -> Iterator[str]:
        """That it is to be stopped, where others have to be gone before it."""
        what, others = self._supervisor.going(self._job.spec.name), self._in_its_way()
        if what is not None and others:
            by = _NAMELESS.get(type(what), "") or str(getattr(what, "by", ""))
            then = "restarted" if _is_restart(by) else "stopped"
            yield f"is to be {then} {asked(by)}, once these are gone: {', '.join(others)}"

    def _origin(self) -> str:
        """Who or what has led to its latest launch, or to the one that is to come."""
        job = self._job
        if job.wanted in _AGAIN:
            last = job.result.partition(GAVE_UP)[0]
            return f"restarted by itself after {last}" if last else "restarted by itself"
        return f"{'restarted' if _is_restart(job.wanted) else 'started'} {asked(job.wanted)}"

    def _how_it_ended(self) -> str:
        """How its last run has ended, and how often in a row."""
        job = self._job
        if job.spawn_error:
            return self._often(f"could not be started: {job.spawn_error}")
        return self._often(self._end_of(self._last_stop(), job.result.partition(GAVE_UP)[0]))

    def _end_of(self, leaving: Sequence[Event], cause: str) -> str:
        """What a death means. `leaving` is what was done to the run before it was gone, if anything."""
        spec = self._job.ran
        if cause == LATE:
            told = f"was not ready within {_seconds(spec.start_timeout or 0)} (start-timeout)"
            return f"{told}: {self._trouble}" if self._trouble else told
        if cause == SILENT:
            return f"said nothing for {_seconds(spec.watchdog or 0)} (watchdog)"
        if cause == "unknown":
            return "ended, and nobody knows how"
        if not cause.startswith("SIG"):
            return cause
        before = self._events[: self._events.index(leaving[0])] if leaving else self._events
        its = [each[7] for each in before if each[3] == "signalled" and each[5] == self._job.run]
        sent = [told.partition(", ")[2] for told in its if told.startswith(f"{cause}, ")]
        if sent:
            return f"died of {cause}, sent {asked(sent[-1])}"
        if cause in _FAULTS:
            return f"died of {cause}"
        memory = ", possibly out of memory" if cause == "SIGKILL" else ""
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


def asked(by: str, *, past: bool = False) -> str:
    """Who or what is behind something, from the cause that the log has of it."""
    if by.startswith(_REQUIRES):
        return f"because it {by.replace(', which is to be ', ', which was to be ') if past else by}"
    if by.startswith(_REQUIRED):
        return f"because {by.removeprefix(_REQUIRED)} requires it"
    if by.startswith(_WITH):
        return f"with {by.removeprefix(_WITH)}"
    verb, found, rest = by.partition(" by uid ")
    if found:
        who, colon, reason = rest.partition(": ")
        return f"by uid {who.replace(' pid ', ', pid ')}, `jobmon {verb}`{colon}{reason}"
    return f"by {_WORDS.get(by, by)}"


_WORDS = {
    "shutdown": "the shutdown of the daemon",
    "removed": "its removal from the configuration",
    "reload": "a reload",
}
_NAMELESS = {Shutdown: "shutdown", Remove: "removed"}


def _is_death(cause: str) -> bool:
    """Whether it says how a run has ended, or why it was ended by the daemon, and not who wished that."""
    return cause in (LATE, SILENT, "unknown") or cause.startswith(("exit ", "SIG"))


def _is_restart(by: str) -> bool:
    return by.startswith(("restart by ", _WITH)) or by == "reload"


def _blamed(cause: str) -> Iterator[str]:
    """The names that a cause may mean, which says that a job is due to another. (A name may have such words
    itself.)"""
    if cause.startswith(_WITH):
        yield cause.removeprefix(_WITH)
    elif cause.startswith(_REQUIRES):
        at = cause.find(_WHICH)
        while at >= 0:
            yield cause[len(_REQUIRES) : at]
            at = cause.find(_WHICH, at + 1)


def _named(listed: str, names: Sequence[str]) -> Iterator[str]:
    """Those of the names that a list has, which is in their order. (A name may have a comma itself.)"""
    at = 0
    for name in names:
        end = at + len(name)
        if listed.startswith(name, at) and (end == len(listed) or listed.startswith(", ", end)):
            yield name
            at = end + 2


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
