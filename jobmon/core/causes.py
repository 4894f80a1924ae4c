"""Why something happened to a job: a typed cause, its text for people, its forms for wire and event log."""

# A cause begins with what happened: a client's command, a death, a timer. From there it goes unchanged
# through inputs, jobs, actions and the event log. Decisions look at `kind`; only `text` makes English of
# it, and nothing reads that English.
#
# | kind | subject | jobs | because |
# |---|---|---|---|
# | SIGNAL | the signal that was sent | | |
# | RELOAD, TERMINATE | the signal that the daemon got, where no client asked | | |
# | REQUIRED | | the job that requires this one | |
# | RESTART_OF | | the job that this one requires and is restarted with | |
# | REQUIREMENT | its state; empty: it will be stopped | the job that this one requires | the cause of that |
# | WAITING | | the jobs that must be ready before this one starts | the command to start it |
# | RELEASED | | | the command to start it |
# | EXITED | the exit code, the signal, or None: nobody can know | | |
# | SPAWN_FAILED | the stage that failed | | |
# | GAVE_UP | the number of penalised restarts | | the last end |

from __future__ import annotations

from jobmon.lean.enums import Enum
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_TEXT = 2000  # characters of a chain of requirements: of a long one the nearest are enough
MAX_LINKS = 10  # of `because`, in the form for the wire
KEPT_TEXT, KEPT_JOBS, KEPT_LINKS = 100, 3, 1  # of the packed form


class Kind(Enum):
    """What happened. The values are the words of the wire."""

    # An operator wants it.
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SIGNAL = "signal"
    RELOAD = "reload"
    RELOAD_RESTART = "reload-restart"  # `reload --restart` gives a new run to stale jobs
    TERMINATE = "terminate"
    # The daemon does it by itself.
    AUTOSTART = "autostart"
    AUTO_RESTART = "auto-restart"
    PENALTY_OVER = "penalty-over"
    REMOVED = "removed"
    SHUTDOWN = "shutdown"
    # Other jobs are the cause.
    REQUIRED = "required"
    RESTART_OF = "restart-of"
    REQUIREMENT = "requirement"
    WAITING = "waiting"
    RELEASED = "released"
    # The run itself is.
    LAUNCHED = "launched"
    READY = "ready"
    SPAWN_FAILED = "spawn-failed"
    EXITED = "exited"
    GAVE_UP = "gave-up"
    START_TIMEOUT = "start-timeout"
    WATCHDOG = "watchdog"
    KILL_TIMEOUT = "kill-timeout"


class Actor(Record):
    """The process that asked, as far as the kernel tells."""

    uid: int | None = None
    pid: int | None = None

    def __str__(self) -> str:
        uid = "unknown" if self.uid is None else self.uid
        return f"uid {uid}" if self.pid is None else f"uid {uid} pid {self.pid}"


class Cause(Record):
    """Why something happened. `subject`, `jobs` and `because` depend on the kind: see the table above.
    `reason` is the operator's text, or the text of an error."""

    kind: Kind
    subject: int | str | None = ""
    jobs: tuple[str, ...] = ()
    actor: Actor | None = None
    reason: str = ""
    because: Cause | None = None

    def __str__(self) -> str:
        return text(self)

    @property
    def is_command(self) -> bool:
        """Whether a client of the daemon asked for it."""
        return self.actor is not None and (self.kind is Kind.SIGNAL or not self.subject)

    @property
    def end(self) -> Cause:
        """How the run ended, where the job was given up after that; else this cause itself."""
        return self.because if self.kind is Kind.GAVE_UP and self.because is not None else self


START = Cause(Kind.START)
STOP = Cause(Kind.STOP)
RESTART = Cause(Kind.RESTART)
RELOAD = Cause(Kind.RELOAD)
SIGNAL = Cause(Kind.SIGNAL)
AUTOSTART = Cause(Kind.AUTOSTART)
AUTO_RESTART = Cause(Kind.AUTO_RESTART)
PENALTY_OVER = Cause(Kind.PENALTY_OVER)
REMOVED = Cause(Kind.REMOVED)
SHUTDOWN = Cause(Kind.SHUTDOWN)
LAUNCHED = Cause(Kind.LAUNCHED)
READY = Cause(Kind.READY)
START_TIMEOUT = Cause(Kind.START_TIMEOUT)
WATCHDOG = Cause(Kind.WATCHDOG)
KILL_TIMEOUT = Cause(Kind.KILL_TIMEOUT)

RESTARTS = frozenset((Kind.RESTART, Kind.RELOAD_RESTART, Kind.RESTART_OF))
# How a run has ended, or what was wrong with it so that the daemon ended it.
ENDS = frozenset((Kind.EXITED, Kind.START_TIMEOUT, Kind.WATCHDOG))

_exits: dict[int | str | None, Cause] = {}  # there are few statuses, and many events with the same one


def exited(status: int | str | None) -> Cause:
    """Return the cause that is the end of a run: an exit code, the name of a signal, or None."""
    cause = _exits.get(status)
    if cause is None:
        cause = _exits[status] = Cause(Kind.EXITED, status)
    return cause


# ---- for people -----------------------------------------------------------------------------


def text(cause: Cause, *, past: bool = False) -> str:
    """Return the cause in words; `past`: what it says of the future has been since."""
    parts: list[str] = []
    link: Cause | None = cause
    length = 0
    while link is not None and link.kind is Kind.REQUIREMENT and length <= MAX_TEXT:  # a chain may be long
        state = link.subject or f"{'was' if past else 'is'} to be stopped"
        parts.append(f"requires {link.jobs[0]}, which {f'is {state}' if link.subject else state}")
        length += len(parts[-1])
        link = link.because
    if link is not None and length <= MAX_TEXT:
        parts.append(_TEXTS.get(link.kind, _command)(link))
    whole = ": ".join(parts)
    cut = cause.kind is Kind.REQUIREMENT and len(whole) > MAX_TEXT
    return f"{whole[:MAX_TEXT]}..." if cut else whole


def tried(restarts: int | str | None) -> str:
    """Return how often a job was restarted after a penalty before it was given up."""
    if not restarts:
        return "without a penalised restart"
    return f"after {restarts} penalised restart{'' if restarts == 1 else 's'}"


def _command(cause: Cause) -> str:
    """Return what somebody asked for, and who."""
    words, actor = VERBS[cause.kind], cause.actor
    if cause.is_command:
        words = f"{words} by {actor}" + (f": {cause.reason}" if cause.reason else "")
    elif actor is not None:
        words = f"{cause.subject} from pid {actor.pid}"
    else:
        words = cause.reason or words
    return f"{cause.subject}, {words}" if cause.kind is Kind.SIGNAL else words


def _exit(cause: Cause) -> str:
    status = cause.subject
    if status is None:
        return "unknown"
    return status if isinstance(status, str) else f"exit {status}"


def _waiting(cause: Cause) -> str:
    jobs = f"waiting for {', '.join(cause.jobs)}"
    return jobs if cause.because is None else f"{jobs}; {cause.because}"


VERBS = {
    Kind.START: "start",
    Kind.STOP: "stop",
    Kind.RESTART: "restart",
    Kind.SIGNAL: "signal",
    Kind.RELOAD: "reload",
    Kind.RELOAD_RESTART: "reload",
    Kind.TERMINATE: "terminate",
}
_WORDS = {Kind.AUTO_RESTART: "restart", Kind.PENALTY_OVER: "penalty over"}
_TEXTS: dict[Kind, Callable[[Cause], str]] = {
    kind: lambda cause: _WORDS.get(cause.kind, cause.kind.value) for kind in Kind if kind not in VERBS
} | {
    Kind.REQUIRED: lambda cause: f"required by {cause.jobs[0]}",
    Kind.RESTART_OF: lambda cause: f"restart of {cause.jobs[0]}",
    Kind.WAITING: _waiting,
    Kind.RELEASED: lambda cause: f"{cause.because}; its requirements are ready",
    Kind.SPAWN_FAILED: lambda cause: cause.reason,
    Kind.EXITED: _exit,
    Kind.GAVE_UP: lambda cause: f"{cause.because}, gave up {tried(cause.subject)}",
}


# ---- for programs ---------------------------------------------------------------------------

_SUBJECTS = {  # what the wire calls the subject
    Kind.SIGNAL: "signal",
    Kind.RELOAD: "signal",
    Kind.TERMINATE: "signal",
    Kind.REQUIREMENT: "state",
    Kind.EXITED: "status",
    Kind.SPAWN_FAILED: "stage",
    Kind.GAVE_UP: "restarts",
}


def body(cause: Cause, links: int = MAX_LINKS) -> dict[str, Any]:
    """Return the JSON object of a cause, with at most so many `links` behind it."""
    said: dict[str, Any] = {"kind": cause.kind.value}
    if cause.subject != "":
        said[_SUBJECTS[cause.kind]] = cause.subject
    if cause.jobs:
        said["jobs"] = list(cause.jobs)
    if cause.actor is not None:
        said |= {"uid": cause.actor.uid, "pid": cause.actor.pid}
    if cause.reason:
        said["reason"] = cause.reason
    if cause.because is not None and links:
        said["because"] = body(cause.because, links - 1)
    return said


# ---- for the event log ----------------------------------------------------------------------

_KINDS = tuple(Kind)
_NOTHING: list[Any] = [0, "", [], None, "", None]


def pack(cause: Cause, links: int = KEPT_LINKS) -> list[Any]:
    """Return a short form, as JSON has it, that may lack the end of what is long."""
    actor, because = cause.actor, cause.because
    packed = [
        _KINDS.index(cause.kind),
        cause.subject,
        list(cause.jobs[:KEPT_JOBS]),
        None if actor is None else [actor.uid, actor.pid],
        cause.reason[:KEPT_TEXT],
        pack(because, links - 1) if because is not None and links else None,
    ]
    while packed[-1] == _NOTHING[len(packed) - 1] and len(packed) > 1:
        packed.pop()
    return packed


def unpack(packed: list[Any]) -> Cause:
    """Return the cause of a short form."""
    kind, subject, jobs, actor, reason, because = packed + _NOTHING[len(packed) :]
    return Cause(
        _KINDS[kind],
        subject,
        tuple(jobs),
        None if actor is None else Actor(*actor),
        reason,
        None if because is None else unpack(because),
    )
