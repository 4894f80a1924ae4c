"""The command `jobmon`: arguments in; output, errors in words, and exit codes out.

This module is what every verb needs. The rest is loaded by verb, so that `jobmon status JOB`
costs little more than starting Python.
"""

from __future__ import annotations

import os
import sys

from jobmon import cli
from jobmon.cli.output import (
    FAILED,
    INTERRUPTED,
    LOST,
    NO_SUCH_JOB,
    NOT_PERMITTED,
    OK,
    TIMED_OUT,
    UNANSWERED,
    UNREACHABLE,
    USAGE,
    complain,
    flush,
    output_lost,
    say,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from jobmon.cli.commands import Arguments, Verb
    from jobmon.errors import JobError


def program() -> NoReturn:
    """The program `jobmon`.

    It leaves at once: taking the interpreter down in order would be a tenth of what
    `jobmon status` costs, and everything is written by then.
    """
    cli.is_program = True
    os._exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words after `jobmon` say, those of the command line by default; the exit code."""
    if sys.stderr is None:  # closed by the caller, and print would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as we live
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        code = INTERRUPTED
    flush()
    return code or FAILED if output_lost() else code


def _main(argv: list[str]) -> int:
    from jobmon.cli.commands import VERBS, UsageError, did_you_mean, parse

    if not argv:
        from jobmon.cli.help import overview

        print(overview(), file=sys.stderr)
        return USAGE
    name = {"--help": "help", "-h": "help"}.get(argv[0], argv[0])
    if name == "--version":
        from jobmon import __version__

        say(f"jobmon {__version__}")
        return OK
    verb = VERBS.get(name)
    if verb is None:
        complain(f"unknown command {name!r}{did_you_mean(name, VERBS)}; see jobmon help")
        return USAGE
    try:
        return _do(verb, parse(verb, argv[1:]))
    except UsageError as error:
        complain(f"{name}: {error}; see jobmon help {name}")
        return UNANSWERED if name in ("status", "pid") else USAGE


def _do(verb: Verb, arguments: Arguments) -> int:
    from jobmon.cli.commands import UsageError

    if "--help" in arguments.options:
        from jobmon.cli.help import page

        say(page(verb))
        return OK
    answers = verb.name == "pid" or (verb.name == "status" and bool(arguments.given))
    try:
        return _runner(verb)(verb, arguments)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a user never sees a traceback
        code = _explain(error)
        return UNANSWERED if answers else code


def _runner(verb: Verb) -> Callable[[Verb, Arguments], int]:
    run: Callable[[Verb, Arguments], int] = __import__(f"jobmon.cli.{verb.module}", fromlist=("run",)).run
    return run


def _explain(error: Exception) -> int:
    """Tell what happened; the exit code that stands for it."""
    from jobmon import errors
    from jobmon.cli.formatting import escape

    if isinstance(error, errors.JobError) and error.results:
        for job, bad, message in error.results:
            if bad:
                hint = _near(job) if bad == "no-such-job" else ""
                shown = escape(job) or "''"  # as `jobmon start "$UNSET"` names it
                complain(f"{shown}: {escape(message)}{hint}{_last_words(error, job)}")
    elif isinstance(error, errors.JobMonError):
        complain(escape(str(error)))
    elif isinstance(error, OSError):
        complain(escape(f"{error.filename or 'cannot continue'}: {error.strerror}"))
    else:
        complain(escape(f"internal error (please report): {error!r}"))
    if isinstance(error, errors.JobError) and error.code == "bad-request":
        return USAGE
    codes: tuple[tuple[type[Exception], int], ...] = (
        (errors.AddressError, USAGE),
        (errors.NoSuchJobError, NO_SUCH_JOB),
        (errors.NotPermittedError, NOT_PERMITTED),
        (errors.BusyError, LOST),
        (errors.WaitTimeout, TIMED_OUT),
        (errors.DaemonUnreachable, UNREACHABLE),
        (errors.RemoteProtocolError, UNREACHABLE),
        (errors.ConnectionLost, LOST),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), FAILED)


def _last_words(error: JobError, job: str) -> str:
    from jobmon.cli.formatting import escape

    lines = error.stderr.get(job, ())
    return "; last lines of stderr:" + "".join(f"\n  | {escape(line)}" for line in lines) if lines else ""


def _near(job: str) -> str:
    """A name that there is, if one is much like this one."""
    from jobmon.cli.commands import did_you_mean
    from jobmon.cli.formatting import escape
    from jobmon.client import CommandPipe
    from jobmon.errors import JobMonError

    try:
        with CommandPipe() as daemon:
            return escape(did_you_mean(job, daemon.list_jobs()))
    except JobMonError:
        return ""
