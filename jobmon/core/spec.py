"""What a job and the supervisor are told to be: frozen, validated by `config`, with the defaults.

Signals are names here ("SIGTERM", "SIGRTMIN+3"): the numbers belong to the kernel, so to
`linux.signals`. Times are seconds.
"""

from __future__ import annotations

from jobmon.lean.enums import Enum
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CONTROL_PORT = 6666
DEFAULT_EVENT_PORT = 6667
START_TIMEOUT = 60.0  # of a service; a oneshot may take its time
MAX_JOBS = 10_000
MAX_RESTARTS = 1_000_000
JOB_NAME_BYTES = 4096  # it goes into every event, the environment and the log
MAX_ID = 2**32 - 2  # of a user or group: 2**32 - 1 means "no change" to the kernel, chown(2)

# The names of `kill -l`, but for the real-time ones.
SIGNALS = (
    *("SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL"),
    *("SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD"),
    *("SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ"),
    *("SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS"),
)
SIGNAL_ALIASES = {"SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO", "SIGCLD": "SIGCHLD"}
REALTIME_SIGNALS = 30  # SIGRTMAX is SIGRTMIN+30: glibc keeps two of the kernel's 33, signal(7)

_NO_ENV: Mapping[str, str] = {}


class Restart(Enum):
    """Which deaths that nobody asked for are followed by a new start."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class KillScope(Enum):
    """Whom stop and kill reach, and whose end is the end of the run."""

    JOB = "job"
    GROUP = "group"
    PROCESS = "process"


class Essential(Enum):
    """Whose end, reached by itself, ends the daemon too."""

    NO = "no"
    ON_FAILURE = "on-failure"
    YES = "yes"


class JobType(Enum):
    """What being up means: serving until it is stopped, or having done a piece of work."""

    SERVICE = "service"
    ONESHOT = "oneshot"


class Readiness(Record):
    """How a job reports, or is found, to be ready: one of the records below."""


class NotifyReadiness(Readiness):
    """By READY=1, as sd_notify(3) sends it."""


class FdReadiness(Readiness):
    """By a newline on a descriptor."""

    fd: int


class ExecReadiness(Readiness):
    """A command succeeds. It is run every `interval` seconds, and may take `timeout` each time."""

    command: str | tuple[str, ...]
    interval: float = 1.0
    timeout: float = 5.0


class TcpReadiness(Readiness):
    """One of some addresses (host, port) accepts connections; if `owned`, in a process of the job."""

    addresses: tuple[tuple[str, int], ...]
    interval: float = 1.0
    timeout: float = 5.0
    owned: bool = False


class HttpReadiness(Readiness):
    """A GET of `path` succeeds at one of some addresses; `host` is the one that the server is told."""

    host: str
    path: str
    addresses: tuple[tuple[str, int], ...]
    interval: float = 1.0
    timeout: float = 5.0


class LogReadiness(Readiness):
    """A line of the job's output matches a regular expression."""

    pattern: str
    interval: float = 1.0
    timeout: float = 5.0


READINESS = (NotifyReadiness, FdReadiness, ExecReadiness, TcpReadiness, HttpReadiness, LogReadiness)


class JobSpec(Record):
    """One job, as configured. Paths are absolute and expanded already."""

    name: str
    command: str | tuple[str, ...]
    stdin: str = "/dev/null"
    stdout: str = "/dev/null"
    stderr: str = "/dev/null"
    env: Mapping[str, str] = _NO_ENV
    working_dir: str = "."
    signal: str = "SIGTERM"
    autostart: bool = False
    restart: Restart = Restart.NEVER
    restart_window: float = 5.0
    restart_penalty: float = 15.0
    max_restarts: int | None = None
    success_codes: frozenset[int | str] = frozenset((0,))
    kill_timeout: float = 10.0
    kill_scope: KillScope = KillScope.JOB
    essential: Essential = Essential.NO
    type: JobType = JobType.SERVICE
    ready: Readiness | None = None
    start_timeout: float | None = None
    watchdog: float | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    description: str = ""


# What a run keeps as it was launched; all else of its job counts as soon as a reload brings it.
OF_A_RUN = (
    *("command", "stdin", "stdout", "stderr", "env", "working_dir"),
    *("kill_scope", "type", "ready", "start_timeout", "watchdog"),
)
# The same of the daemon.
OF_A_DAEMON = ("working_dir", "control_port", "event_port", "state_dir")


# Who may give it commands.
OF_ACCESS = ("allow_users", "allow_groups", "allow_unidentified")


class SupervisorSpec(Record):
    """The daemon itself, as configured. Paths are absolute and expanded already."""

    working_dir: str = "."
    control_port: int | str = DEFAULT_CONTROL_PORT
    event_port: int | str = DEFAULT_EVENT_PORT
    include_dirs: tuple[str, ...] = ()
    log_file: str | None = None
    log_level: str = "WARNING"
    allow_users: tuple[str | int, ...] = ()
    allow_groups: tuple[str | int, ...] = ()
    allow_unidentified: bool = False
    state_dir: str | None = None


def canonical_signal(name: str) -> str | None:
    """The one name that JobMon uses for the signal `name` (any case, SIG required), or None.

    Real-time signals are SIGRTMIN or SIGRTMIN+1 to SIGRTMIN+30, however they were written.
    """
    upper = name.upper()
    upper = SIGNAL_ALIASES.get(upper, upper)
    if upper in SIGNALS and name.isascii():  # upper() makes S of a long s too
        return upper
    if name.isascii() and upper.startswith(("SIGRTMIN", "SIGRTMAX")):
        return _realtime_signal(upper[:8], upper[8:])
    return None


def _realtime_signal(base: str, distance: str) -> str | None:
    sign = "+" if base == "SIGRTMIN" else "-"
    digits = distance[1:]
    if distance and (distance[0] != sign or not (digits.isascii() and digits.isdigit() and len(digits) < 3)):
        return None
    steps = int(digits or "0")
    number = steps if base == "SIGRTMIN" else REALTIME_SIGNALS - steps
    if not 0 <= number <= REALTIME_SIGNALS:
        return None
    return f"SIGRTMIN+{number}" if number else "SIGRTMIN"
