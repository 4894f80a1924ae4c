"""`init CONFIG -- CMD`: a command that runs beside the jobs of a daemon.

The engine starts it when the jobs are launched, tells it of the signals that come, and hears of its
end. It is no job: nobody has patience with it, and it is not started again.
"""

from __future__ import annotations

import os
import resource

from jobmon.lean.cpython import signal
from jobmon.limits import DIED, NOT_EXECUTABLE
from jobmon.linux.processes.init import CAUGHT, Command, Inherited
from jobmon.linux.processes.spawn import PRIVATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobmon.linux.processes.init import Manner

# What asks a container to end. The rest is CMD's alone.
ENDING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGRTMIN + 3))


class Companion:
    """CMD, and what the daemon has to know of it. `signals` are those that must come here."""

    signals = CAUGHT

    def __init__(self, argv: Sequence[str], manner: Manner) -> None:
        """Make it before the daemon changes any signal: CMD gets back what we were given."""
        self._argv = argv
        self._manner = manner
        self._inherited = Inherited.now()
        self._command: Command | None = None
        self._code: int | None = None
        self._asked = 0  # the signal that began its end, or ours

    @property
    def lives(self) -> bool:
        """Whether it was started and has not ended."""
        return self._command is not None and self._code is None

    def remember(self) -> None:
        """Call it before the daemon changes its directory or limits, which CMD gets back too."""
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)

    def start(self, ports: str) -> int:
        """Start it, with $JOBMON_PORT set to `ports`; returns its pid. Raises OSError (fork)."""
        try:
            self._command = Command(self._argv, self._manner, self._inherited, lambda: self._prepare(ports))
        except OSError:
            self._code = NOT_EXECUTABLE
            raise
        finally:
            os.close(self._home)  # or the directory would be busy as long as we live
        return self._command.pid

    def heed(self, number: int) -> bool:
        """A signal came: forward it. Whether it means nothing to the daemon."""
        if number == signal.SIGCHLD:
            self._look()
            return False
        if number in ENDING:
            self._asked = number
        if self._command is not None and self.lives:
            self._command.forward(number)
        return number not in ENDING

    def end(self) -> None:
        """The daemon is ending. Where no signal asked for that, which CMD would have too, it gets SIGTERM."""
        if not self._asked:
            self.heed(signal.SIGTERM)
            self.heed(signal.SIGCONT)

    def ended(self, info: os.waitid_result) -> int:
        """It was reaped; returns its exit code."""
        assert self._command is not None
        self._code = self._command.ended(info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)
        return self._code

    def exit_code(self) -> int:
        """CMD's exit code; where it came to no CMD, that of the signal that was in its way."""
        if self._code is None:
            return DIED + self._asked if self._asked else 0
        return self._code

    def _look(self) -> None:
        if self._command is None or not self.lives:
            return
        try:
            info = os.waitid(os.P_PID, self._command.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if info is not None:
            self._command.stopped(info.si_status)

    def _prepare(self, ports: str) -> None:
        """In the child: what the daemon changed for itself is as it was."""
        os.fchdir(self._home)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._nofile)
        for name in PRIVATE:
            os.environ.pop(name, None)
        os.environ["JOBMON_PORT"] = ports
