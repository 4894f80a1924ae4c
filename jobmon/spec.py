"""What a job and the supervisor are told to be: frozen, validated by `config`, with the defaults.

Signals are names here ("SIGTERM", "SIGRTMIN+3"): the numbers belong to the kernel, so to
`linux.signals`. Times are seconds.
"""

from __future__ import annotations

from enum import Enum

from jobmon.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CONTROL_PORT = 6666
DEFAULT_EVENT_PORT = 6667
MAX_JOBS = 10_000
MAX_SECONDS = 10 * 365 * 86400.0
SOCKET_PATH_BYTES = 107  # sun_path is 108 bytes with its final NUL, unix(7)

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
    ready: object | None = None
    start_timeout: float | None = None
    description: str = ""


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
