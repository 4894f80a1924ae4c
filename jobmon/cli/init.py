"""The verb `init`: a command as the first process of a container wants to be run."""

from __future__ import annotations

from jobmon.cli import FAILED, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.cli.verbs import Arguments, Verb


def run(verb: Verb, arguments: Arguments) -> int:
    """Run the command after `--`; the exit code is its own."""
    from jobmon.linux import init

    del verb
    try:
        return init.main(arguments.command, group="--group" in arguments.options)
    except ImportError as error:
        if error.name not in ("prctl", "_prctl"):
            raise
        complain("as anything but PID 1, init needs python-prctl: python3 -m pip install python-prctl")
        return FAILED
