"""The commands that talk to no daemon: check, and daemon, which becomes one."""

from __future__ import annotations

import os
import sys

from jobmon import cli
from jobmon.cli.formatting import plural
from jobmon.cli.output import FAILED, OK, say
from jobmon.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.commands import Arguments, Verb

_OURS = "1"  # which value of Python's option utf8 is our doing


def run(verb: Verb, arguments: Arguments) -> int:
    """Check a configuration, or run the supervisor on it."""
    take_utf_8()
    if verb.name == "daemon":
        return _daemon(arguments.given[0], arguments.options)
    if "--schema" in arguments.options:
        return _schema()
    return _check(arguments.given[0])


def _daemon(path: str, options: dict[str, str]) -> int:
    from jobmon.linux.daemon.main import main

    mode = next((mode for mode in ("foreground", "background") if f"--{mode}" in options), "auto")
    return main(path, mode)


def _schema() -> int:
    import json

    from jobmon.config import json_schema

    say(json.dumps(json_schema(), indent=2))
    return OK


def _check(path: str) -> int:
    from jobmon.linux.daemon.configsource import Source

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


def take_utf_8() -> None:
    """Begin anew in Python's UTF-8 mode, where the locale has another encoding.

    Names of files, arguments and variables are bytes to the kernel; what a configuration says of them is
    UTF-8. Python fixes what it makes of them when it starts, so a daemon has to be started with the right
    one. By an option, because a variable would be inherited by the jobs. What calls `main` by itself has
    its own ways.
    """
    given = sys._xoptions.get("utf8")  # noqa: SLF001 - documented under this name
    if given == _OURS:
        if sys.stderr is not None:
            from jobmon.lean.cpython import getencoding

            sys.stderr.reconfigure(encoding=getencoding(), errors="backslashreplace")  # type: ignore[union-attr]
    elif cli.is_program and sys.getfilesystemencoding() != "utf-8" and given is None:
        _begin_anew()


def _begin_anew() -> None:
    from jobmon.lean.cpython import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, which would be inherited
    try:
        os.execv(sys.executable, [sys.executable, "-X", f"utf8={_OURS}", *sys.orig_argv[1:]])
    except OSError:
        pass  # what cannot be encoded will be a job's own failure
