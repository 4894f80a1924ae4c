"""The processes of the jobs: known from their birth until nothing of the run is left.

A pidfd per child where the kernel has them (pidfd_open(2), Linux 5.3; some containers forbid
it), else SIGCHLD and waitid alone. Orphans of jobs come to the daemon, which is their subreaper,
and are reaped. Turns kernel events into process inputs; decides nothing.

A leader is reaped as soon as it is dead: a zombie that is kept would be reported by
waitid(P_ALL) again and again and hide the orphans behind it. The number of its process group is
safe all the same: it is addressed through the leader's pidfd (PIDFD_SIGNAL_PROCESS_GROUP, Linux
6.9), or by members that are each checked and signalled by their own pidfd.
"""

from __future__ import annotations

import errno
import os
import signal

from jobmon.events import Exited, Launched, LeaderDied, Spawned, SpawnFailed
from jobmon.linux import procfs, reactor, spawn, syscalls
from jobmon.linux.signals import name_of
from jobmon.spec import KillScope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.events import ProcessInput, Status
    from jobmon.linux.reactor import Reactor

    Feed = Callable[[str, ProcessInput], None]

# Members of a group that are not our children die without a word to us: look again, ever more rarely.
FIRST_LOOK = 0.01
LAST_LOOK = 1.0


class Child:
    """The process of one run. `dead`: the leader is reaped, others of the run live."""

    __slots__ = ("dead", "failure", "job", "pid", "pidfd", "report", "run", "scope", "status")

    def __init__(self, job: str, run: int, pid: int, scope: KillScope) -> None:
        self.job = job
        self.run = run
        self.pid = pid
        self.scope = scope
        self.pidfd = -1
        self.report = -1
        self.dead = False
        self.status: Status = None
        self.failure: tuple[str, int] | None = None


class Children:
    """All processes of all jobs. What happens to them is fed to `feed(job, input)`.

    `look_later(seconds)` must lead to a call of `look` after that time.
    """

    def __init__(self, watch: Reactor, feed: Feed, look_later: Callable[[float], None]) -> None:
        self._reactor = watch
        self._feed = feed
        self._look_later = look_later
        self._by_job: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._draining: dict[str, Child] = {}
        self._interval = FIRST_LOOK
        self.has_pidfd = _probe_pidfd()
        self.has_group_flag = self.has_pidfd and _probe_group_flag()
        self.orphans = 0  # reaped so far

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, job: str, run: int, pid: int, report: int, scope: KillScope) -> None:
        """A process was started for `run` of `job`; `report` is what `Spawner.spawn` returned."""
        child = Child(job, run, pid, scope)
        self._by_job[job] = self._by_pid[pid] = child
        self._watch_death(child)
        self._feed(job, Launched(run, pid))
        if report < 0:
            self._feed(job, Spawned(run))
            return
        child.report = report
        self._reactor.register(report, lambda _events: self._read_report(child), reactor.EXEC)

    def pid_of(self, job: str, run: int) -> int | None:
        """The pid of a run whose leader lives."""
        child = self._find(job, run)
        return child.pid if child is not None and not child.dead else None

    def stop(self, job: str, run: int, number: int) -> None:
        """Send a run its stop signal, then SIGCONT (a stopped process would never act on it)."""
        child = self._find(job, run)
        if child is None:
            return
        self._send(child, number)
        if number not in (signal.SIGSTOP, signal.SIGTSTP):
            self._send(child, signal.SIGCONT)

    def kill(self, job: str, run: int) -> None:
        """SIGKILL to a run."""
        child = self._find(job, run)
        if child is not None:
            self._send(child, signal.SIGKILL)

    def deliver(self, job: str, run: int, number: int, *, every: bool) -> None:
        """Send a signal to the leader of a run, or to every process of it."""
        child = self._find(job, run)
        if child is not None and every:
            self._send(child, number)
        elif child is not None and not child.dead:
            self._send_leader(child, number)

    def sweep(self) -> None:
        """SIGCHLD: reap whatever is dead. One signal may stand for many deaths (signal(7))."""
        while (info := _reap_any()) is not None:
            child = self._by_pid.get(info.si_pid)
            if child is not None:
                self._leader_dead(child, _status(info))
            else:
                self.orphans += 1
        self.look()

    def look(self) -> None:
        """See which runs without a leader have come to their end."""
        for child in list(self._draining.values()):
            if not self._signal_group(child, 0):
                self._gone(child)
        if self._draining:
            self._look_later(self._interval)
            self._interval = min(self._interval * 2, LAST_LOOK)
        else:
            self._interval = FIRST_LOOK

    # ---- deaths ---------------------------------------------------------------------------

    def _watch_death(self, child: Child) -> None:
        if not self.has_pidfd:
            return
        try:
            child.pidfd = os.pidfd_open(child.pid)
            self._reactor.register(child.pidfd, lambda _events: self._reap(child), reactor.CHILD)
        except OSError:  # no descriptor left: SIGCHLD tells of this one
            self._close_pidfd(child)

    def _reap(self, child: Child) -> None:
        try:
            info = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self._leader_dead(child, None)
            return
        if info is not None:
            self._leader_dead(child, _status(info))

    def _leader_dead(self, child: Child, status: Status) -> None:
        """The leader is reaped. First what it reported, then its death, then what it left."""
        self._read_report(child, final=True)
        if child.pidfd >= 0:
            self._reactor.unregister(child.pidfd)
        del self._by_pid[child.pid]
        child.dead = True
        child.status = status
        if child.scope is KillScope.PROCESS or not self._has_survivors(child):
            self._gone(child)
            return
        self._draining[child.job] = child
        self._look_later(FIRST_LOOK)
        self._feed(child.job, LeaderDied(child.run, status))

    def _has_survivors(self, child: Child) -> bool:
        if not self._signal_group(child, 0):
            return False
        self._reap_orphans()  # zombies of the group count as members until they are reaped
        return self._signal_group(child, 0)

    def _reap_orphans(self) -> None:
        """Reap dead orphans; deaths of leaders are left to their own events."""
        while (info := _peek_any()) is not None and info.si_pid not in self._by_pid:
            os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
            self.orphans += 1

    def _gone(self, child: Child) -> None:
        self._draining.pop(child.job, None)
        del self._by_job[child.job]
        self._close_pidfd(child)
        if child.failure is not None:
            stage, number = child.failure
            self._feed(child.job, spawn_failed(child.run, stage, number, ""))
        else:
            self._feed(child.job, Exited(child.run, child.status))

    def _close_pidfd(self, child: Child) -> None:
        if child.pidfd >= 0:
            self._reactor.unregister(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def _read_report(self, child: Child, *, final: bool = False) -> None:
        if child.report < 0:
            return
        try:
            child.failure = spawn.read_report(child.report)
        except BlockingIOError:
            if not final:
                return
        self._reactor.unregister(child.report)
        os.close(child.report)
        child.report = -1
        if child.failure is None:
            self._feed(child.job, Spawned(child.run))

    # ---- signals --------------------------------------------------------------------------

    def _find(self, job: str, run: int) -> Child | None:
        child = self._by_job.get(job)
        return child if child is not None and child.run == run else None

    def _send(self, child: Child, number: int) -> None:
        """To whom the run's kill-scope says."""
        if child.scope is KillScope.PROCESS:
            self._send_leader(child, number)
        elif not self._signal_group(child, number) and not child.dead:
            self._send_leader(child, number)  # not yet in a session of its own

    def _send_leader(self, child: Child, number: int) -> None:
        try:
            if child.pidfd >= 0:
                signal.pidfd_send_signal(child.pidfd, number)
            elif not child.dead:
                os.kill(child.pid, number)  # unreaped, so the number is still its own
        except OSError:
            pass  # ESRCH: it is dead already. EPERM: it is another user's now; patience decides

    def _signal_group(self, child: Child, number: int) -> bool:
        """Signal the run's process group; whether there was anybody in it."""
        try:
            if child.pidfd >= 0 and self.has_group_flag:
                signal.pidfd_send_signal(child.pidfd, number, None, syscalls.PIDFD_SIGNAL_PROCESS_GROUP)
            elif number == 0 or not child.dead:
                os.killpg(child.pid, number)
            else:
                return self._signal_members(child, number)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # EPERM: somebody is there
        return True

    def _signal_members(self, child: Child, number: int) -> bool:
        """The group of a reaped leader, one by one: its number alone might be somebody else's by now."""
        found = False
        for pid, facts in procfs.scan().items():
            if facts.pgrp == child.pid and facts.session == child.pid:
                found = True
                _signal_checked(pid, facts, number)
        return found


def spawn_failed(run: int, stage: str, number: int, what: str) -> SpawnFailed:
    """The input for a failed spawn, with a reason for people."""
    where = f" {what}" if what else ""
    reason = f"{stage}{where}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    return SpawnFailed(run, stage, number, reason)


def _signal_checked(pid: int, facts: procfs.Stat, number: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        now = procfs.stat(pid)
        if now is not None and now.starttime == facts.starttime and now.pgrp == facts.pgrp:
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass
    finally:
        os.close(pidfd)


def _status(info: os.waitid_result) -> Status:
    return info.si_status if info.si_code == os.CLD_EXITED else name_of(info.si_status)


def _reap_any() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def _peek_any() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _probe_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _probe_group_flag() -> bool:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0, None, syscalls.PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        return True  # we lead no group, but the flag was understood
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
