"""The command `init`: a command as the first process of a container should run it, and jobs beside it."""

from __future__ import annotations

import os

from jobmon.cli.commands import UsageError
from jobmon.cli.local import take_utf_8
from jobmon.cli.output import FAILED, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.commands import Arguments, Verb
    from jobmon.linux.processes.init import Manner

_FOR_CMD = ("--group", "--rewrite", "--map-exit", "--leftovers")
_UNCATCHABLE = (9, 19)  # SIGKILL, SIGSTOP: signal(7)
_LAST_CODE = 255


def run(verb: Verb, arguments: Arguments) -> int:
    """Run the command after `--`, the jobs of a configuration, or both; the exit code is the command's."""
    del verb
    try:
        manner = _manner(arguments)
        if manner.parent_death:
            from jobmon.linux.processes.init import follow_parent

            follow_parent(manner.parent_death, os.getppid())
        if arguments.given:
            return _with_jobs(arguments.given[0], arguments.command, manner)
        from jobmon.linux.processes import init

        return init.main(arguments.command, manner)
    except ImportError as error:
        if error.name not in ("prctl", "_prctl"):
            raise
        what = "--parent-death-signal" if "--parent-death-signal" in arguments.options else "init"
        complain(f"as anything but PID 1, {what} needs python-prctl: python3 -m pip install python-prctl")
        return FAILED


def _with_jobs(config: str, command: list[str], manner: Manner) -> int:
    take_utf_8()
    from jobmon.linux.daemon.main import main
    from jobmon.linux.processes.maincommand import Companion

    return main(config, "init", Companion(command, manner) if command else None)


# ---- options ---------------------------------------------------------------------------------


def _manner(arguments: Arguments) -> Manner:
    from jobmon.linux.processes.init import Manner

    options, each = arguments.options, arguments.each
    for name in _FOR_CMD if not arguments.command else ():
        if name in options:
            raise UsageError(f"{name} needs a CMD, which goes after --")
    if "--leftovers" in options and arguments.given:
        raise UsageError("--leftovers cannot be used with CONFIG: the daemon stops what is left")
    return Manner(
        group="--group" in options,
        rewrite=dict(_rewrite(text) for text in each.get("--rewrite", ())),
        codes=dict(_exit_codes(text) for text in each.get("--map-exit", ())),
        leftovers=_seconds(options["--leftovers"]) if "--leftovers" in options else None,
        parent_death=_signal(options.get("--parent-death-signal", "0")),
    )


def _seconds(text: str) -> float:
    from jobmon.cli.formatting import seconds

    return seconds(text)


def _rewrite(text: str) -> tuple[int, int]:
    """Parse TERM=QUIT, or HUP=0 for a signal that CMD must not get."""
    came, equals, sent = text.partition("=")
    if not equals or not came or not sent:
        raise UsageError(f"--rewrite {text}: must be SIG=SIG, or SIG=0 for a signal that CMD must not get")
    number = _signal(came)
    if number in (0, *_UNCATCHABLE):
        raise UsageError(f"--rewrite {text}: {came} cannot be caught")
    return number, _signal(sent)


def _signal(word: str) -> int:
    """Return the number of a signal; 0 for "0"."""
    if word == "0":
        return 0
    from jobmon.linux.kernel.signals import parse

    try:
        return parse(word)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _exit_codes(text: str) -> tuple[int, int]:
    """Parse 143=0: CMD's exit code, and the exit code of init in its place."""
    was, _, becomes = text.partition("=")
    if not (_is_exit_code(was) and _is_exit_code(becomes)):
        raise UsageError(f"--map-exit {text}: must be CODE=CODE, two numbers from 0 to {_LAST_CODE}")
    return int(was), int(becomes)


def _is_exit_code(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 4 and int(word) <= _LAST_CODE
