"""The verbs that change something."""

from __future__ import annotations

from jobmon.cli import OK, complain, say
from jobmon.cli.text import condition, escape, seconds
from jobmon.client import CommandPipe, lists_of
from jobmon.errors import JobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobmon.cli.verbs import Arguments, Verb


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
        reply = daemon.request(command, jobs, **details)
    except JobError as error:
        _tell_first(command, error.first)
        raise
    _tell_first(command, lists_of(reply, "first"))
    if not details.get("wait", True):
        say(str(reply.get("token", 0)))


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
