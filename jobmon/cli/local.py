"""The verbs that talk to no daemon: check, and daemon, which becomes one."""

from __future__ import annotations

import os
import sys

from jobmon.cli import FAILED, OK, complain, say
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
    mode = next((mode for mode in ("foreground", "background") if f"--{mode}" in options), "auto")
    try:
        from jobmon.linux import daemon
    except ImportError as error:
        if error.name not in ("prctl", "_prctl"):
            raise
        complain(
            "the daemon needs python-prctl, which this Python has not: python3 -m pip install python-prctl\n"
            "(building it takes: apt install gcc python3-dev libcap-dev)"
        )
        return FAILED
    return daemon.main(path, mode)


def _schema() -> int:
    import json

    from jobmon.config import json_schema

    say(json.dumps(json_schema(), indent=2))
    return OK


class Disk:
    """The files that a configuration is read from."""

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        with open(path, "rb") as file:
            return file.read()

    def glob(self, pattern: str) -> list[str]:
        """The paths that match."""
        from glob import glob

        return glob(pattern)


def _check(path: str) -> int:
    from jobmon.config import load

    try:
        config = load(path, Disk(), os.environ, os.getcwd(), os.environ.get("TMPDIR") or "/tmp")
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return FAILED
    for warning in config.warnings:
        print(f"{warning} (a warning)", file=sys.stderr)
    say(f"{path}: ok, {plural(len(config.jobs), 'job')}")
    return OK
