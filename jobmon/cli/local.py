"""The verbs that talk to no daemon: check, and daemon, which becomes one."""

from __future__ import annotations

import sys

from jobmon.cli import FAILED, OK, say
from jobmon.cli.text import plural
from jobmon.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.verbs import Arguments, Verb


def run(verb: Verb, arguments: Arguments) -> int:
    """Check a configuration, or run the supervisor on it."""
    if verb.name == "daemon":
        return _daemon(arguments.given[0], arguments.options)
    if "--schema" in arguments.options:
        return _schema()
    return _check(arguments.given[0])


def _daemon(path: str, options: dict[str, str]) -> int:
    from jobmon.linux.daemon import main

    mode = next((mode for mode in ("foreground", "background") if f"--{mode}" in options), "auto")
    return main(path, mode)


def _schema() -> int:
    import json

    from jobmon.config import json_schema

    say(json.dumps(json_schema(), indent=2))
    return OK


def _check(path: str) -> int:
    from jobmon.linux.loading import Source

    try:
        source = Source(path)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return FAILED
    for warning in source.warnings:
        print(f"{warning} (a warning)", file=sys.stderr)
    say(f"{path}: ok, {plural(len(source.config.jobs), 'job')}")
    return OK
