"""What the clients' side may ask of the daemon that it serves, and no more.

`Daemon` is what the server and its sessions see of the engine, which is above them and imports them.
"""

from __future__ import annotations

from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from typing import Any, Protocol

    from jobmon.core.causes import Cause
    from jobmon.core.events import Reply
    from jobmon.core.supervisor import Supervisor
    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.log import Log

    class RunFacts(Protocol):
        """What is known of the present run of a job, looked up when it is asked."""

        def pids(self) -> list[int]:
            """All living processes of the run, as far as they can be known."""

        def left(self) -> str:
            """The same in words, with the reason why one is not killed."""

        def says(self) -> str:
            """What the run said of itself last."""

        def why_not_ready(self) -> str:
            """Why the run is not known to be ready, or was not in time; empty where nobody can say."""

        def stderr_tail(self) -> list[str]:
            """The last lines of its standard error, none where that is no file."""

    class Daemon(Protocol):
        """The daemon, as its clients may use it."""

        supervisor: Supervisor
        log: Log
        loop: Loop

        def facts(self, job: str) -> RunFacts:
            """What is known of the run of a job."""

        def unattributed(self) -> list[int]:
            """The processes below the daemon that no job owns, as far as can be known."""

        def info(self) -> dict[str, Any]:
            """What a client may know of the daemon: its pid, version, addresses, configuration."""

        def terminate(self, by: Cause) -> None:
            """Begin the ordered shutdown; again: kill."""

        def reload(
            self, by: Cause, done: Callable[[ReloadOutcome], None], *, restart: bool, dry_run: bool
        ) -> Hashable:
            """Read the configuration again and apply it. `done` is called once: when nothing was changed, or
            when the supervisor has answered. Returns what `Supervisor.drop` knows the request by."""

        def bug(self, where: str, error: Exception) -> None:
            """Log an error that must not happen, with its place in the code."""


class ReloadOutcome(Record):
    """What a reload came to. With a `code`, and the `problems` behind it, nothing was changed. Else `body` is
    what it changes, in the words of the protocol, and `reply` the supervisor's answer; none of a dry run."""

    code: str = ""
    problems: tuple[str, ...] = ()
    body: Mapping[str, Any] = {}
    reply: Reply | None = None
