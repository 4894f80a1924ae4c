"""The verbs that change something."""

from __future__ import annotations

from select import POLLIN, poll

from jobmon.cli import OK, complain, say
from jobmon.cli.text import condition, escape, seconds
from jobmon.client import CommandPipe, EventStream, lists_of, patience_for
from jobmon.errors import JobError, JobMonError
from jobmon.protocol import EventMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobmon.cli.verbs import Arguments, Verb

QUIET = 2.0  # seconds; who waits for longer is told what keeps him


def run(verb: Verb, arguments: Arguments) -> int:
    """Tell the daemon, and wait as long as asked for."""
    options = arguments.options
    details = _details(options)
    with CommandPipe() as daemon:
        if verb.name == "terminate":
            daemon.terminate(
                wait="--no-wait" not in options,
                timeout=details.get("timeout"),
                reason=options.get("--reason", ""),
            )
        elif verb.name == "signal":
            signal, *jobs = arguments.given
            reason = options.get("--reason", "")
            daemon.signal(signal.removeprefix("-"), *jobs, all="--all" in options, reason=reason)
        else:
            _order(daemon, verb.name, tuple(arguments.given), details)
    return OK


def _order(daemon: CommandPipe, command: str, jobs: tuple[str, ...], details: dict[str, Any]) -> None:
    """Start, stop or restart; say what else that has stopped."""
    try:
        number = daemon.submit(command, jobs, **details)
        if command != "stop" and details.get("wait", True):
            _tell_of_failures(daemon, number, jobs)
        reply = daemon.collect(number, patience_for(command, details))
    except JobError as error:
        _tell_first(command, error.first)
        raise
    _tell_first(command, lists_of(reply, "first"))
    if not details.get("wait", True):
        say(str(reply.get("token", 0)))


def _tell_of_failures(daemon: CommandPipe, number: int, jobs: tuple[str, ...]) -> None:
    """Until the answer has come say of each job, once, that it ends and is tried again: that may go on for
    ever. Jobs that these require count too."""
    if _readable((daemon.fileno(),), QUIET):
        return
    told: set[str] = set()
    try:
        with EventStream(jobs=_with_needs(daemon, jobs)) as stream:
            for job in (stream.snapshot and stream.snapshot.jobs) or ():
                _tell_of_failure(job.job, job.state, job.result, told)
            while not daemon.answered(number):
                if daemon.fileno() in _readable((daemon.fileno(), stream.fileno())):
                    return
                event = stream.next_event()
                if isinstance(event, EventMessage):
                    _tell_of_failure(event.job, event.state, event.cause, told)
    except JobMonError:
        return  # the answer will say what it is


def _tell_of_failure(job: str, state: str, why: str, told: set[str]) -> None:
    if state == "backoff" and job not in told:
        told.add(job)
        complain(f"{escape(job)}: {escape(why)}; it is tried again, and waited for")


def _with_needs(daemon: CommandPipe, jobs: tuple[str, ...]) -> tuple[str, ...]:
    graph, names = daemon.graph(), list(dict.fromkeys(jobs))
    seen = set(names)
    for name in names:
        for need in graph.get(name, {}).get("requires", ()):
            if need not in seen:
                seen.add(need)
                names.append(need)
    return tuple(names)


def _readable(fds: tuple[int, ...], seconds: float | None = None) -> list[int]:
    poller = poll()
    for fd in fds:
        poller.register(fd, POLLIN)
    return [fd for fd, _ in poller.poll(None if seconds is None else seconds * 1000)]


def _tell_first(command: str, first: dict[str, tuple[str, ...]]) -> None:
    for job, others in first.items():
        names = escape(", ".join(others))
        require = "requires" if len(others) == 1 else "require"
        if command == "stop":
            complain(f"{escape(job)}: stopped first: {names}, which {require} it")
        else:
            complain(f"{escape(job)}: restarted with it: {names}, which {require} it")


def _details(options: dict[str, str]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if "--timeout" in options:
        details["timeout"] = seconds(options["--timeout"])
    if "--wait" in options:
        details["condition"], details["duration"] = condition(options["--wait"])
    if "--reason" in options:
        details["reason"] = options["--reason"]
    if "--no-wait" in options:
        details["wait"] = False
    if "--now" in options:
        details["now"] = True
    return details
