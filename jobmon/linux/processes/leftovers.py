"""What a daemon that was killed left running. Its successor ends it before it starts anything, for a
job never has two live runs.

It is done before the successor listens, and it waits: there is no loop yet, and no client to keep
waiting. The runs are known from the state-dir, from the cgroups that were made for them, and from the
marker in the environment of their processes; a process cannot change the first two.
"""

from __future__ import annotations

import os
import select
import time

from jobmon.core.spec import JobSpec, KillScope
from jobmon.errors import StartupError
from jobmon.lean.cpython import signal
from jobmon.linux import log as logfile
from jobmon.linux.kernel import cgroup, procfs, signals
from jobmon.linux.processes.leftoverscan import Remains, marker_in, split
from jobmon.linux.processes.statedir import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobmon.linux.kernel.cgroup import Cgroup
    from jobmon.linux.log import Log
    from jobmon.linux.processes.statedir import Daemon, StateDir

    Check = Callable[[int], bool]

KILL_SECONDS = 10.0  # how long SIGKILL may take; what it has not ended by then runs no instruction any more
CLEAN_LOOKS = 2  # so many looks in a row that find nobody prove that nobody is left
HUNT_LOOKS = 100  # how often is looked for children of those that are about to be killed
BLIND_SECONDS = 0.05  # how often is looked where no descriptor tells of an end
LONGEST_POLL = 86400.0  # seconds: poll(2) has an int of milliseconds
_STOPS = (signal.SIGSTOP, signal.SIGTSTP)


class Leftover:
    """A run of a dead daemon. Its processes get the stop signal and the kill-timeout that it was launched
    with. `kept` is the name of its file in the state-dir, if there is one."""

    def __init__(self, run: Run, its: Cgroup | None, remains: Remains, kept: str = "") -> None:
        self.run = run
        self.kept = kept
        self.patience = run.kill_timeout
        self._cgroup = its
        self._remains = remains
        self._events = -1 if its is None else its.open_events()
        self._pidfd = -1
        self._looks = 0  # in a row that found nobody

    def is_evident(self) -> bool:
        """Whether a process of it certainly lives, without a look at all there are. Also takes the news
        off its descriptors."""
        if self._pidfd >= 0:
            if not _readable(self._pidfd):
                return True
            self._close_pidfd()
        try:
            return self._events >= 0 and b"populated 1" in os.pread(self._events, 4096, 0)
        except OSError:  # ENODEV: the cgroup is gone
            return False

    def is_gone(self) -> bool:
        """Whether the last look at all processes proves that nothing of it is left. Else it is watched by
        one of its processes."""
        self._close_pidfd()
        facts = self._remains.members(self.run)
        if not facts:
            self._looks += 1
            return self._remains.is_sure or self._looks >= CLEAN_LOOKS
        self._looks = 0
        for fact in facts:
            self._follow(fact)
            if self._pidfd >= 0:
                break
        return False

    def _follow(self, fact: procfs.Stat) -> None:
        try:
            self._pidfd = os.pidfd_open(fact.pid)
        except OSError:
            return
        if not fact.still_lives(fact.pid):
            self._close_pidfd()

    def everybody(self) -> dict[int, Check]:
        """Its processes, the first one first, each with the check that it still is one."""
        found: dict[int, Check] = {fact.pid: fact.still_lives for fact in self._remains.members(self.run)}
        if self._cgroup is not None:
            found |= dict.fromkeys(self._cgroup.pids(), self._cgroup.holds)
        return {pid: found[pid] for pid in sorted(found, key=lambda pid: (pid != self.run.pid, pid))}

    def holds_us(self) -> bool:
        """Whether this very process is one of it."""
        mine = self._remains.mine
        return (mine is not None and mine.marker == self.run.marker) or (
            self._cgroup is not None and self._cgroup.holds(os.getpid())
        )

    def stop(self, log: Log) -> None:
        """Ask it to end."""
        them = self.everybody()
        log.write(
            logfile.WARNING,
            "stopping left-over processes of a previous daemon",
            job=self.run.job,
            signal=self.run.signal,
            pids=",".join(map(str, them)),
        )
        number = signals.number_of(self.run.signal)
        for one in (number,) if number in _STOPS else (number, signal.SIGCONT):
            for pid, check in them.items():
                signals.send_checked(pid, one, check)

    def prey(self) -> list[procfs.Stat]:
        """Its processes that cgroup.kill does not reach."""
        facts = self._remains.members(self.run)
        return [fact for fact in facts if self._cgroup is None or not self._cgroup.holds(fact.pid)]

    def kill_cgroup(self) -> None:
        """SIGKILL to all that is in its cgroup."""
        if self._cgroup is not None:
            self._cgroup.kill()

    def register(self, poller: select.poll) -> bool:
        """Let a poll wait for its end; whether a descriptor tells of it."""
        if self._looks:
            return False  # nobody was found, but the look may have missed somebody
        if self._pidfd >= 0:
            poller.register(self._pidfd, select.POLLIN)
        elif self._events >= 0:
            poller.register(self._events, select.POLLPRI)
        return self._pidfd >= 0 or self._events >= 0

    def close(self) -> None:
        """Forget it."""
        self._close_pidfd()
        if self._events >= 0:
            os.close(self._events)
        if self._cgroup is not None:
            self._cgroup.remove_all()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Clearing:
    """Ends all that dead daemons have left: what `state` tells of, and what lives in `cgroups`. `specs`
    are for runs that the state does not know. The processes of those that go beyond their kill-scope are
    named in the log, and left alone."""

    def __init__(
        self, state: StateDir, cgroups: Iterable[Cgroup], specs: Mapping[str, JobSpec], log: Log
    ) -> None:
        self._state = state
        self._specs = specs
        self._log = log
        self.told: set[int] = set()  # processes that were named
        self.found: list[Leftover] = []
        self._remains = Remains(self._daemons())
        theirs = {one.name: one for one in cgroups}
        known = [
            (run, theirs.pop(run.cgroup, None) or cgroup.named(run.cgroup, run.daemon), name)
            for name, run in state.runs.items()
            if run.pid
        ]
        known += [(self._unknown(_marker_of(one)), one, "") for one in theirs.values()]
        for run, _, _ in known:
            self._remains.add(run if state.counts(run.pidns) else run.replace(pid=0))
        self._look()
        for run, its, name in [*known, *self._just_born()]:
            self._find(run, its, name)
        self._find_marked()

    def _just_born(self) -> list[tuple[Run, None, str]]:
        """The runs whose daemon died as they were born, where the marker alone does not tell what is of the
        run: of those that have it the first one is its first process."""
        names = [name for name, run in self._state.runs.items() if not run.pid]
        found: list[tuple[Run, None, str]] = []
        for name in names:
            run = self._state.runs[name]
            first = self._remains.first_with(run.marker)
            if first is None or any(run.marker == other.marker for other in self._born()):
                self._state.forget(name)
            else:
                found.append((run.replace(pid=first.pid, start=first.starttime), None, name))
        for run, _, _ in found:
            self._remains.add(run)
        if found:
            self._look()
        return found

    def _born(self) -> list[Run]:
        return [run for run in self._state.runs.values() if run.pid]

    def _daemons(self) -> dict[str, Daemon]:
        return {key: one for key, one in self._state.daemons.items() if self._state.counts(one.pidns)}

    def _look(self) -> None:
        for _ in range(CLEAN_LOOKS):
            self._remains.look()
            if self._remains.is_sure:
                break

    def _find(self, run: Run, its: Cgroup | None, kept: str = "") -> None:
        """Take it for left, if anything of it is."""
        one = Leftover(run, its, self._remains, kept)
        if one.everybody():
            one.is_gone()  # it is not; but watch it
            self.found.append(one)
            return
        one.close()
        if not kept:
            return
        if its is None and not self._state.counts(run.pidns):
            text = "was started in another PID namespace by a daemon that died: it cannot be looked for"
            self._log.write(logfile.WARNING, text, job=run.job, pid=run.pid)
        self._state.forget(kept)

    def _find_marked(self) -> None:
        """The runs that have no record, because their daemon died as they were born: they are known by
        their marker alone. Others that carry one are named."""
        known = {one.run.marker for one in self.found}
        unknown = {other.marker: self._unknown(other.marker) for other in self._remains.others()}
        fresh = [run for run in unknown.values() if self._is_whole(run.job) and run.marker not in known]
        for run in fresh:
            self._remains.add(run)
        if fresh:
            self._look()
        for run in fresh:
            self._find(run, None)
        for other in self._remains.others():
            if other.marker:
                text = "left-over process not stopped"
            else:
                text = "possible left-over process not stopped"
            self._log.write(logfile.WARNING, text, job=other.job, pid=other.fact.pid)
            self.told.add(other.fact.pid)

    def _is_whole(self, job: str) -> bool:
        spec = self._specs.get(job)
        return spec is not None and spec.kill_scope is KillScope.JOB

    def _unknown(self, marker: str) -> Run:
        """A run of which the marker is all that is known, with what its job is told today."""
        daemon, job, number = split(marker)
        spec = self._specs.get(job) or JobSpec(job, "")
        whole = KillScope.JOB.value
        return Run(daemon, "", -1, job, number, 0, 0, "", spec.signal, spec.kill_timeout, whole)

    # ---- their end ------------------------------------------------------------------------

    def clear(self, ending: tuple[int, ...], tell: Callable[[list[str], float], None]) -> bool:
        """End all. `tell` hears the names of the jobs and how many seconds it may take.

        Returns:
            False when one of the signals `ending` came meanwhile: then nothing of theirs is left either.

        Raises:
            StartupError: this process belongs to one of them.
        """
        if not self.found:
            return True
        for one in self.found:
            if one.holds_us():
                raise StartupError(
                    f"this daemon was started by {one.run.job}, a job that a daemon of this configuration "
                    "has left when it died: start it from somewhere else, so that it can stop that job first"
                )
        source = signals.SignalSource(ending)
        try:
            tell(sorted({one.run.job for one in self.found}), self._longest() + KILL_SECONDS)
            for one in self.found:
                one.stop(self._log)
            return self._see_them_end(source)
        finally:
            source.close()
            for one in self.found:
                one.close()

    def _longest(self) -> float:
        return max(one.patience for one in self.found)

    def _see_them_end(self, source: signals.SignalSource) -> bool:
        began = time.monotonic()
        asked = False
        patient = {one: began + one.patience for one in self.found}
        killed: dict[Leftover, float] = {}
        while left := self._living([*patient, *killed]):
            now = time.monotonic()
            for one in left:
                if one in patient and (asked or patient[one] <= now):
                    del patient[one]
                    self._tell_kill(one)
                    killed[one] = now + KILL_SECONDS
                elif one in killed and killed[one] <= now:
                    text = "SIGKILL does not end left-over processes of a previous daemon"
                    self._log.write(logfile.ERROR, text, job=one.run.job, pids=_shown(one))
                    del killed[one]
            self._hunt([one for one in left if one in killed])
            deadlines = [(patient | killed)[one] for one in left if one in patient or one in killed]
            if deadlines:
                asked = _rest(left, source, min(deadlines) - now) or asked
        return not asked

    def _living(self, among: list[Leftover]) -> list[Leftover]:
        """Those of them of which something may live."""
        doubtful = {one for one in among if not one.is_evident()}
        if not doubtful:
            return among
        self._remains.look()
        gone = {one for one in doubtful if one.is_gone()}
        for one in gone:
            if one.kept in self._state.runs:
                self._state.forget(one.kept)
        return [one for one in among if one not in gone]

    def _tell_kill(self, one: Leftover) -> None:
        text = "killing left-over processes of a previous daemon"
        self._log.write(logfile.WARNING, text, job=one.run.job, pids=_shown(one))

    def _hunt(self, doomed: list[Leftover]) -> None:
        """SIGKILL. Where there is no cgroup all are stopped first, until nobody new is found: a stopped
        process has no more children."""
        for one in doomed:
            one.kill_cgroup()
        stopped: set[tuple[int, int]] = set()
        for _ in range(HUNT_LOOKS):
            prey = [fact for one in doomed for fact in one.prey()]
            fresh = [fact for fact in prey if (fact.pid, fact.starttime) not in stopped]
            if not fresh:
                break
            for fact in fresh:
                signals.send_checked(fact.pid, signal.SIGSTOP, fact.still_lives)
                stopped.add((fact.pid, fact.starttime))
            self._remains.look()
        for fact in [fact for one in doomed for fact in one.prey()]:
            signals.send_checked(fact.pid, signal.SIGKILL, fact.still_lives)


def _shown(one: Leftover) -> str:
    return ",".join(map(str, one.everybody()))


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def _rest(left: list[Leftover], source: signals.SignalSource, seconds: float) -> bool:
    """Wait until something changes; whether a signal came."""
    poller = select.poll()
    poller.register(source.fileno(), select.POLLIN)
    told = [one.register(poller) for one in left]
    if not all(told):
        seconds = min(seconds, BLIND_SECONDS)
    poller.poll(min(max(seconds, 0.0), LONGEST_POLL) * 1000 + 1)
    return bool(source.read())


def _marker_of(its: Cgroup) -> str:
    """What the first process in a cgroup that has a marker says."""
    for pid in its.pids():
        if marker := marker_in(procfs.environ(pid) or b""):
            return marker.decode("utf-8", "replace")
    return ""


def name_survivors(pids: Iterable[int], log: Log) -> None:
    """Say which of these processes, in the cgroup of our own unit, a daemon has left of which no state is
    known. Whether they were meant to live on is not known either."""
    for pid in pids:
        marker = marker_in(procfs.environ(pid) or b"") if pid != os.getpid() else b""
        if marker:
            _, job, _ = split(marker.decode("utf-8", "replace"))
            log.write(logfile.WARNING, "left-over process not stopped", job=job, pid=pid)
