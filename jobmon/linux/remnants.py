"""What lives on when all jobs are down, and is to end with the daemon.

As PID 1 of a namespace that is everything in it; else the strays: orphans that no job owns. They
get SIGTERM, a moment, SIGKILL.
"""

from __future__ import annotations

import os
import signal

from jobmon.linux import logfile
from jobmon.linux.signals import send_checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.linux.logfile import Log
    from jobmon.linux.procfs import Stat
    from jobmon.linux.tree import Tree


class Remnants:
    """Asks them to end as soon as it is made."""

    def __init__(self, tree: Tree, log: Log) -> None:
        self._tree = tree
        self._log = log
        self._is_init = os.getpid() == 1
        self._tell("ending what no job owns", signal.SIGTERM)

    def gone(self) -> bool:
        """Whether nothing is left."""
        return not self._left()

    def kill(self) -> None:
        """The moment is over."""
        self._tell("killing what no job owns", signal.SIGKILL)

    def _left(self) -> list[Stat]:
        self._tree.forget()
        if self._is_init:
            return [fact for fact in self._tree.alive() if fact.pid != 1]
        return self._tree.strays() if self._tree.orphaned() else []

    def _tell(self, what: str, number: int) -> None:
        left = self._left()
        if not left:
            return
        self._log.write(logfile.WARNING, what, pids=",".join(str(fact.pid) for fact in left))
        for fact in left:
            for each in (number, signal.SIGCONT):
                send_checked(fact.pid, each, fact.still_lives)
