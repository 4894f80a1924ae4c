"""What lives on when all jobs are down, and is to end with the daemon.

As PID 1 of a namespace that is everything in it; else the strays: orphans that no job owns. They
get SIGTERM, a moment, SIGKILL.
"""

from __future__ import annotations

import os

from jobmon.lean.cpython import signal
from jobmon.linux import log as logfile
from jobmon.linux.kernel.signals import send_checked
from jobmon.linux.processes.members import Hunt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.linux.kernel.procfs import Stat
    from jobmon.linux.log import Log
    from jobmon.linux.processes.tracker import Tree


GOES = 2  # after so many rounds of SIGKILL the daemon leaves without them


class Remnants:
    """Asks them to end as soon as it is made."""

    def __init__(self, tree: Tree, log: Log) -> None:
        self._tree = tree
        self._log = log
        self._is_init = os.getpid() == 1
        self._hunt = Hunt(tree, self._left)
        self._goes = 0
        self._ask()

    def gone(self) -> bool:
        """Whether nothing is left."""
        if not self._is_init and not self._tree.orphaned():
            return True
        self._tree.forget()
        return self._tree.is_empty(self._left)

    def kill(self) -> bool:
        """The moment is over; whether all were sent SIGKILL. Else call it again soon."""
        if not self._hunt.is_on:
            self._goes += 1
            self._tell("killing unattributed processes")
        return self._hunt.go_on()

    def give_up(self) -> bool:
        """Whether it is no use to wait for them any longer."""
        if self._goes < GOES:
            return False
        self._tell("giving up on unkillable processes")
        return True

    def _left(self) -> list[Stat]:
        if self._is_init:
            return [fact for fact in self._tree.alive() if fact.pid != 1]
        return self._tree.strays()

    def _ask(self) -> None:
        if not self._is_init and not self._tree.orphaned():
            return
        self._tell("terminating unattributed processes")
        for fact in self._left():
            for number in (signal.SIGTERM, signal.SIGCONT):
                send_checked(fact.pid, number, fact.still_lives)

    def _tell(self, what: str) -> None:
        left = self._left()
        if left:
            self._log.write(logfile.WARNING, what, pids=",".join(str(fact.pid) for fact in left))
