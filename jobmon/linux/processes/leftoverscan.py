"""The processes of runs whose daemon is dead, found in /proc. It only reads.

They are no descendants of ours any more. A process belongs to a run if it is the first process (pid and
start time), is in its session or group, carries its marker, was found to belong to it before, or has a
parent that does. `kill-scope` narrows that to the group or to the first process.

A session outlives its leader, and then its number proves something only while the kernel cannot have given
that number to somebody else. A marker can be written by anybody, so a process of another user needs the
session as well.
"""

from __future__ import annotations

import os

from jobmon.core.spec import KillScope
from jobmon.lean.records import Record
from jobmon.linux.kernel import procfs
from jobmon.linux.kernel.scan import Scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobmon.linux.kernel.procfs import Stat
    from jobmon.linux.processes.statedir import Daemon, Run

MARKER = b"JOBMON_RUN="


class Other(Record):
    """A process that dead daemons have started, and that is of no run: `job` and `marker` as far as known."""

    fact: Stat
    job: str
    marker: str


class Remains:
    """Finds the processes of the runs that are added, which `daemons` (by ID) have started."""

    def __init__(self, daemons: Mapping[str, Daemon]) -> None:
        self._me = os.getpid()
        self._by_pid: dict[int, Run] = {}
        self._by_marker: dict[bytes, Run] = {}
        self._ids = {one.encode() for one in daemons}
        self._fresh = {one for one, daemon in daemons.items() if _counts_on(daemon)}
        self._seen: dict[tuple[int, int], Run] = {}
        self._markers: dict[tuple[int, int], bytes] = {}
        self._table: dict[int, Stat] = {}
        self._members: dict[bytes, list[Stat]] = {}
        self.mine: Run | None = None  # the run that started this very process
        self.is_sure = True

    def add(self, run: Run) -> None:
        """Look for one more run. Its pid is 0 where it is not known."""
        if run.daemon:
            self._ids.add(run.daemon.encode())
        self._by_marker[run.marker] = run
        if run.pid:
            self._by_pid[run.pid] = run

    def look(self) -> None:
        """Look at all processes. Raises OSError where /proc cannot be read."""
        if not self._ids:
            return
        scan = Scan()
        while not scan.over:
            scan.go_on()
        self.is_sure = scan.complete and scan.certain
        self._table = scan.table
        self._members = {}
        owners: dict[int, Run | None] = {}
        self.mine = self._owner(scan.table.get(self._me), owners)
        owners[self._me] = None
        for fact in scan.table.values():
            owner = self._owner(fact, owners)
            if owner is not None and fact.state not in procfs.DEAD:
                self._members.setdefault(owner.marker, []).append(fact)
                self._seen[fact.pid, fact.starttime] = owner
        self._markers = {key: value for key, value in self._markers.items() if key[0] in scan.table}

    def members(self, run: Run) -> list[Stat]:
        """The living processes of a run, by the last look."""
        return self._members.get(run.marker, [])

    def first_with(self, marker: bytes) -> Stat | None:
        """Of the processes that lead a session, by the last look, the oldest of ours that has a marker."""
        leaders = [fact for fact in self._table.values() if fact.session == fact.pid != self._me]
        found = [fact for fact in leaders if self._marker(fact) == marker and _is_ours(fact)]
        return min(found, key=lambda fact: fact.starttime, default=None)

    def others(self) -> list[Other]:
        """The living processes, by the last look, that have a marker or a session of dead daemons, and that
        are none of a run's."""
        members = {fact.pid for facts in self._members.values() for fact in facts}
        found = []
        for fact in self._table.values():
            if fact.pid in members or fact.pid == self._me or fact.state in procfs.DEAD:
                continue
            marker = self._marker(fact)
            run = self._run_of_session(fact)
            if marker.partition(b":")[0] in self._ids:
                text = marker.decode("utf-8", "replace")
                found.append(Other(fact, split(text)[1], text))
            elif run is not None and self._may_hold_number(run):
                found.append(Other(fact, run.job, ""))
        return found

    # ---- one process ------------------------------------------------------------------------

    def _owner(self, fact: Stat | None, owners: dict[int, Run | None]) -> Run | None:
        """The run that a process belongs to, by itself or by the nearest of its ancestors that does."""
        if fact is None:
            return None
        path = []
        at: Stat | None = fact
        owner = None
        while at is not None and at.pid not in owners:
            owners[at.pid] = None  # numbers that are given anew during a look could make a circle
            path.append(at.pid)
            owner = self._run_of(at)
            if owner is not None:
                owners[path.pop()] = owner
                break
            at = self._table.get(at.ppid)
        else:
            owner = owners[at.pid] if at is not None else None
        if owner is not None and owner.kill_scope == KillScope.JOB.value:
            owners.update(dict.fromkeys(path, owner))
        return owners[fact.pid]

    def _run_of(self, fact: Stat) -> Run | None:
        """The run that it belongs to whatever its parents are."""
        run = self._seen.get((fact.pid, fact.starttime)) or self._by_pid.get(fact.pid)
        if run is not None and (run.pid != fact.pid or run.start == fact.starttime):
            return run
        run = self._run_of_session(fact)
        if run is not None and self._holds_number(run) and _reaches(run, fact):
            return run
        run = self._by_marker.get(self._marker(fact)) if fact.state not in procfs.DEAD else None
        if run is not None and run.kill_scope == KillScope.JOB.value and self._may_speak(fact, run):
            return run
        return None

    def _run_of_session(self, fact: Stat) -> Run | None:
        return self._by_pid.get(fact.session) or self._by_pid.get(fact.pgrp)

    def _holds_number(self, run: Run) -> bool:
        """Whether the number of a run's first process is still its own."""
        return self._may_hold_number(run) and (run.pid in self._table or run.daemon in self._fresh)

    def _may_hold_number(self, run: Run) -> bool:
        leader = self._table.get(run.pid)
        return leader is None or leader.starttime == run.start

    def _may_speak(self, fact: Stat, run: Run) -> bool:
        """Whether the marker of a process is to be believed."""
        return run.pid in (fact.session, fact.pgrp) or _is_ours(fact)

    def _marker(self, fact: Stat) -> bytes:
        key = (fact.pid, fact.starttime)
        known = self._markers.get(key)
        if known is None:
            # to read it of one that hangs in the kernel could hang us
            environ = procfs.environ(fact.pid) if fact.state != "D" else None
            known = marker_in(environ or b"")
            if environ:  # else it may be executing a program at this moment
                self._markers[key] = known
        return known


def _is_ours(fact: Stat) -> bool:
    """Whether a process has our user."""
    try:
        return os.stat(f"/proc/{fact.pid}").st_uid == os.geteuid()
    except OSError:
        return False


def marker_in(environ: bytes) -> bytes:
    """What the marker in an environment says: DAEMON:JOB:RUN."""
    at = (b"\0" + environ).find(b"\0" + MARKER)
    return environ[at + len(MARKER) :].partition(b"\0")[0] if at >= 0 else b""


def split(marker: str) -> tuple[str, str, int]:
    """The daemon's ID, the job and the number of the run."""
    daemon, _, key = marker.partition(":")
    job, _, run = key.rpartition(":")
    return daemon, job, int(run) if run.isascii() and run.isdecimal() and len(run) < 20 else 0


def _reaches(run: Run, fact: Stat) -> bool:
    """Whether a stop of the run reaches who is in its session or its group."""
    if run.kill_scope == KillScope.GROUP.value:
        return fact.session == run.pid and fact.pgrp == run.pid
    return run.kill_scope == KillScope.JOB.value


def _counts_on(daemon: Daemon) -> bool:
    """Whether no number can have been given out twice since a daemon began: they are given out in order,
    and half of them would have had to be."""
    return daemon.forks > 0 and procfs.forks() - daemon.forks < procfs.pid_max() // 2
