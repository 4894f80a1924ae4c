"""Who belongs to a run besides its leader, and how to reach all of them.

A Crowd answers for one run: whether anybody else lives, who, and takes signals for all. Which
kind it is follows from kill-scope and from what the kernel offers:

    kill-scope "process"   Crowd         the leader is all there is
    kill-scope "group"     GroupCrowd    the leader's process group
    kill-scope "job"       CgroupCrowd   the run's cgroup, where one could be made, and what has migrated
                                         from it to another cgroup
                           TreeCrowd     else what a scan of /proc finds: the leader's session, its
                                         descendants, and what carries its marker

The leader is signalled before the others: some programs start anew what dies before them.
"""

from __future__ import annotations

import os
import time

from jobmon.lean.cpython import signal
from jobmon.linux.kernel import procfs, syscalls
from jobmon.linux.kernel.signals import send_checked
from jobmon.linux.processes.tracker import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.linux.kernel.cgroup import Cgroup
    from jobmon.linux.kernel.procfs import Stat
    from jobmon.linux.processes.migrants import Migrants

HUNT_SECONDS = 0.02  # how long one turn of the loop may hunt
HUNT_GOES = 100  # after so many turns the known ones are killed, whoever else may still be at large


class Leader:
    """The first process of a run. `dead`: it has been reaped."""

    __slots__ = ("_held", "pid", "pidfd")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self._held = -1  # until when its number was certainly the run's, in clock ticks; -1: it still is

    @property
    def dead(self) -> bool:
        """Whether it has been reaped, so that its number may become somebody else's."""
        return self._held >= 0

    @dead.setter
    def dead(self, dead: bool) -> None:
        self._held = procfs.ticks() if dead else -1

    def has_session(self, fact: Stat) -> bool:
        """Whether a process with its number as session is in the session that it made: one that was born
        while the number was the run's has inherited it, and so has everybody while its group lives."""
        if fact.session != self.pid or not self.dead:
            return fact.session == self.pid
        if fact.starttime <= self._held and procfs.stat(self.pid) is not None:
            self._held = 0  # the number was given to somebody else, be it in the same tick of the clock
        return fact.starttime <= self._held or self._has_group()

    def has_session_still(self, ticks: int) -> None:
        """Note that a process of its session lived at this time, in clock ticks since boot."""
        self._held = max(self._held, ticks)

    def _has_group(self) -> bool:
        """Whether the kernel says that its group lives, by its pidfd (Linux 6.9). Not known is no."""
        try:
            if self.pidfd >= 0:
                flag = syscalls.PIDFD_SIGNAL_PROCESS_GROUP
                signal.pidfd_send_signal(self.pidfd, 0, None, flag)
                return True
        except PermissionError:
            return True
        except OSError:
            pass
        return False

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

    def send_group(self, number: int) -> None:
        """Signal its process group, in one moment that nobody can fork away from."""
        if self.dead:
            return  # the number may be somebody else's
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass


class Crowd:
    """Nobody but the leader counts. `polls`: only looking tells when the others are gone."""

    polls = False
    __slots__ = ("leader",)

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    @property
    def place(self) -> str:
        """What /proc/PID/cgroup calls the cgroup of its own, if it has one."""
        return ""

    def others(self) -> bool:
        """Whether anybody besides the leader lives."""
        return False

    def pids(self) -> list[int]:
        """Everybody who lives, the leader too."""
        return [] if self.leader.dead else [self.leader.pid]

    def kin(self) -> list[int]:
        """Those of them who may speak for the run."""
        return self.pids()

    def signal(self, number: int) -> None:
        """A signal to everybody, the leader first."""
        self.leader.send(number)

    def signal_rest(self) -> bool:
        """Send what was sent to everybody to those who could not be found yet; whether that was all. Else
        call it again soon."""
        return True

    def kill(self) -> bool:
        """SIGKILL to everybody; whether everybody was sent it. Else call it again soon."""
        self.signal(signal.SIGKILL)
        return True

    def watch(self) -> int:
        """A descriptor that shows EPOLLPRI when `others` may have changed; -1: there is none."""
        return -1

    def open(self) -> int:
        """A descriptor of its cgroup's directory, for whoever is to be born there; -1: it has none.
        Raises OSError."""
        return -1

    def close(self) -> bool:
        """The run is over; whether nothing is left of what was made for it."""
        return True


class GroupCrowd(Crowd):
    """The leader's process group, which has the leader's number."""

    polls = True
    __slots__ = ("_by_pidfd", "_hunt", "_tree")

    def __init__(self, leader: Leader, tree: Tree, by_pidfd: bool) -> None:
        super().__init__(leader)
        self._tree = tree
        self._by_pidfd = by_pidfd and leader.pidfd >= 0
        self._hunt = Hunt(tree, self._members)

    def others(self) -> bool:
        """For the kernel zombies are members too, and their parents may never reap them."""
        if not self.leader.dead:
            return len(self.pids()) > 1
        return self._send(0) and not self._tree.is_empty(self._members)

    def pids(self) -> list[int]:
        return [fact.pid for fact in self._members()]

    def kill(self) -> bool:
        if self._reaches_all():
            return super().kill()
        return self._hunt.go_on()

    def signal(self, number: int) -> None:
        """One signal to the group: nobody gets it twice."""
        if not self._send(number):
            self.leader.send(number)  # it is not yet in a session of its own

    def _send(self, number: int) -> bool:
        """Whether there was anybody to signal."""
        try:
            if self._by_pidfd:
                flag = syscalls.PIDFD_SIGNAL_PROCESS_GROUP
                signal.pidfd_send_signal(self.leader.pidfd, number, None, flag)
            elif number == 0 or not self.leader.dead:
                os.killpg(self.leader.pid, number)
            else:
                # the number of a reaped leader is safe only as long as a member lives: ask each
                members = self._members()
                for fact in members:
                    send_checked(fact.pid, number, fact.still_lives)
                return bool(members)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # EPERM: somebody is there
        return True

    def _reaches_all(self) -> bool:
        """Whether one call signals the whole group, in one moment."""
        return self._by_pidfd or not self.leader.dead

    def _members(self) -> list[Stat]:
        """The leader made its group in a session of its own: a group of its number elsewhere is another."""
        pid = self.leader.pid
        return [fact for fact in self._tree.alive() if fact.pgrp == pid and self.leader.has_session(fact)]


class CgroupCrowd(Crowd):
    """Everything in the run's cgroup, and what has migrated from it: su, sshd and cron have their sessions
    put into cgroups of their own (pam_systemd), and root may move whom it likes."""

    __slots__ = ("_cgroup", "_hunt", "_migrants", "_tree", "key", "polls")

    def __init__(self, leader: Leader, its: Cgroup, tree: Tree, migrants: Migrants, key: bytes) -> None:
        super().__init__(leader)
        self.key = key
        self.polls = False
        self._cgroup = its
        self._tree = tree
        self._migrants = migrants
        self._hunt: Hunt | None = None
        tree.add(self)
        migrants.settle(its)

    @property
    def place(self) -> str:
        return self._cgroup.name

    def others(self) -> bool:
        if not self.leader.dead:
            return any(pid != self.leader.pid for pid in self.pids())
        self.polls = not self._cgroup.populated()
        return not self.polls or self._migrants.may_have(self, self._cgroup)

    def pids(self) -> list[int]:
        inside = self._cgroup.pids()
        return inside + [fact.pid for fact in self._outside(inside)]

    def kin(self) -> list[int]:
        inside = self._cgroup.pids()
        return inside + self._tree.trusted(self._outside(inside), inside)

    def signal(self, number: int) -> None:
        inside = self._cgroup.pids()  # before the leader hears of it: whom it starts then is to tidy up
        outside = self._outside(inside)
        self.leader.send(number)
        for pid in inside:
            if pid != self.leader.pid or self.leader.dead:
                send_checked(pid, number, self._cgroup.holds)
        for fact in outside:
            if fact.pid != self.leader.pid or self.leader.dead:
                send_checked(fact.pid, number, fact.still_lives)

    def kill(self) -> bool:
        if self._hunt is None and self._outside(self._cgroup.pids()):
            self._hunt = Hunt(self._tree, lambda: self._tree.members(self))
        self._cgroup.kill()
        self.leader.send(signal.SIGKILL)
        if self._hunt is None:
            return True
        done = self._hunt.go_on()
        if done:
            self._hunt = None
        return done

    def watch(self) -> int:
        try:
            return self._cgroup.open_events()
        except OSError:
            return -1

    def open(self) -> int:
        return self._cgroup.open()

    def close(self) -> bool:
        self._tree.remove(self)
        return self._cgroup.remove()

    def _outside(self, inside: list[int]) -> list[Stat]:
        return self._migrants.of(self, self._cgroup, inside)


class TreeCrowd(Crowd):
    """What the shared scan attributes to the run. Who was a member once stays one."""

    polls = True
    __slots__ = ("_heard", "_hunt", "_owed", "_tree", "key")

    def __init__(self, leader: Leader, tree: Tree, key: bytes) -> None:
        super().__init__(leader)
        self.key = key
        self._tree = tree
        self._hunt = Hunt(tree, lambda: tree.members(self))
        self._owed: tuple[int, ...] = ()  # signals for those whom the scan has not come to yet
        self._heard: set[tuple[int, int]] = set()  # who needs them no more
        tree.add(self)

    def others(self) -> bool:
        if self.leader.dead:
            return self._tree.orphaned() and not self._tree.is_empty(lambda: self._tree.members(self))
        return any(fact.pid != self.leader.pid for fact in self._tree.members(self))

    def pids(self) -> list[int]:
        return [fact.pid for fact in self._tree.members(self)]

    def kin(self) -> list[int]:
        return self._tree.trusted(self._tree.members(self))

    def signal(self, number: int) -> None:
        members = self._tree.members(self)
        self.leader.send(number)
        for fact in members:
            if fact.pid != self.leader.pid or self.leader.dead:
                send_checked(fact.pid, number, fact.still_lives)
        if not self._tree.has_looked_at_all():
            self._owed += (number,)
            self._heard |= {(fact.pid, fact.starttime) for fact in members}

    def signal_rest(self) -> bool:
        for fact in self._tree.members(self) if self._owed else ():
            if (fact.pid, fact.starttime) not in self._heard and fact.pid != self.leader.pid:
                self._heard.add((fact.pid, fact.starttime))
                for number in self._owed:
                    send_checked(fact.pid, number, fact.still_lives)
        if self._owed and not self._tree.has_looked_at_all():
            return False
        self._owed = ()
        self._heard.clear()
        return True

    def kill(self) -> bool:
        if not self._hunt.is_on:
            self.leader.send_group(signal.SIGSTOP)
        return self._hunt.go_on()

    def close(self) -> bool:
        self._tree.remove(self)
        return True


class Hunt:
    """SIGKILL for processes that may fork faster than one can look. `prey` says which, by the present scan.

    Killing one after another loses against a program that forks and exits in a circle: each look shows a
    process that is gone when the signal comes, and its child is not seen yet. So the members are first
    stopped, all of them, and then killed:

    1. Reap the orphans that are dead.
    2. Chase: stop our new children until two looks in a row find none. What forks and exits leaves its
       child to the daemon, the subreaper; the list of our own children is short and quick to read.
    3. Look at everybody, once: stop who is new, and if anybody was, begin with 2 again.
    4. Nobody new, in a look at everybody: SIGKILL to all that were stopped, found again or not.

    A stopped process has no more children, and it still counts under a limit of processes (RLIMIT_NPROC,
    pids.max), so its place cannot be taken by a new one. SIGKILL ends a stopped process.

    A turn of the loop gives this HUNT_SECONDS; after HUNT_GOES turns those that are known are killed,
    even if others may still be at large. Whoever is found later is killed by the look that finds it.
    """

    __slots__ = ("_goes", "_prey", "_stopped", "_tree")

    def __init__(self, tree: Tree, prey: Callable[[], list[Stat]]) -> None:
        self._tree = tree
        self._prey = prey
        self._stopped: dict[tuple[int, int], Stat] = {}
        self._goes = 0

    @property
    def is_on(self) -> bool:
        """Whether it has begun and not ended."""
        return self._goes > 0

    def go_on(self) -> bool:
        """Hunt for a moment; whether all were sent SIGKILL. Else call it again soon."""
        self._goes += 1
        done = self._try() or (self._goes >= HUNT_GOES and self._end())
        self._tree.forget()
        return done

    def _try(self) -> bool:
        until = time.monotonic() + HUNT_SECONDS
        if not self._tree.reap_orphans(until):
            return False
        self._tree.look_at_nobody()
        while self._chase(until):
            self._tree.forget()
            fresh = self._stop_known()
            if not self._tree.has_looked_at_all():
                return False
            if not fresh:
                return self._end()
        return False

    def _end(self) -> bool:
        self._stop_known()
        for fact in self._stopped.values():
            send_checked(fact.pid, signal.SIGKILL, fact.still_lives)
        self._stopped.clear()
        self._goes = 0
        return True

    def _stop_known(self) -> bool:
        """Stop whom the present scan shows; whether there was anybody new."""
        fresh = [fact for fact in self._prey() if (fact.pid, fact.starttime) not in self._stopped]
        for fact in fresh:
            send_checked(fact.pid, signal.SIGSTOP, fact.still_lives)
            self._stopped[fact.pid, fact.starttime] = fact
        return bool(fresh)

    def _chase(self, until: float) -> bool:
        """Those who fork and exit all the time are our children before they fork again, so look at
        those alone, and quickly. Whether two looks in a row found nobody new."""
        quiet = 0
        while quiet < 2:
            is_sure = self._tree.take_in_orphans(until)
            quiet = 0 if self._stop_known() or not is_sure else quiet + 1
            if time.monotonic() > until:
                return False
        return True
