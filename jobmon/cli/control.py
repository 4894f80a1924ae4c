"""The verbs that change something."""

from __future__ import annotations

from jobmon.cli import OK, say
from jobmon.cli.text import condition, seconds
from jobmon.client import CommandPipe

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
            daemon.terminate(wait="--no-wait" not in options)
        elif verb.name == "signal":
            signal, *jobs = arguments.given
            daemon.signal(signal.removeprefix("-"), *jobs, all="--all" in options)
        else:
            token = getattr(daemon, verb.name)(*arguments.given, **details)
            if "--no-wait" in options:
                say(str(token))
    return OK


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
