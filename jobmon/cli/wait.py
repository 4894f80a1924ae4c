"""The command `wait`: until a condition holds, beside a command if one is given."""

from __future__ import annotations

import os
import sys
from time import monotonic

from jobmon.cli.commands import UsageError
from jobmon.cli.formatting import condition, count, escape, seconds
from jobmon.cli.output import FAILED, OK, complain, flush, say
from jobmon.client import CommandPipe, ends_of
from jobmon.errors import ConnectionLost, JobError, JobMonError
from jobmon.lean.cpython import signal
from jobmon.lean.fastjson import dumps
from jobmon.limits import DIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from jobmon.cli.commands import Arguments, Verb

    Ends = dict[str, int | str | None]

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class CommandFailed(JobError):
    """What was to bring the condition about failed itself."""


class ChildSignal:
    """SIGCHLD as a descriptor for poll(2), in a `with`. A pidfd may be forbidden, seccomp(2)."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._handler = signal.signal(signal.SIGCHLD, lambda *_: None)  # if ignored, there is no status
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGCHLD, self._handler)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """The descriptor: readable after any signal that is caught, until `has_ended` has looked."""
        return self._read

    def has_ended(self, pid: int) -> bool:
        """Whether a child has ended. It is not reaped: its pid is its own until then."""
        try:
            os.read(self._read, 1 << 16)
        except BlockingIOError:
            pass
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


class Interrupted(Exception):
    """A signal came while the command ran, and both have ended of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = DIED + number


def run(verb: Verb, arguments: Arguments) -> int:
    """Wait, and say nothing unless it was in vain. As JSON the outcome is said, whatever it is."""
    del verb
    wish = _wish(arguments)
    as_json = "--json" in arguments.options
    try:
        with CommandPipe() as daemon:
            ends = _wait(daemon, tuple(arguments.given), wish, arguments.command, 2 if as_json else 1)
    except Interrupted as end:
        return end.code
    except JobMonError as error:
        if as_json:
            say(dumps(_failure(error)))
        raise _on_one_line(error) from None
    if as_json:
        say(dumps({"ok": True, "results": [_held(job, end) for job, end in ends.items()]}))
    return _like(ends) if "--propagate" in arguments.options else OK


def _wish(arguments: Arguments) -> dict[str, Any]:
    """What the options ask of the daemon."""
    options = arguments.options
    propagate = "--propagate" in options
    name, duration = condition(options.get("--for", "exited" if propagate else "changed"))
    if propagate and (name != "exited" or len(arguments.given) != 1):
        raise UsageError("--propagate needs exactly one job and --for exited")
    wish: dict[str, Any] = {"condition": name, "duration": duration, "any": "--any" in options}
    if "--timeout" in options:
        wish["timeout"] = seconds(options["--timeout"])
    if "--since" in options:
        wish["since"] = count(options["--since"], "--since")
        if wish["since"] < 0:
            raise UsageError("--since must be the number of an event")
    return wish


def _wait(
    daemon: CommandPipe, jobs: tuple[str, ...], wish: dict[str, Any], command: list[str], output: int
) -> Ends:
    number = daemon.submit("wait", jobs, acts=bool(command), **wish)
    if command:
        if daemon.catch_up(number) and daemon.refused(number):
            daemon.collect(number)
        _beside(daemon, number, command, output)
    return ends_of(daemon.collect(number))


def _beside(daemon: CommandPipe, number: int, command: list[str], output: int) -> None:
    """Run the command until it has succeeded. Meanwhile the wait may fail, or a signal end both."""
    caught: list[int] = []
    with ChildSignal() as children:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            pid = _start(command, output, mask)
            handlers = _pass_on(pid, caught)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            _watch(daemon, number, pid, children)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its pid is its own until it is reaped
        except JobMonError:
            complain(f"the command is still running (pid {pid})")
            raise
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    how = f"exit {code}" if code >= 0 else f"signal {-code}"
    if caught:
        complain(f"{_named(caught[0])}: the command {escape(command[0])} ended ({how})")
        raise Interrupted(caught[0])
    if code:
        raise CommandFailed(f"the command {command[0]} failed ({how})", "command-failed")


def _pass_on(pid: int, caught: list[int]) -> dict[int, Any]:
    """From now on signals go to the command, which decides what becomes of both, as with timeout(1); the
    handlers of before. What is ignored stays so: nohup(1)."""

    def heed(number: int, _frame: object) -> None:
        caught.append(number)
        if number != signal.SIGINT or not _in_foreground():
            os.kill(pid, number)

    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    handlers: dict[int, Any] = {number: one for number, one in before.items() if one != signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, heed)
    return handlers


def _named(number: int) -> str:
    return (signal.strsignal(number) or f"signal {number}").lower()


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C comes to us, and so to the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _start(command: list[str], output: int, mask: set[int]) -> int:
    """Start the command; what it prints goes to our descriptor `output`, 1 or 2."""
    flush()
    # Python ignores these two, and what we start would too.
    default = (signal.SIGPIPE, signal.SIGXFSZ)
    streams = () if output == 1 else ((os.POSIX_SPAWN_DUP2, sys.stderr.fileno(), 1),)
    try:
        return os.posix_spawnp(
            command[0], command, os.environ, setsigdef=default, setsigmask=mask, file_actions=streams
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(f"{command[0]}: cannot be run: {why}", "command-failed") from None


def _watch(daemon: CommandPipe, number: int, pid: int, children: ChildSignal) -> None:
    """Return when the command has ended, or when the daemon has answered; raise what it says against it."""
    until = daemon.deadline(number)
    while not children.has_ended(pid):
        if daemon.await_reply(number, until=until, beside=(children,)):
            if daemon.refused(number):
                daemon.collect(number)
            return
        if until is not None and monotonic() >= until:
            daemon.collect(number)  # its time is over


def _held(job: str, end: int | str | None) -> dict[str, Any]:
    held: dict[str, Any] = {"job": job, "ok": True}
    return held if end is None else {**held, "exit": end}


def _failure(error: JobMonError) -> dict[str, Any]:
    """What docs/json.md says of a wait in vain."""
    results: list[dict[str, Any]] = []
    code = "connection-lost" if isinstance(error, ConnectionLost) else "unreachable"
    if isinstance(error, JobError):
        code = error.code
        for job, bad, message in error.results:
            told = {"job": job, "ok": not bad}
            results.append({**told, "error": {"code": bad, "message": message}} if bad else told)
    message = str(error).encode(errors="backslashreplace").decode()  # CMD and JOBMON_PORT may be any bytes
    return {"ok": False, "error": {"code": code, "message": message}, "results": results}


def _on_one_line(error: JobMonError) -> JobMonError:
    """However many jobs it was in vain for, it is one answer."""
    if not isinstance(error, JobError) or error.code == "no-such-job":
        return error
    if sum(bool(code) for _, code, _ in error.results) > 1:
        return type(error)(str(error), error.code)
    return error


def _like(ends: Ends) -> int:
    """The exit code that stands for how the job ended."""
    ((job, end),) = ends.items()
    if isinstance(end, int):
        return end
    if end is None or not end.startswith("SIG"):
        complain(f"{job}: exit status unknown")
        return FAILED
    base, _, more = end.partition("+")
    number: int = getattr(signal, base, 0)
    return DIED + number + int(more or 0)
