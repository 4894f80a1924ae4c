"""Help texts, all of them made from the table of commands."""

from __future__ import annotations

from jobmon.cli.commands import VERBS, did_you_mean
from jobmon.cli.output import OK, USAGE, complain, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.commands import Arguments, Verb

_ABOUT = """\
JobMon starts, watches, restarts and stops jobs, and reports what happens to them.

usage: jobmon COMMAND [OPTIONS] [ARGUMENTS]
"""

_REST = """
$JOBMON_PORT is the address of the daemon: CONTROL,EVENT, each a TCP port or the path of a UNIX
socket; 6666,6667 if it is not set. `export JOBMON_PORT=$(jobmon daemon CONFIG)` sets it.

exit codes: 0 success, 1 failure, 2 usage error, 4 no such job, 5 not permitted, 69 no daemon,
75 connection to the daemon lost or daemon too busy, 124 timed out. `status JOB` and `pid` differ:
see their help."""


def run(verb: Verb, arguments: Arguments) -> int:
    """Explain a verb, or all."""
    del verb
    if not arguments.given:
        say(overview())
        return OK
    name = arguments.given[0]
    if name not in VERBS:
        complain(f"unknown command {name!r}{did_you_mean(name, VERBS)}")
        return USAGE
    say(page(VERBS[name]))
    return OK


def overview() -> str:
    """What `jobmon help` prints."""
    rows = [(f"{verb.name} {verb.takes}".rstrip(), verb.summary) for verb in VERBS.values()]
    rows += [("--version", "print the version")]
    lines = [_ABOUT, "commands (details: jobmon help COMMAND):", *_columns(rows), _REST]
    return "\n".join(lines)


def page(verb: Verb) -> str:
    """What `jobmon help VERB` prints."""
    usage = f"usage: jobmon {verb.name}{' [OPTIONS]' if verb.options else ''} {verb.takes}".rstrip()
    lines = [usage, "", verb.summary[0].upper() + verb.summary[1:] + "."]
    if verb.options:
        rows = [(f"{names.replace(' ', ', ')} {value}".rstrip(), does) for names, value, does in verb.options]
        lines += ["", "options:", *_columns(rows)]
    if verb.details:
        lines += ["", verb.details]
    return "\n".join(lines)


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    room = max(len(left) for left, _ in rows)
    return [f"  {left:<{room}}  {right}" for left, right in rows]
