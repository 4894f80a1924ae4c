"""Who belongs to a run besides its leader, and how to reach all of them.

A Crowd answers for one run: whether anybody else lives, who, and takes signals for all. Which
kind it is follows from kill-scope and from what the kernel offers:

    kill-scope "process"   Crowd         the leader is all there is
    kill-scope "group"     GroupCrowd    the leader's process group
    kill-scope "job"       CgroupCrowd   the run's cgroup, where one could be made
                           TreeCrowd     else what a scan of /proc finds: the leader's session and
                                         group, its descendants, and what carries its marker

The leader is signalled before the others: some programs start anew what dies before them.
"""

from __future__ import annotations

import os
import signal

from jobmon.linux import procfs, syscalls
from jobmon.linux.signals import send_checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobmon.linux.cgroup import Cgroup
    from jobmon.linux.procfs import Stat

CHASES = 64  # how often in a row a kill without a cgroup looks for who was born meanwhile


class Leader:
    """The first process of a run. `dead`: it has been reaped."""

    __slots__ = ("dead", "pid", "pidfd")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self.dead = False

    def send(self, number: int) -> None:
        """Signal it. What cannot be signalled is dead already (ESRCH) or another user's (EPERM)."""
        if self.dead:
            return
        try:
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)  # not reaped, so the number is still its own
        except OSError:
            pass


class Crowd:
    """Nobody but the leader counts. `polls`: only looking tells when the others are gone."""

    polls = False
    __slots__ = ("leader",)

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    def others(self) -> bool:
        """Whether anybody besides the leader lives."""
        return False

    def pids(self) -> list[int]:
        """Everybody who lives, the leader too."""
        return [] if self.leader.dead else [self.leader.pid]

    def signal(self, number: int) -> None:
        """A signal to everybody, the leader first."""
        self.leader.send(number)

    def kill(self) -> None:
        """SIGKILL to everybody."""
        self.signal(signal.SIGKILL)

    def watch(self) -> int:
        """A descriptor that shows EPOLLPRI when `others` may have changed; -1: there is none."""
        return -1

    def close(self) -> bool:
        """The run is over; whether nothing is left of what was made for it."""
        return True


class GroupCrowd(Crowd):
    """The leader's process group, which has the leader's number."""

    polls = True
    __slots__ = ("_by_pidfd", "_tree")

    def __init__(self, leader: Leader, tree: Tree, by_pidfd: bool) -> None:
        super().__init__(leader)
        self._tree = tree
        self._by_pidfd = by_pidfd

    def others(self) -> bool:
        """Zombies count as members, so our own must be reaped before."""
        if not self.leader.dead:
            return len(self.pids()) > 1
        return self._send(0)

    def pids(self) -> list[int]:
        return [fact.pid for fact in self._members()]

    def signal(self, number: int) -> None:
        """One signal to the group: nobody gets it twice."""
        if not self._send(number):
            self.leader.send(number)  # it is not yet in a session of its own

    def _send(self, number: int) -> bool:
        """Whether there was anybody to signal."""
        try:
            if self._by_pidfd and self.leader.pidfd >= 0:
                flag = syscalls.PIDFD_SIGNAL_PROCESS_GROUP
                signal.pidfd_send_signal(self.leader.pidfd, number, None, flag)
            elif number == 0 or not self.leader.dead:
                os.killpg(self.leader.pid, number)
            else:
                # the number of a reaped leader is safe only as long as a member lives: ask each
                members = list(self._members())
                for fact in members:
                    send_checked(fact.pid, number, fact.still_lives)
                return bool(members)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # EPERM: somebody is there
        return True

    def _members(self) -> Iterator[Stat]:
        pid = self.leader.pid
        return (fact for fact in self._tree.alive() if fact.pgrp == pid and fact.session == pid)


class CgroupCrowd(Crowd):
    """Everything in the run's cgroup."""

    __slots__ = ("_cgroup",)

    def __init__(self, leader: Leader, its: Cgroup) -> None:
        super().__init__(leader)
        self._cgroup = its

    def others(self) -> bool:
        if not self.leader.dead:
            return len(self.pids()) > 1
        return self._cgroup.populated()

    def pids(self) -> list[int]:
        return self._cgroup.pids()

    def signal(self, number: int) -> None:
        self.leader.send(number)
        for pid in self._cgroup.pids():
            if pid != self.leader.pid or self.leader.dead:
                send_checked(pid, number, self._cgroup.holds)

    def kill(self) -> None:
        self._cgroup.kill()

    def watch(self) -> int:
        try:
            return self._cgroup.open_events()
        except OSError:
            return -1

    def close(self) -> bool:
        return self._cgroup.remove()


class TreeCrowd(Crowd):
    """What the shared scan attributes to the run. Who was a member once stays one."""

    polls = True
    __slots__ = ("_tree", "key")

    def __init__(self, leader: Leader, tree: Tree, key: bytes) -> None:
        super().__init__(leader)
        self.key = key
        self._tree = tree
        tree.add(self)

    def others(self) -> bool:
        """A scan is not one moment and may miss who is born during it: nobody is believed twice only."""
        if self.leader.dead and not self._tree.orphaned():
            return False
        if self._has_others():
            return True
        self._tree.forget()
        return self._has_others()

    def _has_others(self) -> bool:
        return any(fact.pid != self.leader.pid for fact in self._tree.members(self))

    def pids(self) -> list[int]:
        return [fact.pid for fact in self._tree.members(self)]

    def signal(self, number: int) -> None:
        members = self._tree.members(self)
        self.leader.send(number)
        self._send(members, number)

    def kill(self) -> None:
        """SIGKILL until a look finds nobody new. Who is born between looking and killing is met by
        the next look; who still escapes, by the next call."""
        self.signal(signal.SIGKILL)
        for _ in range(CHASES):
            newborn = self._tree.newborn(self)
            if not newborn:
                return
            self._send(newborn, signal.SIGKILL)

    def close(self) -> bool:
        self._tree.remove(self)
        return True

    def _send(self, members: list[Stat], number: int) -> None:
        for fact in members:
            if fact.pid != self.leader.pid:
                send_checked(fact.pid, number, fact.still_lives)


class Tree:
    """The processes below the daemon, each attributed to a run or to nobody. One scan serves
    everybody until `forget`, which the loop calls every turn.

    Attributed by: the number of a leader as pid, session or group; having been a member before; the
    marker in the environment; else as its parent is. A stray is nobody's: an orphan with a session
    of its own and a cleared environment. What a smaller kill-scope let go still has its marker.
    """

    def __init__(self, marker: str) -> None:
        self._prefix = f"JOBMON_RUN={marker}:".encode()
        self._runs: dict[bytes, TreeCrowd] = {}
        self._by_pid: dict[int, TreeCrowd] = {}
        self._leaders: set[int] = set()
        self._seen: dict[tuple[int, int], TreeCrowd] = {}  # (pid, start time)
        self._markers: dict[tuple[int, int], bytes] = {}
        self._table: dict[int, Stat] | None = None
        self._members: dict[TreeCrowd, list[Stat]] | None = None
        self._strays: list[Stat] = []
        self._me = os.getpid()

    def add(self, crowd: TreeCrowd) -> None:
        """A run whose members are wanted."""
        self._runs[crowd.key] = self._by_pid[crowd.leader.pid] = crowd
        self.forget()

    def remove(self, crowd: TreeCrowd) -> None:
        """A run that is over."""
        del self._runs[crowd.key]
        if self._by_pid.get(crowd.leader.pid) is crowd:
            del self._by_pid[crowd.leader.pid]

    def add_leader(self, pid: int) -> None:
        """A child of ours that is no orphan."""
        self._leaders.add(pid)

    def remove_leader(self, pid: int) -> None:
        """A leader was reaped."""
        self._leaders.discard(pid)

    def forget(self) -> None:
        """What was seen is old."""
        self._table = self._members = None

    def alive(self) -> Iterator[Stat]:
        """Everything that lives."""
        return (fact for fact in self._scanned().values() if fact.state not in procfs.DEAD)

    def members(self, crowd: TreeCrowd) -> list[Stat]:
        """The living members of a run, its leader too."""
        return self._attributed().get(crowd, [])

    def strays(self) -> list[Stat]:
        """What lives below the daemon and is nobody's."""
        self._attributed()
        return self._strays

    def orphaned(self) -> bool:
        """Whether the daemon may have children that are no leaders. Cheap; and asked twice, because
        the kernel may leave out a child while another one exits (proc(5))."""
        return bool(self._orphans() or self._orphans())

    def newborn(self, crowd: TreeCrowd) -> list[Stat]:
        """Orphans of a run, by the list of our children alone: quick enough for one that forks and
        dies, for ever."""
        facts = (procfs.stat(pid) for pid in self._orphans())
        return [f for f in facts if f is not None and f.state not in procfs.DEAD and self._owner(f) is crowd]

    def _orphans(self) -> list[int]:
        try:
            with open(f"/proc/self/task/{self._me}/children", "rb") as file:
                pids = [int(word) for word in file.read().split()]
        except OSError:  # CONFIG_PROC_CHILDREN is optional
            pids = procfs.children(self._me)
        return [pid for pid in pids if pid not in self._leaders]

    def _scanned(self) -> dict[int, Stat]:
        if self._table is None:
            self._table = procfs.scan()
        return self._table

    def _attributed(self) -> dict[TreeCrowd, list[Stat]]:
        if self._members is None:
            self._members, self._strays = self._attribute(self._scanned())
        return self._members

    def _attribute(self, table: dict[int, Stat]) -> tuple[dict[TreeCrowd, list[Stat]], list[Stat]]:
        below: dict[int, list[Stat]] = {}
        for fact in table.values():
            below.setdefault(fact.ppid, []).append(fact)
        members: dict[TreeCrowd, list[Stat]] = {}
        strays: list[Stat] = []
        pending: list[tuple[Stat, TreeCrowd | None]] = [(fact, None) for fact in below.get(self._me, ())]
        while pending:
            fact, inherited = pending.pop()
            owner = inherited or self._owner(fact)
            if owner is None and (fact.pid in self._leaders or self._marker(fact)):
                continue  # of a run that does not ask
            pending += [(child, owner) for child in below.get(fact.pid, ())]
            if fact.state not in procfs.DEAD:
                (strays if owner is None else members.setdefault(owner, [])).append(fact)
        self._remember(members, table)
        return members, strays

    def _remember(self, members: dict[TreeCrowd, list[Stat]], table: dict[int, Stat]) -> None:
        self._seen = {
            (fact.pid, fact.starttime): owner for owner, facts in members.items() for fact in facts
        }
        self._markers = {key: value for key, value in self._markers.items() if key[0] in table}

    def _owner(self, fact: Stat) -> TreeCrowd | None:
        for number in (fact.pid, fact.session, fact.pgrp):
            if number in self._by_pid:
                return self._by_pid[number]
        return self._seen.get((fact.pid, fact.starttime)) or self._runs.get(self._marker(fact))

    def _marker(self, fact: Stat) -> bytes:
        """What its environment says: "JOB:RUN", b"" for nothing (or for another daemon's)."""
        key = (fact.pid, fact.starttime)
        if key not in self._markers:
            self._markers[key] = _marker_in(procfs.environ(fact.pid) or b"", self._prefix)
        return self._markers[key]


def _marker_in(environ: bytes, prefix: bytes) -> bytes:
    start = 0 if environ.startswith(prefix) else environ.find(b"\0" + prefix) + 1
    if not start and not environ.startswith(prefix):
        return b""
    return environ[start + len(prefix) :].partition(b"\0")[0]
