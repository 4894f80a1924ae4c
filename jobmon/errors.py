"""The exceptions of JobMon, each a `JobMonError`, and the codes of its refusals."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# The codes of a refusal, from bad to worse.
CODES = (
    "already-started",
    "already-stopped",
    "not-running",
    "timeout",
    "failed",
    "could-not-start",
    "terminating",
    "busy",
    "not-permitted",
    "no-such-job",
    "invalid",
    "unknown-command",
    "bad-request",
)


def worst(codes: list[str]) -> str:
    """Of several codes the one that names the whole; empty where there is none."""
    return max(codes, key=CODES.index, default="")


class JobMonError(Exception):
    """The base of all of them."""


class ConfigError(JobMonError):
    """A configuration cannot be used. `problems` are all of its faults, in order of place."""

    def __init__(self, problems: tuple[object, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class ProtocolError(JobMonError):
    """Bytes or messages that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """Our side tried to send what the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow."""


class SpawnError(JobMonError):
    """A process could not be started: `stage` failed on `what` with `errno`, or where that is 0 for the
    reason in `text`.

    Stages, in their order: "start", "cgroup", "readiness", "fork", "session", "directory", "stdin", "stdout",
    "stderr", "limits", "exec".
    """

    def __init__(self, stage: str, errno: int, what: str = "", text: str = "") -> None:
        super().__init__(stage, errno, what, text)
        self.stage = stage
        self.errno = errno
        self.what = what
        self.text = text


class StartupError(JobMonError):
    """The daemon cannot start; the text is for the person who tried, `errno` for the program."""

    def __init__(self, text: str, errno: int = 22) -> None:  # EINVAL
        super().__init__(text)
        self.errno = errno


class AddressError(JobMonError, ValueError):
    """This is no port and no path of a socket; a bad JOBMON_PORT too."""


class JobError(JobMonError):
    """A command about jobs was refused or failed.

    `code` is the protocol's word for it. `results` are (job, code, message) for each job of a
    command that named several; the code is empty where it was done. `stderr` are the last lines that
    the runs of jobs wrote to standard error, where that is a file; `first` is what was stopped before
    a job because it requires it; `reply` is all that the daemon said.
    """

    stderr: dict[str, tuple[str, ...]]
    first: dict[str, tuple[str, ...]]
    reply: Mapping[str, Any]

    def __init__(
        self, message: str = "", code: str = "failed", results: tuple[tuple[str, str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.results = results
        self.stderr = {}
        self.first = {}
        self.reply = {}


class NoSuchJobError(JobError, NameError):
    """There is no job of that name."""


class NotPermittedError(JobError):
    """The daemon does not take commands from this user."""


class BusyError(JobError):
    """The daemon has no room for more of this user: too many connections, or too much that waits."""


class DaemonUnreachable(JobMonError, ConnectionError):
    """No daemon answers where it was looked for. An OSError, as in JobMon 0.7; `errno` says which."""

    def __init__(self, text: str, errno: int | None = None) -> None:
        super().__init__(text)
        self.errno = errno


class ConnectionLost(JobMonError, ConnectionError, ValueError):
    """The daemon went away, or fell silent, while somebody waited for its answer."""


class WaitTimeout(JobError):
    """The time given for a wait is over."""
