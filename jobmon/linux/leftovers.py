"""What a daemon that was killed left running. Its successor ends it before it starts anything, for a
job never has two live runs.

It is done before the successor listens, and it waits: there is no loop yet, and nobody to keep
waiting. Only runs in cgroups are known for certain; `name_survivors` is about the others.
"""

from __future__ import annotations

import os
import select
import time

from jobmon.linux import logfile, procfs, signals
from jobmon.linux.csignal import signal
from jobmon.spec import JobSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jobmon.linux.cgroup import Cgroup
    from jobmon.linux.logfile import Log

KILL_SECONDS = 10.0  # how long SIGKILL may take; what it has not ended by then runs no instruction any more


class Leftover:
    """A run of a dead daemon: its processes get the stop signal and the patience of their job."""

    def __init__(self, cgroup: Cgroup, specs: Mapping[str, JobSpec]) -> None:
        self.cgroup = cgroup
        self.job = next((job for job in map(_job_of, cgroup.pids()) if job is not None), "")
        spec = specs.get(self.job) or JobSpec(self.job, "")
        self.patience = spec.kill_timeout
        self._signal = spec.signal
        self._events = cgroup.open_events()

    def fileno(self) -> int:
        """The descriptor that tells of its end, by POLLPRI."""
        return self._events

    def lives(self) -> bool:
        """Whether a process of it does. Also takes the news off the descriptor."""
        try:
            return b"populated 1" in os.pread(self._events, 4096, 0)
        except OSError:  # ENODEV: the cgroup is gone
            return False

    def stop(self, log: Log) -> None:
        """Ask it to end."""
        pids = self.cgroup.pids()
        log.write(
            logfile.WARNING,
            "stopping what a daemon that died has left",
            job=self.job,
            signal=self._signal,
            pids=",".join(map(str, pids)),
        )
        for number in (signals.number_of(self._signal), signal.SIGCONT):
            for pid in pids:
                signals.send_checked(pid, number, self.cgroup.holds)

    def kill(self, log: Log) -> None:
        """End it."""
        pids = ",".join(map(str, self.cgroup.pids()))
        log.write(logfile.WARNING, "killing what a daemon that died has left", job=self.job, pids=pids)
        self.cgroup.kill()

    def close(self) -> None:
        """Forget it."""
        os.close(self._events)
        self.cgroup.remove()


def clear(
    cgroups: Iterable[Cgroup],
    specs: Mapping[str, JobSpec],
    log: Log,
    ending: tuple[int, ...],
    tell: Callable[[list[str], float], None],
) -> bool:
    """End all that dead daemons left in these cgroups. `tell` hears the names of the jobs and
    how many seconds it may take.

    Returns:
        False when one of the signals `ending` came meanwhile: then nothing of theirs is left either.
    """
    found = [Leftover(cgroup, specs) for cgroup in cgroups]
    source = signals.SignalSource(ending)
    try:
        patience = max(one.patience for one in found)
        tell(sorted({one.job for one in found}), patience + KILL_SECONDS)
        for one in found:
            one.stop(log)
        return _see_them_end(found, source, log)
    finally:
        source.close()
        for one in found:
            one.close()


def _see_them_end(found: list[Leftover], source: signals.SignalSource, log: Log) -> bool:
    began = time.monotonic()
    asked = False
    patient = {one: began + one.patience for one in found}
    killed: dict[Leftover, float] = {}
    while left := [one for one in (*patient, *killed) if one.lives()]:
        now = time.monotonic()
        for one in left:
            if one in patient and (asked or patient[one] <= now):
                del patient[one]
                one.kill(log)
                killed[one] = now + KILL_SECONDS
            elif killed.get(one, now + 1) <= now:
                log.write(logfile.ERROR, "SIGKILL does not end what a daemon that died has left", job=one.job)
                del killed[one]
        deadlines = [(patient | killed)[one] for one in left if one in patient or one in killed]
        if deadlines:
            asked = _rest(left, source, min(deadlines) - now) or asked
    return not asked


def _rest(left: list[Leftover], source: signals.SignalSource, seconds: float) -> bool:
    """Wait until something changes; whether a signal came."""
    poller = select.poll()
    poller.register(source.fileno(), select.POLLIN)
    for one in left:
        poller.register(one.fileno(), select.POLLPRI)
    poller.poll(max(seconds, 0.0) * 1000 + 1)
    return bool(source.read())


def name_survivors(pids: Iterable[int], log: Log) -> None:
    """Say which of these processes, in the cgroup of our own unit, a daemon has left: those of jobs with
    a smaller kill-scope, which have no cgroup. Nobody knows whether they were meant to live on."""
    for pid in pids:
        if pid != os.getpid() and b"\0JOBMON_RUN=" in b"\0" + (procfs.environ(pid) or b""):
            log.write(logfile.WARNING, "lives on from a daemon that is gone", job=_job_of(pid), pid=pid)


def _job_of(pid: int) -> str | None:
    for pair in (procfs.environ(pid) or b"").split(b"\0"):
        if pair.startswith(b"JOBMON_JOB="):
            return pair.partition(b"=")[2].decode(errors="replace")
    return None
