"""What goes into a job's machine and what comes out of it. Frozen, no behaviour.

Inputs are named for what happened, actions for what is to be done. Process inputs carry the
number of the `run` they speak of, so that what is late can be told from what is new.
Times (`at`) are CLOCK_MONOTONIC seconds. A status is an exit code (an int) or the name of
the signal that killed (a str), or None where nobody can know.
"""

from __future__ import annotations

from jobmon.core import causes
from jobmon.core.causes import Cause
from jobmon.core.spec import JobSpec
from jobmon.lean.enums import Enum
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

Status = int | str | None


class State(Enum):
    """Where a job is. The values are the words of the wire."""

    STOPPED = "stopped"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    KILLING = "killing"
    BACKOFF = "backoff"
    EXITED = "exited"
    FAILED = "failed"


LIVE = frozenset((State.STARTING, State.RUNNING, State.STOPPING, State.KILLING))
LEAVING = frozenset((State.STOPPING, State.KILLING))
AT_REST = frozenset((State.STOPPED, State.EXITED, State.FAILED))


class Next(Enum):
    """What follows once a leaving job is gone."""

    STOP = "stop"
    RESTART = "restart"
    DECIDE = "decide"
    REMOVE = "remove"


# ---- inputs -------------------------------------------------------------------------------


class Input(Record):
    """Something that happened to a job."""


class Start(Input):
    """Somebody wants it up."""

    by: Cause = causes.START
    asked: bool = False  # by an operator, who waits for it


class Stop(Input):
    """Somebody wants it down; `now` means without patience."""

    now: bool = False
    by: Cause = causes.STOP


class RestartJob(Input):
    """Somebody wants a new run."""

    by: Cause = causes.RESTART
    asked: bool = False


class SpecChanged(Input):
    """A reload brought another spec."""

    spec: JobSpec


class Remove(Input):
    """A reload no longer has it; `now` means without patience."""

    now: bool = False


class Hold(Input):
    """What it comes after is not ready: it must not be launched before `jobs` are."""

    jobs: tuple[str, ...]


class Release(Input):
    """Nothing keeps it from being launched any more."""


class RequirementLost(Input):
    """What it needs was given up while it waited for it."""

    reason: Cause


class Shutdown(Input):
    """The supervisor ends."""


class Timer(Input):
    """The job's one timer fired; `token` says which arming of it."""

    token: int


class ProcessInput(Input):
    """Something that happened to the process of `run`."""

    run: int


class Launched(ProcessInput):
    """There is a process now; it may not have reached its program yet."""

    pid: int


class Spawned(ProcessInput):
    """The program is being executed."""


class Ready(ProcessInput):
    """The process said, or a probe found, that it serves."""


class SpawnFailed(ProcessInput):
    """The program was not executed; no process is left. `errno` 0: called off."""

    stage: str
    errno: int
    reason: str


class LeaderDied(ProcessInput):
    """The first process is dead, others of the run live."""

    status: Status


class Exited(ProcessInput):
    """The first process is dead, and nothing of the run is left."""

    status: Status


class WatchdogExpired(ProcessInput):
    """The process was silent for too long."""


# ---- actions ------------------------------------------------------------------------------


class Action(Record):
    """Something that the engine is to do."""


class JobAction(Action):
    """Something to do about one job."""

    job: str


class Spawn(JobAction):
    """Start a process. `asked`: an operator waits for it."""

    run: int
    spec: JobSpec
    asked: bool = False


class SendSignal(JobAction):
    """Ask the run to end: `signal` to whom kill-scope says, then SIGCONT."""

    run: int
    signal: str


class Kill(JobAction):
    """SIGKILL to whom kill-scope says."""

    run: int


class Deliver(JobAction):
    """Send `signal` to the leader of the run, or to `every` process of it."""

    run: int
    signal: str
    every: bool


class Arm(Action):
    """Wake `key` with `token` at `at`; what was armed for `key` before is forgotten."""

    key: Hashable
    token: int
    at: float


class Disarm(Action):
    """Forget what was armed for `key`."""

    key: Hashable


class Changed(JobAction):
    """The job's state changed: one line of the log."""

    run: int
    pid: int | None
    before: State
    after: State
    cause: Cause


class Impossible(JobAction):
    """The table says BUG: what came, where, and the way there."""

    state: State
    input: Input
    history: tuple[str, ...]


class Removed(JobAction):
    """Nothing of the job is left, and nobody wants it: forget it."""


class Happened(JobAction):
    """What listeners are told. `kind` is one of HAPPENINGS. (The supervisor takes these.)"""

    kind: str
    state: State
    run: int
    pid: int | None
    cause: Cause


HAPPENINGS = ("launched", "died", "restarting", "state", "signalled", "removed", "terminated")


class Warn(JobAction):
    """Something an operator should read in the log."""

    run: int
    pid: int | None
    text: str


class Publish(Action):
    """New events are in the supervisor's event log."""


class Reply(Action):
    """The answer to a command. `to` is whatever the caller gave."""

    to: object
    ok: bool
    results: tuple[JobResult, ...] = ()
    code: str = ""
    message: str = ""
    token: int = 0


class JobResult(Record):
    """What a command came to for one job. `code` is empty when it was done."""

    job: str
    code: str = ""
    message: str = ""
    status: Status = None  # how its run ended, where that was asked for
    ended: bool = False


class Announce(Action):
    """Every autostart job is launched or has failed to be: the daemon is up."""


class AllReady(Action):
    """Every autostart job is ready, or will not be."""


class Finish(Action):
    """Everything is down after a shutdown: the engine may end, with an exit code or 128 + a signal."""

    code: int | str = 0
