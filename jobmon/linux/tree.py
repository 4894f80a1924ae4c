"""Who belongs to whom, where there are no cgroups: each process below the daemon is attributed to a
run, or to nobody. Signals nobody, decides nothing.
"""

from __future__ import annotations

import os
import time

from jobmon.linux import procfs
from jobmon.linux.scan import Scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    from jobmon.linux.procfs import Stat

    class Leader(Protocol):
        """The first process of a run. `dead`: it was reaped."""

        pid: int
        dead: bool

    class Family(Protocol):
        """A run whose members are wanted."""

        @property
        def key(self) -> bytes:
            """What the marker of its processes says."""

        @property
        def leader(self) -> Leader:
            """Its first process."""


PAUSE = 5.0  # seconds between two tellings of strays: some fork and exit all the time
LOOKS = 3  # how many scans one question may cost
DOUBTS = 100  # so many looks may find no environment, nor arguments, of a process before it has none


class Tree:
    """The processes below the daemon, each attributed to a run or to nobody. One scan serves
    everybody until `forget`, which the loop calls every turn.

    Attributed by: the number of a leader as pid, session or group; having been a member before; the
    marker in the environment; else as its parent is. A stray is nobody's: an orphan with a session
    of its own and a cleared environment. What a smaller kill-scope let go still has its marker.
    """

    def __init__(self, marker: str) -> None:
        self._prefix = f"JOBMON_RUN={marker}:".encode()
        self._runs: dict[bytes, Family] = {}
        self._by_pid: dict[int, Family] = {}
        self._leaders: set[int] = set()
        self._seen: dict[tuple[int, int], Family] = {}  # (pid, start time)
        self._markers: dict[tuple[int, int], bytes] = {}
        self._doubts: dict[tuple[int, int], int] = {}
        self._tell_from = 0.0
        self._told: set[tuple[int, int]] = set()
        self._scan: Scan | None = None
        self._owners: dict[int, Family | None] = {}  # who is below us, in this scan
        self._members: dict[Family, list[Stat]] = {}
        self._strays: list[Stat] = []
        self._is_sure = False
        self._me = os.getpid()

    def add(self, family: Family) -> None:
        """A run whose members are wanted."""
        self._runs[family.key] = self._by_pid[family.leader.pid] = family
        self.forget()

    def remove(self, family: Family) -> None:
        """A run that is over."""
        del self._runs[family.key]
        if self._by_pid.get(family.leader.pid) is family:
            del self._by_pid[family.leader.pid]
        self._seen = {key: owner for key, owner in self._seen.items() if owner is not family}

    def add_leader(self, pid: int) -> None:
        """A child of ours that is no orphan."""
        self._leaders.add(pid)

    def remove_leader(self, pid: int) -> None:
        """A leader was reaped: whoever has its number from now on is somebody else."""
        self._leaders.discard(pid)
        if self._scan is not None:
            self._scan.table.pop(pid, None)

    def forget(self) -> None:
        """What was seen is old."""
        self._scan = None

    def look_at_nobody(self) -> None:
        """Begin a scan that shows nobody but those who are taken in."""
        self._begin(Scan(of_all=False))

    def reap_orphans(self, until: float) -> bool:
        """Reap our dead children but leaders, until then (CLOCK_MONOTONIC) at most; whether that was all."""
        while time.monotonic() < until:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return True
            if info is None or info.si_pid in self._leaders:
                return True  # a leader's own event is about to reap it
            os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
        return False

    def take_in_orphans(self, until: float) -> bool:
        """Add our new children to what was seen, the youngest first, and reap those who have died; until
        then (CLOCK_MONOTONIC) at most. Whether it could be told of each whose it is."""
        self._is_sure = True
        table = self._looked().table
        fresh = []
        for pid in reversed(self._children()):
            if pid in self._leaders or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                continue
            fact = procfs.stat(pid)
            if fact is not None and (pid not in table or table[pid].starttime != fact.starttime):
                table[pid] = fact
                fresh.append(fact)
            if time.monotonic() > until:
                break
        self._attribute(fresh)
        return self._is_sure

    def alive(self) -> Iterator[Stat]:
        """Everything that lives."""
        return (fact for fact in self._looked().table.values() if fact.state not in procfs.DEAD)

    def knows(self, pid: int) -> bool:
        """Whether a number is somebody's, dead or alive."""
        return pid in self._looked().table

    def members(self, family: Family) -> list[Stat]:
        """The living members of a run, its leader too."""
        self._looked()
        return self._members.get(family, [])

    def strays(self) -> list[Stat]:
        """What lives below the daemon and is nobody's."""
        self._looked()
        return self._strays

    def new_strays(self) -> list[Stat]:
        """The strays of the last look that were not told before. Looks at nothing by itself."""
        strays = [] if self._scan is None else self._strays
        new = [fact for fact in strays if (fact.pid, fact.starttime) not in self._told]
        if not new or time.monotonic() < self._tell_from:
            return []
        self._tell_from = time.monotonic() + PAUSE
        self._told = {(fact.pid, fact.starttime) for fact in strays}
        return new

    def is_empty(self, find: Callable[[], list[Stat]]) -> bool:
        """Whether nobody lives of those whom `find` finds by the present scan. Only said when it is so:
        a look that may have missed somebody, or could not tell whose somebody is, shows nothing."""
        clean = 0
        for _ in range(LOOKS):
            members = find()
            if any(fact.still_lives(fact.pid) for fact in members) or not self._is_complete():
                return False
            clean = 0 if members else clean + 1
            if clean and (clean > 1 or self._looked().certain):
                return True
            self.forget()  # who was there has died since, and may have had children
        return False

    def orphaned(self) -> bool:
        """Whether the daemon may have children that are no leaders. Cheap; and asked twice, because
        the kernel may leave out a child while another one exits (proc(5))."""
        most = len(self._leaders)
        return self._listed().count(b" ") > most or self._listed().count(b" ") > most

    def _children(self) -> list[int]:
        return list(map(int, self._listed().split()))

    def _listed(self) -> bytes:
        """Our children's numbers, each with a space behind it."""
        try:
            with open(f"/proc/self/task/{self._me}/children", "rb") as file:
                return file.read()
        except OSError:  # CONFIG_PROC_CHILDREN is optional
            return b"".join(b"%d " % pid for pid in procfs.children(self._me))

    # ---- the look ---------------------------------------------------------------------------

    def _is_complete(self) -> bool:
        return self._looked().complete and self._is_sure

    def _looked(self) -> Scan:
        if self._scan is not None:
            return self._scan
        scan = self._begin(Scan())
        self._attribute(scan.table.values())
        self._prune(scan.table)
        return scan

    def _begin(self, scan: Scan) -> Scan:
        self._scan = scan
        self._owners = {self._me: None}
        self._members = {}
        self._strays = []
        self._is_sure = True
        return scan

    def _attribute(self, fresh: Iterable[Stat]) -> None:
        """Attribute processes, parents first."""
        below: dict[int, list[Stat]] = {}
        for fact in fresh:
            below.setdefault(fact.ppid, []).append(fact)
        pending = [parent for parent in below if parent in self._owners]
        while pending:
            parent = pending.pop()
            family = self._owners[parent]
            pending += [fact.pid for fact in below.pop(parent, ()) if self._place(fact, family)]

    def _place(self, fact: Stat, inherited: Family | None) -> bool:
        """Put it where it belongs; False when it, and what is below it, concerns nobody."""
        is_dead = fact.state in procfs.DEAD
        owner = inherited or self._owner(fact, is_dead)
        if owner is None and (fact.pid in self._leaders or (not is_dead and self._marker(fact))):
            return False  # of a run that does not ask
        self._owners[fact.pid] = owner
        if is_dead:
            return True
        if owner is not None:
            self._members.setdefault(owner, []).append(fact)
            self._seen[fact.pid, fact.starttime] = owner
        elif self._is_doubtful(fact):
            self._is_sure = False
        else:
            self._strays.append(fact)
        return True

    def _prune(self, table: dict[int, Stat]) -> None:
        """Who is gone need not be known any more."""
        self._seen = {key: owner for key, owner in self._seen.items() if _is_in(table, key)}
        self._markers = {key: value for key, value in self._markers.items() if _is_in(table, key)}
        self._doubts = {key: count for key, count in self._doubts.items() if _is_in(table, key)}

    def _owner(self, fact: Stat, is_dead: bool) -> Family | None:
        for number in (fact.pid, fact.session, fact.pgrp):
            family = self._by_pid.get(number)
            if family is not None and not self._is_taken(family.leader):
                return family
        known = self._seen.get((fact.pid, fact.starttime))
        return known or (None if is_dead else self._runs.get(self._marker(fact)))  # the dead have no marker

    def _is_taken(self, leader: Leader) -> bool:
        """Whether the number of a dead leader, which sessions and groups may still have, is somebody
        else's by now: as long as they have it, the kernel gives it to nobody."""
        return leader.dead and self._scan is not None and leader.pid in self._scan.table

    def _marker(self, fact: Stat) -> bytes:
        """What its environment says: "JOB:RUN", b"" for nothing (or for another daemon's)."""
        key = (fact.pid, fact.starttime)
        known = self._markers.get(key)
        if known is None:
            environ = procfs.environ(fact.pid)
            known = _marker_in(environ or b"", self._prefix)
            if environ or (environ is None and _is_hidden(fact.pid)):  # else it has none at this moment
                self._markers[key] = known
        return known

    def _is_doubtful(self, fact: Stat) -> bool:
        """Whether it cannot be told yet whose it is. Who is just executing a program has neither
        environment nor arguments for a moment, and who is just ending neither, for good: he may have left
        a child that was not looked at."""
        key = (fact.pid, fact.starttime)
        if self._markers.get(key) is not None:
            return False
        if procfs.cmdline(fact.pid):
            return bool(procfs.environ(fact.pid))  # it has come about between
        if not fact.still_lives(fact.pid):
            return True
        self._doubts[key] = self._doubts.get(key, 0) + 1
        return self._doubts[key] < DOUBTS


def _is_hidden(pid: int) -> bool:
    """Whether a process does not let us see its environment. One that is ending has none (ESRCH)."""
    try:
        os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _is_in(table: dict[int, Stat], key: tuple[int, int]) -> bool:
    fact = table.get(key[0])
    return fact is not None and fact.starttime == key[1]


def _marker_in(environ: bytes, prefix: bytes) -> bytes:
    start = 0 if environ.startswith(prefix) else environ.find(b"\0" + prefix) + 1
    if not start and not environ.startswith(prefix):
        return b""
    return environ[start + len(prefix) :].partition(b"\0")[0]
