"""The verb `init`: a command as the first process of a container should run it, and jobs beside it."""

from __future__ import annotations

from jobmon.cli import FAILED, complain
from jobmon.cli.local import take_utf_8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.verbs import Arguments, Verb


def run(verb: Verb, arguments: Arguments) -> int:
    """Run the command after `--`, the jobs of a configuration, or both; the exit code is the command's."""
    del verb
    group = "--group" in arguments.options
    try:
        if arguments.given:
            return _with_jobs(arguments.given[0], arguments.command, group=group)
        from jobmon.linux import init

        return init.main(arguments.command, group=group)
    except ImportError as error:
        if error.name not in ("prctl", "_prctl"):
            raise
        complain("as anything but PID 1, init needs python-prctl: python3 -m pip install python-prctl")
        return FAILED


def _with_jobs(config: str, command: list[str], *, group: bool) -> int:
    take_utf_8()
    from jobmon.linux import daemon
    from jobmon.linux.companion import Companion

    return daemon.main(config, "foreground", Companion(command, group=group) if command else None)
