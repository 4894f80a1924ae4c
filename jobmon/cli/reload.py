"""The command `reload`: the daemon reads its configuration again; what that changes, a line for each."""

from __future__ import annotations

import sys

from jobmon.cli.formatting import escape
from jobmon.cli.output import FAILED, OK, complain, say
from jobmon.client import CommandPipe, unexpected_reply
from jobmon.errors import ConfigError, JobError
from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from jobmon.cli.commands import Arguments, Verb


def run(verb: Verb, arguments: Arguments) -> int:
    """Tell the daemon, and say what it has changed, or would change."""
    del verb
    options = arguments.options
    wish = {"dry_run": "--dry-run" in options, "restart": "--restart" in options}
    with CommandPipe() as daemon:
        try:
            told = daemon.reload(**wish)
        except ConfigError as error:
            return _refused(error, "--json" in options)
        except JobError as error:  # it is done, but a restart has failed
            if "plan" in error.reply:
                _show(error.reply, as_json="--json" in options)
            raise
    _show(told, as_json="--json" in options)
    return OK


def _refused(error: ConfigError, as_json: bool) -> int:
    if as_json:
        say(dumps({"problems": list(error.problems)}))
    for problem in error.problems:
        _point_at(str(problem))
    return FAILED


def _point_at(problem: str) -> None:
    """A line on standard error as `jobmon check` has it: editors find the place by it."""
    try:
        print(problem, file=sys.stderr)
    except OSError:
        pass  # nobody is left to tell


def _show(told: Mapping[str, Any], *, as_json: bool) -> None:
    """What it says on standard error is the same with JSON as without."""
    try:
        lines = list(_lines(told)) or ["nothing has changed"]
        warnings, restart = list(told["warnings"]), ", ".join(told["plan"]["supervisor"]["restart"])
        stale = ", ".join(told.get("stale", ()))
    except (KeyError, TypeError) as error:
        raise unexpected_reply("reload", error) from None
    shown = ("plan", "warnings", "stale", "results", "token")
    for line in [dumps({key: told[key] for key in shown if key in told})] if as_json else lines:
        say(line)
    for warning in warnings:
        _point_at(f"{warning} (a warning)")
    if restart:
        complain(f"takes effect when the daemon is restarted: {restart}")
    if stale:
        complain(f"still running with old settings: {escape(stale)} (apply with: jobmon reload --restart)")


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    """+ JOB, - JOB, ~ JOB: KEY (at once); KEY (at its next start)."""
    plan = told["plan"]
    for job in plan["added"]:
        yield f"+ {escape(job)}"
    for job in plan["removed"]:
        yield f"- {escape(job)}"
    for change in plan["changed"]:
        yield f"~ {escape(change['job'])}: {_keys(change)}"
    if plan["supervisor"]["hot"] or plan["supervisor"]["restart"]:
        yield f"the daemon: {_keys(plan['supervisor'])}"
    if restarted := [one["job"] for one in told.get("results", ()) if one["ok"]]:
        yield f"restarted: {escape(', '.join(restarted))}"


def _keys(change: Mapping[str, Any]) -> str:
    counts = (("hot", "at once"), ("restart", "at its next start"))
    return "; ".join(f"{', '.join(change[kind])} ({when})" for kind, when in counts if change[kind])
