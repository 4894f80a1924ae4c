"""The commands that change something."""

from __future__ import annotations

from time import monotonic

from jobmon.cli.formatting import condition, escape, seconds
from jobmon.cli.output import OK, complain, say
from jobmon.client import CommandPipe, EventStream, graph_of, lists_of
from jobmon.errors import JobError, JobMonError
from jobmon.protocol import EventMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from jobmon.cli.commands import Arguments, Verb

QUIET = 2.0  # seconds; who waits for longer is told what keeps him
NEWS = 2.0  # seconds for connecting to hear of that


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
            _tell_of_failures(daemon, number, jobs, conditional="condition" in details)
        reply = daemon.collect(number)
    except JobError as error:
        _tell_first(command, error.first)
        raise
    _tell_first(command, lists_of(reply, "first"))
    if not details.get("wait", True):
        say(str(reply.get("token", 0)))


def _tell_of_failures(daemon: CommandPipe, number: int, jobs: tuple[str, ...], *, conditional: bool) -> None:
    """Until the answer has come say of each job, once, that it ends and is tried again: that may go on for
    ever. Jobs that these require count too."""
    until = daemon.deadline(number)
    quiet = monotonic() + QUIET
    if daemon.await_reply(number, until=quiet if until is None else min(until, quiet)):
        return
    # Without --wait, a job that could not be started has its answer, and only the others are waited for.
    settled = () if conditional else jobs
    told: set[str] = set()
    try:
        graph = daemon.ask_beside(number, "graph")
        if graph is None:
            return
        left = NEWS if until is None else min(NEWS, until - monotonic())
        needs = _with_needs(graph_of(graph), jobs)
        with EventStream(jobs=needs, timeout=left, wait=False) as stream:
            for job, cause, died in _failures(daemon, number, stream):
                if job in told:
                    continue
                told.add(job)
                if job in settled and not (_has_died(daemon, number, job) if died is None else died):
                    continue
                if daemon.catch_up(number):
                    return
                complain(f"{escape(job)}: {escape(cause)}; it will be restarted, still waiting")
    except JobMonError:
        return  # the answer will say what it is


def _failures(
    daemon: CommandPipe, number: int, stream: EventStream
) -> Iterator[tuple[str, str, bool | None]]:
    """What is tried again, until the answer has come: job, cause, and whether a process of it has died
    (None where that is not told)."""
    until = daemon.deadline(number)
    fresh = True
    while not daemon.await_reply(number, until=until, beside=(stream,)):
        event = stream.pending_event()
        if isinstance(event, EventMessage) and event.state == "backoff":
            yield event.job, event.cause, event.event == "died"
        elif event is None and until is not None and monotonic() >= until:
            return
        elif fresh and stream.snapshot is not None:
            fresh = False
            for job in stream.snapshot.jobs or ():
                if job.state == "backoff":
                    yield job.job, job.result, None


def _has_died(daemon: CommandPipe, number: int, job: str) -> bool:
    """Whether a job in backoff has had a process; else none could be made of it."""
    told = daemon.ask_beside(number, "why", (job,))
    try:
        return told is not None and told["jobs"][0]["events"][-1]["event"] == "died"
    except (KeyError, TypeError, IndexError):
        return False


def _with_needs(graph: dict[str, dict[str, Any]], jobs: tuple[str, ...]) -> tuple[str, ...]:
    names = list(dict.fromkeys(jobs))
    seen = set(names)
    for name in names:
        for need in graph.get(name, {}).get("requires", ()):
            if need not in seen:
                seen.add(need)
                names.append(need)
    return tuple(names)


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
